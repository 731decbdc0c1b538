//! What the queue asks of the one who knows mounts, cgroups and records.

use std::pin::Pin;
use std::sync::Arc;

use super::job::{Job, Stage};

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A stage that failed. The queue keeps its text and tries again later.
#[derive(Debug, thiserror::Error)]
#[error("{doing}")]
pub struct StageError {
    doing: String,
    #[source]
    source: Option<Cause>,
}

impl StageError {
    /// A failed step, named with its object, and its cause.
    pub fn new(doing: impl Into<String>, source: impl Into<Cause>) -> Self {
        Self {
            doing: doing.into(),
            source: Some(source.into()),
        }
    }

    /// A failed step that has no cause below it.
    pub fn message(doing: impl Into<String>) -> Self {
        Self {
            doing: doing.into(),
            source: None,
        }
    }

    /// The error and its causes in one line.
    pub(super) fn report(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(source) = cause {
            text.push_str(": ");
            text.push_str(&source.to_string());
            cause = source.source();
        }
        text
    }
}

/// Does the work of a teardown, one stage at a time.
pub trait Stages: Send + Sync + 'static {
    /// Does one stage of one job.
    ///
    /// Called by the queue, for the stages of a job in order, never twice at a time for the same
    /// job, in parallel for different jobs. It must be idempotent: after a crash or a failure the
    /// same stage of the same job is asked for again, and what is already gone counts as done. It
    /// must not block its thread: what can hang in the kernel runs on a thread of its own, which
    /// the future waits for. It may take for ever; past its deadline it merely counts as stuck.
    fn run(&self, job: &Job, stage: Stage) -> impl Future<Output = Result<(), StageError>> + Send;

    /// A job is done. Must not wait.
    fn done(&self, _job: &Job) {}

    /// The stage that a job is in has passed its deadline. Must not wait.
    fn stuck(&self, _job: &Job) {}
}

/// A future of one stage that owns all it needs, so that it can outlive its worker.
pub(super) type Running = Pin<Box<dyn Future<Output = Result<(), StageError>> + Send>>;

/// [`Stages`] without its type, so that [`super::Queue`] has no type parameter.
pub(super) trait AnyStages: Send + Sync {
    fn start(self: Arc<Self>, job: Arc<Job>) -> Running;

    fn done(&self, job: &Job);

    fn stuck(&self, job: &Job);
}

impl<S: Stages> AnyStages for S {
    fn start(self: Arc<Self>, job: Arc<Job>) -> Running {
        Box::pin(async move { self.run(&job, job.stage).await })
    }

    fn done(&self, job: &Job) {
        Stages::done(self, job);
    }

    fn stuck(&self, job: &Job) {
        Stages::stuck(self, job);
    }
}
