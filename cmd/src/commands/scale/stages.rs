//! What a run of `scale` measured: spans by stage and instance, and figures made of them.
//!
//! Every stage of every instance is a [`Span`] from the start of the run. Instances record into one
//! [`Record`] at the same time. Nothing here measures: the caller says when a span began and ended.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

/// A stage of an instance's life, in the order in which they are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stage {
    /// The container is made: from the request to the reply.
    Create,
    /// The app's files are put in: from the request to the reply.
    Stream,
    /// The app is started: from the request to the reply.
    Run,
    /// Health checks: from the app's start to the first that succeeded.
    Check,
    /// From the last thing that a check did to its client's knowledge of the exit.
    ExitToReply,
    /// From there to the end of everything that cleans up behind it, to within 10 ms.
    Teardown,
    /// The container is destroyed: from the request to the reply.
    Destroy,
}

impl Stage {
    /// All of them.
    pub(super) const ALL: [Self; 7] = [
        Self::Create,
        Self::Stream,
        Self::Run,
        Self::Check,
        Self::ExitToReply,
        Self::Teardown,
        Self::Destroy,
    ];

    /// Its name in tables and in JSON.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Stream => "stream",
            Self::Run => "run",
            Self::Check => "check",
            Self::ExitToReply => "exit_to_reply",
            Self::Teardown => "teardown",
            Self::Destroy => "destroy",
        }
    }
}

/// One stage of one instance, in time since the start of the run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub(super) instance: usize,
    pub(super) stage: Stage,
    pub(super) start: Duration,
    pub(super) end: Duration,
}

impl Span {
    pub(super) fn length(&self) -> Duration {
        self.end.saturating_sub(self.start)
    }
}

/// The spans of a run.
pub(super) struct Record {
    started: Instant,
    spans: Mutex<Vec<Span>>,
}

impl Record {
    /// An empty one; the run starts now.
    pub(super) fn start() -> Self {
        Self {
            started: Instant::now(),
            spans: Mutex::default(),
        }
    }

    /// Adds a stage of an instance.
    pub(super) fn add(&self, instance: usize, stage: Stage, start: Instant, end: Instant) {
        let span = Span {
            instance,
            stage,
            start: start.saturating_duration_since(self.started),
            end: end.saturating_duration_since(self.started),
        };
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        spans.push(span);
    }

    /// All spans so far, by their start.
    pub(super) fn spans(&self) -> Vec<Span> {
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        let mut spans = spans.clone();
        spans.sort_by_key(|span| (span.start, span.stage));
        spans
    }
}

/// The figures of one stage, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Figures {
    pub(super) median_ms: f64,
    pub(super) min_ms: f64,
    pub(super) max_ms: f64,
    pub(super) n: usize,
}

impl Figures {
    /// The figures of these lengths; nothing when there is none.
    pub(super) fn of(lengths: impl IntoIterator<Item = Duration>) -> Option<Self> {
        let mut lengths: Vec<_> = lengths.into_iter().collect();
        lengths.sort();
        let (first, last) = (*lengths.first()?, *lengths.last()?);
        let n = lengths.len();
        let median = (lengths[(n - 1) / 2] + lengths[n / 2]) / 2;
        Some(Self {
            median_ms: milliseconds(median),
            min_ms: milliseconds(first),
            max_ms: milliseconds(last),
            n,
        })
    }
}

/// Milliseconds with two decimals.
pub(super) fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 100_000.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_an_even_number() {
        let lengths = [4, 1, 3, 2].map(Duration::from_millis);
        let figures = Figures::of(lengths).unwrap();
        let expected = Figures {
            median_ms: 2.5,
            min_ms: 1.0,
            max_ms: 4.0,
            n: 4,
        };
        assert_eq!(figures, expected);
        assert_eq!(Figures::of([]), None);
    }
}
