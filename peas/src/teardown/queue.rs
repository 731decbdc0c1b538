//! The queue as its users see it: open, enqueue, look, wait, shut down.
//!
//! Called from exits (enqueue), destroys and undos (enqueue, then wait on the ticket), the server's
//! start and stop, and the status page. The lock in here guards a table in memory and is never
//! held across a file operation, a stage or an await.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::backoff::Backoff;
use super::job::{Job, JobId, Stage, Target, now_ms};
use super::snapshot::{JobView, Phase, Snapshot};
use super::stages::{AnyStages, Stages};
use super::stats::Stats;
use super::store::{Store, StoreError};

/// How the queue works.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many jobs run at a time. Stuck ones and those waiting for a retry do not count.
    pub workers: usize,
    /// How long to wait before a failed stage is tried again.
    pub backoff: Backoff,
    /// After how long a running stage counts as stuck and gives its worker back.
    pub deadline: Duration,
    /// Stages with a deadline of their own.
    pub deadlines: HashMap<Stage, Duration>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            workers: 8,
            backoff: Backoff::default(),
            deadline: Duration::from_secs(10),
            deadlines: HashMap::new(),
        }
    }
}

/// How far a job is, for those who wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Nothing has gone wrong so far, and it is not done.
    Pending,
    /// A stage failed or is stuck; the queue goes on with it by itself.
    Delayed,
    /// Every stage is done.
    Done,
    /// The queue was shut down before; the next start goes on with it.
    Left,
}

/// A job that was handed over.
#[derive(Debug, Clone)]
pub struct Ticket {
    /// The job.
    pub id: JobId,
    /// Whether its file was written. If not (the tmpfs is full), the job is done all the same,
    /// but a crash before its end would lose it.
    pub durable: bool,
    progress: watch::Receiver<Progress>,
}

impl Ticket {
    /// Waits until the job is done or has been delayed for the first time.
    pub async fn attempted(&mut self) -> Progress {
        self.until(|progress| progress != Progress::Pending).await
    }

    /// Waits until the job is done, or until the queue is shut down.
    pub async fn finished(&mut self) -> Progress {
        let ended = |progress| matches!(progress, Progress::Done | Progress::Left);
        self.until(ended).await
    }

    async fn until(&mut self, enough: impl Fn(Progress) -> bool) -> Progress {
        match self.progress.wait_for(|now| enough(*now)).await {
            Ok(progress) => *progress,
            Err(_) => Progress::Left,
        }
    }
}

/// Whether a job waits for a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// It does.
    Workers,
    /// Its first try starts at once, whatever else runs.
    Direct,
}

pub(super) struct Entry {
    job: Arc<Job>,
    phase: Phase,
    phase_since: Instant,
    taken: Instant,
    age_when_taken: Duration,
    durable: bool,
    progress: watch::Sender<Progress>,
}

#[derive(Default)]
struct Table {
    jobs: BTreeMap<JobId, Entry>,
    instances: HashMap<String, JobId>,
}

/// Everything the queue and its job tasks share.
pub(super) struct Shared {
    pub(super) store: Store,
    pub(super) stages: Arc<dyn AnyStages>,
    pub(super) options: Options,
    pub(super) runtime: Handle,
    pub(super) workers: Arc<Semaphore>,
    pub(super) stats: Stats,
    /// No stage is started any more.
    pub(super) closing: CancellationToken,
    /// Running stages are not waited for any more.
    pub(super) leaving: CancellationToken,
    table: Mutex<Table>,
    depth: watch::Sender<usize>,
    tasks: TaskTracker,
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        // No code under the lock can leave the table half changed, even if it panics.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a job, or finds the one that is there for the same instance.
    fn enter(&self, job: &Job, durable: bool) -> (Ticket, bool) {
        let mut table = self.table();
        if let Some(id) = table.instances.get(&job.target.instance).copied()
            && let Some(entry) = table.jobs.get(&id)
        {
            let ticket = Ticket {
                id,
                durable: entry.durable,
                progress: entry.progress.subscribe(),
            };
            return (ticket, false);
        }
        let (sender, progress) = watch::channel(Progress::Pending);
        let now = Instant::now();
        let entry = Entry {
            job: Arc::new(job.clone()),
            phase: Phase::Waiting,
            phase_since: now,
            taken: now,
            age_when_taken: Duration::from_millis(now_ms().saturating_sub(job.created_ms)),
            durable,
            progress: sender,
        };
        table.jobs.insert(job.id, entry);
        table.instances.insert(job.target.instance.clone(), job.id);
        self.depth.send_replace(table.jobs.len());
        let id = job.id;
        (
            Ticket {
                id,
                durable,
                progress,
            },
            true,
        )
    }

    /// Publishes the state of a job.
    pub(super) fn publish(&self, job: &Job) {
        if let Some(entry) = self.table().jobs.get_mut(&job.id) {
            entry.job = Arc::new(job.clone());
        }
    }

    pub(super) fn set_phase(&self, id: JobId, phase: Phase) {
        if let Some(entry) = self.table().jobs.get_mut(&id) {
            entry.phase = phase;
            entry.phase_since = Instant::now();
            if matches!(phase, Phase::Retrying | Phase::Stuck) {
                entry.progress.send_replace(Progress::Delayed);
            }
        }
    }

    /// Takes a job out that is done.
    pub(super) fn leave(&self, job: &Job) {
        let mut table = self.table();
        table.instances.remove(&job.target.instance);
        if let Some(entry) = table.jobs.remove(&job.id) {
            entry.progress.send_replace(Progress::Done);
        }
        self.depth.send_replace(table.jobs.len());
    }

