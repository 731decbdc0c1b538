//! `garden ls`: the containers of a server.

use anyhow::Result;
use clap::Args;
use garden::checks::health::HealthState;

use super::{print, print_json};
use crate::reach::Target;
use crate::{table, values};

/// List containers
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  garden ls
  garden ls -q --filter team=payments")]
pub(crate) struct LsArgs {
    /// Only those with this property; repeatable
    #[arg(long, short, value_name = "K=V", value_parser = values::assignment)]
    filter: Vec<String>,
    /// Names only
    #[arg(long, short)]
    quiet: bool,
    /// For programs
    #[arg(long)]
    json: bool,
}

impl LsArgs {
    /// All of them.
    pub(super) fn plain(quiet: bool, json: bool) -> Self {
        let filter = Vec::new();
        Self {
            filter,
            quiet,
            json,
        }
    }
}

/// Lists them.
pub(crate) async fn run(target: &Target, args: &LsArgs) -> Result<u8> {
    let client = target.server().await?;
    let mut list = client.ps().await?;
    if !args.filter.is_empty() {
        let pairs = args.filter.iter().filter_map(|text| text.split_once('='));
        let filters = pairs.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let matching = client.list(&filters.collect()).await?;
        (list.containers).retain(|container| matching.contains(&container.handle));
    }
    if args.json {
        print_json(&list)?;
    } else if args.quiet {
        let names: String = list
            .containers
            .iter()
            .map(|container| format!("{}\n", container.handle))
            .collect();
        print(&names)?;
    } else {
        let rows: Vec<_> = list
            .containers
            .iter()
            .map(|container| {
                let peas = container
                    .processes
                    .iter()
                    .filter(|process| process.pea)
                    .count();
                vec![
                    container.handle.to_string(),
                    container.state.clone(),
                    container.health.map_or("-", HealthState::as_str).to_owned(),
                    table::age(container.age_ms),
                    (container.processes.len() - peas).to_string(),
                    peas.to_string(),
                    container.image.clone(),
                ]
            })
            .collect();
        let heading = [
            "NAME",
            "STATE",
            "HEALTH",
            "AGE",
            "PROCESSES",
            "PEAS",
            "IMAGE",
        ];
        print(&table::format(&heading, &rows))?;
    }
    Ok(0)
}
