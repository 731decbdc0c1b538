//! `garden logs`: what was kept of the output of processes that nobody follows.
//!
//! Kept for what `run -d`, `start`, `up` and `pea run -d` start; the last of it, a mebibyte for each
//! process, for as long as the container exists. Not for `exec -d`, as in docker: its output waits
//! for `garden attach`.

use std::io::Write as _;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use garden::client::{Client, LogLines};
use garden::logs::LogLine;
use garden::model::{Handle, ProcessId};

use super::{MAIN, print};
use crate::reach::Target;
use crate::{streams, table, values};

/// Show what a process in the background has written
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  garden logs db
  garden logs --tail 10 -t db main
  garden logs --list db")]
pub(crate) struct LogsArgs {
    /// The container
    #[arg(value_name = "NAME", value_parser = values::handle)]
    name: Handle,
    /// The process or pea [default: main, or the last one that was started]
    #[arg(value_name = "ID", value_parser = values::process_id)]
    process: Option<ProcessId>,
    /// Go on with what it will write
    #[arg(long, short)]
    follow: bool,
    /// Only so many of the last lines
    #[arg(long, short = 'n', value_name = "N")]
    tail: Option<usize>,
    /// The time in front of each piece
    #[arg(long, short)]
    timestamps: bool,
    /// List the processes whose output is kept
    #[arg(long)]
    list: bool,
    /// For programs: a line of JSON for each piece
    #[arg(long)]
    json: bool,
}

/// Shows it: standard output on standard output, standard error on standard error.
pub(crate) async fn run(target: &Target, args: LogsArgs) -> Result<u8> {
    let client = target.server().await?;
    if args.list {
        return list(&client, &args).await;
    }
    let process = match &args.process {
        Some(process) => process.clone(),
        None => newest(&client, &args.name).await?,
    };
    let read = read(&client, &args, &process);
    tokio::select! {
        code = read => code,
        code = streams::interrupted() => Ok(code),
    }
}

async fn read(client: &Client, args: &LogsArgs, process: &ProcessId) -> Result<u8> {
    if let Some(most) = args.tail {
        // What is there now is bounded; what comes after it is told by the times.
        let past = all(client.log(&args.name, process, false).await?).await?;
        let shown = past.len();
        for line in last_lines(past, most) {
            show(&line, args)?;
        }
        if args.follow {
            let mut lines = client.log(&args.name, process, true).await?;
            let mut skip = shown;
            loop {
                let more = lines.next().await?;
                if more.is_empty() {
                    return Ok(0);
                }
                let known = skip.min(more.len());
                skip -= known;
                for line in more.iter().skip(known) {
                    show(line, args)?;
                }
            }
        }
        return Ok(0);
    }
    let mut lines = client.log(&args.name, process, args.follow).await?;
    loop {
        let more = lines.next().await?;
        if more.is_empty() {
            return Ok(0);
        }
        for line in &more {
            if !show(line, args)? {
                return Ok(0);
            }
        }
    }
}

async fn all(mut lines: LogLines) -> Result<Vec<LogLine>> {
    let mut all = Vec::new();
    loop {
        let more = lines.next().await?;
        if more.is_empty() {
            return Ok(all);
        }
        all.extend(more);
    }
}

/// The process whose output is meant when nobody says which.
async fn newest(client: &Client, name: &Handle) -> Result<ProcessId> {
    let logs = client.logs(name).await?;
    let main = logs.iter().find(|log| log.process.as_str() == MAIN);
    match main.or(logs.last()) {
        Some(log) => Ok(log.process.clone()),
        None => bail!(
            "no output is kept in {name}: it is of what `garden run -d`, `start`, `up` and \
             `pea run -d` start"
        ),
    }
}

async fn list(client: &Client, args: &LogsArgs) -> Result<u8> {
    let logs = client.logs(&args.name).await?;
    if args.json {
        return super::print_json(&logs).map(|()| 0);
    }
    let rows: Vec<_> = logs
        .iter()
        .map(|log| {
            vec![
                log.process.to_string(),
                if log.pea { "pea" } else { "process" }.to_owned(),
                if log.over { "ended" } else { "running" }.to_owned(),
            ]
        })
        .collect();
    print(&table::format(&["ID", "KIND", "STATE"], &rows))?;
    Ok(0)
}

/// The pieces that make up the last lines; the first of them is cut.
fn last_lines(mut pieces: Vec<LogLine>, most: usize) -> Vec<LogLine> {
    let mut wanted = most;
    // The end of the last line is no line that begins behind it.
    let mut last = true;
    for index in (0..pieces.len()).rev() {
        let Some(piece) = pieces.get_mut(index) else {
            break;
        };
        let bytes = piece.bytes();
        let end = bytes.len() - usize::from(last && bytes.ends_with(b"\n"));
        last = last && bytes.is_empty();
        let mut ends = (0..end).rev().filter(|at| bytes.get(*at) == Some(&b'\n'));
        match ends.by_ref().nth(wanted.saturating_sub(1)) {
            Some(cut) if wanted > 0 => {
                let rest = bytes.get(cut + 1..).unwrap_or_default();
                piece.text = Some(String::from_utf8_lossy(rest).into_owned());
                piece.base64 = None;
                return pieces.split_off(index);
            }
            _ if wanted == 0 => return Vec::new(),
            _ => {
                let ends = (0..end).filter(|at| bytes.get(*at) == Some(&b'\n'));
                wanted -= ends.count();
            }
        }
    }
    pieces
}

/// Shows a piece; `false` when nobody looks any more.
fn show(line: &LogLine, args: &LogsArgs) -> Result<bool> {
    if args.json {
        print(&format!("{}\n", serde_json::to_string(line)?))?;
        return Ok(true);
    }
    let mut bytes = Vec::new();
    if args.timestamps {
        bytes.extend(super::events::time(line.time_ms).into_bytes());
        bytes.push(b' ');
    }
    bytes.extend(line.bytes());
    let written = if line.stream == "stderr" {
        std::io::stderr().lock().write_all(&bytes)
    } else {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(&bytes).and_then(|()| stdout.flush())
    };
    match written {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true).context("cannot print the log"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(texts: &[&str]) -> Vec<LogLine> {
        let piece = |text: &&str| LogLine {
            time_ms: 0,
            stream: "stdout".into(),
            text: Some((*text).to_owned()),
            base64: None,
        };
        texts.iter().map(piece).collect()
    }

    fn tail(texts: &[&str], most: usize) -> String {
        let lines = last_lines(pieces(texts), most);
        lines.into_iter().filter_map(|line| line.text).collect()
    }

    #[test]
    fn the_last_lines_are_found_whatever_the_pieces() {
        assert_eq!(tail(&["a\nb\nc\n"], 2), "b\nc\n");
        assert_eq!(tail(&["a\nb", "b\nc\n"], 2), "bb\nc\n");
        assert_eq!(tail(&["a\n", "b\n", "c"], 2), "b\nc");
        assert_eq!(tail(&["a\n", "b\n"], 1), "b\n");
        assert_eq!(tail(&["a\n", "b\n"], 9), "a\nb\n");
        assert_eq!(tail(&["a\n", "b\n"], 0), "");
    }
}
