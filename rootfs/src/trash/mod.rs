//! The trash: what is to be removed, and who removes it.
//!
//! Putting something in is one rename, whatever its size: its name is free at once. Removing
//! happens elsewhere: on the threads of a server ([`work`]), in whatever process, and never in the
//! way of others ([`pace`]). What cannot be removed is tried again, later and later, and is told.
//! The directory `trash/` is the queue's memory: what another process put there, or left there, is
//! found by looking.

mod pace;
mod work;

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustix::io::Errno;
use serde::Serialize;

use crate::dirs::{self, Dirs};
use crate::error::{Result, Step};
use pace::Progress;

/// How many failures are told one by one.
const MOST_TOLD: usize = 20;

/// What the trash holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TrashStats {
    /// Trees that are still to be removed.
    pub items: usize,
    /// Bytes that their removal sets free, of those of which it is known.
    pub bytes: u64,
    /// How many trees there are whose bytes are not known.
    pub of_unknown_size: usize,
    /// How long the oldest of them has been waiting.
    pub oldest_age: Option<Duration>,
    /// How many of them could not be removed at least once.
    pub failing: usize,
    /// The first of those.
    pub failures: Vec<TrashFailure>,
    /// How many of them a thread has been working on for long without getting anywhere.
    pub stuck: usize,
}

/// A tree that could not be removed. It is tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TrashFailure {
    /// Where it is.
    pub path: PathBuf,
    /// How often it was tried.
    pub times: u32,
    /// Why it failed the last time.
    pub reason: String,
}

/// What else is to be done for a tree that is removed. Called on a trash thread, in whatever
/// process empties the trash.
pub(crate) trait WhenGone: fmt::Debug + Send + Sync {
    /// Removes `trash/name`, which is `tree`, whole, where there is a quicker way than object by
    /// object; `false` where there is not.
    fn remove(&self, _name: &str, _tree: &OwnedFd) -> bool {
        false
    }

    /// The end of `trash/name`, in which nothing is left but, if it had any, its `record.json`, whose
    /// bytes these are. May remove it. After a crash perhaps called twice for the same tree. An
    /// error leaves it where it is, and is tried again.
    fn gone(&self, name: &str, tree: &OwnedFd, record: Option<&[u8]>) -> io::Result<()>;
}

/// What goes with a tree into the trash.
#[derive(Debug, Default)]
pub(crate) struct With {
    /// Descriptors, as of mounts, to be closed when the tree is gone and not before: so what was
    /// written and then removed never has to reach the disk.
    pub(crate) held: Vec<OwnedFd>,
    /// Bytes that its removal sets free, if they are known.
    pub(crate) bytes: Option<u64>,
}

#[derive(Debug)]
struct Item {
    name: String,
    since: Instant,
    with: With,
    failures: u32,
    reason: String,
    not_before: Instant,
}

/// What a thread works on.
#[derive(Debug)]
struct Work {
    token: u64,
    name: String,
    since: Instant,
    bytes: Option<u64>,
    failures: u32,
    reason: String,
    /// Descriptors that came after it was begun.
    late: Vec<OwnedFd>,
    progress: Arc<Progress>,
    /// How far it was, and since when: to see whether it is stuck.
    seen: (u64, Instant),
    stuck: bool,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Item>,
    working: Vec<Work>,
    next: u64,
    /// Somebody may still put something in that was there before the store was opened.
    settling: usize,
    /// Threads that there are, and that there are to be without the stuck ones.
    threads: usize,
    wanted: usize,
}

/// The trash of a store.
#[derive(Debug)]
pub(crate) struct Trash {
    dirs: Arc<Dirs>,
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
    /// Space is short: removing is what others wait for.
    boost: AtomicBool,
    /// Calls of this process that somebody waits for.
    foreground: AtomicUsize,
    /// When the directory was looked at last: its modification time, once that is old enough to
    /// tell everything that came later.
    looked: Mutex<Option<(i64, u64)>>,
    when_gone: OnceLock<Box<dyn WhenGone>>,
}

/// Something that somebody waits for; until it is dropped, removing goes slower.
#[derive(Debug)]
pub(crate) struct Foreground<'a>(&'a Trash);

/// The store is still finding what was there before it was opened.
#[derive(Debug)]
pub(crate) struct Settling(Arc<Trash>);

impl Trash {
    pub(crate) fn new(dirs: &Arc<Dirs>) -> Arc<Self> {
        Arc::new(Self {
            dirs: Arc::clone(dirs),
            state: Mutex::default(),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
            boost: AtomicBool::new(false),
            foreground: AtomicUsize::new(0),
            looked: Mutex::default(),
            when_gone: OnceLock::new(),
        })
    }

    /// Sets what else is to be done for a tree; once, before anything is removed.
    pub(crate) fn when_gone(&self, work: Box<dyn WhenGone>) {
        let _ = self.when_gone.set(work);
    }

    /// Takes `from/name` away, at once, and removes it later. `held` is closed after that.
    /// `false` when there is nothing of that name.
    pub(crate) fn discard(
        &self,
        from: impl AsFd,
        name: &str,
        held: Vec<OwnedFd>,
    ) -> rustix::io::Result<bool> {
        self.discard_with(from, name, With { held, bytes: None })
    }

