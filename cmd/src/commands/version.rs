//! `garden version`: this command's version and what it is for.

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::{print, print_json};
use crate::reach::Target;

/// Show the versions of this command and of what it speaks, and whether a server answers
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  garden version
  garden version --json")]
pub(crate) struct VersionArgs {
    /// For programs
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Version {
    garden: &'static str,
    /// The version of the routes of our own.
    api: &'static str,
    oci_runtime: &'static str,
    kernel: String,
    /// Where a server answers, if one does.
    server: Option<String>,
}

/// Shows them.
pub(crate) async fn run(target: &Target, args: &VersionArgs) -> Result<u8> {
    let server = target.find().await;
    let kernel = rustix::system::uname();
    let version = Version {
        garden: env!("CARGO_PKG_VERSION"),
        api: "v1",
        oci_runtime: "1.2",
        kernel: kernel.release().to_string_lossy().into_owned(),
        server: server.map(|client| client.address().to_string()),
    };
    if args.json {
        print_json(&version)?;
        return Ok(0);
    }
    let none = format!("none at {}", target.socket.display());
    print(&format!(
        "garden   {}\nAPI      Garden, and /garden/{}\nOCI      runtime specification {}\n\
         kernel   {}\nserver   {}\n",
        version.garden,
        version.api,
        version.oci_runtime,
        version.kernel,
        version.server.unwrap_or(none)
    ))?;
    Ok(0)
}
