//! `garden cleanup`: destroys everything that a server left, while none runs.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use garden::hosting::cleanup::{Left, destroy_everything};

use super::print;
use super::server::ServerArgs;
use crate::reach::Target;
use crate::values;

/// Destroy all containers that a server left, without a server
#[derive(Debug, Args)]
#[command(
    after_help = "Takes the flags of `garden server`, which say where everything is. Doing it \
again does no harm. Example:
  garden cleanup --config /etc/garden.toml"
)]
pub(crate) struct CleanupArgs {
    /// How long to wait for what containers leave
    #[arg(long, value_name = "TIME", value_parser = values::time, default_value = "2m")]
    timeout: Duration,
    #[command(flatten)]
    server: ServerArgs,
}

/// Runs the verb; returns the exit code.
///
/// # Errors
/// When a server runs, or something stays: the text says what.
pub(crate) async fn run(target: &Target, args: CleanupArgs) -> Result<u8> {
    args.server.check(target)?;
    let options = args.server.manager()?;
    let run = options.runtime_dir.display().to_string();
    let Left {
        destroyed,
        failed,
        unfinished,
    } = match destroy_everything(options, args.timeout).await {
        Err(error) if error.is_in_use() => {
            bail!("a server runs with {run}: stop it first, or destroy containers with `garden rm`")
        }
        other => other?,
    };
    if let Some((handle, error)) = failed.first() {
        bail!(
            "{} of {} containers could not be destroyed; {handle}: {error}",
            failed.len(),
            failed.len() + destroyed
        );
    }
    if unfinished > 0 {
        bail!(
            "{destroyed} containers are destroyed, but {unfinished} things that they leave are \
             not taken away yet: run it again, or start a server, which goes on with it"
        );
    }
    print(&format!(
        "{destroyed} containers destroyed, nothing is left\n"
    ))?;
    Ok(0)
}
