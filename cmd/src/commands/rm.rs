//! `garden rm`: destroy containers.

use anyhow::{Result, anyhow};
use clap::Args;
use garden::error::Error;
use garden::model::Handle;

use crate::reach::Target;
use crate::values;

/// Destroy containers with everything in them
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  garden rm web
  garden rm -f web job")]
pub(crate) struct RmArgs {
    /// The containers
    #[arg(required = true, value_name = "NAME", value_parser = values::handle)]
    names: Vec<Handle>,
    /// One that is not there is no failure; what runs never is
    #[arg(long, short)]
    force: bool,
}

/// Destroys them. One that cannot be does not keep the others.
pub(crate) async fn run(target: &Target, args: &RmArgs) -> Result<u8> {
    let client = target.server().await?;
    let mut failed = Vec::new();
    for name in &args.names {
        match client.destroy(name).await {
            Ok(()) => {}
            Err(Error::ContainerNotFound(_)) if args.force => {}
            Err(error) if args.names.len() == 1 => return Err(error.into()),
            Err(error) => failed.push(format!("{name}: {}", error.report())),
        }
    }
    if failed.is_empty() {
        return Ok(0);
    }
    Err(anyhow!("cannot destroy {}", failed.join("; ")))
}
