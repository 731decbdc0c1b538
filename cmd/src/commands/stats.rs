//! `garden stats`: what containers and their peas use, again and again or once.
//!
//! Percentages of a CPU are between two measurements, so the first ones are a moment apart.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use garden::client::Client;
use garden::model::{Handle, Metrics};
use serde::Serialize;

use super::{print, print_json};
use crate::reach::Target;
use crate::{streams, table, values};

/// From the first measurement to the second where only one table is wanted.
const MOMENT: Duration = Duration::from_millis(500);

/// Show what containers and their peas use
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  garden stats --no-stream
  garden stats web --no-stream --json")]
pub(crate) struct StatsArgs {
    /// Only these containers
    #[arg(value_name = "NAME", value_parser = values::handle)]
    names: Vec<Handle>,
    /// Once, and end
    #[arg(long)]
    no_stream: bool,
    /// From one table to the next
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = values::duration)]
    interval: Duration,
    /// For programs; with the stream, a line of JSON for each table
    #[arg(long)]
    json: bool,
}

/// One line of the table.
#[derive(Debug, Serialize)]
struct Usage {
    container: Handle,
    /// Absent for the container itself, which counts its peas in, but not those with own limits.
    pea: Option<String>,
    /// Hundredths of one CPU since the last measurement.
    cpu_percent: f64,
    cpu_ns: u64,
    memory_bytes: u64,
    memory_limit_bytes: Option<u64>,
    pids: u64,
    pids_limit: Option<u64>,
    disk_bytes: u64,
    rx_bytes: Option<u64>,
    tx_bytes: Option<u64>,
}

/// What was measured before: processor time by name, and when.
type Before = (Instant, BTreeMap<String, Duration>);

/// Shows it.
pub(crate) async fn run(target: &Target, args: StatsArgs) -> Result<u8> {
    let client = target.server().await?;
    let interrupted = streams::interrupted();
    tokio::pin!(interrupted);
    let (_, mut before) = measure(&client, &args.names, None).await?;
    let clear = std::io::stdout().is_terminal() && !args.json && !args.no_stream;
    loop {
        let pause = if args.no_stream {
            MOMENT
        } else {
            args.interval
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            code = &mut interrupted => return Ok(code),
        }
        let (usage, now) = measure(&client, &args.names, Some(&before)).await?;
        before = now;
        if args.json && args.no_stream {
            print_json(&usage)?;
        } else if args.json {
            print(&format!("{}\n", serde_json::to_string(&usage)?))?;
        } else {
            let home = if clear { "\x1b[H\x1b[J" } else { "" };
            print(&format!("{home}{}", text(&usage)))?;
        }
        if args.no_stream {
            return Ok(0);
        }
    }
}

/// Measures all; without an earlier measurement no percentage is known.
async fn measure(
    client: &Client,
    names: &[Handle],
    before: Option<&Before>,
) -> Result<(Vec<Usage>, Before)> {
    let mut list = client.ps().await?.containers;
    if !names.is_empty() {
        for name in names {
            if !list.iter().any(|container| container.handle == *name) {
                client.info(name).await?;
            }
        }
        list.retain(|container| names.contains(&container.handle));
    }
    let mut wanted: Vec<(Handle, Option<String>, Handle)> = Vec::new();
    for container in &list {
        let handle = &container.handle;
        wanted.push((handle.clone(), None, handle.clone()));
        let peas = container.processes.iter().filter(|process| process.pea);
        wanted.extend(peas.filter_map(|pea| {
            // Peas are measured by their ids, with the same call.
            let id = pea.id.as_str().parse().ok()?;
            Some((handle.clone(), Some(pea.id.to_string()), id))
        }));
    }
    let asked: Vec<Handle> = wanted.iter().map(|(_, _, id)| id.clone()).collect();
    let at = Instant::now();
    let mut measured = BTreeMap::new();
    // A request's line is bounded.
    for some in asked.chunks(100) {
        measured.extend(client.bulk_metrics(some).await?);
    }
    let limits = |handle: &Handle| {
        let client = client.clone();
        let handle = handle.clone();
        async move { client.limits(&handle).await.ok()?.memory_bytes }
    };
    let mut usage = Vec::new();
    let mut times = BTreeMap::new();
    for (container, pea, id) in wanted {
        // One that has ended in between is left out.
        let Some(Ok(metrics)) = measured.get(id.as_str()) else {
            continue;
        };
        times.insert(id.to_string(), metrics.cpu.usage);
        let percent = before.map_or(0.0, |before| percent(before, at, id.as_str(), metrics));
        let limit = match &pea {
            None => limits(&container).await,
            Some(_) => None,
        };
        usage.push(Usage::of(container, pea, metrics, percent, limit));
    }
    Ok((usage, (at, times)))
}

fn percent((then, times): &Before, now: Instant, id: &str, metrics: &Metrics) -> f64 {
    let Some(earlier) = times.get(id) else {
        return 0.0;
    };
    let used = metrics.cpu.usage.saturating_sub(*earlier).as_secs_f64();
    let passed = now.duration_since(*then).as_secs_f64();
    if passed > 0.0 {
        100.0 * used / passed
    } else {
        0.0
    }
}

impl Usage {
    fn of(
        container: Handle,
        pea: Option<String>,
        metrics: &Metrics,
        cpu_percent: f64,
        memory_limit_bytes: Option<u64>,
    ) -> Self {
        Self {
            container,
            pea,
            cpu_percent,
            cpu_ns: u64::try_from(metrics.cpu.usage.as_nanos()).unwrap_or(u64::MAX),
            memory_bytes: metrics.memory_bytes,
            memory_limit_bytes,
            pids: metrics.pids,
            pids_limit: metrics.max_pids,
            disk_bytes: metrics.disk.exclusive_bytes,
            rx_bytes: metrics.network.map(|network| network.rx_bytes),
            tx_bytes: metrics.network.map(|network| network.tx_bytes),
        }
    }
}

fn text(usage: &[Usage]) -> String {
    let of = |used: String, limit: Option<String>| match limit {
        Some(limit) => format!("{used} / {limit}"),
        None => used,
    };
    let rows: Vec<_> = usage
        .iter()
        .map(|line| {
            let name = match &line.pea {
                None => line.container.to_string(),
                Some(pea) => format!("  {pea}"),
            };
            let network = match (line.rx_bytes, line.tx_bytes) {
                (Some(rx), Some(tx)) => format!("{} / {}", table::size(rx), table::size(tx)),
                _ => "-".to_owned(),
            };
            vec![
                name,
                format!("{:.1}%", line.cpu_percent),
                of(
                    table::size(line.memory_bytes),
                    line.memory_limit_bytes.map(table::size),
                ),
                of(
                    line.pids.to_string(),
                    line.pids_limit.map(|limit| limit.to_string()),
                ),
                table::size(line.disk_bytes),
                network,
            ]
        })
        .collect();
    let heading = ["NAME", "CPU", "MEMORY", "PIDS", "WRITTEN", "NET IN / OUT"];
    table::format(&heading, &rows)
}
