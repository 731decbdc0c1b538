//! Who has which handle: containers that can be used, and those that a start has not taken up yet.
//!
//! Used by the manager alone. A container of an earlier server is [`expect`](Table::expect)ed from
//! before the server serves until its supervisor has been reached; whoever calls for it meanwhile
//! waits for this one container, and what its record says can be read at once. The lock in here is
//! held for looks into a map only.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use crate::container::Container;
use crate::depot::ContainerRecord;
use crate::model::Handle;
use crate::services::lock;

/// All handles of one server.
#[derive(Default)]
pub(super) struct Table(Mutex<HashMap<Handle, Seat>>);

/// What a handle stands for.
#[derive(Clone)]
pub(super) enum Seat {
    /// A container.
    Ready(Arc<Container>),
    /// One that an earlier server made and this one has not taken up yet.
    Awaited(Arc<Awaited>),
}

/// What is known of a container that is not taken up yet.
pub(super) struct Awaited {
    /// As it was found; nobody changes it before it is taken up.
    pub(super) record: ContainerRecord,
    settled: watch::Receiver<()>,
}

impl Awaited {
    /// Waits until it is decided what becomes of it.
    pub(super) async fn settled(&self) {
        // Nothing is ever sent: the other end is dropped.
        let _ = self.settled.clone().changed().await;
    }
}

/// Held by whoever takes a container up. Dropped, it lets those who wait look again.
#[must_use = "dropping it tells that the container is taken up"]
pub(super) struct Promise(
    #[expect(dead_code, reason = "it is its end that matters")] watch::Sender<()>,
);

impl Table {
    /// Notes a container that is going to be taken up.
    pub(super) fn expect(&self, handle: Handle, record: ContainerRecord) -> Promise {
        let (sender, settled) = watch::channel(());
        let awaited = Arc::new(Awaited { record, settled });
        lock(&self.0).insert(handle, Seat::Awaited(awaited));
        Promise(sender)
    }

    /// Notes a container that can be used, or asked about.
    pub(super) fn insert(&self, container: Arc<Container>) {
        lock(&self.0).insert(container.handle.clone(), Seat::Ready(container));
    }

    /// Forgets a handle. Returns its container, if it was taken up.
    pub(super) fn remove(&self, handle: &Handle) -> Option<Arc<Container>> {
        match lock(&self.0).remove(handle)? {
            Seat::Ready(container) => Some(container),
            Seat::Awaited(_) => None,
        }
    }

    /// What a handle stands for.
    pub(super) fn look(&self, handle: &Handle) -> Option<Seat> {
        lock(&self.0).get(handle).cloned()
    }

    /// Everything, in no order.
    pub(super) fn all(&self) -> Vec<(Handle, Seat)> {
        let seats = lock(&self.0);
        let copied = seats
            .iter()
            .map(|(handle, seat)| (handle.clone(), seat.clone()));
        copied.collect()
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        lock(&self.0).clear();
    }
}

impl Seat {
    /// The container, if it can be used.
    pub(super) fn ready(self) -> Option<Arc<Container>> {
        match self {
            Self::Ready(container) => Some(container),
            Self::Awaited(_) => None,
        }
    }

    /// The record of what has the handle.
    pub(super) fn record(&self) -> ContainerRecord {
        match self {
            Self::Ready(container) => container.record(),
            Self::Awaited(awaited) => awaited.record.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::ContainerSpec;

    fn record() -> ContainerRecord {
        ContainerRecord::new("i".into(), "c".into(), ContainerSpec::default(), 7)
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_a_container_goes_on_when_it_is_settled() {
        let table = Table::default();
        let handle: Handle = "h".parse().unwrap();
        let promise = table.expect(handle.clone(), record());
        let Some(Seat::Awaited(awaited)) = table.look(&handle) else {
            panic!("it is not awaited");
        };
        assert_eq!(awaited.record.created_ms, 7);
        let early = tokio::time::timeout(Duration::from_secs(60), awaited.settled());
        assert!(early.await.is_err(), "nothing has happened yet");
        assert_eq!(table.all().len(), 1);
        drop(promise);
        awaited.settled().await;
        assert!(table.remove(&handle).is_none());
        assert!(table.look(&handle).is_none());
    }
}
