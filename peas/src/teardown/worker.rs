//! The life of one job: a task that takes it from stage to stage until nothing is left.
//!
//! Each job has a task of its own; what is bounded is how many of them may run a stage at a time.
//! A task holds its place only while a stage runs within its deadline: not while it waits to retry,
//! and not while a stage is stuck. Stages run in tasks of their own, so that a stuck one can be left
//! behind and one that panics is just one that failed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, sleep};
use tracing::{Instrument, Span};

use super::job::{Job, Stage};
use super::queue::{Lane, Shared};
use super::snapshot::Phase;
use super::stages::StageError;

/// What a job's task holds while it works.
enum Place {
    /// One of the bounded places; given back by dropping it.
    Worker { _permit: OwnedSemaphorePermit },
    /// A place beside them.
    Direct,
}

/// How a try ended.
enum Try {
    Finished,
    Failed,
    Closing,
}

/// How a stage ended.
enum End {
    Done,
    Failed(String),
    /// The queue leaves while it runs.
    Left,
}

type StageTask = JoinHandle<Result<(), StageError>>;

impl Shared {
    /// Drives one job to its end, or to the end of the queue.
    pub(super) async fn drive(self: Arc<Self>, mut job: Job, lane: Lane) {
        let span = tracing::info_span!(
            "teardown",
            job = %job.id,
            handle = job.target.container,
            pea = job.target.process,
        );
        let started = Instant::now();
        let tries = async {
            let mut lane = lane;
            loop {
                match self.try_stages(&mut job, lane).await {
                    Try::Finished => break self.finish(&job, started),
                    Try::Closing => break self.abandon(job.id),
                    Try::Failed if !self.rest(&job).await => break self.abandon(job.id),
                    Try::Failed => lane = Lane::Workers,
                }
            }
        };
        tries.instrument(span).await;
    }

    /// Runs stages until one fails or none is left.
    async fn try_stages(&self, job: &mut Job, lane: Lane) -> Try {
        let mut place = match lane {
            Lane::Direct => Some(Place::Direct),
            Lane::Workers => None,
        };
        loop {
            if self.closing.is_cancelled() {
                return Try::Closing;
            }
            if place.is_none() {
                place = self.wait_for_worker(job).await;
                if place.is_none() {
                    return Try::Closing;
                }
            }
            match self.run_stage(job, &mut place).await {
                End::Left => return Try::Closing,
                End::Failed(error) => {
                    job.failed(&error);
                    self.record(job);
                    return Try::Failed;
                }
                End::Done if !job.advance() => return Try::Finished,
                End::Done => self.record(job),
            }
        }
    }

    async fn wait_for_worker(&self, job: &Job) -> Option<Place> {
        self.set_phase(job.id, Phase::Waiting);
        let permit = Arc::clone(&self.workers).acquire_owned().await.ok()?;
        Some(Place::Worker { _permit: permit })
    }

    /// Runs one stage; takes the place away when the stage is stuck.
    async fn run_stage(&self, job: &Job, place: &mut Option<Place>) -> End {
        let stage = job.stage;
        self.set_phase(job.id, Phase::Running);
        let started = Instant::now();
        let work = Arc::clone(&self.stages).start(Arc::new(job.clone()));
        let span = tracing::debug_span!("stage", %stage);
        let mut task = self.runtime.spawn(work.instrument(span));
        let deadline = self.deadline(stage);
        let in_time = tokio::select! {
            ended = &mut task => Some(ended),
            () = sleep(deadline) => None,
            () = self.leaving.cancelled() => return End::Left,
        };
        let ended = match in_time {
            Some(ended) => ended,
            None => {
                *place = None;
                self.report_stuck(job, deadline);
                match self.wait_for_stuck(&mut task).await {
                    Some(ended) => ended,
                    None => return End::Left,
                }
            }
        };
        self.judge(stage, started.elapsed(), ended)
    }

    async fn wait_for_stuck(
        &self,
        task: &mut StageTask,
    ) -> Option<Result<Result<(), StageError>, JoinError>> {
        tokio::select! {
            ended = task => Some(ended),
            () = self.closing.cancelled() => None,
        }
    }

    fn report_stuck(&self, job: &Job, deadline: Duration) {
        self.stats.record_stuck(job.stage);
        self.set_phase(job.id, Phase::Stuck);
        self.stages.stuck(job);
        tracing::error!(
            stage = %job.stage, ?deadline,
            "teardown stage is stuck; it goes on aside and the job continues when it returns"
        );
    }

    fn judge(
        &self,
        stage: Stage,
        took: Duration,
        ended: Result<Result<(), StageError>, JoinError>,
    ) -> End {
        let end = match ended {
            Ok(Ok(())) => End::Done,
            Ok(Err(error)) => End::Failed(error.report()),
            // The runtime goes down under us: nobody is left to try again.
            Err(error) if error.is_cancelled() => return End::Left,
            Err(error) => End::Failed(error.to_string()),
        };
        self.stats
            .record(stage, took, matches!(end, End::Failed(_)));
        if matches!(end, End::Done) {
            tracing::debug!(%stage, duration_us = took.as_micros(), "teardown stage done");
        }
        end
    }

    /// Waits before the next try. `false` when the queue closes meanwhile.
    async fn rest(&self, job: &Job) -> bool {
        let delay = self.options.backoff.delay(job.attempts);
        tracing::warn!(
            stage = %job.stage, attempts = job.attempts, error = job.last_error, retry_in = ?delay,
            "teardown stage failed"
        );
        self.set_phase(job.id, Phase::Retrying);
        tokio::select! {
            () = sleep(delay) => true,
            () = self.closing.cancelled() => false,
        }
    }

    /// Puts the job's progress on file. A failure costs only the repetition of stages that are
    /// idempotent, after a crash.
    fn record(&self, job: &Job) {
        self.publish(job);
        if let Err(error) = self.store.write(job) {
            tracing::warn!(%error, "cannot record the progress of a teardown");
        }
    }

    fn finish(&self, job: &Job, started: Instant) {
        if let Err(error) = self.store.remove(job.id) {
            tracing::warn!(%error, "cannot remove the file of a finished teardown");
        }
        self.leave(job);
        self.stages.done(job);
        tracing::debug!(
            parent: Span::current(),
            duration_us = started.elapsed().as_micros(),
            "teardown done"
        );
    }

    fn deadline(&self, stage: Stage) -> Duration {
        let own = self.options.deadlines.get(&stage).copied();
        own.unwrap_or(self.options.deadline)
    }
}
