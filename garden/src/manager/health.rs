//! Health checks as the manager has them, and the stream of events.
//!
//! What checks are and do is in [`crate::checks`]; here they meet the manager, which alone can stop
//! a container.

use std::sync::Arc;
use std::time::Duration;

use garden_peas::histogram::Durations;

use super::Manager;
use crate::checks::Action;
use crate::container::Container;
use crate::error::Error;
use crate::events::{EventFilter, EventStream};
use crate::model::Handle;

/// How long the events of all containers wait for a server that has just been started.
const RECALL_PATIENCE: Duration = Duration::from_secs(5);

impl Manager {
    /// Begins, or goes on with, the checks of a container.
    pub(super) fn open_checks(&self, container: &Arc<Container>) {
        // Weakly: containers are the manager's.
        let manager = Arc::downgrade(&self.0);
        let handle = container.handle.clone();
        container.open_checks(Box::new(move |action| {
            let (manager, handle) = (manager.upgrade().map(Manager), handle.clone());
            let kill = match action {
                Action::None => return,
                Action::Stop => false,
                Action::Kill => true,
            };
            // On a task of its own: stopping ends the check that asks for it.
            tokio::spawn(async move {
                let Some(manager) = manager else { return };
                tracing::warn!(%handle, kill, "unhealthy: stopped");
                if let Err(error) = manager.stop_container(&handle, kill).await {
                    let error = error.report();
                    tracing::warn!(%handle, error, "an unhealthy container is not stopped");
                }
            });
        }));
    }

    pub(super) async fn remove_one_check(&self, handle: &Handle, name: &str) -> Result<(), Error> {
        if self.find(handle).await?.remove_check(name)? {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "container {handle} has no health check {name:?}"
        )))
    }

    pub(super) async fn event_stream(&self, filter: EventFilter) -> EventStream {
        let named = filter.handle.as_deref().map(str::parse::<Handle>);
        let container = match named {
            Some(Ok(handle)) => self.find(&handle).await.ok(),
            Some(Err(_)) => None,
            // What is remembered of a container is known when it is taken up.
            None => {
                let _ = tokio::time::timeout(RECALL_PATIENCE, self.restored()).await;
                None
            }
        };
        let log = container.as_deref().map(|container| &container.log);
        EventStream::open(&self.services().events, log, filter)
    }

    /// From the end of a health check that changed something to the news of it: all containers,
    /// since the server started.
    pub fn health_latency(&self) -> Durations {
        self.services().health_latency.read()
    }
}
