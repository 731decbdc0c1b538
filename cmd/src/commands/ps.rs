//! `garden ps`: what runs in a container; without one, the containers, as docker's users expect.

use anyhow::{Result, bail};
use clap::Args;
use garden::api::PsContainer;
use garden::client::Client;
use garden::model::Handle;

use super::{ls, print, print_json};
use crate::reach::Target;
use crate::{table, values};

/// List the processes and peas of a container; without a name, all containers
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  garden ps
  garden ps web
  garden ps web --quiet")]
pub(crate) struct PsArgs {
    /// The container
    #[arg(value_name = "NAME", value_parser = values::handle)]
    name: Option<Handle>,
    /// Also those that docker would hide; here all are shown
    #[arg(long, short, hide = true)]
    all: bool,
    /// Names only
    #[arg(long, short)]
    quiet: bool,
    /// For programs
    #[arg(long)]
    json: bool,
}

/// Lists them.
pub(crate) async fn run(target: &Target, args: PsArgs) -> Result<u8> {
    let Some(name) = &args.name else {
        return ls::run(target, &ls::LsArgs::plain(args.quiet, args.json)).await;
    };
    let client = target.server().await?;
    let mut processes = one(&client, name).await?.processes;
    processes.sort_by_key(|process| (process.pea, process.pid));
    if args.json {
        print_json(&processes)?;
    } else if args.quiet {
        let names: String = processes.iter().map(|p| format!("{}\n", p.id)).collect();
        print(&names)?;
    } else {
        let rows: Vec<_> = processes
            .iter()
            .map(|process| {
                let kind = if process.pea { "pea" } else { "process" };
                vec![
                    process.id.to_string(),
                    kind.to_owned(),
                    process.pid.to_string(),
                    process.path.clone(),
                ]
            })
            .collect();
        print(&table::format(&["ID", "KIND", "PID", "COMMAND"], &rows))?;
    }
    Ok(0)
}

/// One container as lists have it.
pub(crate) async fn one(client: &Client, name: &Handle) -> Result<PsContainer> {
    let all = client.ps().await?.containers;
    match all.into_iter().find(|container| container.handle == *name) {
        Some(container) => Ok(container),
        None => bail!("unknown handle: {name}: `garden ls` lists the containers"),
    }
}
