//! `garden inspect`: everything a server tells of one container.

use anyhow::{Result, bail};
use clap::Args;
use garden::checks::HealthStatus;
use garden::model::{DiskLimit, DiskMetrics, DiskScope, Handle};
use serde::Serialize;

use super::{print, print_json};
use crate::reach::Target;
use crate::{table, values};

/// Show one container
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  garden inspect web
  garden inspect web --json")]
pub(crate) struct InspectArgs {
    /// The container
    #[arg(value_name = "NAME", value_parser = values::handle)]
    name: Handle,
    /// For programs
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Shown {
    handle: Handle,
    age_ms: u64,
    image: String,
    privileged: bool,
    processes: Vec<garden::model::ProcessInfo>,
    #[serde(flatten)]
    info: garden::client::Info,
    disk: DiskMetrics,
    disk_limit: Option<DiskLimit>,
    health: HealthStatus,
}

/// Shows it.
pub(crate) async fn run(target: &Target, args: &InspectArgs) -> Result<u8> {
    let client = target.server().await?;
    let info = client.info(&args.name).await?;
    let metrics = client.metrics(&args.name).await?;
    let limits = client.limits(&args.name).await?;
    let list = client.ps().await?;
    let health = client.health(&args.name).await?;
    let found = list
        .containers
        .into_iter()
        .find(|container| container.handle == args.name);
    let Some(container) = found else {
        bail!("unknown handle: {}", args.name)
    };
    let shown = Shown {
        handle: container.handle,
        age_ms: container.age_ms,
        image: container.image,
        privileged: container.privileged,
        processes: container.processes,
        info,
        disk: metrics.disk,
        disk_limit: limits.disk,
        health,
    };
    if args.json {
        print_json(&shown)?;
    } else {
        print(&text(&shown))?;
    }
    Ok(0)
}

fn text(shown: &Shown) -> String {
    let mut facts = vec![
        ("name", shown.handle.to_string()),
        ("state", shown.info.state.clone()),
        ("age", table::age(shown.age_ms)),
        ("image", shown.image.clone()),
        ("privileged", shown.privileged.to_string()),
        ("directory", shown.info.path.display().to_string()),
        ("disk", disk(&shown.disk)),
    ];
    facts.extend(
        shown
            .disk_limit
            .map(|limit| ("disk limit", disk_limit(&limit))),
    );
    facts.extend(
        shown
            .info
            .events
            .iter()
            .map(|event| ("event", event.clone())),
    );
    if shown.health.state.is_some() {
        facts.extend(super::health::facts(&shown.health));
    }
    facts.extend(shown.processes.iter().map(|process| {
        let kind = if process.pea { "pea" } else { "process" };
        (
            kind,
            format!("{} (pid {}): {}", process.id, process.pid, process.path),
        )
    }));
    facts
        .iter()
        .map(|(name, value)| format!("{name:<11}{value}\n"))
        .collect()
}

fn disk(used: &DiskMetrics) -> String {
    format!(
        "{} in {} files written, {} with the image",
        table::size(used.exclusive_bytes),
        used.exclusive_inodes,
        table::size(used.total_bytes)
    )
}

fn disk_limit(limit: &DiskLimit) -> String {
    let scope = match limit.scope {
        DiskScope::Total => "with the image",
        DiskScope::Exclusive => "written",
    };
    let bytes = limit
        .bytes
        .map(|bytes| format!("{} {scope}", table::size(bytes)));
    let inodes = limit.inodes.map(|inodes| format!("{inodes} files written"));
    let both: Vec<_> = bytes.into_iter().chain(inodes).collect();
    both.join(", ")
}
