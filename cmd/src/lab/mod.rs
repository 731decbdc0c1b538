//! The place of a measurement on this host: a directory, a disk of a known speed, a limit on it, and
//! the certainty that all of it is gone at the end.
//!
//! Used by the verbs that measure (`scale`, `repro`). Two processes: the one that was started guards
//! ([`guard`]), the other one measures in a mount namespace of its own. Whichever is killed, the other
//! one cleans up; what is left when both are is removed by the next run ([`place`]).

pub(crate) mod disk;
pub(crate) mod guard;
pub(crate) mod place;
pub(crate) mod throttle;

use anyhow::{Context, Result};

/// Runs what blocks for long (mounts, removals, the making of images) beside the async tasks.
pub(crate) async fn blocking<T: Send + 'static>(
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(run)
        .await
        .context("a step on the host")
}