    /// The same, with all that may be known of it.
    pub(crate) fn discard_with(
        &self,
        from: impl AsFd,
        name: &str,
        with: With,
    ) -> rustix::io::Result<bool> {
        // Sorts by time, so that what is left over is taken up in order.
        let aside = uuid::Uuid::now_v7().to_string();
        match dirs::rename(from, name, &self.dirs.trash, &aside) {
            Ok(()) => {
                self.queue(aside, with);
                Ok(true)
            }
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn queue(&self, name: String, with: With) {
        let now = Instant::now();
        let since = since(&name, now);
        let mut state = self.lock();
        // A look may have found it between its rename and now: then only the rest is to be added.
        if let Some(known) = state.waiting.iter_mut().find(|item| item.name == name) {
            known.with.held.extend(with.held);
            known.with.bytes = with.bytes;
        } else if let Some(known) = state.working.iter_mut().find(|work| work.name == name) {
            known.late.extend(with.held);
            known.bytes = with.bytes;
        } else {
            state.waiting.push_back(Item {
                since,
                name,
                with,
                failures: 0,
                reason: String::new(),
                not_before: now,
            });
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Takes up what is in the directory and not known: left by an earlier run, or by a tool.
    pub(crate) fn look(&self) -> Result<()> {
        let names = dirs::names(&self.dirs.trash).step(|| "read the trash".to_owned())?;
        let state = self.lock();
        let waiting = state.waiting.iter().map(|item| &item.name);
        let working = state.working.iter().map(|work| &work.name);
        let known: HashSet<_> = waiting.chain(working).cloned().collect();
        drop(state);
        for name in names.into_iter().filter(|name| !known.contains(name)) {
            self.queue(name, With::default());
        }
        Ok(())
    }

    /// The same, unless nothing can have come since the last time: costs one system call.
    pub(crate) fn glance(&self) -> Result<()> {
        let step = || "look at the trash".to_owned();
        let stat = rustix::fs::fstat(&self.dirs.trash).step(step)?;
        let now = (stat.st_mtime, stat.st_mtime_nsec);
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if *looked == Some(now) {
            return Ok(());
        }
        // What comes within the same tick of the kernel's clock has the same time.
        let changed =
            SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0));
        let settled = changed.elapsed().is_ok_and(|age| age.as_secs() >= 2);
        *looked = settled.then_some(now);
        drop(looked);
        self.look()
    }

    pub(crate) fn stats(&self) -> TrashStats {
        let state = self.lock();
        let mut stats = TrashStats::default();
        let mut count =
            |name: &str, since: &Instant, bytes: Option<u64>, failures: u32, reason: &str| {
                stats.items += 1;
                stats.bytes += bytes.unwrap_or(0);
                stats.of_unknown_size += usize::from(bytes.is_none());
                stats.oldest_age = stats.oldest_age.max(Some(since.elapsed()));
                if failures > 0 {
                    stats.failing += 1;
                    if stats.failures.len() < MOST_TOLD {
                        stats.failures.push(TrashFailure {
                            path: self.dirs.path.join("trash").join(name),
                            times: failures,
                            reason: reason.to_owned(),
                        });
                    }
                }
            };
        for item in &state.waiting {
            let (bytes, failures) = (item.with.bytes, item.failures);
            count(&item.name, &item.since, bytes, failures, &item.reason);
        }
        for work in &state.working {
            let left = (work.bytes).map(|bytes| bytes.saturating_sub(work.progress.bytes()));
            count(&work.name, &work.since, left, work.failures, &work.reason);
        }
        stats.stuck = state.working.iter().filter(|work| work.stuck).count();
        stats
    }

    /// Waits until nothing is left; `false` when that took too long.
    pub(crate) fn wait_empty(&self, timeout: Duration) -> bool {
        let busy = |state: &mut State| {
            !(state.waiting.is_empty() && state.working.is_empty()) || state.settling > 0
        };
        let waited = self.changed.wait_timeout_while(self.lock(), timeout, busy);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Whether there is something to remove that has not failed and is not stuck.
    pub(crate) fn is_busy(&self) -> bool {
        self.lock().is_busy()
    }

    /// Waits until there is nothing of that kind.
    pub(crate) fn wait_done(&self, timeout: Duration) -> bool {
        let busy = |state: &mut State| state.is_busy();
        let waited = self.changed.wait_timeout_while(self.lock(), timeout, busy);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Says that the store is still finding what was there before: it is not empty until then.
    pub(crate) fn settling(self: &Arc<Self>) -> Settling {
        self.lock().settling += 1;
        Settling(Arc::clone(self))
    }

    /// Says that somebody waits for what this process does now.
    pub(crate) fn foreground(&self) -> Foreground<'_> {
        self.foreground.fetch_add(1, Ordering::Relaxed);
        Foreground(self)
    }

    /// Whether removing is what others wait for: then it goes as fast as it can.
    pub(crate) fn boost(&self, boost: bool) {
        self.boost.store(boost, Ordering::Relaxed);
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        // With the lock, so that no thread is between looking and waiting.
        drop(self.lock());
        self.changed.notify_all();
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_busy(&self) -> bool {
        let fresh = self.waiting.iter().any(|item| item.failures == 0);
        fresh
            || self
                .working
                .iter()
                .any(|work| !work.stuck && work.failures == 0)
    }
}

impl Drop for Foreground<'_> {
    fn drop(&mut self) {
        self.0.foreground.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        self.0.lock().settling -= 1;
        self.0.changed.notify_all();
    }
}

/// Since when something of this name is in the trash: the names tell.
fn since(name: &str, now: Instant) -> Instant {
    let put = uuid::Uuid::parse_str(name).ok();
    let put = put.and_then(|name| name.get_timestamp());
    let put = put.map(|time| Duration::new(time.to_unix().0, time.to_unix().1));
    let age = put.and_then(|put| (SystemTime::UNIX_EPOCH + put).elapsed().ok());
    age.and_then(|age| now.checked_sub(age)).unwrap_or(now)
}
