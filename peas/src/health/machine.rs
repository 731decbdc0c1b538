//! What all checks of one container together say.
//!
//! A pure state machine: it knows neither clocks nor what a check is. Its state is a function of the
//! verdicts of its checks and of whether it was ready before, so that no order of ends can lead
//! somewhere that the verdicts do not justify. Nothing is final: checks go on, and whoever passes
//! again is ready again.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Ended, HealthState, Role, Rule};

/// Changes of state that are remembered.
const HISTORY: usize = 32;

/// What is believed of one check.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing yet.
    #[default]
    Unknown,
    /// It passes.
    Passing,
    /// It fails.
    Failing,
}

/// A change of state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// When, in milliseconds since the epoch.
    pub at_ms: u64,
    /// From this state.
    pub from: HealthState,
    /// To this one.
    pub to: HealthState,
    /// Why.
    pub reason: String,
    /// The last of what the check said that brought it about.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub output: String,
}

/// What the end of one run has brought about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// The check's new verdict, if that has changed.
    pub verdict: Option<Verdict>,
    /// The container's change of state, if there was one.
    pub change: Option<Change>,
}

/// When a check is to be made next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// This long from now.
    After(Duration),
    /// When the container's startup checks have passed.
    Gated,
    /// Not again.
    Over,
}

/// What outlives the one who runs the checks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// The state.
    pub state: HealthState,
    /// The last changes, oldest first.
    #[serde(default)]
    pub history: VecDeque<Change>,
    /// The checks by name.
    #[serde(default)]
    pub checks: BTreeMap<String, SavedCheck>,
}

/// What outlives the one who runs the checks, of one of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedCheck {
    /// What is believed of it.
    pub verdict: Verdict,
    /// When it began, in milliseconds since the epoch.
    pub begun_ms: u64,
}

#[derive(Debug, Clone)]
struct Tracked {
    role: Role,
    rule: Rule,
    verdict: Verdict,
    begun_ms: u64,
    runs: u64,
    /// Ends in a row that were the same, as far as they count.
    in_a_row: u32,
    last: Option<bool>,
}

/// The state machine.
#[derive(Debug, Clone)]
pub struct Health {
    checks: BTreeMap<String, Tracked>,
    state: HealthState,
    history: VecDeque<Change>,
    was_ready: bool,
    suspended: bool,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            checks: BTreeMap::new(),
            state: HealthState::Starting,
            history: VecDeque::new(),
            was_ready: false,
            suspended: false,
        }
    }
}

impl Health {
    /// Goes on where an earlier one was. Checks are to be [`Health::put`] first.
    pub fn resume(&mut self, saved: Saved) {
        self.state = saved.state;
        self.history = saved.history;
        self.history
            .drain(..self.history.len().saturating_sub(HISTORY));
        self.was_ready = saved.state != HealthState::Starting;
        for (name, check) in saved.checks {
            if let Some(tracked) = self.checks.get_mut(&name) {
                tracked.verdict = check.verdict;
                tracked.begun_ms = check.begun_ms;
            }
        }
    }

    /// What [`Health::resume`] needs.
    pub fn saved(&self) -> Saved {
        let saved = |tracked: &Tracked| SavedCheck {
            verdict: tracked.verdict,
            begun_ms: tracked.begun_ms,
        };
        Saved {
            state: self.state,
            history: self.history.clone(),
            checks: self
                .checks
                .iter()
                .map(|(name, tracked)| (name.clone(), saved(tracked)))
                .collect(),
        }
    }

    /// What is known now.
    pub fn state(&self) -> HealthState {
        self.state
    }

    /// The last changes, oldest first.
    pub fn history(&self) -> impl Iterator<Item = &Change> {
        self.history.iter()
    }

    /// What is believed of a check.
    pub fn verdict(&self, name: &str) -> Option<Verdict> {
        self.checks.get(name).map(|tracked| tracked.verdict)
    }

    /// Adds a check of which nothing is known, in place of one of the same name. The state follows
    /// with [`Health::settle`].
    pub fn put(&mut self, name: &str, role: Role, rule: Rule, at_ms: u64) {
        let tracked = Tracked {
            role,
            rule,
            verdict: Verdict::Unknown,
            begun_ms: at_ms,
            runs: 0,
            in_a_row: 0,
            last: None,
        };
        self.checks.insert(name.to_owned(), tracked);
    }

    /// Forgets a check. The state follows with [`Health::settle`].
    pub fn remove(&mut self, name: &str) {
        self.checks.remove(name);
    }

