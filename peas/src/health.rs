//! Whether something is healthy, from repeated checks: the rule, as a pure state machine.
//!
//! ```text
//!           enough successes              failures            more failures
//! Starting ─────────────────▶ Ready ───────────────▶ Unready ───────────────▶ Unhealthy
//!    │                          ▲                       │                         ▲
//!    │                          └── enough successes ◀──┘                         │
//!    └──────────────────────── not ready within the start time ───────────────────┘
//! ```
//!
//! A check is usually a pea that runs to its end; [`watch_health`] repeats it. `Unhealthy` is
//! final: what to do about it is for others to decide, never for this module.

mod watch;

use std::time::Duration;

pub use watch::watch_health;

/// How often to check, and how much it takes to change one's mind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthPolicy {
    /// Before the first check.
    pub initial_delay: Duration,
    /// From the end of one check to the next while starting or unready.
    pub retry_interval: Duration,
    /// From the end of one check to the next while ready.
    pub interval: Duration,
    /// A check that takes longer has failed.
    pub timeout: Duration,
    /// Successes in a row that make it ready; at least 1 is meant.
    pub successes: u32,
    /// Failures in a row that make a ready one unready; at least 1 is meant.
    pub failures: u32,
    /// Failures in a row, those that made it unready included, that make it unhealthy; `None` for a
    /// check of readiness only, which never gives up.
    pub give_up_failures: Option<u32>,
    /// Not ready this long after the start: unhealthy. `None` waits for ever.
    pub start_time: Option<Duration>,
}

impl Default for HealthPolicy {
    fn default() -> Self {
        Self {
            initial_delay: Duration::ZERO,
            retry_interval: Duration::from_millis(500),
            interval: Duration::from_secs(30),
            timeout: Duration::from_secs(1),
            successes: 1,
            failures: 1,
            give_up_failures: Some(1),
            start_time: Some(Duration::from_secs(60)),
        }
    }
}

/// What is known about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthState {
    /// Never was ready so far.
    Starting,
    /// Passes its checks.
    Ready,
    /// Was ready, and fails its checks.
    Unready,
    /// Given up.
    Unhealthy,
}

/// The end of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// It said yes.
    Passed,
    /// It said no, could not be run, or took too long.
    Failed,
}

/// The state machine.
#[derive(Debug, Clone)]
pub struct Health {
    policy: HealthPolicy,
    state: HealthState,
    /// Ends in a row that were the same: passed or failed.
    in_a_row: u32,
    last: Option<Check>,
}

impl Health {
    /// Nothing is known yet.
    pub fn new(policy: HealthPolicy) -> Self {
        Self {
            policy,
            state: HealthState::Starting,
            in_a_row: 0,
            last: None,
        }
    }

    /// What is known now.
    pub fn state(&self) -> HealthState {
        self.state
    }

    /// Takes in the end of a check, `since_start` after the first moment. Returns the new state if
    /// it changed.
    pub fn observe(&mut self, check: Check, since_start: Duration) -> Option<HealthState> {
        self.in_a_row = match self.last {
            Some(last) if last == check => self.in_a_row.saturating_add(1),
            _ => 1,
        };
        self.last = Some(check);
        let next = match check {
            Check::Passed => self.after_success(),
            Check::Failed => self.after_failure(),
        };
        let next = match next {
            HealthState::Starting if self.is_late(since_start) => HealthState::Unhealthy,
            next => next,
        };
        self.enter(next)
    }

    /// The start time is over. Returns the new state if that changes it.
    pub fn start_time_over(&mut self) -> Option<HealthState> {
        match self.state {
            HealthState::Starting => self.enter(HealthState::Unhealthy),
            _ => None,
        }
    }

    /// How long to wait before the next check; `None` when there is none.
    pub fn next_check(&self) -> Option<Duration> {
        match (self.state, self.last) {
            (HealthState::Unhealthy, _) => None,
            (_, None) => Some(self.policy.initial_delay),
            // A failure that did not suffice yet is followed up soon.
            (HealthState::Ready, Some(Check::Passed)) => Some(self.policy.interval),
            _ => Some(self.policy.retry_interval),
        }
    }

    fn after_success(&self) -> HealthState {
        match self.state {
            HealthState::Starting | HealthState::Unready
                if self.in_a_row >= self.policy.successes =>
            {
                HealthState::Ready
            }
            state => state,
        }
    }

