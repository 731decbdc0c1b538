//! `garden rm`: destroy containers.

use anyhow::Result;
use clap::Args;
use garden::model::Handle;

use crate::reach::Target;
use crate::values;

/// Destroy containers with everything in them
#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// The containers
    #[arg(required = true, value_name = "NAME", value_parser = values::handle)]
    names: Vec<Handle>,
}

/// Destroys them.
pub(crate) async fn run(target: &Target, args: &RmArgs) -> Result<u8> {
    let client = target.server().await?;
    for name in &args.names {
        client.destroy(name).await?;
    }
    Ok(0)
}
