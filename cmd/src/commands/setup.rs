//! `garden setup`: what a server needs of the host, made before one starts.
//!
//! Guardian's installations run `gdn setup` as root first. Here a server makes what is missing at
//! each start, so this is for seeing early, and without a server, whether the host will do.

use anyhow::Result;
use clap::Args;

use super::print;
use super::server::ServerArgs;
use crate::reach::Target;

/// Make what a server needs on this host, and check that it will do
#[derive(Debug, Args)]
#[command(
    after_help = "Takes the flags of `garden server`, and does nothing that is done already. \
Example:
  garden setup --config /etc/garden.toml"
)]
pub(crate) struct SetupArgs {
    #[command(flatten)]
    server: ServerArgs,
}

/// Runs the verb; returns the exit code.
///
/// # Errors
/// When the host will not do: the text says why.
pub(crate) async fn run(target: &Target, args: SetupArgs) -> Result<u8> {
    args.server.check(target)?;
    let options = args.server.manager()?;
    let run = options.runtime_dir.display().to_string();
    let store = options.store_dir.display().to_string();
    match garden::manager::Manager::prepare(options).await {
        Ok(()) => print(&format!("ready: records in {run}, images in {store}\n"))?,
        Err(error) if error.is_in_use() => print("ready: a server runs here\n")?,
        Err(error) => return Err(error.into()),
    }
    Ok(0)
}
