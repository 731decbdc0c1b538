//! `garden scale`: what it costs to bring up many instances of an app, stage by stage.
//!
//! Each instance is a container; its app's files are streamed in or come as a layer of its image;
//! the app is started, and peas ask for its health until one succeeds; then it is destroyed. All
//! instances run at the same time, through the API of a server of the run's own, which shares
//! nothing with one that runs on this host.
//!
//! The one process guards, the other one measures ([`measure`]): see [`crate::lab`].

mod images;
mod instance;
mod measure;
mod report;
mod stages;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};

use crate::lab::{guard, place};

/// Measure what it costs to bring up many instances of an app at once
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:
  garden scale --instances 9 --app-mb 100 --disk-mbps 100")]
pub(crate) struct ScaleArgs {
    /// How many instances are brought up at the same time
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u16).range(1..=500))]
    instances: u16,
    /// Size of the app, in MB (10^6 bytes)
    #[arg(long, value_name = "MB", default_value_t = 100)]
    app_mb: u16,
    /// What each health check writes into its own root filesystem first, in MB
    #[arg(long, value_name = "MB", default_value_t = 0)]
    check_mb: u16,
    /// How the app gets into its container: streamed in, or as a layer of its image
    #[arg(long, value_enum, default_value_t = Mode::Stream)]
    mode: Mode,
    /// Whether cleaning up behind a pea is waited for before its exit is reported
    #[arg(long, value_enum, default_value_t = Teardown::Async)]
    teardown: Teardown,
    /// Whether unmounting a root filesystem writes its data to the disk first
    #[arg(long, value_enum, default_value_t = Unmount::Volatile)]
    unmount: Unmount,
    /// Put the store on a disk of its own whose writes are limited to so many MB per second
    #[arg(long, value_name = "MBPS", value_parser = clap::value_parser!(u64).range(1..))]
    disk_mbps: Option<u64>,
    /// Print figures for programs
    #[arg(long)]
    json: bool,
    /// Measure in the place of this tag, which the guard has made
    #[arg(long, value_name = "TAG", hide = true)]
    measure: Option<String>,
}

/// How the app's files come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// As a tar, through the API.
    Stream,
    /// As a layer.
    Layer,
}

/// When cleaning up behind a pea is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Teardown {
    /// After its exit is reported.
    Async,
    /// Before.
    Inline,
}

/// What happens to written data at an unmount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Unmount {
    /// It is dropped.
    Volatile,
    /// It is written to the disk.
    Sync,
}

/// Runs the verb; returns the exit code.
///
/// # Errors
/// When the run could not be set up, or an instance failed.
pub(crate) async fn run(args: ScaleArgs) -> Result<u8> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "garden scale needs root: it runs containers and mounts a disk"
    );
    match &args.measure {
        Some(tag) => {
            let place = place::Place::of(tag);
            measure::run(args, place).await
        }
        None => guard::run().await,
    }
}
