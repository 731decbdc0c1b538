//! `garden port`: which ports of the host lead into a container, and one more.

use anyhow::Result;
use clap::Args;
use garden::model::{Handle, PortMapping};

use super::{print, print_json};
use crate::reach::Target;
use crate::{table, values};

/// Show the host ports that lead into a container, or add one
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  garden port web
  garden port web 8080:80
  garden port web :80")]
pub(crate) struct PortArgs {
    /// The container
    #[arg(value_name = "NAME", value_parser = values::handle)]
    name: Handle,
    /// Lead this port of the host to that of the container; without one of the host, any of the pool
    #[arg(value_name = "HOST:CONTAINER", value_parser = values::port)]
    add: Option<PortMapping>,
    /// For programs
    #[arg(long)]
    json: bool,
}

/// Shows or adds.
pub(crate) async fn run(target: &Target, args: &PortArgs) -> Result<u8> {
    let client = target.server().await?;
    let ports = match args.add {
        Some(wish) => vec![client.net_in(&args.name, wish).await?],
        None => client.info(&args.name).await?.mapped_ports,
    };
    if args.json {
        print_json(&ports)?;
        return Ok(0);
    }
    let rows: Vec<_> = ports
        .iter()
        .map(|port| vec![port.host_port.to_string(), port.container_port.to_string()])
        .collect();
    print(&table::format(&["HOST", "CONTAINER"], &rows))?;
    Ok(0)
}
