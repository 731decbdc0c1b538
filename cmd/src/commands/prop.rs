//! `garden prop`: the properties of a container, free text by key.

use anyhow::Result;
use clap::{Args, Subcommand};
use garden::model::Handle;

use super::{print, print_json};
use crate::reach::Target;
use crate::{table, values};

/// Show and change the properties of a container
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  garden prop set web team payments
  garden prop ls web")]
pub(crate) enum PropVerb {
    Ls(LsArgs),
    Get(KeyArgs),
    Set(SetArgs),
    Rm(RmArgs),
}

/// List all properties
#[derive(Debug, Args)]
#[command(after_help = "Example:
  garden prop ls web --json")]
pub(crate) struct LsArgs {
    /// The container
    #[arg(value_name = "NAME", value_parser = values::handle)]
    name: Handle,
    /// For programs
    #[arg(long)]
    json: bool,
}

/// Print the value of one property
#[derive(Debug, Args)]
#[command(after_help = "Example:
  garden prop get web garden.state")]
pub(crate) struct KeyArgs {
    /// The container
    #[arg(value_name = "NAME", value_parser = values::handle)]
    name: Handle,
    /// The property
    #[arg(value_name = "KEY")]
    key: String,
}

/// Set a property, also one that is there
#[derive(Debug, Args)]
#[command(after_help = "Example:
  garden prop set web team payments")]
pub(crate) struct SetArgs {
    /// The container
    #[arg(value_name = "NAME", value_parser = values::handle)]
    name: Handle,
    /// The property
    #[arg(value_name = "KEY")]
    key: String,
    /// Its value
    #[arg(value_name = "VALUE", allow_hyphen_values = true)]
    value: String,
}

/// Remove properties; ones that are not there are no error
#[derive(Debug, Args)]
#[command(after_help = "Example:
  garden prop rm web team")]
pub(crate) struct RmArgs {
    /// The container
    #[arg(value_name = "NAME", value_parser = values::handle)]
    name: Handle,
    /// The properties
    #[arg(required = true, value_name = "KEY")]
    keys: Vec<String>,
}

/// Does it.
pub(crate) async fn run(target: &Target, verb: PropVerb) -> Result<u8> {
    let client = target.server().await?;
    match verb {
        PropVerb::Ls(args) => {
            let all = client.properties(&args.name).await?;
            if args.json {
                print_json(&all)?;
            } else {
                let rows: Vec<_> = all
                    .into_iter()
                    .map(|(key, value)| vec![key, value])
                    .collect();
                print(&table::format(&["KEY", "VALUE"], &rows))?;
            }
        }
        PropVerb::Get(args) => {
            let value = client.property(&args.name, &args.key).await?;
            print(&format!("{value}\n"))?;
        }
        PropVerb::Set(args) => {
            client
                .set_property(&args.name, &args.key, &args.value)
                .await?;
        }
        PropVerb::Rm(args) => {
            for key in &args.keys {
                client.remove_property(&args.name, key).await?;
            }
        }
    }
    Ok(0)
}
