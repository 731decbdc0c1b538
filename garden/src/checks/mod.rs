//! The health checks of a container: which there are, running them, and what they say.
//!
//! - [`spec`]: what users write, and what of it is refused.
//! - `program`: one run of a check that is a program, in the container or as a pea.
//! - `text`: the last of what a check said, bounded and without secrets.
//!
//! Owned by the container; the manager opens, changes and ends it. Each check has a task of its own,
//! so that none waits for another; the rule by which their ends make a state is in
//! `garden-peas`. A change is told first and recorded right after, so that nothing is between a
//! check's end and the news of it.

mod program;
pub mod spec;
mod text;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use garden_peas::health::{
    Change, Ended, Health, HealthState, Next, Observed, Saved, Verdict, watch_check,
};
use garden_peas::histogram::{Durations, Histogram};
use garden_wire::Probe as WireProbe;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::container::Container;
use crate::depot::DepotError;
use crate::error::Error;
use crate::events::EventKind;
use crate::services::{lock, now_ms};
pub use garden_peas::health;
pub use spec::{Action, CheckSpec};

/// How much longer than its own deadline a probe of the supervisor is waited for.
const PROBE_GRACE: Duration = Duration::from_secs(2);

/// What the process ids of runs begin with.
const RUN: &str = "health:";

/// Whether a process id is that of a run of a check.
pub(crate) fn is_run(process: &str) -> bool {
    process.starts_with(RUN)
}

/// What is known about a container's health.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct HealthStatus {
    /// Its state; `None` without checks.
    pub state: Option<HealthState>,
    /// Its checks, by name.
    #[serde(default)]
    pub checks: Vec<CheckStatus>,
    /// The last changes of its state, oldest first.
    #[serde(default)]
    pub history: Vec<Change>,
    /// From the end of a run that changed something to the news of it, since the server started.
    #[serde(default)]
    pub latency: Durations,
}

/// What is known about one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckStatus {
    /// What was asked for.
    pub spec: CheckSpec,
    /// What is believed of it.
    pub verdict: Verdict,
    /// Runs that have ended, since the server started.
    pub runs: u64,
    /// How many of them have failed.
    pub failures: u64,
    /// The last of them.
    #[serde(default)]
    pub last: Option<LastRun>,
}

/// The end of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRun {
    /// When, in milliseconds since the epoch.
    pub at_ms: u64,
    /// Whether it was a success.
    pub passed: bool,
    /// The last of what it said, or why it failed.
    pub output: String,
}

/// What outlives a server.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct HealthRecord {
    /// The checks.
    pub(crate) checks: Vec<CheckSpec>,
    /// What is known; absent before they were begun.
    #[serde(default)]
    pub(crate) saved: Option<Saved>,
}

/// Does what a check wants to be done with an unhealthy container. Must not wait.
pub(crate) type Act = Box<dyn Fn(Action) + Send + Sync>;

/// The checks of one container.
pub(crate) struct Checks {
    board: Mutex<Board>,
    /// Changes when a check that waits may have to wait no longer.
    gate: watch::Sender<u64>,
    latency: Histogram,
    act: OnceLock<Act>,
}

#[derive(Default)]
struct Board {
    entries: BTreeMap<String, Entry>,
    health: Health,
}

struct Entry {
    spec: CheckSpec,
    /// Ends its task.
    stop: CancellationToken,
    runs: u64,
    failures: u64,
    last: Option<LastRun>,
}

impl Default for Checks {
    fn default() -> Self {
        Self {
            board: Mutex::default(),
            gate: watch::Sender::new(0),
            latency: Histogram::default(),
            act: OnceLock::new(),
        }
    }
}

impl Board {
    fn status(&self) -> Option<HealthState> {
        (!self.entries.is_empty()).then(|| self.health.state())
    }

    fn record(&self) -> HealthRecord {
        HealthRecord {
            checks: self.entries.values().map(|e| e.spec.clone()).collect(),
            saved: Some(self.health.saved()),
        }
    }
}

impl Drop for Checks {
    fn drop(&mut self) {
        for entry in lock(&self.board).entries.values() {
            entry.stop.cancel();
        }
    }
}

