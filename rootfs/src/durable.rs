//! Making layers durable, later and elsewhere.
//!
//! One background thread per store. Syncing a disk also writes what all neighbours have written,
//! so it is never done while somebody waits: layers are collected for a while and made durable
//! together by one `syncfs`. See the head of the layers for what they count until then.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::dirs::Dirs;
use crate::error::{Result, Step};
use crate::layers::Layers;

/// How long layers are collected.
const COLLECT: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct State {
    pending: Vec<String>,
    stop: bool,
}

/// The layers that are not durable yet.
#[derive(Debug, Default)]
pub(crate) struct Durable {
    state: Mutex<State>,
    changed: Condvar,
}

impl Durable {
    /// Starts the thread.
    pub(crate) fn start(dirs: &Arc<Dirs>, layers: &Arc<Layers>) -> Result<Arc<Self>> {
        let durable = Arc::new(Self::default());
        let (thread, dirs, layers) = (Arc::clone(&durable), Arc::clone(dirs), Arc::clone(layers));
        std::thread::Builder::new()
            .name("garden-durable".to_owned())
            .spawn(move || {
                while let Some(keys) = thread.next() {
                    match make_durable(&dirs, &layers, &keys) {
                        Ok(()) => tracing::debug!(layers = keys.len(), "layers are durable"),
                        Err(error) => tracing::warn!(%error, layers = keys.len(),
                            "layers are not durable: they will be imported again after a reboot"),
                    }
                }
            })
            .step(|| "start the thread that syncs layers".to_owned())?;
        Ok(durable)
    }

    /// Remembers layers that were just published.
    pub(crate) fn add(&self, keys: Vec<String>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let new: Vec<_> = (keys.into_iter())
            .filter(|key| !state.pending.contains(key))
            .collect();
        state.pending.extend(new);
        self.changed.notify_all();
    }

    pub(crate) fn stop(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.stop = true;
        self.changed.notify_all();
    }

    fn next(&self) -> Option<Vec<String>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = |state: &mut State| !state.stop && state.pending.is_empty();
        let state = self.changed.wait_while(state, idle);
        let state = state.unwrap_or_else(PoisonError::into_inner);
        let running = |state: &mut State| !state.stop;
        let waited = self.changed.wait_timeout_while(state, COLLECT, running);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        (!state.stop).then(|| std::mem::take(&mut state.pending))
    }
}

/// Syncs the disk and marks these layers.
pub(crate) fn make_durable(dirs: &Dirs, layers: &Layers, keys: &[String]) -> std::io::Result<()> {
    // First the data and the names, then the marks: a mark that survives vouches for the rest.
    rustix::fs::syncfs(&dirs.layers)?;
    layers.mark_durable(keys)
}
