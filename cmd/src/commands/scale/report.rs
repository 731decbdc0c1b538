//! What `scale` shows: a table, a waterfall, or JSON.
//!
//! Pure functions of the spans: they return text, and the verb prints it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::stages::{Figures, Span, Stage, milliseconds};

/// Characters of a waterfall's bar for the whole run.
const WIDTH: usize = 64;

/// The figures of a run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// What was asked for, for a reader who has only this.
    pub(super) setting: Setting,
    /// From the first create to the last instance being healthy.
    pub(super) total_ms: f64,
    /// Figures of each stage that took place.
    pub(super) stages: BTreeMap<&'static str, Figures>,
    /// Checks that ran, successful ones included.
    pub(super) checks: usize,
    #[serde(skip)]
    spans: Vec<Span>,
}

/// The flags that decide what is measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Setting {
    pub(super) instances: usize,
    pub(super) app_mb: usize,
    pub(super) mode: &'static str,
    pub(super) teardown: &'static str,
    pub(super) unmount: &'static str,
    pub(super) disk_mbps: Option<u64>,
}

impl Report {
    /// Sums the spans up.
    pub(super) fn new(setting: Setting, spans: Vec<Span>, checks: usize) -> Self {
        let of = |stage| spans.iter().filter(move |span| span.stage == stage);
        let stages = Stage::ALL
            .iter()
            .filter_map(|stage| {
                let figures = Figures::of(of(*stage).map(Span::length))?;
                Some((stage.name(), figures))
            })
            .collect();
        let healthy = of(Stage::Check).map(|span| span.end).max();
        Self {
            setting,
            total_ms: milliseconds(healthy.unwrap_or_default()),
            stages,
            checks,
            spans,
        }
    }

    /// The table of stages, with the waterfall below it.
    pub(super) fn text(&self) -> String {
        let mut text = self.heading();
        let _ = writeln!(
            text,
            "\n{:<14} {:>10} {:>10} {:>10} {:>4}",
            "stage", "median ms", "min ms", "max ms", "n"
        );
        for stage in Stage::ALL {
            if let Some(figures) = self.stages.get(stage.name()) {
                let _ = writeln!(
                    text,
                    "{:<14} {:>10.2} {:>10.2} {:>10.2} {:>4}",
                    stage.name(),
                    figures.median_ms,
                    figures.min_ms,
                    figures.max_ms,
                    figures.n
                );
            }
        }
        let _ = writeln!(text, "\nall healthy after {:.0} ms\n", self.total_ms);
        text.push_str(&self.waterfall());
        text
    }

    fn heading(&self) -> String {
        let setting = &self.setting;
        let disk = setting.disk_mbps.map_or_else(
            || "unlimited disk".to_owned(),
            |speed| format!("disk limited to {speed} MB/s"),
        );
        format!(
            "{} instances, {} MB by {}, teardown {}, unmount {}, {disk}\n",
            setting.instances, setting.app_mb, setting.mode, setting.teardown, setting.unmount
        )
    }

    /// One line per instance: which stage it was in at each moment. `exit_to_reply` and `teardown`
    /// run beside the stages of a line and are in the table only.
    fn waterfall(&self) -> String {
        let end = self.spans.iter().map(|span| span.end).max();
        let Some(end) = end.filter(|end| !end.is_zero()) else {
            return String::new();
        };
        let mut text = format!(
            "from 0 to {:.0} ms: c create, s stream, r run, h health checks, d destroy\n",
            milliseconds(end)
        );
        for instance in 0..self.setting.instances {
            let own = self.spans.iter().filter(|span| span.instance == instance);
            let _ = writeln!(text, "{instance:>3} {}", line(own, end));
        }
        text
    }
}

fn line<'s>(spans: impl Iterator<Item = &'s Span>, end: Duration) -> String {
    let column = |time: Duration| {
        let share = time.as_secs_f64() / end.as_secs_f64();
        ((share * WIDTH as f64) as usize).min(WIDTH - 1)
    };
    let mut line = vec![b' '; WIDTH];
    for span in spans {
        if let Some(letter) = letter(span.stage) {
            line[column(span.start)..=column(span.end)].fill(letter);
        }
    }
    String::from_utf8_lossy(&line).trim_end().to_owned()
}

fn letter(stage: Stage) -> Option<u8> {
    match stage {
        Stage::Create => Some(b'c'),
        Stage::Stream => Some(b's'),
        Stage::Run => Some(b'r'),
        Stage::Check => Some(b'h'),
        Stage::Destroy => Some(b'd'),
        Stage::ExitToReply | Stage::Teardown => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(instance: usize, stage: Stage, start: u64, end: u64) -> Span {
        Span {
            instance,
            stage,
            start: Duration::from_millis(start),
            end: Duration::from_millis(end),
        }
    }

    #[test]
    fn a_report_in_every_form() {
        let setting = Setting {
            instances: 2,
            app_mb: 10,
            mode: "stream",
            teardown: "async",
            unmount: "volatile",
            disk_mbps: Some(100),
        };
        let spans = vec![
            span(0, Stage::Create, 0, 10),
            span(1, Stage::Create, 0, 20),
            span(0, Stage::Check, 10, 50),
            span(1, Stage::Check, 20, 60),
            span(0, Stage::Destroy, 60, 100),
        ];
        let report = Report::new(setting, spans, 3);
        assert_eq!(report.total_ms, 60.0);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["stages"]["create"]["median_ms"], 15.0);
        assert_eq!(json["stages"]["check"]["n"], 2);
        assert_eq!(json["setting"]["disk_mbps"], 100);
        assert!(json["stages"].get("stream").is_none());
        let text = report.text();
        assert!(text.contains("all healthy after 60 ms"));
        let bars: Vec<_> = text.lines().rev().take(2).collect();
        assert!(bars[1].starts_with("  0 cccccch"), "{text}");
        assert!(bars[0].starts_with("  1 cccccccccccch"), "{text}");
    }
}
