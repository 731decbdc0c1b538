//! `garden health`: the health checks of a container that exists.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};
use garden::checks::HealthStatus;
use garden::model::Handle;

use super::health_args::HealthArgs;
use super::{print, print_json};
use crate::reach::Target;
use crate::{table, values};

/// Show and change the health checks of a container
#[derive(Debug, Subcommand)]
pub(crate) enum HealthVerb {
    Show(ShowArgs),
    Set(Box<SetArgs>),
    Rm(RmArgs),
}

/// Show what the checks of a container say
#[derive(Debug, Args)]
#[command(after_help = "Example:
  garden health show web")]
pub(crate) struct ShowArgs {
    /// The container
    #[arg(value_name = "NAME", value_parser = values::handle)]
    name: Handle,
    /// For programs
    #[arg(long)]
    json: bool,
}

/// Replace all checks of a container
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  garden health set web --health-cmd 'test -e /bin/sh' --health-interval 5s
  garden health set web checks.json")]
pub(crate) struct SetArgs {
    /// The container
    #[arg(value_name = "NAME", value_parser = values::handle)]
    name: Handle,
    /// Checks as JSON, as in docs/health.md
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    health: HealthArgs,
}

/// Remove a check of a container
#[derive(Debug, Args)]
#[command(after_help = "Example:
  garden health rm web alive")]
pub(crate) struct RmArgs {
    /// The container
    #[arg(value_name = "NAME", value_parser = values::handle)]
    name: Handle,
    /// The check
    #[arg(value_name = "CHECK")]
    check: String,
}

/// Does it.
pub(crate) async fn run(target: &Target, verb: HealthVerb) -> Result<u8> {
    let client = target.server().await?;
    match verb {
        HealthVerb::Show(args) => {
            let status = client.health(&args.name).await?;
            if args.json {
                print_json(&status)?;
            } else {
                print(&text(&status))?;
            }
        }
        HealthVerb::Set(args) => {
            let checks = match &args.file {
                Some(file) => super::health_args::read(file)?,
                None => args.health.checks()?,
            };
            client.set_checks(&args.name, checks).await?;
        }
        HealthVerb::Rm(args) => client.remove_check(&args.name, &args.check).await?,
    }
    Ok(0)
}

fn text(status: &HealthStatus) -> String {
    facts(status)
        .iter()
        .map(|(name, value)| format!("{name:<11}{value}\n"))
        .collect()
}

/// What there is to say, for `inspect` too; one line each.
pub(super) fn facts(status: &HealthStatus) -> Vec<(&'static str, String)> {
    let Some(state) = status.state else {
        return vec![("health", "no checks".to_owned())];
    };
    let mut facts = vec![("health", state.to_string())];
    facts.extend(status.checks.iter().map(|check| {
        let last = check.last.as_ref().map(|last| {
            let word = if last.passed { "passed" } else { "failed" };
            match last.output.as_str() {
                "" => format!(", last {word}"),
                output => format!(", last {word}: {output}"),
            }
        });
        let verdict = format!("{:?}", check.verdict).to_lowercase();
        let text = format!(
            "{} ({}) {verdict}, {} runs, {} failed{}",
            check.spec.name,
            check.spec.role.as_str(),
            check.runs,
            check.failures,
            last.unwrap_or_default()
        );
        ("check", text)
    }));
    facts.extend(status.history.iter().map(|change| {
        let ago = table::age(now_ms().saturating_sub(change.at_ms));
        let text = format!(
            "{} -> {} {ago} ago: {}",
            change.from, change.to, change.reason
        );
        ("change", text)
    }));
    let latency = &status.latency;
    if let (Some(half), Some(most)) = (latency.quantile(0.5), latency.quantile(0.99)) {
        let text = format!(
            "half within {:.1} ms, 99 % within {:.1} ms, of {}",
            half * 1000.0,
            most * 1000.0,
            latency.count()
        );
        facts.push(("news after", text));
    }
    facts
}

fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}
