//! Counters of how long each stage takes, for the metrics and the status page.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

use super::job::Stage;

/// Upper bounds of the duration buckets, in seconds; one more bucket holds what is above.
pub const BUCKETS_SECONDS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0,
];

const BUCKETS: usize = BUCKETS_SECONDS.len() + 1;

#[derive(Default)]
struct Counters {
    buckets: [AtomicU64; BUCKETS],
    micros: AtomicU64,
    longest: AtomicU64,
    failures: AtomicU64,
    stuck: AtomicU64,
}

/// What happened in one stage since the queue was opened.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageStats {
    /// The stage.
    pub stage: Stage,
    /// Runs per bucket of [`BUCKETS_SECONDS`] (not cumulative), failed runs included; the last
    /// holds those above the highest bound.
    pub buckets: Vec<u64>,
    /// Sum of all durations, in seconds.
    pub sum_seconds: f64,
    /// The longest run, in seconds.
    pub max_seconds: f64,
    /// How many runs failed.
    pub failures: u64,
    /// How many runs passed their deadline.
    pub stuck: u64,
}

impl StageStats {
    /// How many runs there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// The counters of all stages. Updated without locks.
#[derive(Default)]
pub(super) struct Stats {
    stages: [Counters; Stage::ALL.len()],
}

impl Stats {
    pub(super) fn record(&self, stage: Stage, took: Duration, failed: bool) {
        let counters = &self.stages[stage.index()];
        let seconds = took.as_secs_f64();
        let bucket = BUCKETS_SECONDS.partition_point(|bound| *bound < seconds);
        counters.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        counters.micros.fetch_add(micros, Ordering::Relaxed);
        counters.longest.fetch_max(micros, Ordering::Relaxed);
        counters
            .failures
            .fetch_add(u64::from(failed), Ordering::Relaxed);
    }

    pub(super) fn record_stuck(&self, stage: Stage) {
        self.stages[stage.index()]
            .stuck
            .fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> Vec<StageStats> {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stage::ALL
            .into_iter()
            .zip(&self.stages)
            .map(|(stage, counters)| StageStats {
                stage,
                buckets: counters.buckets.iter().map(load).collect(),
                sum_seconds: load(&counters.micros) as f64 / 1e6,
                max_seconds: load(&counters.longest) as f64 / 1e6,
                failures: load(&counters.failures),
                stuck: load(&counters.stuck),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_land_in_the_bucket_that_bounds_them() {
        let stats = Stats::default();
        stats.record(Stage::Trash, Duration::from_micros(500), false);
        stats.record(Stage::Trash, Duration::from_micros(501), true);
        stats.record(Stage::Trash, Duration::from_secs(3600), false);
        let read = stats.read();
        let trash = &read[Stage::Trash.index()];
        assert_eq!(trash.stage, Stage::Trash);
        assert_eq!((trash.buckets[0], trash.buckets[1]), (1, 1));
        assert_eq!(trash.buckets.last(), Some(&1));
        assert_eq!((trash.count(), trash.failures), (3, 1));
        assert_eq!(read[Stage::Kill.index()].count(), 0);
    }
}
