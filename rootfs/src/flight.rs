//! Doing the same work once when several threads want it.
//!
//! Used by the importer. One thread at a time flies under a key; the others wait for it to land
//! and then look whether what they want is there. Nothing is held while work is done, except the
//! key itself; a thread that waits for a second key while it flies could wait for ever, so no
//! caller does.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, PoisonError};

/// Keys under which somebody works.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    keys: Mutex<HashSet<String>>,
    landed: Condvar,
}

/// The right to work under a key; given back when dropped.
pub(crate) struct Flight<'a> {
    flights: &'a Flights,
    key: String,
}

impl Flights {
    /// Waits until nobody works under this key, and takes it.
    pub(crate) fn take(&self, key: &str) -> Flight<'_> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        while !keys.insert(key.to_owned()) {
            keys = (self.landed.wait(keys)).unwrap_or_else(PoisonError::into_inner);
        }
        Flight {
            flights: self,
            key: key.to_owned(),
        }
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let keys = self.flights.keys.lock();
        keys.unwrap_or_else(PoisonError::into_inner)
            .remove(&self.key);
        self.flights.landed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn one_thread_at_a_time_has_a_key() {
        let flights = Flights::default();
        let inside = AtomicUsize::new(0);
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let _flight = flights.take("key");
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        total.fetch_add(1, Ordering::SeqCst);
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 800);
        let _other = flights.take("a");
        let _another = flights.take("b");
    }
}
