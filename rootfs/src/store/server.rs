//! What a server does beside its calls: the threads, and their end.
//!
//! Started by opening a store as its server. The threads work on the same store as tools do, by the
//! same rules, so that one that is slow to end does no harm to the next server: what tells them to
//! end, and the lock of the server, live in the handles that callers have, and not in what the
//! threads share.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Inner, Store, StoreOptions};
use crate::collect::{self, CollectPolicy};
use crate::dirs::{self, Dirs, Lock};
use crate::durable::Durable;
use crate::error::{Result, Step};
use crate::quota;
use crate::recover;

/// How often is looked for what tools left, and for threads that are stuck.
const LOOK: Duration = Duration::from_secs(2);

/// How long the lock of a server may be held after its death: by a process that it had just
/// started, and that has yet to find out.
const DYING: Duration = Duration::from_secs(1);

/// Takes the lock of the one server; `None` when another has it.
pub(super) fn lock(dirs: &Dirs) -> Result<Option<Lock>> {
    let deadline = Instant::now() + DYING;
    loop {
        let lock = Lock::take(dirs, dirs::SERVER)?;
        if lock.is_some() || Instant::now() >= deadline {
            return Ok(lock);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Told to stop, and waited with.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Signal {
    /// Waits, or until it is told to stop: then `true`.
    pub(crate) fn wait(&self, timeout: Duration) -> bool {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = (self.changed).wait_timeout_while(stopped, timeout, |stopped| !*stopped);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    pub(crate) fn is_stopped(&self) -> bool {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }
}

/// The threads of a server. They are told to end when it is dropped, and are not waited for: one
/// may be stuck in the kernel.
#[derive(Debug)]
pub(super) struct Server {
    inner: Arc<Inner>,
    durable: Arc<Durable>,
    signal: Arc<Signal>,
    pub(super) policy: Option<CollectPolicy>,
    /// Dropped last.
    _lock: Lock,
}

impl Server {
    /// Starts them. What an earlier run left is found by one of them, so that a big store serves
    /// at once.
    pub(super) fn start(lock: Lock, inner: &Arc<Inner>, options: &StoreOptions) -> Result<Self> {
        // Counts until the threads that have it end.
        let settling = inner.trash.settling();
        let durable = Durable::start(&inner.dirs, &inner.layers)?;
        let server = Self {
            inner: Arc::clone(inner),
            durable,
            policy: options.collect.clone(),
            signal: Arc::default(),
            _lock: lock,
        };
        inner.trash.start(options.trash_workers)?;
        server.spawn("garden-recover", move |store, signal| {
            recover::recover(store, &|| signal.is_stopped());
            drop(settling);
        })?;
        let durable = Arc::clone(&server.durable);
        server.spawn("garden-watch", move |store, signal| {
            let mut layers = None;
            while !signal.wait(LOOK) {
                watch(store, &durable, &mut layers);
            }
        })?;
        inner.ahead.start();
        server.spawn("garden-ahead", |store, _| {
            store.inner.ahead.work(store.mounter());
        })?;
        if inner.quota.needs_walks() {
            server.spawn("garden-account", |store, signal| {
                quota::watch(&store.inner.dirs, signal);
            })?;
        }
        if let Some(policy) = &server.policy {
            let policy = policy.clone();
            server.spawn("garden-collect", move |store, signal| {
                collect::watch(store, &policy, signal);
            })?;
        }
        Ok(server)
    }

    fn spawn(&self, name: &str, work: impl FnOnce(&Store, &Signal) + Send + 'static) -> Result<()> {
        let signal = Arc::clone(&self.signal);
        let store = Store {
            inner: Arc::clone(&self.inner),
            server: None,
        };
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || work(&store, &signal))
            .step(|| format!("start the thread {name}"))?;
        Ok(())
    }

    /// Remembers layers that were just published.
    pub(super) fn published(&self, keys: Vec<String>) {
        self.durable.add(keys);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal.stop();
        self.inner.trash.stop();
        self.durable.stop();
        self.inner.ahead.stop();
        // A thread may keep what it is in alive for a moment longer.
        self.inner.recent.clear();
    }
}

/// One look. `layers` is when the directory of layers changed last.
fn watch(store: &Store, durable: &Durable, layers: &mut Option<(i64, u64)>) {
    store.inner.trash.replace_stuck();
    store.inner.recent.expire();
    store.inner.quota.tidy();
    if let Err(error) = store.inner.trash.glance() {
        tracing::warn!(%error, "what tools put into the trash is not seen");
    }
    let Ok(stat) = rustix::fs::fstat(&store.inner.dirs.layers) else {
        return;
    };
    let changed = Some((stat.st_mtime, stat.st_mtime_nsec));
    if std::mem::replace(layers, changed) != changed {
        match store.inner.layers.pending() {
            Ok(pending) => durable.add(pending),
            Err(error) => tracing::warn!(%error, "layers that tools imported are not durable"),
        }
    }
}
