//! The part of the next mount that can be done before it is asked for.
//!
//! Used by the mounting of root filesystems, in a server. Telling the kernel the layers of an
//! overlay takes more than a microsecond for each of them, and is the same for every root
//! filesystem of an image: with many layers it is a good part of a create. So after a mount a
//! thread begins the next one of the same stack ([`Stack::ahead`]), and a create only adds its
//! own directories. What was begun holds nothing but a descriptor, and ends with its stack.
//!
//! A create never waits for this thread: what is not ready is done on the spot.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::{Mounter, Stack, lock};

/// With fewer layers, waking a thread costs as much as it saves.
const WORTH: usize = 16;
/// Stacks that wait for the thread. More are dropped: they cost their next create a little.
const MOST: usize = 16;

/// Where mounts tell what will be wanted again.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Whether a thread works.
    runs: bool,
    wanted: Vec<Arc<Stack>>,
}

impl Ahead {
    /// Called once, before the thread is started that calls [`Ahead::work`].
    pub(crate) fn start(&self) {
        lock(&self.state).runs = true;
    }

    /// Ends the work; nothing is begun any more.
    pub(crate) fn stop(&self) {
        let mut state = lock(&self.state);
        state.runs = false;
        state.wanted.clear();
        drop(state);
        self.changed.notify_all();
    }

    /// A stack was mounted, and may be mounted again.
    pub(crate) fn used(&self, stack: &Arc<Stack>) {
        if stack.layers.len() < WORTH {
            return;
        }
        let mut state = lock(&self.state);
        let known = state.wanted.iter().any(|known| Arc::ptr_eq(known, stack));
        if state.runs && !known && state.wanted.len() < MOST {
            state.wanted.push(Arc::clone(stack));
            drop(state);
            self.changed.notify_one();
        }
    }

    /// Begins mounts until it is stopped.
    pub(crate) fn work(&self, mounter: &Mounter) {
        // What woke it is a create, which is not to wait for it on its own processor.
        if let Err(error) = garden_sys::priority::make_batch() {
            tracing::debug!(%error, "mounts are begun ahead with a normal priority");
        }
        while let Some(stack) = self.next() {
            if let Err(failed) = mounter.prepare(&stack) {
                // The next create does it again, and tells its caller.
                tracing::debug!(step = failed.step, error = %failed.source,
                    "an overlay was not begun ahead");
            }
        }
    }

    fn next(&self) -> Option<Arc<Stack>> {
        let state = lock(&self.state);
        let mut state = (self.changed)
            .wait_while(state, |state| state.runs && state.wanted.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        state.wanted.pop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rootfs::Mapping;

    fn stack(layers: usize) -> Arc<Stack> {
        Arc::new(Stack::new(vec![String::new(); layers], Mapping::Host))
    }

    #[test]
    fn only_what_is_worth_it_is_wanted_and_once() {
        let ahead = Ahead::default();
        let (small, large) = (stack(WORTH - 1), stack(WORTH));
        // Nobody would begin it.
        ahead.used(&large);
        assert!(lock(&ahead.state).wanted.is_empty());
        ahead.start();
        ahead.used(&small);
        ahead.used(&large);
        ahead.used(&large);
        assert_eq!(lock(&ahead.state).wanted.len(), 1);
        for _ in 0..2 * MOST {
            ahead.used(&stack(WORTH));
        }
        assert_eq!(lock(&ahead.state).wanted.len(), MOST);
        ahead.stop();
        assert!(ahead.next().is_none());
    }
}
