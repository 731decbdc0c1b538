//! The trash: what is to be removed, and the threads that remove it.
//!
//! Putting something in is one rename, whatever its size: its name is free at once. Removing
//! happens on own threads with idle disk priority; a thread that is stuck in the kernel holds up
//! nobody but the trash. What cannot be removed is tried again, later and later, and is counted.
//! The directory `trash/` is the queue's memory: the next start takes up what is in it.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use serde::Serialize;

use crate::dirs::{self, Dirs};
use crate::error::{Result, Step};
use crate::remove;

/// How long the first repetition waits; each further one waits twice as long, up to a minute.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// The record that most trees have.
const RECORD: &str = "record.json";

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
    working: Vec<Work>,
    next: u64,
}

/// What a thread works on.
#[derive(Debug)]
struct Work {
    token: u64,
    name: String,
    since: Instant,
    failing: bool,
    /// Descriptors that came after it was begun.
    late: Vec<OwnedFd>,
}

impl State {
    /// Takes the first item that fits out of the queue.
    fn begin(&mut self, fits: impl Fn(&Item) -> bool) -> Option<(u64, Item)> {
        let at = self.waiting.iter().position(fits)?;
        let item = self.waiting.remove(at)?;
        let token = self.next;
        self.next += 1;
        self.working.push(Work {
            token,
            name: item.name.clone(),
            since: item.since,
            failing: item.failures > 0,
            late: Vec::new(),
        });
        Some((token, item))
    }
}

/// What is to be done when a tree is gone.
pub(crate) trait WhenGone: fmt::Debug + Send + Sync {
    /// Gets the bytes of the tree's `record.json`. Called on a trash thread, in whatever process
    /// empties the trash, and after a crash perhaps twice for the same tree. An error leaves the
    /// record where it is, and is tried again.
    fn gone(&self, record: &[u8]) -> io::Result<()>;
}

/// The trash of a store.
#[derive(Debug)]
pub(crate) struct Trash {
    dirs: Arc<Dirs>,
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
    when_gone: OnceLock<Box<dyn WhenGone>>,
}

impl Trash {
    pub(crate) fn new(dirs: &Arc<Dirs>) -> Arc<Self> {
        Arc::new(Self {
            dirs: Arc::clone(dirs),
            state: Mutex::default(),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
            when_gone: OnceLock::new(),
        })
    }

    /// Sets what is to be done when a tree with a record is gone; once, before anything is removed.
    #[expect(dead_code, reason = "quotas release their project here")]
    pub(crate) fn when_gone(&self, work: Box<dyn WhenGone>) {
        let _ = self.when_gone.set(work);
    }

    /// Takes up what is in the directory and not known: left by an earlier run, or by a tool.
    pub(crate) fn look(&self) -> Result<()> {
        let names = dirs::names(&self.dirs.trash).step(|| "read the trash".to_owned())?;
        for name in names {
            self.queue(name, Vec::new());
        }
        Ok(())
    }

    /// Removes in this thread what can be removed now.
    pub(crate) fn drain(&self) -> Result<()> {
        self.look()?;
        let begun = Instant::now();
        while let Some((token, item)) = {
            let mut state = self.lock();
            state.begin(|item| item.failures == 0 || item.not_before <= begun)
        } {
            self.remove(token, item);
        }
        Ok(())
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
        let mut state = self.lock();
        // A look may find it before it is queued: then the descriptors come later.
        if let Some(known) = state.waiting.iter_mut().find(|item| item.name == name) {
            known.held.extend(held);
            return;
        }
        if let Some(known) = state.working.iter_mut().find(|work| work.name == name) {
            known.late.extend(held);
            return;
        }
        state.waiting.push_back(Item {
            name,
            since: now,
            held,
            failures: 0,
            not_before: now,
        });
        drop(state);
        self.changed.notify_all();
    }

    pub(crate) fn stats(&self) -> TrashStats {
        let state = self.lock();
        let waiting = state
            .waiting
            .iter()
            .map(|item| (item.since, item.failures > 0));
        let working = state.working.iter().map(|work| (work.since, work.failing));
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
        while let Some((token, item)) = self.take() {
            self.remove(token, item);
        }
    }

    fn remove(&self, token: u64, mut item: Item) {
        let stopped = || self.stop.load(Ordering::Relaxed);
        let removed = self.empty(&mut item, &stopped);
        let mut state = self.lock();
        let at = (state.working.iter()).position(|work| work.token == token);
        let late = at.map(|at| state.working.swap_remove(at).late);
        item.held.extend(late.unwrap_or_default());
        if let Err(error) = removed
            && !stopped()
        {
            let item = self.failed(item, &error);
            state.waiting.push_back(item);
        } else {
            drop(state);
            // May be the last reference to a mount, and sync a whole disk: not under the lock.
            drop(item);
        }
        self.changed.notify_all();
    }

    /// In an order that survives a crash at any point: what a record promised is given back
    /// before the record goes, and that is the last to go.
    fn empty(&self, item: &mut Item, stopped: &dyn Fn() -> bool) -> io::Result<()> {
        let name = item.name.as_ref();
        let record = dirs::directory(&self.dirs.trash, &*item.name)
            .map_err(io::Error::from)
            .and_then(|directory| dirs::read(directory, RECORD))
            .unwrap_or_default();
        remove::contents(&self.dirs.trash, name, RECORD.as_ref(), stopped)?;
        item.held.clear();
        if let (Some(record), Some(work)) = (record, self.when_gone.get()) {
            work.gone(&record)?;
        }
        remove::tree(&self.dirs.trash, name, stopped)
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
            if let Some(begun) = state.begin(|item| item.not_before <= now) {
                return Some(begun);
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
