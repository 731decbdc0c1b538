//! How long to wait before a failed stage is tried again.
//!
//! Exponential with full jitter: the wait is drawn evenly between nothing and a ceiling that
//! doubles with each failure, so that jobs that failed together do not return together.

use std::time::Duration;

use uuid::Uuid;

/// The rule for waiting between tries.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// The ceiling after the first failure.
    pub base: Duration,
    /// The highest ceiling.
    pub cap: Duration,
    /// Draws a number from 0 to 1. Replaced in tests and comparisons that need equal runs.
    pub draw: fn() -> f64,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            base: Duration::from_millis(100),
            cap: Duration::from_secs(60),
            draw: draw_evenly,
        }
    }
}

impl Backoff {
    /// The longest wait after this many failures (1 or more).
    pub fn ceiling(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        self.base.saturating_mul(1 << doublings).min(self.cap)
    }

    /// The wait after this many failures (1 or more).
    pub fn delay(&self, failures: u32) -> Duration {
        self.ceiling(failures)
            .mul_f64((self.draw)().clamp(0.0, 1.0))
    }
}

/// An even draw. A random UUID is the one source of randomness this package already has; its
/// low 53 bits hold neither version nor variant.
fn draw_evenly() -> f64 {
    const BITS: u32 = 53;
    let (_, low) = Uuid::new_v4().as_u64_pair();
    let drawn = low & ((1 << BITS) - 1);
    drawn as f64 / (1_u64 << BITS) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_doubles_up_to_the_cap() {
        let backoff = Backoff {
            base: Duration::from_millis(100),
            cap: Duration::from_secs(1),
            draw: || 1.0,
        };
        let seen: Vec<_> = (1..=6).map(|n| backoff.delay(n).as_millis()).collect();
        assert_eq!(seen, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(backoff.ceiling(u32::MAX), Duration::from_secs(1));
    }

    #[test]
    fn waits_are_spread_over_the_whole_range() {
        let backoff = Backoff::default();
        let waits: Vec<_> = (0..1000).map(|_| backoff.delay(1)).collect();
        assert!(waits.iter().all(|wait| *wait <= backoff.base));
        let early = waits.iter().filter(|w| **w < backoff.base / 2).count();
        assert!(
            (300..700).contains(&early),
            "{early} of 1000 below the middle"
        );
    }
}