impl Checks {
    fn board(&self) -> MutexGuard<'_, Board> {
        lock(&self.board)
    }

    /// The container's state; `None` without checks.
    pub(crate) fn state(&self) -> Option<HealthState> {
        self.board().status()
    }

    /// Everything that is known.
    pub(crate) fn status(&self) -> HealthStatus {
        let board = self.board();
        let checks = board.entries.iter().map(|(name, entry)| CheckStatus {
            spec: entry.spec.clone(),
            verdict: board.health.verdict(name).unwrap_or_default(),
            runs: entry.runs,
            failures: entry.failures,
            last: entry.last.clone(),
        });
        HealthStatus {
            state: board.status(),
            checks: checks.collect(),
            history: board.health.history().cloned().collect(),
            latency: self.latency.read(),
        }
    }

    /// Ends all runs: the container is being destroyed.
    pub(crate) fn close(&self) {
        for entry in self.board().entries.values() {
            entry.stop.cancel();
        }
    }
}

impl Container {
    /// Begins, or goes on with, the checks that its record names. `act` is called from the tasks of
    /// the checks.
    pub(crate) fn open_checks(self: &Arc<Self>, act: Act) {
        let _ = self.checks.act.set(act);
        let Some(record) = self.dir.read_health() else {
            return;
        };
        let mut board = self.checks.board();
        for spec in record.checks {
            self.put(&mut board, spec);
        }
        let fresh = record.saved.is_none();
        if let Some(saved) = record.saved {
            board.health.resume(saved);
        }
        if fresh {
            board.health.settle(now_ms(), "checks were set");
            self.save(&board);
        }
        if self.record().stopped {
            board.health.suspend(now_ms(), "the container was stopped");
        }
        self.begin_all(&mut board);
    }

    /// Goes on with checks that were ended by a destroy that failed.
    pub(crate) fn reopen_checks(self: &Arc<Self>) {
        let mut board = self.checks.board();
        self.begin_all(&mut board);
    }

    /// Replaces all checks. Those that stay as they were are not disturbed.
    ///
    /// # Errors
    /// What cannot work, before anything is changed; and when the record cannot be written.
    pub(crate) fn set_checks(self: &Arc<Self>, checks: Vec<CheckSpec>) -> Result<(), Error> {
        spec::validate_all(&checks)?;
        let mut board = self.checks.board();
        self.replace(&mut board, checks)
    }

