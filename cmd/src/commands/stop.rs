//! `garden stop`: end what runs in a container; the container stays.

use anyhow::Result;
use clap::Args;
use garden::model::Handle;

use crate::reach::Target;
use crate::values;

/// End all processes of a container: SIGTERM for ten seconds, then SIGKILL
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  garden stop web
  garden stop --kill web")]
pub(crate) struct StopArgs {
    /// The containers
    #[arg(required = true, value_name = "NAME", value_parser = values::handle)]
    names: Vec<Handle>,
    /// SIGKILL at once
    #[arg(long, short)]
    kill: bool,
}

/// Stops them.
pub(crate) async fn run(target: &Target, args: &StopArgs) -> Result<u8> {
    let client = target.server().await?;
    for name in &args.names {
        client.stop(name, args.kill).await?;
    }
    Ok(0)
}