    /// The checks are others now: a container that does not pass them is starting again.
    pub fn settle(&mut self, at_ms: u64, reason: &str) -> Option<Change> {
        if std::mem::take(&mut self.suspended) {
            // What was known was known of processes that are gone.
            for check in self.checks.values_mut() {
                check.verdict = Verdict::Unknown;
                check.begun_ms = at_ms;
                (check.runs, check.in_a_row, check.last) = (0, 0, None);
            }
        }
        self.was_ready = false;
        self.enter(at_ms, reason, "")
    }

    /// The container's processes are ended on purpose: checks say nothing any more.
    pub fn suspend(&mut self, at_ms: u64, reason: &str) -> Option<Change> {
        self.suspended = true;
        match self.state {
            HealthState::Starting | HealthState::Ready => {
                Some(self.change(HealthState::Unready, at_ms, reason, ""))
            }
            HealthState::Unready | HealthState::Unhealthy => None,
        }
    }

    /// When a check is to be made next.
    pub fn next(&self, name: &str) -> Next {
        let Some(check) = self.checks.get(name).filter(|_| !self.suspended) else {
            return Next::Over;
        };
        match (check.role, check.verdict) {
            (Role::Startup, Verdict::Passing) => Next::Over,
            (Role::Readiness | Role::Liveness, _) if !self.has_started() => Next::Gated,
            (_, Verdict::Unknown) if check.runs == 0 => Next::After(check.rule.initial_delay),
            // The first look after a restart comes soon.
            (_, Verdict::Unknown) => Next::After(check.rule.start_interval),
            _ if check.runs == 0 => Next::After(check.rule.start_interval.min(check.rule.interval)),
            _ => Next::After(check.rule.interval),
        }
    }

    /// Takes in the end of one run of a check.
    pub fn observe(&mut self, name: &str, ended: &Ended, at_ms: u64) -> Observed {
        if self.suspended {
            return Observed::default();
        }
        let had_started = self.has_started();
        let Some(check) = self.checks.get_mut(name) else {
            return Observed::default();
        };
        let verdict = check.observe(ended.passed, at_ms);
        let (role, count) = (check.role.as_str(), check.in_a_row);
        if !had_started && self.has_started() {
            // The time of those that waited begins now.
            for check in self.checks.values_mut() {
                if check.role != Role::Startup {
                    check.begun_ms = at_ms;
                }
            }
        }
        let said = match (ended.passed, count) {
            (true, _) => "passed".to_owned(),
            (false, 1) => "failed".to_owned(),
            (false, count) => format!("failed {count} times"),
        };
        let reason = format!("{role} check {name} {said}");
        Observed {
            verdict,
            change: self.enter(at_ms, &reason, &ended.output),
        }
    }

    fn has_started(&self) -> bool {
        let mut startup = self.checks.values().filter(|c| c.role == Role::Startup);
        startup.all(|check| check.verdict == Verdict::Passing)
    }

    /// The state that the verdicts justify.
    fn justified(&self) -> HealthState {
        let broken =
            |check: &Tracked| check.role != Role::Readiness && check.verdict == Verdict::Failing;
        let mut checks = self.checks.values();
        if checks.clone().any(broken) {
            HealthState::Unhealthy
        } else if checks.all(|check| check.verdict == Verdict::Passing) {
            HealthState::Ready
        } else if self.was_ready {
            HealthState::Unready
        } else {
            HealthState::Starting
        }
    }

    fn enter(&mut self, at_ms: u64, reason: &str, output: &str) -> Option<Change> {
        let next = self.justified();
        self.was_ready |= next == HealthState::Ready;
        (next != self.state).then(|| self.change(next, at_ms, reason, output))
    }

    fn change(&mut self, to: HealthState, at_ms: u64, reason: &str, output: &str) -> Change {
        let change = Change {
            at_ms,
            from: self.state,
            to,
            reason: reason.to_owned(),
            output: output.to_owned(),
        };
        self.state = to;
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(change.clone());
        change
    }
}

impl Tracked {
    /// Counts one end; returns the verdict if that has changed.
    fn observe(&mut self, passed: bool, at_ms: u64) -> Option<Verdict> {
        self.runs = self.runs.saturating_add(1);
        let early = Duration::from_millis(at_ms.saturating_sub(self.begun_ms));
        if !passed && self.verdict == Verdict::Unknown && early < self.rule.start_period {
            self.in_a_row = 0;
            self.last = None;
            return None;
        }
        self.in_a_row = match self.last {
            Some(last) if last == passed => self.in_a_row.saturating_add(1),
            _ => 1,
        };
        self.last = Some(passed);
        let next = match passed {
            true if self.in_a_row >= self.rule.successes => Verdict::Passing,
            false if self.in_a_row >= self.rule.failures => Verdict::Failing,
            _ => self.verdict,
        };
        let changed = next != self.verdict;
        self.verdict = next;
        changed.then_some(next)
    }
}

#[cfg(test)]
mod tests;
