//! Who may be destroyed, and when: grace times, and the set of handles being destroyed.
//!
//! A container with a grace time is destroyed when no request used it for that long. A request
//! that uses it holds a [`Touch`]; the time starts anew, in full, when the last one is dropped.
//! The set makes sure that one destroy at a time runs per container, the reaper's included.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle as Runtime;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::model::Handle;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The grace times of all containers that have one.
#[derive(Debug)]
pub(super) struct Grace {
    timers: Mutex<HashMap<Handle, Timer>>,
    expired: mpsc::UnboundedSender<Handle>,
    runtime: Runtime,
}

#[derive(Debug, Default)]
struct Timer {
    period: Option<Duration>,
    touches: usize,
    /// Sleeps while nothing touches.
    sleep: Option<AbortHandle>,
}

/// A request that uses a container.
#[derive(Debug)]
pub(super) struct Touch {
    grace: Arc<Grace>,
    handle: Handle,
}

impl Grace {
    /// Sends handles whose time is over. Must be called inside a runtime.
    pub(super) fn new(expired: mpsc::UnboundedSender<Handle>) -> Self {
        Self {
            timers: Mutex::default(),
            expired,
            runtime: Runtime::current(),
        }
    }

    /// Sets or replaces the time of a container, and starts it; `None` is for ever.
    pub(super) fn arm(&self, handle: &Handle, period: Option<Duration>) {
        let mut timers = lock(&self.timers);
        let timer = timers.entry(handle.clone()).or_default();
        timer.period = period;
        self.restart(handle, timer);
        if timer.touches == 0 && timer.period.is_none() {
            timers.remove(handle);
        }
    }

    /// Forgets a container that is no more.
    pub(super) fn disarm(&self, handle: &Handle) {
        if let Some(timer) = lock(&self.timers).remove(handle)
            && let Some(sleep) = timer.sleep
        {
            sleep.abort();
        }
    }

    /// Pauses the time of a container while the result lives.
    pub(super) fn touch(self: &Arc<Self>, handle: &Handle) -> Touch {
        let mut timers = lock(&self.timers);
        let timer = timers.entry(handle.clone()).or_default();
        timer.touches += 1;
        self.restart(handle, timer);
        Touch {
            grace: Arc::clone(self),
            handle: handle.clone(),
        }
    }

    fn restart(&self, handle: &Handle, timer: &mut Timer) {
        if let Some(sleep) = timer.sleep.take() {
            sleep.abort();
        }
        if let (Some(period), 0) = (timer.period, timer.touches) {
            let (expired, handle) = (self.expired.clone(), handle.clone());
            let sleep = self.runtime.spawn(async move {
                tokio::time::sleep(period).await;
                // Nobody listens any more only when the server stops.
                let _ = expired.send(handle);
            });
            timer.sleep = Some(sleep.abort_handle());
        }
    }
}

impl Drop for Touch {
    fn drop(&mut self) {
        let mut timers = lock(&self.grace.timers);
        // Destroyed meanwhile, or made anew under the same name: then there is nothing to undo.
        let Some(timer) = timers.get_mut(&self.handle) else {
            return;
        };
        timer.touches = timer.touches.saturating_sub(1);
        self.grace.restart(&self.handle, timer);
        if timer.touches == 0 && timer.period.is_none() {
            timers.remove(&self.handle);
        }
    }
}

/// The handles that are being destroyed.
#[derive(Debug, Default)]
pub(super) struct Doomed(Mutex<HashSet<Handle>>);

/// The right to destroy one container.
#[derive(Debug)]
pub(super) struct Doom {
    set: Arc<Doomed>,
    handle: Handle,
}

impl Doomed {
    /// The right, unless somebody has it.
    pub(super) fn claim(self: &Arc<Self>, handle: &Handle) -> Option<Doom> {
        lock(&self.0).insert(handle.clone()).then(|| Doom {
            set: Arc::clone(self),
            handle: handle.clone(),
        })
    }
}

impl Drop for Doom {
    fn drop(&mut self) {
        lock(&self.set.0).remove(&self.handle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn grace() -> (Arc<Grace>, mpsc::UnboundedReceiver<Handle>, Handle) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Arc::new(Grace::new(sender)), receiver, "h".parse().unwrap())
    }

    async fn quiet(receiver: &mut mpsc::UnboundedReceiver<Handle>, time: Duration) -> bool {
        tokio::time::timeout(time, receiver.recv()).await.is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn touches_pause_the_time_and_restart_it_in_full() {
        let (grace, mut expired, handle) = grace();
        grace.arm(&handle, Some(10 * SECOND));
        assert!(quiet(&mut expired, 9 * SECOND).await);
        let (first, second) = (grace.touch(&handle), grace.touch(&handle));
        assert!(quiet(&mut expired, 100 * SECOND).await);
        drop(first);
        assert!(quiet(&mut expired, 100 * SECOND).await);
        drop(second);
        assert!(quiet(&mut expired, 9 * SECOND).await);
        assert!(!quiet(&mut expired, 2 * SECOND).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_time_replaces_the_old_and_none_is_for_ever() {
        let (grace, mut expired, handle) = grace();
        grace.arm(&handle, Some(SECOND));
        grace.arm(&handle, None);
        assert!(quiet(&mut expired, 1000 * SECOND).await);
        let touch = grace.touch(&handle);
        grace.arm(&handle, Some(SECOND));
        assert!(quiet(&mut expired, 10 * SECOND).await);
        drop(touch);
        assert!(!quiet(&mut expired, 2 * SECOND).await);
        grace.arm(&handle, Some(SECOND));
        grace.disarm(&handle);
        assert!(quiet(&mut expired, 10 * SECOND).await);
        drop(grace.touch(&handle));
        assert!(lock(&grace.timers).is_empty());
    }

    #[test]
    fn one_destroy_at_a_time() {
        let (doomed, handle) = (Arc::<Doomed>::default(), "h".parse().unwrap());
        let doom = doomed.claim(&handle).unwrap();
        assert!(doomed.claim(&handle).is_none());
        drop(doom);
        assert!(doomed.claim(&handle).is_some());
    }
}
