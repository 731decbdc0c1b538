//! What a person sees while an image is fetched: a line with a bar for each layer, on a terminal.
//!
//! Drawn on standard error, so that a result on standard output stays one. Where standard error is
//! no terminal there is nothing until the end: a log has no use for bars.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::Duration;

use garden::model::{PullProgress, PullStage, PulledImage};
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Layers that have a line; the others are in the last one. A terminal is not endless.
const MOST_LINES: usize = 20;

/// Bars of one image.
pub(crate) struct Bars {
    all: MultiProgress,
    lines: HashMap<usize, ProgressBar>,
    total: usize,
    done: usize,
    summary: Option<ProgressBar>,
}

/// Whether a person looks at standard error.
pub(crate) fn is_watched(quiet: bool) -> bool {
    !quiet && std::io::stderr().is_terminal()
}

impl Bars {
    /// Bars for somebody who looks, or none.
    pub(crate) fn new(watched: bool) -> Self {
        let target = if watched {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        Self {
            all: MultiProgress::with_draw_target(target),
            lines: HashMap::new(),
            total: 0,
            done: 0,
            summary: None,
        }
    }

    /// Shows what happened.
    pub(crate) fn show(&mut self, event: &PullProgress) {
        match event {
            PullProgress::Layers { total } => {
                self.total = *total;
                let summary = self.all.add(ProgressBar::new(*total as u64));
                summary.set_style(style("{msg}"));
                self.summary = Some(summary);
                self.tell();
            }
            PullProgress::Layer {
                index,
                digest,
                stage,
                bytes,
                of,
            } => self.layer(*index, digest, *stage, *bytes, *of),
        }
    }

    fn layer(&mut self, index: usize, digest: &str, stage: PullStage, bytes: u64, of: u64) {
        if matches!(stage, PullStage::Done | PullStage::Cached) {
            self.done += 1;
            self.tell();
        }
        if !self.lines.contains_key(&index) {
            if self.lines.len() >= MOST_LINES {
                return;
            }
            let line = self.all.insert(self.lines.len(), ProgressBar::new(of));
            line.set_prefix(short(digest));
            self.lines.insert(index, line);
        }
        let Some(line) = self.lines.get(&index) else {
            return;
        };
        line.set_length(of.max(bytes));
        line.set_position(bytes);
        match stage {
            PullStage::Waiting => {
                line.set_style(style("{prefix}  {msg}"));
                line.set_message("waiting");
            }
            PullStage::Downloading if of > 0 => line.set_style(style(
                "{prefix}  [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
            )),
            PullStage::Downloading => line.set_style(style("{prefix}  {bytes}, {bytes_per_sec}")),
            PullStage::Unpacking => {
                line.set_style(style("{prefix}  [{bar:30}] {msg}"));
                line.set_message("unpacking");
            }
            PullStage::Done => finish(line, format!("{}", HumanBytes(bytes))),
            PullStage::Cached => finish(line, "is there already".to_owned()),
        }
        line.tick();
    }

    fn tell(&self) {
        if let Some(summary) = &self.summary {
            summary.set_message(format!("{} of {} layers", self.done, self.total));
            summary.tick();
        }
    }

    /// Removes the bars: what comes after them has the screen to itself.
    pub(crate) fn clear(self) {
        // Each by itself: a finished bar that is only dropped is drawn once more.
        for line in self.lines.values().chain(&self.summary) {
            line.finish_and_clear();
        }
        let _ = self.all.clear();
    }
}

fn finish(line: &ProgressBar, message: String) {
    line.set_style(style("{prefix}  {msg}"));
    line.finish_with_message(message);
}

fn style(template: &str) -> ProgressStyle {
    // The templates are the constants above; without one, a bar is still a bar.
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

/// Enough of a digest to tell layers apart.
fn short(digest: &str) -> String {
    let hex = digest.rsplit(':').next().unwrap_or(digest);
    hex.get(..12).unwrap_or(hex).to_owned()
}

/// The last word about an image.
pub(crate) fn summary(image: &PulledImage, took: Duration) -> String {
    let layers = match image.layers {
        1 => "1 layer".to_owned(),
        layers => format!("{layers} layers"),
    };
    format!(
        "{}: {layers}, {}, {:.1} s",
        image.source,
        HumanBytes(image.bytes),
        took.as_secs_f64()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_has_its_place() {
        let mut bars = Bars::new(false);
        bars.show(&PullProgress::Layers { total: 30 });
        for index in 0..30 {
            for stage in [
                PullStage::Waiting,
                PullStage::Downloading,
                PullStage::Unpacking,
                PullStage::Done,
            ] {
                bars.show(&PullProgress::Layer {
                    index,
                    digest: format!("sha256:{index:064}"),
                    stage,
                    bytes: 5,
                    of: if index % 2 == 0 { 0 } else { 10 },
                });
            }
        }
        assert_eq!((bars.done, bars.lines.len()), (30, MOST_LINES));
        bars.clear();
    }

    #[test]
    fn the_last_word() {
        let image = PulledImage {
            id: String::new(),
            source: "docker://x/y:z".to_owned(),
            layers: 1,
            bytes: 3 << 20,
        };
        let text = summary(&image, Duration::from_millis(1234));
        assert_eq!(text, "docker://x/y:z: 1 layer, 3.00 MiB, 1.2 s");
        assert_eq!(short("sha256:0123456789abcdef"), "0123456789ab");
    }
}
