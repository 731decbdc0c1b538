//! `garden top`: every process inside a container, as the host's kernel lists them.
//!
//! By the cgroups of the container's own processes, so only for a server of this host.

use std::collections::HashSet;
use std::fs;

use anyhow::{Result, bail};
use clap::Args;
use garden::model::Handle;
use serde::Serialize;

use super::{print, print_json, ps};
use crate::reach::Target;
use crate::{table, values};

/// List every process inside a container, those that it started itself included
#[derive(Debug, Args)]
#[command(after_help = "Example:
  garden top web")]
pub(crate) struct TopArgs {
    /// The container
    #[arg(value_name = "NAME", value_parser = values::handle)]
    name: Handle,
    /// For programs
    #[arg(long)]
    json: bool,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Running {
    pid: u32,
    parent: u32,
    user: u32,
    state: char,
    cpu_ms: u64,
    resident_bytes: u64,
    /// The process or pea of Garden's that it is, if it is one itself.
    id: Option<String>,
    command: String,
}

/// Lists them.
pub(crate) async fn run(target: &Target, args: &TopArgs) -> Result<u8> {
    let client = target.server().await?;
    let container = ps::one(&client, &args.name).await?;
    let known = container.processes;
    if known.is_empty() {
        if args.json {
            return print_json(&[(); 0]).map(|()| 0);
        }
        bail!(
            "nothing runs in {}: start something with `garden exec`",
            args.name
        );
    }
    let groups: HashSet<String> = known.iter().filter_map(|p| group(p.pid)).collect();
    if groups.is_empty() {
        bail!(
            "the processes of {} cannot be seen from here: run this on the server's host, as root",
            args.name
        );
    }
    let mut all: Vec<Running> = pids()
        .filter(|pid| group(*pid).is_some_and(|own| groups.contains(&own)))
        .filter_map(|pid| {
            let named = known.iter().find(|process| process.pid == pid);
            read(pid, named.map(|process| process.id.to_string()))
        })
        .collect();
    all.sort_by_key(|running| running.pid);
    if args.json {
        print_json(&all)?;
    } else {
        print(&text(&all))?;
    }
    Ok(0)
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// What a process's groups are called in all hierarchies. A host's own groups would be everybody's.
fn group(pid: u32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let longest = paths.max_by_key(|path| path.len())?;
    (longest.len() > 1).then(|| longest.to_owned())
}

fn read(pid: u32, id: Option<String>) -> Option<Running> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    parse(pid, &stat, &status, &arguments, id)
}

fn parse(
    pid: u32,
    stat: &str,
    status: &str,
    arguments: &[u8],
    id: Option<String>,
) -> Option<Running> {
    // The name in brackets may itself have any brackets and spaces.
    let (front, rest) = stat.rsplit_once(')')?;
    let name = front.split_once('(')?.1;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let user = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))?
        .split_whitespace()
        .next()?;
    let words = arguments.split(|byte| *byte == 0).filter(|w| !w.is_empty());
    // What a container calls itself must not steer a terminal.
    let command: Vec<String> = words
        .map(|word| String::from_utf8_lossy(word).replace(char::is_control, "?"))
        .collect();
    let ticks = rustix::param::clock_ticks_per_second();
    Some(Running {
        pid,
        parent: u32::try_from(number(1)?).ok()?,
        user: user.parse().ok()?,
        state: fields.first()?.chars().next()?,
        cpu_ms: (number(11)? + number(12)?) * 1000 / ticks.max(1),
        resident_bytes: number(21)? * rustix::param::page_size() as u64,
        id,
        command: if command.is_empty() {
            format!("[{}]", name.replace(char::is_control, "?"))
        } else {
            command.join(" ")
        },
    })
}

fn text(all: &[Running]) -> String {
    let rows: Vec<_> = all
        .iter()
        .map(|running| {
            let (seconds, hundredths) = (running.cpu_ms / 1000, running.cpu_ms % 1000 / 10);
            vec![
                running.pid.to_string(),
                running.parent.to_string(),
                running.user.to_string(),
                running.state.to_string(),
                format!("{seconds}.{hundredths:02}"),
                table::size(running.resident_bytes),
                running.id.clone().unwrap_or_else(|| "-".to_owned()),
                running.command.clone(),
            ]
        })
        .collect();
    let heading = [
        "PID", "PARENT", "UID", "S", "CPU s", "MEMORY", "ID", "COMMAND",
    ];
    table::format(&heading, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_have_any_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 1 0 9 100 2 18446744073709551615";
        let status = "Name:\tx\nUid:\t100000\t100000\t100000\t100000\n";
        let running = parse(7, stat, status, b"sh\0-c\0\x1b[31m\0", None).unwrap();
        assert_eq!(
            (running.parent, running.state, running.user),
            (1, 'S', 100_000)
        );
        assert_eq!(running.command, "sh -c ?[31m");
        let kernel = parse(7, stat, status, b"", None).unwrap();
        assert_eq!(kernel.command, "[a) b (c]");
    }
}
