//! How many requests there are, and how long they take.
//!
//! Counted by the API server for each kind of request; read by the debug server. One short lock for
//! a request, and none held while anything else is done.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use garden_peas::histogram::{Durations, Histogram};
use serde::Serialize;

/// The counts of one API server.
#[derive(Debug, Default)]
pub struct Meters {
    routes: Mutex<BTreeMap<&'static str, Arc<Counts>>>,
    connections: AtomicUsize,
}

#[derive(Debug, Default)]
struct Counts {
    took: Histogram,
    failures: AtomicU64,
}

/// What was counted of one kind of request.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RouteMeter {
    /// From its head to its answer; of a process's connection, until it was started.
    pub took: Durations,
    /// How many of them were answered with an error.
    pub failures: u64,
}

/// A connection that is open.
#[derive(Debug)]
pub(super) struct Open(Arc<Meters>);

impl Meters {
    /// A request was answered.
    pub(super) fn record(&self, route: &'static str, took: Duration, failed: bool) {
        let counts = {
            let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(routes.entry(route).or_default())
        };
        counts.took.record(took);
        counts
            .failures
            .fetch_add(u64::from(failed), Ordering::Relaxed);
    }

    /// Counts a connection while the result lives.
    pub(super) fn open(self: &Arc<Self>) -> Open {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Open(Arc::clone(self))
    }

    /// Connections that are open.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// All counts, by the name of the route.
    pub fn read(&self) -> BTreeMap<&'static str, RouteMeter> {
        let routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let all = routes.iter().map(|(name, counts)| {
            let meter = RouteMeter {
                took: counts.took.read(),
                failures: counts.failures.load(Ordering::Relaxed),
            };
            (*name, meter)
        });
        all.collect()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
