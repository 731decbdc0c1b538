//! How often a check is made, and how much it takes to believe it.
//!
//! Read from what users write; nothing else here looks at a rule that was not validated.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a check decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Whether it has started. The other checks wait for it; having passed once it is not made
    /// again.
    Startup,
    /// Whether it can be used now.
    Readiness,
    /// Whether it is broken.
    Liveness,
}

impl Role {
    /// The word for it, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "startup",
            Self::Readiness => "readiness",
            Self::Liveness => "liveness",
        }
    }
}

/// When a check is made and what its ends mean. In JSON the durations are whole milliseconds with
/// names that end in `_ms`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rule {
    /// Before the first run.
    #[serde(rename = "initial_delay_ms", with = "millis")]
    pub initial_delay: Duration,
    /// Failures before the first success count only when they come this long after the check began.
    #[serde(rename = "start_period_ms", with = "millis")]
    pub start_period: Duration,
    /// From the end of one run to the next, until the check is decided for the first time.
    #[serde(rename = "start_interval_ms", with = "millis")]
    pub start_interval: Duration,
    /// From the end of one run to the next, afterwards.
    #[serde(rename = "interval_ms", with = "millis")]
    pub interval: Duration,
    /// A run that takes longer has failed; zero is no bound.
    #[serde(rename = "timeout_ms", with = "millis")]
    pub timeout: Duration,
    /// Successes in a row that are believed.
    pub successes: u32,
    /// Failures in a row that are believed.
    pub failures: u32,
}

impl Default for Rule {
    fn default() -> Self {
        Self {
            initial_delay: Duration::ZERO,
            start_period: Duration::from_secs(60),
            start_interval: Duration::from_millis(500),
            interval: Duration::from_secs(30),
            timeout: Duration::from_secs(5),
            successes: 1,
            failures: 3,
        }
    }
}

/// What is wrong with a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// A duration out of its bounds.
    #[error("{name} is {} ms: give {} to {} ms", .value.as_millis(), .bounds.start().as_millis(), .bounds.end().as_millis())]
    Duration {
        /// Its name.
        name: &'static str,
        /// What was given.
        value: Duration,
        /// What can be.
        bounds: RangeInclusive<Duration>,
    },
    /// A threshold out of its bounds.
    #[error("{name} is {value}: give 1 to {MOST}")]
    Threshold {
        /// Its name.
        name: &'static str,
        /// What was given.
        value: u32,
    },
}

/// The highest threshold.
const MOST: u32 = 10_000;
/// The shortest pause between two runs: a check must not keep a processor busy by itself.
const SHORTEST: Duration = Duration::from_millis(10);
const DAY: Duration = Duration::from_secs(86_400);

impl Rule {
    /// Checks all bounds. `endless` allows runs without a bound in time.
    ///
    /// # Errors
    /// The first value that is out of its bounds.
    pub fn validate(&self, endless: bool) -> Result<(), RuleError> {
        let shortest_run = if endless {
            Duration::ZERO
        } else {
            Duration::from_millis(1)
        };
        let durations = [
            ("initial_delay", self.initial_delay, Duration::ZERO),
            ("start_period", self.start_period, Duration::ZERO),
            ("start_interval", self.start_interval, SHORTEST),
            ("interval", self.interval, SHORTEST),
            ("timeout", self.timeout, shortest_run),
        ];
        for (name, value, least) in durations {
            let bounds = least..=DAY;
            if !bounds.contains(&value) {
                return Err(RuleError::Duration {
                    name,
                    value,
                    bounds,
                });
            }
        }
        for (name, value) in [("successes", self.successes), ("failures", self.failures)] {
            if !(1..=MOST).contains(&value) {
                return Err(RuleError::Threshold { name, value });
            }
        }
        Ok(())
    }
}

/// Durations as whole milliseconds.
mod millis {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(value.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_has_a_default() {
        let rule: Rule = serde_json::from_str(r#"{"interval_ms":250,"failures":2}"#).unwrap();
        assert_eq!(rule.interval, Duration::from_millis(250));
        assert_eq!((rule.failures, rule.successes), (2, 1));
        let back = serde_json::to_string(&rule).unwrap();
        assert_eq!(serde_json::from_str::<Rule>(&back).unwrap(), rule);
    }

    #[test]
    fn what_cannot_work_is_refused_with_its_bounds() {
        let busy = Rule {
            interval: Duration::from_millis(1),
            ..Rule::default()
        };
        let text = busy.validate(false).unwrap_err().to_string();
        assert_eq!(text, "interval is 1 ms: give 10 to 86400000 ms");
        let never = Rule {
            failures: 0,
            ..Rule::default()
        };
        assert!(never.validate(false).is_err());
        let endless = Rule {
            timeout: Duration::ZERO,
            ..Rule::default()
        };
        assert!(endless.validate(false).is_err());
        assert_eq!(endless.validate(true), Ok(()));
    }
}
