//! Counters of how long each stage takes, for the metrics and the status page.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

use super::job::Stage;
use crate::histogram::Histogram;

#[derive(Default)]
struct Counters {
    runs: Histogram,
    failures: AtomicU64,
    stuck: AtomicU64,
}

/// What happened in one stage since the queue was opened.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageStats {
    /// The stage.
    pub stage: Stage,
    /// Runs per bucket of [`crate::histogram::BUCKETS_SECONDS`] (not cumulative), failed runs included; the last
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
        counters.runs.record(took);
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
            .map(|(stage, counters)| {
                let runs = counters.runs.read();
                StageStats {
                    stage,
                    buckets: runs.buckets,
                    sum_seconds: runs.sum_seconds,
                    max_seconds: runs.max_seconds,
                    failures: load(&counters.failures),
                    stuck: load(&counters.stuck),
                }
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
