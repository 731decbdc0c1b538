//! What a teardown job says, in memory and in its file.
//!
//! The file is versioned JSON that a person can read. Nothing secret may get in: a job names
//! resources, never environments, arguments or credentials.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The version of the file format that this code writes and understands.
pub(super) const VERSION: u32 = 1;

/// The name of a job: a UUID version 7, so names sort by age and are never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(Uuid);

impl JobId {
    pub(super) fn generate() -> Self {
        Self(Uuid::now_v7())
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().map(Self)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is torn down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A container: every stage applies.
    Container,
    /// A pea: it has no network of its own.
    Pea,
}

/// One step of a teardown. The order of the variants is the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Kill what is left in the cgroups and see it gone.
    Kill,
    /// Release addresses, ports, rules and interfaces.
    Network,
    /// Unmount, and drop every reference to the root filesystem's mount.
    Unmount,
    /// Move the root filesystem's tree to the trash.
    Trash,
    /// Give back ids, quota and layer references.
    Free,
    /// Remove the cgroups.
    Cgroup,
    /// Delete the records in the depot.
    Records,
}

impl Stage {
    /// Every stage, in order.
    pub const ALL: [Self; 7] = [
        Self::Kill,
        Self::Network,
        Self::Unmount,
        Self::Trash,
        Self::Free,
        Self::Cgroup,
        Self::Records,
    ];

    /// The name used in files, logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Network => "network",
            Self::Unmount => "unmount",
            Self::Trash => "trash",
            Self::Free => "free",
            Self::Cgroup => "cgroup",
            Self::Records => "records",
        }
    }

    pub(super) fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Kind {
    /// The stage after `stage` that applies to this kind; `None` after the last.
    pub fn stage_after(self, stage: Stage) -> Option<Stage> {
        Stage::ALL
            .into_iter()
            .find(|next| *next > stage && self.has(*next))
    }

    /// Whether the stage applies to this kind.
    pub fn has(self, stage: Stage) -> bool {
        !matches!((self, stage), (Self::Pea, Stage::Network))
    }
}

/// What there is to take away. Stages find here everything that they need: by the time a job
/// runs, the record of what it belonged to may be gone and its name in use again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Its cgroups, as paths below the root of each hierarchy.
    pub cgroups: Vec<PathBuf>,
    /// The id of its root filesystem in the store.
    pub rootfs: Option<String>,
    /// What the network needs to release it, in the network's own words.
    pub network: Option<serde_json::Value>,
    /// Directories of the depot that go with it.
    pub records: Vec<PathBuf>,
    /// Anything else the implementor of the stages wants back.
    pub extra: BTreeMap<String, serde_json::Value>,
}

/// What to tear down: the caller's part of a [`Job`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Container or pea.
    pub kind: Kind,
    /// The handle of the container.
    pub container: String,
    /// The process id of the pea; `None` for a container.
    pub process: Option<String>,
    /// What tells this one from any other of the same name, before and after it. The queue holds
    /// at most one job for an instance, however often it is asked.
    pub instance: String,
    /// What there is to take away.
    #[serde(default)]
    pub resources: Resources,
}

/// A teardown on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    pub(super) version: u32,
    /// Its name, and the stem of its file's name.
    pub id: JobId,
    /// When it was enqueued, in milliseconds since the epoch.
    pub created_ms: u64,
    /// The stage that runs next; all before it are done.
    pub stage: Stage,
    /// How often that stage has failed.
    pub attempts: u32,
    /// Why it failed last, causes included.
    pub last_error: Option<String>,
    /// What is torn down.
    pub target: Target,
}

impl Job {
    pub(super) fn new(target: Target) -> Self {
        Self {
            version: VERSION,
            id: JobId::generate(),
            created_ms: now_ms(),
            stage: Stage::Kill,
            attempts: 0,
            last_error: None,
            target,
        }
    }

    /// The stage is done: steps to the next. `false` when there is none.
    pub(super) fn advance(&mut self) -> bool {
        let next = self.target.kind.stage_after(self.stage);
        if let Some(stage) = next {
            self.stage = stage;
            self.attempts = 0;
            self.last_error = None;
        }
        next.is_some()
    }

    pub(super) fn failed(&mut self, error: &str) {
        const LONGEST: usize = 2048;
        self.attempts = self.attempts.saturating_add(1);
        self.last_error = Some(error.chars().take(LONGEST).collect());
    }
}

pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(kind: Kind) -> Target {
        Target {
            kind,
            container: "c".into(),
            process: None,
            instance: "i".into(),
            resources: Resources::default(),
        }
    }

    fn walk(kind: Kind) -> Vec<Stage> {
        let mut job = Job::new(target(kind));
        let mut seen = vec![job.stage];
        while job.advance() {
            seen.push(job.stage);
        }
        seen
    }

    #[test]
    fn a_container_goes_through_every_stage_in_order() {
        assert_eq!(walk(Kind::Container), Stage::ALL);
    }

    #[test]
    fn a_pea_has_no_network_to_release() {
        let stages = walk(Kind::Pea);
        assert_eq!(stages.len(), Stage::ALL.len() - 1);
        assert!(!stages.contains(&Stage::Network));
    }

    #[test]
    fn progress_forgets_the_failures_of_the_stage_before() {
        let mut job = Job::new(target(Kind::Pea));
        job.failed("no");
        job.failed(&"x".repeat(10_000));
        assert_eq!(job.attempts, 2);
        assert_eq!(job.last_error.as_deref().map(str::len), Some(2048));
        assert!(job.advance());
        assert_eq!((job.attempts, job.last_error), (0, None));
    }

    #[test]
    fn names_of_jobs_sort_by_age() {
        let ids: Vec<_> = (0..100).map(|_| JobId::generate()).collect();
        assert!(ids.is_sorted());
    }

    #[test]
    fn a_file_with_only_what_is_needed_can_be_read() {
        let text = format!(
            r#"{{"version":1,"id":"{}","created_ms":5,"stage":"trash","attempts":2,"last_error":null,
            "target":{{"kind":"pea","container":"c","process":"p","instance":"i"}}}}"#,
            JobId::generate()
        );
        let job: Job = serde_json::from_str(&text).expect("readable");
        assert_eq!(job.stage, Stage::Trash);
        assert_eq!(job.target.resources, Resources::default());
    }
}
