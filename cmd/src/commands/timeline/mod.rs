//! `garden timeline`: a container's life and its sidecars' as a waterfall, also when it is over.
//!
//! Rows come from `rows.rs`, a picture from `svg.rs`; the server only keeps lines.

mod rows;
mod svg;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use clap::Args;
use garden::model::Handle;
use garden::timeline::Timeline;
use rustix::stdio::stdout;
use rustix::termios::tcgetwinsize;

use self::rows::{Axis, Row, duration};
use super::{print, print_json};
use crate::colour::{self, Tone};
use crate::reach::Target;
use crate::{streams, values};

/// From one look to the next with --follow.
const PAUSE: Duration = Duration::from_millis(500);
/// Looks without news after which a container that is gone has no more to tell.
const QUIET_LOOKS: u32 = 4;
/// Columns where no terminal has a say.
const USUAL_WIDTH: usize = 100;

/// Show what happened to a container and how long each step took, also when it is gone
#[derive(Debug, Args)]
#[command(
    after_help = "Long times in which nothing happens are drawn short; the numbers are exact.

Examples:
  garden timeline web
  garden timeline web --svg web.svg
  garden timeline web --json"
)]
pub(crate) struct TimelineArgs {
    /// The container
    #[arg(value_name = "NAME", value_parser = values::handle)]
    name: Handle,
    /// Write a picture into this file instead
    #[arg(long, value_name = "FILE", conflicts_with_all = ["json", "follow"])]
    svg: Option<PathBuf>,
    /// Draw true to scale
    #[arg(long)]
    linear: bool,
    /// Go on until the container is gone
    #[arg(long, short)]
    follow: bool,
    /// For programs; with --follow, again and again, a line each
    #[arg(long)]
    json: bool,
}

/// Shows it.
pub(crate) async fn run(target: &Target, args: &TimelineArgs) -> Result<u8> {
    let client = target.server().await?;
    let interrupted = streams::interrupted();
    tokio::pin!(interrupted);
    let (mut before, mut quiet) = (Timeline::default(), 0);
    loop {
        let timeline = client.timeline(&args.name).await?;
        let news = timeline != before;
        if news || args.follow && !timeline.is_over() && std::io::stdout().is_terminal() {
            show(&timeline, args)?;
        }
        quiet = if news { 0 } else { quiet + 1 };
        if !args.follow || timeline.is_over() && quiet >= QUIET_LOOKS {
            return Ok(0);
        }
        before = timeline;
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            code = &mut interrupted => return Ok(code),
        }
    }
}

fn show(timeline: &Timeline, args: &TimelineArgs) -> Result<()> {
    if args.json && args.follow {
        return print(&format!("{}\n", serde_json::to_string(timeline)?));
    }
    if args.json {
        return print_json(timeline);
    }
    let rows = rows::rows(timeline, now_us());
    let axis = Axis::new(&rows, args.linear);
    if let Some(file) = &args.svg {
        let picture = svg::draw(args.name.as_str(), &rows, &axis);
        return std::fs::write(file, picture)
            .with_context(|| format!("cannot write {}", file.display()));
    }
    let terminal = std::io::stdout().is_terminal();
    let width = tcgetwinsize(stdout()).ok().filter(|_| terminal);
    let width = width.map_or(USUAL_WIDTH, |size| usize::from(size.ws_col).max(60));
    let home = if terminal && args.follow {
        "\x1b[H\x1b[J"
    } else {
        ""
    };
    print(&format!("{home}{}", text(&rows, &axis, width)))
}

fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_micros()).unwrap_or(u64::MAX)
}

/// The name of a row. Of a generated name the first part is enough.
fn label(row: &Row) -> String {
    match &row.process {
        Some(process)
            if process.len() == 36 && process.bytes().filter(|b| *b == b'-').count() == 4 =>
        {
            format!("{}: {}", process.get(..8).unwrap_or_default(), row.step)
        }
        Some(process) => format!("{process}: {}", row.step),
        None => row.step.clone(),
    }
}

/// When, how long and how, in words.
fn told(row: &Row, start: u64) -> String {
    let mut text = format!("at {}", duration(row.from_us.saturating_sub(start)));
    if !row.moment {
        text.push_str(", ");
        text.push_str(&duration(row.to_us.saturating_sub(row.from_us)));
        if row.open {
            text.push_str(" so far");
        }
    }
    if !row.detail.is_empty() {
        text.push_str(", ");
        text.push_str(&row.detail);
    }
    text
}

fn text(rows: &[Row], axis: &Axis, width: usize) -> String {
    let start = rows.first().map_or(0, |row| row.from_us);
    let cut = |text: String, most: usize| match text.char_indices().nth(most) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text,
    };
    let labels: Vec<String> = rows.iter().map(|row| cut(label(row), 30)).collect();
    let widest = labels.iter().map(|l| l.chars().count()).max().unwrap_or(0);
    let room = width.saturating_sub(widest + 25).max(10);
    let mut text = String::new();
    for (row, label) in rows.iter().zip(&labels) {
        let at = duration(row.from_us.saturating_sub(start));
        let took = match row.moment {
            true => String::new(),
            false => duration(row.to_us.saturating_sub(row.from_us)),
        };
        let bar = bar(row, axis, room);
        text.push_str(format!("{label:<widest$} {at:>10} {took:>10}  {bar}").trim_end());
        if !row.detail.is_empty() {
            // A check's output is part of it, and must not steer a terminal.
            let detail = row.detail.replace(char::is_control, "?");
            text.push_str(&format!(" {}", cut(detail, 40)));
        }
        text.push('\n');
    }
    text
}

fn bar(row: &Row, axis: &Axis, room: usize) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "a place between 0 and the width of a terminal"
    )]
    let column = |time| (axis.place(time) * (room - 1) as f64).round() as usize;
    let (from, to) = (column(row.from_us), column(row.to_us));
    let tone = match row.step.as_str() {
        "process" | "pea" => Tone::Good,
        step if step.starts_with("teardown") => Tone::Odd,
        _ => Tone::Faint,
    };
    let body = match (row.moment, row.open) {
        (true, _) => "◆".to_owned(),
        (false, false) => "█".repeat(to - from + 1),
        (false, true) => format!("{}▶", "█".repeat(to - from)),
    };
    format!("{}{}", " ".repeat(from), colour::paint(&body, tone))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waterfall_has_a_line_for_each_row() {
        let row = |step: &str, from_us, to_us| Row {
            step: step.into(),
            process: None,
            from_us,
            to_us,
            open: false,
            moment: from_us == to_us,
            detail: String::new(),
        };
        let rows = [
            row("create", 0, 20_000),
            row("rootfs", 1000, 9000),
            row("destroyed", 30_000, 30_000),
        ];
        let shown = text(&rows, &Axis::new(&rows, true), 64);
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(
            lines[0].starts_with("create          0 µs    20.0 ms  ██"),
            "{shown}"
        );
        assert!(lines[2].ends_with('◆'), "{shown}");
        assert!(
            lines.iter().all(|line| line.chars().count() <= 64),
            "{shown}"
        );
    }
}