    /// Removes a check; returns whether there was one.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub(crate) fn remove_check(self: &Arc<Self>, name: &str) -> Result<bool, Error> {
        let mut board = self.checks.board();
        if !board.entries.contains_key(name) {
            return Ok(false);
        }
        let specs = board.entries.values().map(|entry| entry.spec.clone());
        let rest = specs.filter(|spec| spec.name != name).collect();
        self.replace(&mut board, rest)?;
        Ok(true)
    }

    fn replace(self: &Arc<Self>, board: &mut Board, checks: Vec<CheckSpec>) -> Result<(), Error> {
        if self.is_destroying() {
            return Err(Error::BeingDestroyed(self.handle.clone()));
        }
        // On file first: with an error nothing has changed.
        self.dir.write_health(&HealthRecord {
            checks: checks.clone(),
            saved: Some(board.health.saved()),
        })?;
        let gone: Vec<String> = board
            .entries
            .values()
            .filter(|entry| !checks.contains(&entry.spec))
            .map(|entry| entry.spec.name.clone())
            .collect();
        for name in &gone {
            if let Some(entry) = board.entries.remove(name) {
                entry.stop.cancel();
            }
            board.health.remove(name);
        }
        for spec in checks {
            if !board.entries.contains_key(&spec.name) {
                self.put(board, spec);
            }
        }
        let change = match board.entries.is_empty() {
            // Without checks there is no state that could change.
            true => {
                board.health = Health::default();
                None
            }
            false => board.health.settle(now_ms(), "checks were set"),
        };
        self.tell_change(change.as_ref());
        self.save(board);
        self.begin_all(board);
        self.checks.gate.send_modify(|count| *count += 1);
        Ok(())
    }

    /// The container's processes are ended on purpose: its checks say nothing any more.
    pub(crate) fn suspend_checks(&self) {
        let mut board = self.checks.board();
        if board.entries.is_empty() {
            return;
        }
        for entry in board.entries.values() {
            entry.stop.cancel();
        }
        let change = board.health.suspend(now_ms(), "the container was stopped");
        self.tell_change(change.as_ref());
        self.save(&board);
    }

    fn put(&self, board: &mut Board, spec: CheckSpec) {
        let (name, role, rule) = (&spec.name, spec.role, spec.rule.clone());
        board.health.put(name, role, rule, now_ms());
        // A token that is cancelled stands for a check that does not run yet.
        let stop = CancellationToken::new();
        stop.cancel();
        let entry = Entry {
            stop,
            runs: 0,
            failures: 0,
            last: None,
            spec,
        };
        board.entries.insert(entry.spec.name.clone(), entry);
    }

    /// Starts the tasks of the checks that have none.
    fn begin_all(self: &Arc<Self>, board: &mut Board) {
        for (name, entry) in &mut board.entries {
            if entry.stop.is_cancelled() && board.health.next(name) != Next::Over {
                entry.stop = CancellationToken::new();
                let gate = self.checks.gate.subscribe();
                let (spec, stop) = (entry.spec.clone(), entry.stop.clone());
                tokio::spawn(repeat(Arc::downgrade(self), spec, gate, stop));
            }
        }
    }

    /// Takes in the end of a run.
    fn observe(&self, name: &str, ended: Ended, task: &CancellationToken) {
        let mut board = self.checks.board();
        // Cancelled under the same lock: what comes from a check of yesterday is not listened to.
        if task.is_cancelled() {
            return;
        }
        let at_ms = now_ms();
        let Observed { verdict, change } = board.health.observe(name, &ended, at_ms);
        if let Some(verdict) = verdict {
            let check = name.to_owned();
            self.event(EventKind::Check { check, verdict }, None);
        }
        self.tell_change(change.as_ref());
        if ended.at_ns > 0 && (verdict.is_some() || change.is_some()) {
            let since = Duration::from_nanos(now_ns().saturating_sub(ended.at_ns));
            self.checks.latency.record(since);
            self.services.health_latency.record(since);
        }
        let mut action = Action::None;
        if let Some(entry) = board.entries.get_mut(name) {
            entry.runs += 1;
            entry.failures += u64::from(!ended.passed);
            entry.last = Some(LastRun {
                at_ms,
                passed: ended.passed,
                output: ended.output,
            });
            action = entry.spec.on_unhealthy;
        }
        if verdict.is_some() || change.is_some() {
            self.save(&board);
            self.checks.gate.send_modify(|count| *count += 1);
        }
        drop(board);
        let unhealthy = change.is_some_and(|change| change.to == HealthState::Unhealthy);
        if unhealthy
            && action != Action::None
            && let Some(act) = self.checks.act.get()
        {
            act(action);
        }
    }

    fn tell_change(&self, change: Option<&Change>) {
        let Some(change) = change else { return };
        tracing::info!(handle = %self.handle, from = %change.from, to = %change.to,
            reason = change.reason, "health changed");
        let kind = EventKind::Health {
            from: change.from,
            to: change.to,
            reason: change.reason.clone(),
            output: change.output.clone(),
        };
        self.event(kind, None);
    }

    fn write(&self, board: &Board) -> Result<(), DepotError> {
        if board.entries.is_empty() {
            return self.dir.remove_health();
        }
        self.dir.write_health(&board.record())
    }

    fn save(&self, board: &Board) {
        if let Err(error) = self.write(board) {
            let error = crate::error::report(&error);
            tracing::warn!(handle = %self.handle, error, "its health is not on file");
        }
    }
}

/// The task of one check. Holds its container weakly: it must not keep it alive.
async fn repeat(
    container: Weak<Container>,
    spec: CheckSpec,
    gate: watch::Receiver<u64>,
    stop: CancellationToken,
) {
    let name = spec.name.clone();
    let plan = || match container.upgrade() {
        Some(container) => container.checks.board().health.next(&name),
        None => Next::Over,
    };
    let tell = |ended| {
        if let Some(container) = container.upgrade() {
            container.observe(&name, ended, &stop);
        }
    };
    let timeout = spec.rule.timeout;
    match spec.probe.on_network() {
        Some((addresses, http)) => {
            let probe = WireProbe {
                addresses,
                timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
                http,
            };
            let run = |_| on_network(container.clone(), probe.clone());
            let limit = timeout + PROBE_GRACE;
            watch_check(limit, plan, run, tell, gate, stop.clone()).await;
        }
        None => {
            tokio::select! {
                () = program::prepare(&container, &spec) => {}
                () = stop.cancelled() => return,
            }
            let program = program::Program::new(container.clone(), &spec);
            let run = |number| program.run(number);
            watch_check(timeout, plan, run, tell, gate, stop.clone()).await;
        }
    }
}

/// One look from inside the container's network, by its supervisor.
async fn on_network(container: Weak<Container>, probe: WireProbe) -> Ended {
    let Some(shim) = container.upgrade().map(|container| container.shim.clone()) else {
        return Ended::failed("the container is gone");
    };
    match shim.probe(probe).await {
        Ok((passed, output, at_ns)) => Ended {
            passed,
            output,
            at_ns,
        },
        Err(error) => Ended::failed(error.report()),
    }
}

fn now_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}
