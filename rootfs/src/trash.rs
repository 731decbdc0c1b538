//! The trash: what is to be removed, and the threads that remove it.
//!
//! Putting something in is one rename, whatever its size: its name is free at once. Removing
//! happens on own threads with idle disk priority; a thread that is stuck in the kernel holds up
//! nobody but the trash. What cannot be removed is tried again, later and later, and is counted.
//! The directory `trash/` is the queue's memory: the next start takes up what is in it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use serde::Serialize;

use crate::dirs::{self, Dirs};
use crate::error::{Result, Step};
use crate::remove;

/// How long the first repetition waits; each further one waits twice as long, up to a minute.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// What the trash holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct TrashStats {
    /// Trees that are still to be removed.
    pub items: usize,
    /// How long the oldest of them has been waiting.
    pub oldest_age: Option<Duration>,
    /// How many of them could not be removed at least once.
    pub failing: usize,
}

#[derive(Debug)]
struct Item {
    name: String,
    since: Instant,
    /// Descriptors, as of mounts, to be closed when the tree is gone and not before: so what is
    /// written and then removed never has to reach the disk.
    held: Vec<OwnedFd>,
    failures: u32,
    not_before: Instant,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Item>,
    /// What threads work on: since when, and whether it failed before.
    working: Vec<(u64, Instant, bool)>,
    next: u64,
}

/// The trash of a store.
#[derive(Debug)]
pub(crate) struct Trash {
    dirs: Arc<Dirs>,
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
}

impl Trash {
    /// Takes up what an earlier run left.
    pub(crate) fn open(dirs: &Arc<Dirs>) -> Result<Arc<Self>> {
        let trash = Self {
            dirs: Arc::clone(dirs),
            state: Mutex::default(),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
        };
        for name in dirs::names(&dirs.trash).step(|| "read the trash".to_owned())? {
            trash.queue(name, Vec::new());
        }
        Ok(Arc::new(trash))
    }

    /// Starts the threads. They end soon after [`Trash::stop`].
    pub(crate) fn start(self: &Arc<Self>, workers: usize) -> Result<()> {
        for number in 0..workers.max(1) {
            let trash = Arc::clone(self);
            std::thread::Builder::new()
                .name(format!("garden-trash-{number}"))
                .spawn(move || trash.work())
                .step(|| "start a trash thread".to_owned())?;
        }
        Ok(())
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        // With the lock, so that no thread is between looking and waiting.
        drop(self.lock());
        self.changed.notify_all();
    }

    /// Takes `from/name` away, at once, and removes it later. `held` is closed after that.
    /// `false` when there is nothing of that name.
    pub(crate) fn discard(
        &self,
        from: impl AsFd,
        name: &str,
        held: Vec<OwnedFd>,
    ) -> rustix::io::Result<bool> {
        // Sorts by time, so that what is left over is taken up in order.
        let aside = uuid::Uuid::now_v7().to_string();
        match dirs::rename(from, name, &self.dirs.trash, &aside) {
            Ok(()) => {
                self.queue(aside, held);
                Ok(true)
            }
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn queue(&self, name: String, held: Vec<OwnedFd>) {
        let now = Instant::now();
        self.lock().waiting.push_back(Item {
            name,
            since: now,
            held,
            failures: 0,
            not_before: now,
        });
        self.changed.notify_all();
    }

    pub(crate) fn stats(&self) -> TrashStats {
        let state = self.lock();
        let waiting = state
            .waiting
            .iter()
            .map(|item| (item.since, item.failures > 0));
        let working = state
            .working
            .iter()
            .map(|(_, since, failed)| (*since, *failed));
        let mut stats = TrashStats::default();
        for (since, failed) in waiting.chain(working) {
            stats.items += 1;
            stats.failing += usize::from(failed);
            stats.oldest_age = stats.oldest_age.max(Some(since.elapsed()));
        }
        stats
    }

    /// Waits until nothing is left; `false` when that took too long.
    pub(crate) fn wait_empty(&self, timeout: Duration) -> bool {
        let busy = |state: &mut State| !(state.waiting.is_empty() && state.working.is_empty());
        let waited = self.changed.wait_timeout_while(self.lock(), timeout, busy);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn work(&self) {
        if let Err(error) = garden_sys::priority::make_io_idle() {
            tracing::debug!(%error, "the trash keeps a normal disk priority");
        }
        while let Some((token, mut item)) = self.take() {
            let stopped = || self.stop.load(Ordering::Relaxed);
            let removed = remove::tree(&self.dirs.trash, item.name.as_ref(), &stopped);
            // May be the last reference to a mount, and sync a whole disk: not under the lock.
            item.held.clear();
            let mut state = self.lock();
            state.working.retain(|(other, ..)| *other != token);
            if let Err(error) = removed
                && !stopped()
            {
                state.waiting.push_back(self.failed(item, &error));
            }
            drop(state);
            self.changed.notify_all();
        }
    }

    fn failed(&self, mut item: Item, error: &io::Error) -> Item {
        let wait = FIRST_WAIT * 2_u32.pow(item.failures.min(10));
        item.failures += 1;
        item.not_before = Instant::now() + wait.min(LONGEST_WAIT);
        let path = self.dirs.path.join("trash").join(&item.name);
        tracing::warn!(path = %path.display(), failures = item.failures, %error,
            "cannot remove a tree; it is tried again");
        item
    }

    /// Waits for something to do; `None` at the end.
    fn take(&self) -> Option<(u64, Item)> {
        let mut state = self.lock();
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            let now = Instant::now();
            if let Some(at) = state.waiting.iter().position(|item| item.not_before <= now)
                && let Some(item) = state.waiting.remove(at)
            {
                let token = state.next;
                state.next += 1;
                state.working.push((token, item.since, item.failures > 0));
                return Some((token, item));
            }
            let next = state.waiting.iter().map(|item| item.not_before).min();
            let wait = next.map_or(LONGEST_WAIT, |next| next.saturating_duration_since(now));
            let waited = self.changed.wait_timeout(state, wait);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
