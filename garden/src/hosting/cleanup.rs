//! Destroying everything of a depot without serving it: `garden cleanup`.

use std::time::Duration;

use super::CLOSE_GRACE;
use crate::error::Error;
use crate::manager::{Manager, Options};
use crate::model::Handle;

/// Containers that are destroyed at the same time.
const ABREAST: usize = 16;

/// What came of it.
#[derive(Debug, Default)]
pub struct Left {
    /// How many containers are gone.
    pub destroyed: usize,
    /// Those that are not, and why.
    pub failed: Vec<(Handle, String)>,
    /// Teardown jobs that were not done in time. They are on file.
    pub unfinished: usize,
}

/// Destroys all containers of a depot, waits at most `patience` for what they leave, and removes
/// the traces of the server when nothing is left. Finding nothing is no error.
///
/// # Errors
/// As [`Manager::open`]; [`Error::is_in_use`] when a server runs.
pub async fn destroy_everything(options: Options, patience: Duration) -> Result<Left, Error> {
    let manager = Manager::open(options).await?;
    let left = destroy_all(&manager, patience).await;
    manager.close(CLOSE_GRACE).await;
    if left.failed.is_empty() && left.unfinished == 0 {
        manager.remove_traces();
    }
    Ok(left)
}

async fn destroy_all(manager: &Manager, patience: Duration) -> Left {
    let mut left = Left::default();
    let mut waiting = manager.handles().into_iter();
    let mut running = tokio::task::JoinSet::new();
    let mut begin = |running: &mut tokio::task::JoinSet<_>| {
        if let Some(handle) = waiting.next() {
            let manager = manager.clone();
            running.spawn(async move {
                let outcome = manager.destroy_container(&handle).await;
                (handle, outcome)
            });
        }
    };
    for _ in 0..ABREAST {
        begin(&mut running);
    }
    while let Some(ended) = running.join_next().await {
        begin(&mut running);
        match ended {
            Ok((_, Ok(()) | Err(Error::ContainerNotFound(_)))) => left.destroyed += 1,
            Ok((handle, Err(error))) => left.failed.push((handle, error.report())),
            Err(panicked) => tracing::error!(%panicked, "a destroy panicked"),
        }
    }
    if !manager.settle(patience).await {
        left.unfinished = manager.teardown_depth().max(1);
    }
    left
}
