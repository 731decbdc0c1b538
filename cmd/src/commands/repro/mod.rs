//! `garden repro`: known faults of kernels, shown by a tool that a stranger can run.

mod memory;
pub(super) mod overlay;
mod report;
mod unmount;

use anyhow::Result;
use clap::Subcommand;

/// Reproduce what a kernel does badly, for a report or to know this host
#[derive(Debug, Subcommand)]
pub(crate) enum ReproVerb {
    Unmount(unmount::UnmountArgs),
}

/// Runs one of them; returns the exit code.
pub(crate) async fn run(verb: ReproVerb) -> Result<u8> {
    match verb {
        ReproVerb::Unmount(args) => unmount::run(args).await,
    }
}