    /// The queue closes before the job is done.
    pub(super) fn abandon(&self, id: JobId) {
        if let Some(entry) = self.table().jobs.get(&id) {
            entry.progress.send_replace(Progress::Left);
        }
    }

    fn spawn(self: &Arc<Self>, job: Job, lane: Lane) {
        let task = Arc::clone(self).drive(job, lane);
        self.tasks.spawn_on(task, &self.runtime);
    }
}

/// The durable teardown queue. A clone is another handle on the same queue.
#[derive(Clone)]
pub struct Queue {
    shared: Arc<Shared>,
}

impl Queue {
    /// Opens the queue that lives in `directory` (made when missing, best on a tmpfs) and resumes
    /// every job in it at its recorded stage. Must be called inside a tokio runtime, on which the
    /// jobs then run. One directory belongs to one queue at a time; that is the caller's to see to.
    ///
    /// # Errors
    /// Only when the directory itself cannot be used; a broken file in it is set aside.
    pub fn open(
        directory: impl AsRef<Path>,
        stages: impl Stages,
        options: Options,
    ) -> Result<Self, StoreError> {
        let store = Store::open(directory.as_ref())?;
        let jobs = store.load()?;
        let shared = Arc::new(Shared {
            store,
            stages: Arc::new(stages),
            runtime: Handle::current(),
            workers: Arc::new(Semaphore::new(options.workers.max(1))),
            options,
            stats: Stats::default(),
            closing: CancellationToken::new(),
            leaving: CancellationToken::new(),
            table: Mutex::default(),
            depth: watch::Sender::new(0),
            tasks: TaskTracker::new(),
        });
        let queue = Self { shared };
        if !jobs.is_empty() {
            tracing::info!(
                jobs = jobs.len(),
                "teardown goes on where the last server left it"
            );
        }
        for job in jobs {
            queue.take(job, true, Lane::Workers);
        }
        Ok(queue)
    }

    /// Hands a teardown over. When it returns, the job is on file and its end is only a matter of
    /// time; nothing of it has to have happened yet. Asking again for the same instance while its
    /// job is not done finds that job. Costs one small file write; never waits for a worker.
    pub fn enqueue(&self, target: Target) -> Ticket {
        self.hand_over(target, Lane::Workers)
    }

    /// Like [`Self::enqueue`], but the first try starts at once beside the workers: for callers
    /// that then wait on the ticket.
    pub fn enqueue_direct(&self, target: Target) -> Ticket {
        self.hand_over(target, Lane::Direct)
    }

    fn hand_over(&self, target: Target, lane: Lane) -> Ticket {
        let job = Job::new(target);
        let written = self.shared.store.write(&job);
        if let Err(error) = &written {
            tracing::error!(
                job = %job.id, container = job.target.container, pea = job.target.process, %error,
                "teardown is not on file and would be lost in a crash; is the tmpfs full?"
            );
        }
        self.take(job, written.is_ok(), lane)
    }

    fn take(&self, job: Job, durable: bool, lane: Lane) -> Ticket {
        let (ticket, fresh) = self.shared.enter(&job, durable);
        if fresh {
            self.shared.spawn(job, lane);
        } else if let Err(error) = self.shared.store.remove(job.id) {
            // The first job's file is there; a start would find both, and do the work once more.
            tracing::warn!(job = %job.id, %error, "cannot remove the second file of a teardown");
        }
        ticket
    }

    /// Whether a job for this instance is not done.
    pub fn has(&self, instance: &str) -> bool {
        self.shared.table().instances.contains_key(instance)
    }

    /// How many jobs are not done.
    pub fn depth(&self) -> usize {
        *self.shared.depth.borrow()
    }

    /// The queue at this moment. Reads memory only.
    pub fn snapshot(&self) -> Snapshot {
        let now = Instant::now();
        let table = self.shared.table();
        let jobs = table.jobs.values().map(|entry| view(entry, now)).collect();
        drop(table);
        Snapshot::new(jobs, self.shared.stats.read())
    }

    /// Waits until no job is left, or until the queue is shut down. New jobs may come at any time
    /// after.
    pub async fn wait_idle(&self) {
        let mut depth = self.shared.depth.subscribe();
        tokio::select! {
            // The sender lives as long as `self`, so this ends for no other reason.
            _ = depth.wait_for(|depth| *depth == 0) => {}
            () = self.shared.closing.cancelled() => {}
        }
    }

    /// Stops starting stages, waits at most `grace` for those that run (never for stuck ones) and
    /// leaves what is not done to the next start. Jobs that are handed over later are only put on
    /// file.
    pub async fn shutdown(&self, grace: Duration) {
        let shared = &self.shared;
        shared.closing.cancel();
        shared.workers.close();
        shared.tasks.close();
        if tokio::time::timeout(grace, shared.tasks.wait())
            .await
            .is_err()
        {
            shared.leaving.cancel();
            shared.tasks.wait().await;
        }
        tracing::info!(left = self.depth(), "teardown queue is shut down");
    }
}

fn view(entry: &Entry, now: Instant) -> JobView {
    let job = &entry.job;
    JobView {
        id: job.id,
        kind: job.target.kind,
        container: job.target.container.clone(),
        process: job.target.process.clone(),
        stage: job.stage,
        phase: entry.phase,
        phase_age: now.saturating_duration_since(entry.phase_since),
        attempts: job.attempts,
        last_error: job.last_error.clone(),
        age: entry.age_when_taken + now.saturating_duration_since(entry.taken),
    }
}
