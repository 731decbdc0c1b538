//! Durations in buckets, counted without locks.
//!
//! Used by whatever measures itself here and above: the stages of teardown, the latency of health
//! checks. What is read out is what a metrics endpoint needs of a histogram.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Upper bounds of the buckets, in seconds; one more bucket holds what is above.
pub const BUCKETS_SECONDS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0,
];

const BUCKETS: usize = BUCKETS_SECONDS.len() + 1;

/// Counts durations.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    micros: AtomicU64,
    longest: AtomicU64,
}

/// What a [`Histogram`] has counted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Durations {
    /// How many per bucket of [`BUCKETS_SECONDS`] (not cumulative); the last holds those above the
    /// highest bound.
    pub buckets: Vec<u64>,
    /// Sum of all, in seconds.
    pub sum_seconds: f64,
    /// The longest, in seconds.
    pub max_seconds: f64,
}

impl Histogram {
    /// Counts one.
    pub fn record(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = BUCKETS_SECONDS.partition_point(|bound| *bound < seconds);
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.micros.fetch_add(micros, Ordering::Relaxed);
        self.longest.fetch_max(micros, Ordering::Relaxed);
    }

    /// What was counted so far.
    pub fn read(&self) -> Durations {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Durations {
            buckets: self.buckets.iter().map(load).collect(),
            sum_seconds: load(&self.micros) as f64 / 1e6,
            max_seconds: load(&self.longest) as f64 / 1e6,
        }
    }
}

impl Durations {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The bound, in seconds, below which the given part (0 to 1) of them lies; the longest when
    /// that is above all bounds. `None` without any.
    pub fn quantile(&self, part: f64) -> Option<f64> {
        let wanted = (self.count() as f64 * part).ceil().max(1.0);
        let mut seen = 0_u64;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if *count > 0 && seen as f64 >= wanted {
                let bound = BUCKETS_SECONDS.get(index).copied();
                return Some(bound.map_or(self.max_seconds, |bound| bound.min(self.max_seconds)));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_land_in_the_bucket_that_bounds_them() {
        let histogram = Histogram::default();
        histogram.record(Duration::from_micros(500));
        histogram.record(Duration::from_micros(501));
        histogram.record(Duration::from_secs(3600));
        let read = histogram.read();
        assert_eq!((read.buckets[0], read.buckets[1]), (1, 1));
        assert_eq!(read.buckets.last(), Some(&1));
        assert_eq!(read.count(), 3);
        assert_eq!(read.quantile(0.5), Some(0.001));
        assert_eq!(read.quantile(1.0), Some(3600.0));
        assert_eq!(Durations::default().quantile(0.5), None);
    }
}
