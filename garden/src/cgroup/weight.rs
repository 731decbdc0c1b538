//! Numbers of one hierarchy's scale in another's: shares, weights, quotas.
//!
//! Pure functions, called by `limit`. Sources: the kernel's cgroup-v1 and cgroup-v2 documents, and
//! the conversions that OCI runtimes have agreed on.

use crate::model::Limits;

/// The period in which a CPU quota is counted, in microseconds.
pub(super) const CPU_PERIOD_US: u64 = 100_000;
/// The least quota that the kernel takes, in microseconds.
const LEAST_QUOTA_US: u64 = 1000;
/// What an unlimited group has in v1.
pub(super) const DEFAULT_SHARES: u64 = 1024;

/// v1 shares (2 to 262144) as a v2 weight (1 to 10000) so that 1024 becomes 100 and the ends
/// meet the ends: a quadratic in the logarithm of the shares.
pub(crate) fn weight_of_shares(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    #[expect(clippy::cast_precision_loss, reason = "18 bits fit a double exactly")]
    let log = (shares as f64).log2();
    let exponent = log.mul_add(log, 125.0 * log) / 612.0 - 7.0 / 34.0;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "1 to 10000"
    )]
    let weight = 10_f64.powf(exponent).ceil() as u64;
    weight.clamp(1, 10_000)
}

/// A v1 `blkio.weight` (10 to 1000) as a v2 `io.weight` (1 to 10000), ends to ends.
pub(super) fn io_weight_of_blkio(weight: u64) -> u64 {
    1 + (weight.clamp(10, 1000) - 10) * 9999 / 990
}

/// Microseconds of CPU time in each [`CPU_PERIOD_US`]; `None` is unlimited.
///
/// What the limits say counts; without it, `per_share` microseconds for each share.
pub(super) fn cpu_quota_us(limits: &Limits, per_share: Option<u64>) -> Option<u64> {
    let said = limits
        .cpu_millis
        .map(|millis| millis.saturating_mul(CPU_PERIOD_US / 1000));
    let by_share = || Some(limits.cpu_shares?.saturating_mul(per_share?));
    let quota = said.or_else(by_share)?;
    // A signed 64-bit number of nanoseconds in the kernel.
    Some(quota.clamp(LEAST_QUOTA_US, 1 << 43))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights_as_the_field_converts_them() {
        let expected = [
            (2, 1),
            (10, 4),
            (100, 17),
            (128, 21),
            (256, 35),
            (512, 59),
            (1000, 99),
            (1024, 100),
            (2048, 174),
            (8192, 532),
            (262_144, 10_000),
        ];
        for (shares, weight) in expected {
            assert_eq!(weight_of_shares(shares), weight, "{shares} shares");
        }
    }

    #[test]
    fn the_ends_of_io_weights_meet() {
        assert_eq!(io_weight_of_blkio(10), 1);
        assert_eq!(io_weight_of_blkio(500), 4950);
        assert_eq!(io_weight_of_blkio(1000), 10_000);
    }

    #[test]
    fn a_quota_comes_from_the_limits_or_the_shares() {
        let shares = |shares| Limits {
            cpu_shares: shares,
            ..Limits::default()
        };
        assert_eq!(cpu_quota_us(&shares(Some(128)), Some(10)), Some(1280));
        assert_eq!(cpu_quota_us(&shares(Some(2)), Some(10)), Some(1000));
        assert_eq!(cpu_quota_us(&shares(None), Some(10)), None);
        assert_eq!(cpu_quota_us(&shares(Some(128)), None), None);
        let half = Limits {
            cpu_millis: Some(500),
            ..shares(Some(128))
        };
        assert_eq!(cpu_quota_us(&half, Some(10)), Some(50_000));
    }
}
