//! Links that go, many at a time, behind everybody's back.
//!
//! For the removal of links the kernel waits until every processor has let go of them: some ten
//! milliseconds, for one link as for a hundred. So whoever disconnects a container only hands its
//! lease over; a thread takes away what has gathered since its last round. Until then the address is
//! nobody's, and a packet from there goes nowhere: its rules are gone, its bridge is still known.
//!
//! What is handed over is not on file: a start finds the links of those that it does not know.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::KernelError;
use crate::lease::Lease;

/// How long the thread waits before it tries again what the kernel refused.
const AGAIN: Duration = Duration::from_secs(1);

/// Leases whose links are to be taken away, and the thread that does it.
#[derive(Debug)]
pub(crate) struct Leaving {
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<Lease>,
    /// Those that the round which is under way takes away.
    round: Vec<Lease>,
    closed: bool,
}

impl Leaving {
    /// Starts the thread, in the network namespace of the caller. `round` takes links away; what it
    /// fails on is given to it again.
    pub(crate) fn start(
        round: impl Fn(&[Lease]) -> Result<(), KernelError> + Send + 'static,
    ) -> std::io::Result<Self> {
        let queue = Arc::<Queue>::default();
        let shared = Arc::clone(&queue);
        let thread = std::thread::Builder::new()
            .name("garden-links".to_owned())
            .spawn(move || shared.work(round))?;
        Ok(Self {
            queue,
            thread: Some(thread),
        })
    }

    /// Hands a lease over.
    pub(crate) fn push(&self, lease: Lease) {
        self.queue.lock().waiting.push(lease);
        self.queue.changed.notify_all();
    }

    /// Whether this one was handed over, and is not gone yet.
    pub(crate) fn has(&self, lease: &Lease) -> bool {
        let state = self.queue.lock();
        let mut all = state.waiting.iter().chain(&state.round);
        all.any(|one| one.names.id == lease.names.id)
    }

    /// Whether nothing waits, and nothing is being taken away.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.lock().is_idle()
    }

    /// Waits until nothing is left, at most so long; returns whether that came true.
    pub(crate) fn settle(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut state = self.queue.lock();
        while !state.is_idle() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.queue.wait(state, left);
        }
        true
    }
}

impl Drop for Leaving {
    /// Ends with the round that is under way; what waits is the next start's.
    fn drop(&mut self) {
        self.queue.lock().closed = true;
        self.queue.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // It does not panic; if it did, there is nothing to be done here.
            let _ = thread.join();
        }
    }
}

impl State {
    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.round.is_empty()
    }
}

impl Queue {
    fn work(&self, round: impl Fn(&[Lease]) -> Result<(), KernelError>) {
        loop {
            let batch = {
                let mut state = self.lock();
                while state.waiting.is_empty() && !state.closed {
                    state = self.wait(state, Duration::MAX);
                }
                if state.closed {
                    return;
                }
                state.round = std::mem::take(&mut state.waiting);
                state.round.clone()
            };
            let failed = round(&batch).is_err();
            let mut state = self.lock();
            state.round.clear();
            if failed {
                state.waiting.extend(batch);
                let again = Instant::now() + AGAIN;
                while !state.closed && Instant::now() < again {
                    state = self.wait(state, again.saturating_duration_since(Instant::now()));
                }
            }
            drop(state);
            self.changed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, most: Duration) -> MutexGuard<'a, State> {
        // An hour is as good as for ever, and no clock overflows.
        let most = most.min(Duration::from_secs(3600));
        let waited = self.changed.wait_timeout(state, most);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}
