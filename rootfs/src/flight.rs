//! Doing the same work once when several threads or processes want it.
//!
//! Used by the importer. One thread of one process at a time flies under a key; the others wait
//! for it to land and then look whether what they want is there. Nothing is held while work is
//! done, except the key itself. Keys have an order, and who flies under one may only wait for a
//! later kind: first an image, then one layer, then a slot. So nobody waits in a circle.
//!
//! Between processes a key is an exclusive `flock` on the file `locks/KEY`, which the kernel gives
//! back when its holder dies. The holder removes the file before it lets go. Whoever then gets the
//! lock on a file without a name sees that and starts again with the name; so the file with the
//! name is never locked by two, and the directory does not fill up.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Result, Step};

/// How often a waiting thread looks whether it should still wait.
const LOOK: Duration = Duration::from_millis(50);
/// How often another process's lock is tried: at first, and in the end.
const TRY: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));

/// Keys under which somebody works, and the slots that bound how much is done at once.
#[derive(Debug)]
pub(crate) struct Flights {
    state: Mutex<State>,
    landed: Condvar,
}

#[derive(Debug)]
struct State {
    keys: HashSet<String>,
    slots: usize,
}

/// The right to work under a key; given back when dropped.
#[derive(Debug)]
pub(crate) struct Flight<'a> {
    flights: &'a Flights,
    key: String,
    /// In the order in which they are dropped: first other processes may go on.
    lock: Option<KeyLock<'a>>,
}

/// The right to do something big; given back when dropped.
#[derive(Debug)]
pub(crate) struct Slot<'a>(&'a Flights);

/// Somebody else failed, so that waiting is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stopped;

impl Flights {
    /// With this many slots.
    pub(crate) fn new(slots: usize) -> Self {
        let state = State {
            keys: HashSet::new(),
            slots: slots.max(1),
        };
        Self {
            state: Mutex::new(state),
            landed: Condvar::new(),
        }
    }

    /// Waits until nobody works under this key, and takes it. A key is a usable file name.
    /// `stop` ends the waiting.
    pub(crate) fn take<'a>(
        &'a self,
        locks: &'a OwnedFd,
        key: &str,
        stop: &dyn Fn() -> bool,
    ) -> Result<std::result::Result<Flight<'a>, Stopped>> {
        let mut state = self.lock();
        while !state.keys.insert(key.to_owned()) {
            if stop() {
                return Ok(Err(Stopped));
            }
            state = self.wait(state);
        }
        drop(state);
        let mut flight = Flight {
            flights: self,
            key: key.to_owned(),
            lock: None,
        };
        let lock = KeyLock::take(locks, key, stop);
        match lock.step(|| format!("take the lock {key:?} of the store"))? {
            Some(lock) => flight.lock = Some(lock),
            None => return Ok(Err(Stopped)),
        }
        Ok(Ok(flight))
    }

    /// Waits for a slot.
    pub(crate) fn slot(&self, stop: &dyn Fn() -> bool) -> std::result::Result<Slot<'_>, Stopped> {
        let mut state = self.lock();
        while state.slots == 0 {
            if stop() {
                return Err(Stopped);
            }
            state = self.wait(state);
        }
        state.slots -= 1;
        Ok(Slot(self))
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        let waited = self.landed.wait_timeout(state, LOOK);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.lock = None;
        self.flights.lock().keys.remove(&self.key);
        self.flights.landed.notify_all();
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.lock().slots += 1;
        self.0.landed.notify_all();
    }
}

/// A key, locked against other processes.
#[derive(Debug)]
struct KeyLock<'a> {
    locks: &'a OwnedFd,
    key: String,
    file: OwnedFd,
}

impl<'a> KeyLock<'a> {
    /// `None` when it was stopped.
    fn take(
        locks: &'a OwnedFd,
        key: &str,
        stop: &dyn Fn() -> bool,
    ) -> rustix::io::Result<Option<Self>> {
        loop {
            let file = open(locks, key)?;
            if !wait_for(&file, stop)? {
                return Ok(None);
            }
            if rustix::fs::fstat(&file)?.st_nlink > 0 {
                let key = key.to_owned();
                return Ok(Some(Self { locks, key, file }));
            }
        }
    }
}

impl Drop for KeyLock<'_> {
    fn drop(&mut self) {
        // The order matters: see the head of this file. Failing leaves an empty file.
        let _ = rustix::fs::unlinkat(self.locks, &*self.key, AtFlags::empty());
        // Closing is not enough: a process that is just being started may hold a copy of the
        // descriptor for a moment.
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }
}

fn open(locks: &OwnedFd, key: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(locks, key, flags, Mode::RUSR | Mode::WUSR)
}

/// Not one call that blocks: nothing could end it when the rest of an import has failed.
fn wait_for(file: &OwnedFd, stop: &dyn Fn() -> bool) -> rustix::io::Result<bool> {
    let (mut pause, longest) = TRY;
    let since = Instant::now();
    let mut told = false;
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) => {}
            Err(error) => return Err(error),
        }
        if stop() {
            return Ok(false);
        }
        if !told && since.elapsed() > Duration::from_secs(1) {
            tracing::debug!("waiting for another process that does the same");
            told = true;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(longest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    fn never() -> bool {
        false
    }

    fn locks() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap().into();
        (dir, fd)
    }

    #[test]
    fn one_thread_at_a_time_has_a_key() {
        let (dir, locks) = locks();
        // Each like a process of its own: they share the files only.
        let processes: Vec<_> = (0..3).map(|_| Flights::new(1)).collect();
        let inside = AtomicUsize::new(0);
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for flights in processes.iter().chain(&processes) {
                let (locks, inside, total) = (&locks, &inside, &total);
                scope.spawn(move || {
                    for _ in 0..50 {
                        let _flight = flights.take(locks, "key", &never).unwrap().unwrap();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        total.fetch_add(1, Ordering::SeqCst);
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 300);
        let _other = processes[0].take(&locks, "a", &never).unwrap().unwrap();
        let another = processes[0].take(&locks, "b", &never).unwrap().unwrap();
        drop(another);
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1);
    }

    #[test]
    fn waiting_can_be_stopped() {
        let (_dir, locks) = locks();
        let (here, there) = (Flights::new(1), Flights::new(1));
        let _flight = here.take(&locks, "key", &never).unwrap().unwrap();
        let _slot = here.slot(&never).unwrap();
        let stop = AtomicBool::new(false);
        let stopped = || stop.load(Ordering::Relaxed);
        std::thread::scope(|scope| {
            let same = scope.spawn(|| here.take(&locks, "key", &stopped).unwrap().is_err());
            let other = scope.spawn(|| there.take(&locks, "key", &stopped).unwrap().is_err());
            let slot = scope.spawn(|| here.slot(&stopped).is_err());
            stop.store(true, Ordering::Relaxed);
            assert!(same.join().unwrap() && other.join().unwrap() && slot.join().unwrap());
        });
        // What was stopped holds nothing.
        drop(_flight);
        there.take(&locks, "key", &never).unwrap().unwrap();
    }
}
