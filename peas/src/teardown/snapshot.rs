//! How the queue looks at one moment: for the status page, the API and `garden doctor`.

use std::time::Duration;

use serde::Serialize;

use super::job::{JobId, Kind, Stage};
use super::stats::StageStats;

/// What a job is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Waits for a free worker.
    Waiting,
    /// A stage runs.
    Running,
    /// A stage failed; waits to try it again.
    Retrying,
    /// A stage has passed its deadline and still runs; it occupies no worker.
    Stuck,
}

/// One job.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JobView {
    /// Its name.
    pub id: JobId,
    /// What is torn down.
    pub kind: Kind,
    /// The handle of the container.
    pub container: String,
    /// The process id of the pea, for a pea.
    pub process: Option<String>,
    /// The stage that runs, or runs next.
    pub stage: Stage,
    /// What the job is doing.
    pub phase: Phase,
    /// For how long it has been doing that.
    pub phase_age: Duration,
    /// How often this stage has failed.
    pub attempts: u32,
    /// Why it failed last.
    pub last_error: Option<String>,
    /// How long ago the job was enqueued, a restart of the server included.
    pub age: Duration,
}

impl JobView {
    /// Whether a stage has passed its deadline and still runs.
    pub fn stuck(&self) -> bool {
        self.phase == Phase::Stuck
    }
}

/// The whole queue.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Snapshot {
    /// How many jobs are not done.
    pub depth: usize,
    /// The age of the oldest of them.
    pub oldest: Option<Duration>,
    /// How many of them are stuck.
    pub stuck: usize,
    /// How many of them failed and wait to be tried again.
    pub retrying: usize,
    /// The jobs, oldest first.
    pub jobs: Vec<JobView>,
    /// What happened in each stage since the queue was opened.
    pub stages: Vec<StageStats>,
}

impl Snapshot {
    pub(super) fn new(jobs: Vec<JobView>, stages: Vec<StageStats>) -> Self {
        let in_phase = |phase| jobs.iter().filter(|job| job.phase == phase).count();
        Self {
            depth: jobs.len(),
            oldest: jobs.iter().map(|job| job.age).max(),
            stuck: in_phase(Phase::Stuck),
            retrying: in_phase(Phase::Retrying),
            jobs,
            stages,
        }
    }
}