    fn after_failure(&self) -> HealthState {
        let enough = self.in_a_row >= self.policy.failures;
        let too_many = self.policy.give_up_failures;
        let give_up = enough && too_many.is_some_and(|limit| self.in_a_row >= limit);
        match self.state {
            HealthState::Ready | HealthState::Unready if give_up => HealthState::Unhealthy,
            HealthState::Ready if enough => HealthState::Unready,
            // Failing is what starting things do; only time ends that.
            state => state,
        }
    }

    fn is_late(&self, since_start: Duration) -> bool {
        let limit = self.policy.start_time;
        limit.is_some_and(|limit| since_start >= limit)
    }

    fn enter(&mut self, next: HealthState) -> Option<HealthState> {
        let changed = next != self.state;
        self.state = next;
        changed.then_some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::Check::{Failed, Passed};
    use super::HealthState::{Ready, Starting, Unhealthy, Unready};
    use super::*;

    fn policy() -> HealthPolicy {
        HealthPolicy {
            successes: 2,
            failures: 2,
            give_up_failures: Some(4),
            start_time: Some(Duration::from_secs(60)),
            ..HealthPolicy::default()
        }
    }

    fn states(policy: HealthPolicy, checks: &[Check]) -> Vec<HealthState> {
        let mut health = Health::new(policy);
        let step = |check: &Check| {
            health.observe(*check, Duration::ZERO);
            health.state()
        };
        checks.iter().map(step).collect()
    }

    #[test]
    fn thresholds_count_in_a_row() {
        assert_eq!(
            states(policy(), &[Passed, Failed, Passed, Passed, Failed, Passed]),
            [Starting, Starting, Starting, Ready, Ready, Ready]
        );
        assert_eq!(
            states(policy(), &[Passed, Passed, Failed, Failed, Passed, Passed]),
            [Starting, Ready, Ready, Unready, Unready, Ready]
        );
    }

    #[test]
    fn enough_failures_end_it_for_good() {
        let checks = [
            Passed, Passed, Failed, Failed, Failed, Failed, Passed, Passed,
        ];
        let seen = states(policy(), &checks);
        assert_eq!(seen[4..], [Unready, Unhealthy, Unhealthy, Unhealthy]);
    }

    #[test]
    fn a_check_of_readiness_never_gives_up() {
        let policy = HealthPolicy {
            give_up_failures: None,
            ..policy()
        };
        let mut checks = vec![Passed, Passed];
        checks.extend([Failed; 1000]);
        let seen = states(policy, &checks);
        assert_eq!(seen.last(), Some(&Unready));
    }

    #[test]
    fn starting_fails_by_time_only() {
        let mut health = Health::new(policy());
        for second in 0..60 {
            assert_eq!(health.observe(Failed, Duration::from_secs(second)), None);
        }
        let late = Duration::from_secs(60);
        assert_eq!(health.observe(Failed, late), Some(Unhealthy));
        assert_eq!(health.next_check(), None);
    }

    #[test]
    fn the_success_that_comes_at_the_last_moment_counts() {
        let mut health = Health::new(HealthPolicy {
            successes: 1,
            ..policy()
        });
        assert_eq!(health.observe(Passed, Duration::from_secs(60)), Some(Ready));
        assert_eq!(health.start_time_over(), None);
    }

    #[test]
    fn checks_are_rare_only_while_all_is_well() {
        let policy = HealthPolicy {
            initial_delay: Duration::from_secs(3),
            ..policy()
        };
        let mut health = Health::new(policy.clone());
        assert_eq!(health.next_check(), Some(policy.initial_delay));
        health.observe(Passed, Duration::ZERO);
        assert_eq!(health.next_check(), Some(policy.retry_interval));
        health.observe(Passed, Duration::ZERO);
        assert_eq!(health.next_check(), Some(policy.interval));
        health.observe(Failed, Duration::ZERO);
        assert_eq!(
            (health.state(), health.next_check()),
            (Ready, Some(policy.retry_interval))
        );
    }

    #[test]
    fn thresholds_of_nothing_mean_one() {
        let policy = HealthPolicy {
            successes: 0,
            failures: 0,
            give_up_failures: Some(0),
            ..policy()
        };
        assert_eq!(states(policy, &[Passed, Failed]), [Ready, Unhealthy]);
    }
}
