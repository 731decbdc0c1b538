//! The threads that mount by paths: see [`super::space`].
//!
//! Used by the mounter. There is one thread, started when it is first needed, with a namespace of
//! its own that lives as long as it. A job that fails, or panics, costs the others nothing. When
//! the thread is stuck in the kernel (a dead network disk), another takes over what is waiting, up
//! to a bound, and whoever waits for the stuck job is told in the end. The threads end when the
//! pool is dropped, and are not waited for.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Failed;
use super::space::Space;
use crate::dirs::Dirs;

/// How long jobs wait before another thread helps. A mount takes a few milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long anybody waits for a mount.
const LIMIT: Duration = Duration::from_mins(1);
/// Threads that may be stuck at the same time, and one more.
const MOST_THREADS: usize = 8;

type Job = Box<dyn FnOnce(Result<&mut Space, Failed>) + Send>;

/// The threads, and what they have to do.
#[derive(Debug)]
pub(super) struct Pool(Arc<Shared>);

struct Shared {
    dirs: Arc<Dirs>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    threads: usize,
    idle: usize,
    stop: bool,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.0.lock().stop = true;
        self.0.changed.notify_all();
    }
}

impl Pool {
    pub(super) fn new(dirs: &Arc<Dirs>) -> Self {
        Self(Arc::new(Shared {
            dirs: Arc::clone(dirs),
            state: Mutex::default(),
            changed: Condvar::new(),
        }))
    }

    /// Does something in a mount namespace, and waits for it.
    pub(super) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Space) -> Result<T, Failed> + Send + 'static,
    ) -> Result<T, Failed> {
        let (done, result) = sync_channel(1);
        let job: Job = Box::new(move |space| {
            // Nobody listens any more when it took too long; what was made is dropped.
            let _ = done.send(space.and_then(work));
        });
        let mut state = self.0.lock();
        state.waiting.push_back(job);
        if state.threads == 0 {
            self.0.help(&mut state)?;
        }
        drop(state);
        self.0.changed.notify_one();
        let since = Instant::now();
        loop {
            match result.recv_timeout(PATIENCE) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Disconnected) => {
                    let text = "the thread that mounts ended in the middle";
                    return Err(Failed::at("mount")(io::Error::other(text)));
                }
                Err(RecvTimeoutError::Timeout) if since.elapsed() < LIMIT => {
                    let mut state = self.0.lock();
                    if !state.waiting.is_empty() && state.idle == 0 && state.threads < MOST_THREADS
                    {
                        tracing::warn!(threads = state.threads, "a mount is stuck in the kernel");
                        self.0.help(&mut state)?;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    let step = "mount within a minute (the kernel has not answered: see whether \
                                the disk of the store does)";
                    return Err(Failed::at(step)(io::Error::from(io::ErrorKind::TimedOut)));
                }
            }
        }
    }
}

impl Shared {
    /// Starts a thread.
    fn help(self: &Arc<Self>, state: &mut State) -> Result<(), Failed> {
        let shared = Arc::clone(self);
        std::thread::Builder::new()
            .name("garden-mount".to_owned())
            .spawn(move || {
                let _gone = Gone(&shared);
                shared.work();
            })
            .map_err(Failed::at("start the thread that mounts"))?;
        state.threads += 1;
        Ok(())
    }

    fn work(&self) {
        let mut space = None;
        while let Some(job) = self.take() {
            if space.is_none() {
                match Space::new(&self.dirs) {
                    Ok(new) => space = Some(new),
                    // The thread may be half way out of the host's namespace: another tries again.
                    Err(failed) => return job(Err(failed)),
                }
            }
            if let Some(space) = &mut space {
                job(Ok(space));
            }
        }
    }

    fn take(&self) -> Option<Job> {
        let mut state = self.lock();
        state.idle += 1;
        let nothing = |state: &mut State| !state.stop && state.waiting.is_empty();
        let mut state =
            (self.changed.wait_while(state, nothing)).unwrap_or_else(PoisonError::into_inner);
        state.idle -= 1;
        // What is waiting at the end is dropped with the state: nobody waits for it any more.
        if state.stop {
            None
        } else {
            state.waiting.pop_front()
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts a thread that ends, also by a panic. What is waiting gets another one.
struct Gone<'a>(&'a Arc<Shared>);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.threads -= 1;
        if state.threads == 0
            && !state.stop
            && !state.waiting.is_empty()
            && let Err(failed) = self.0.help(&mut state)
        {
            tracing::warn!(error = %failed.source, "cannot start another mount thread");
            state.waiting.clear();
        }
    }
}
