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

    /// Nobody will tell of any exit any more. `on_file` is asked for what was written and not told.
    pub(crate) fn lost(&self, on_file: impl Fn(&str) -> Option<ExitRecord>) {
        let waiters = lock(&self.0).take();
        for (instance, sender) in waiters.into_iter().flatten() {
            let exit = on_file(&instance).unwrap_or_else(|| unknown(&instance));
            sender.send_replace(Some(exit));
        }
    }

    /// What was expected will not come: the process did not start.
    pub(crate) fn forget(&self, instance: &str) {
        if let Some(waiters) = lock(&self.0).as_mut() {
            waiters.remove(instance);
        }
    }
}

/// Whether nobody knows how a process ended: its supervisor died, and it was killed.
pub(crate) fn is_unknown(exit: &ExitRecord) -> bool {
    exit.exited_at_ns == 0
}

/// The exit of a process whose supervisor died: killed, as its pod was. No supervisor writes one
/// without a time.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_on_file_is_told_when_the_supervisor_dies_and_the_rest_is_unknown() {
        let exits = Exits::new();
        let (told, lost) = (exits.expect("told"), exits.expect("lost"));
        let on_file = |instance: &str| {
            (instance == "told").then(|| ExitRecord {
                code: 7,
                exited_at_ns: 1,
                ..unknown(instance)
            })
        };
        exits.lost(on_file);
        let told = wait(told).await.unwrap();
        assert!(!is_unknown(&told) && told.code == 7);
        assert!(is_unknown(&wait(lost).await.unwrap()));
        let late = exits.expect("late");
        assert!(is_unknown(&wait(late).await.unwrap()));
    }
}
