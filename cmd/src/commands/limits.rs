//! `garden limits`: what a container may use, told and changed while it runs.

use anyhow::Result;
use clap::Args;
use garden::model::{Handle, Limits, LimitsChange, LimitsInForce};

use super::{print, print_json};
use crate::reach::Target;
use crate::{table, values};

/// Show the limits of a container, or change them while it runs
#[derive(Debug, Args)]
#[command(after_help = "Example:
  garden limits web --memory 128M --cpus 1.5 --pids 0")]
pub(crate) struct LimitsArgs {
    /// The container
    #[arg(value_name = "NAME", value_parser = values::handle)]
    name: Handle,
    /// Most memory, like 64M; 0 for any
    #[arg(long, short, value_name = "SIZE", value_parser = size_or_none)]
    memory: Option<u64>,
    /// Most processes and threads; 0 for any
    #[arg(long, value_name = "N")]
    pids: Option<u64>,
    /// Share of the CPU beside other containers, 2 to 262144; 0 for the default
    #[arg(long, value_name = "N")]
    cpu_shares: Option<u64>,
    /// Most CPU time, like 1.5 for one and a half CPUs; 0 for any
    #[arg(long, value_name = "N", value_parser = values::cpus_or_none)]
    cpus: Option<u64>,
    /// Share of the disks beside other containers, 10 to 1000; 0 for the default
    #[arg(long, value_name = "N")]
    io_weight: Option<u64>,
    /// Most bytes a second read from each disk; 0 for any
    #[arg(long, value_name = "SIZE", value_parser = size_or_none)]
    io_read: Option<u64>,
    /// Most bytes a second written to each disk; 0 for any
    #[arg(long, value_name = "SIZE", value_parser = size_or_none)]
    io_write: Option<u64>,
    /// For programs
    #[arg(long)]
    json: bool,
}

/// Limits on CPU and disks, of containers and of peas with limits of their own.
#[derive(Debug, Args)]
pub(crate) struct ShareArgs {
    /// Share of the CPU beside others, 2 to 262144 [default: 1024]
    #[arg(long, value_name = "N")]
    cpu_shares: Option<u64>,
    /// Most CPU time, like 1.5 for one and a half CPUs
    #[arg(long, value_name = "N", value_parser = values::cpus)]
    cpus: Option<u64>,
    /// Share of the disks beside others, 10 to 1000
    #[arg(long, value_name = "N")]
    io_weight: Option<u64>,
    /// Most bytes a second read from each disk
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    io_read: Option<u64>,
    /// Most bytes a second written to each disk
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    io_write: Option<u64>,
}

impl ShareArgs {
    /// Whether any is given.
    pub(crate) fn any(&self) -> bool {
        self.cpu_shares.is_some()
            || self.cpus.is_some()
            || self.io_weight.is_some()
            || self.io_read.is_some()
            || self.io_write.is_some()
    }

    /// Adds them to other limits.
    pub(crate) fn add_to(&self, limits: Limits) -> Limits {
        let mut io = limits.io;
        io.weight = self.io_weight;
        io.read_bps = self.io_read;
        io.write_bps = self.io_write;
        Limits {
            cpu_shares: self.cpu_shares,
            cpu_millis: self.cpus,
            io,
            ..limits
        }
    }
}

fn size_or_none(text: &str) -> Result<u64, String> {
    if text == "0" {
        return Ok(0);
    }
    values::size(text)
}

/// Does it.
pub(crate) async fn run(target: &Target, args: &LimitsArgs) -> Result<u8> {
    let client = target.server().await?;
    let change = LimitsChange {
        memory_bytes: args.memory,
        pids: args.pids,
        cpu_shares: args.cpu_shares,
        cpu_millis: args.cpus,
        io_weight: args.io_weight,
        io_read_bps: args.io_read,
        io_write_bps: args.io_write,
        ..LimitsChange::default()
    };
    let limits = if change.is_empty() {
        client.limits_in_force(&args.name).await?
    } else {
        client.change_limits(&args.name, &change).await?
    };
    if args.json {
        print_json(&limits)?;
    } else {
        print(&text(&limits))?;
    }
    Ok(0)
}

fn text(all: &LimitsInForce) -> String {
    let limits = &all.limits;
    let number = |value: Option<u64>| value.map(|value| value.to_string());
    let bytes = |value: Option<u64>| value.map(table::size);
    let rate = |value| bytes(value).map(|size| format!("{size}/s"));
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let cpus = limits
        .cpu_millis
        .map(|millis| (millis as f64 / 1000.0).to_string());
    let shares = limits.cpu_shares.map(|shares| {
        let lowered = if all.throttled {
            ", lowered: over its entitlement"
        } else {
            ""
        };
        format!("{shares}{lowered}")
    });
    let mut rows = vec![
        ("memory", bytes(limits.memory_bytes)),
        ("pids", number(limits.pids)),
        ("cpu shares", shares),
        ("cpus", cpus),
        ("io weight", number(limits.io.weight)),
        ("io read", rate(limits.io.read_bps)),
        ("io write", rate(limits.io.write_bps)),
    ];
    rows.retain(|(_, value)| value.is_some());
    let mut text: String = rows
        .iter()
        .map(|(name, value)| format!("{name:<12}{}\n", value.as_deref().unwrap_or_default()))
        .collect();
    if text.is_empty() {
        text.push_str("no limits\n");
    }
    text.push_str("in the kernel:\n");
    for (file, value) in all.kernel.iter().filter(|(_, value)| !value.is_empty()) {
        text.push_str(&format!("  {file}: {}\n", value.replace('\n', ", ")));
    }
    text
}
