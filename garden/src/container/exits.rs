//! Exits by instance: a place to wait for each, made before the process is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use garden_wire::ExitRecord;
use tokio::sync::watch;

use crate::services::lock;

type Waiters = HashMap<String, watch::Sender<Option<ExitRecord>>>;

/// The exits of one pod. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Exits(Arc<Mutex<Option<Waiters>>>);

impl Exits {
    /// None expected yet.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Some(Waiters::new()))))
    }

    /// A place to wait for an exit. Call it before the process is started: an exit that nobody
    /// expects is dropped.
    pub(crate) fn expect(&self, instance: &str) -> watch::Receiver<Option<ExitRecord>> {
        match lock(&self.0).as_mut() {
            Some(waiters) => waiters
                .entry(instance.to_owned())
                .or_insert_with(|| watch::channel(None).0)
                .subscribe(),
            None => watch::channel(Some(unknown(instance))).1,
        }
    }

    /// A process has ended.
    pub(crate) fn ended(&self, record: ExitRecord) {
        let sender = lock(&self.0)
            .as_mut()
            .and_then(|waiters| waiters.remove(&record.id));
        if let Some(sender) = sender {
            sender.send_replace(Some(record));
        }
    }

    /// Nobody will tell of any exit any more.
    pub(crate) fn lost(&self) {
        let waiters = lock(&self.0).take();
        for (instance, sender) in waiters.into_iter().flatten() {
            sender.send_replace(Some(unknown(&instance)));
        }
    }

    /// What was expected will not come: the process did not start.
    pub(crate) fn forget(&self, instance: &str) {
        if let Some(waiters) = lock(&self.0).as_mut() {
            waiters.remove(instance);
        }
    }
}

/// The exit of a process whose supervisor died: killed, as its pod was.
fn unknown(instance: &str) -> ExitRecord {
    ExitRecord {
        id: instance.to_owned(),
        code: 137,
        out_of_memory: false,
        exited_at_ns: 0,
    }
}

/// Waits for an exit.
pub(crate) async fn wait(mut exit: watch::Receiver<Option<ExitRecord>>) -> Option<ExitRecord> {
    exit.wait_for(Option::is_some)
        .await
        .ok()
        .and_then(|exit| exit.clone())
}
