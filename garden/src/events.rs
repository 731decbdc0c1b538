//! What happens, as it happens: a short log per container, and a stream for everybody.
//!
//! Published by single calls where things happen; read by the API server. Publishing never waits:
//! a subscriber that is too slow misses events, and is told how many. A container's own log is also
//! a file beside its record, so that the next server can tell what happened before it (`journal.rs`);
//! it goes with the container. What events say has no arguments, environment or secrets in it.

mod journal;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use garden_peas::health::{HealthState, Verdict};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::services::{lock, now_ms};

/// Events that a container remembers.
const REMEMBERED: usize = 64;
/// Events that the server remembers, those of destroyed containers included.
pub(crate) const RECENT: usize = 1024;
/// Events that may wait for a subscriber before it misses some.
const WAITING: usize = 1024;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Grows by one with each event of a server; a later server goes on far above.
    pub sequence: u64,
    /// When, in milliseconds since the epoch.
    pub time_ms: u64,
    /// The container.
    pub handle: String,
    /// The process or pea, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened. Readers must be ready for kinds that they do not know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// The container was created.
    Created,
    /// The container was found by a server that was started.
    Found,
    /// Its processes were ended by a stop.
    Stopped,
    /// It is destroyed, its handle is free.
    Destroyed,
    /// Its supervisor died, and with it everything in it. It can only be destroyed.
    SupervisorDied,
    /// Its init ended, and with it everything in it. It can only be destroyed.
    InitDied,
    /// A process was started.
    Started,
    /// A process has ended.
    Exited {
        /// Its exit code, or 128 + the signal that ended it.
        code: i32,
        /// Whether the kernel killed something in its cgroup for want of memory.
        oom: bool,
    },
    /// A pea was started.
    PeaStarted,
    /// A pea has ended.
    PeaExited {
        /// As of a process.
        code: i32,
        /// As of a process.
        oom: bool,
    },
    /// What it left behind is gone.
    TeardownDone,
    /// A step of taking away what it left does not end.
    TeardownStuck {
        /// The step.
        stage: String,
    },
    /// Its health has changed.
    Health {
        /// From this.
        from: HealthState,
        /// To this.
        to: HealthState,
        /// Why.
        reason: String,
        /// The last of what the check said.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        output: String,
    },
    /// What is believed of one of its checks has changed.
    Check {
        /// The check.
        check: String,
        /// What is believed now.
        verdict: Verdict,
    },
    /// A line that a long-lived check wrote.
    CheckOutput {
        /// The check.
        check: String,
        /// The line, cut when it is long.
        line: String,
    },
    /// This subscriber was too slow. Not about any container.
    Missed {
        /// How many events it did not get.
        count: u64,
    },
}

impl EventKind {
    /// The word for it, as in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Found => "found",
            Self::Stopped => "stopped",
            Self::Destroyed => "destroyed",
            Self::SupervisorDied => "supervisor_died",
            Self::InitDied => "init_died",
            Self::Started => "started",
            Self::Exited { .. } => "exited",
            Self::PeaStarted => "pea_started",
            Self::PeaExited { .. } => "pea_exited",
            Self::TeardownDone => "teardown_done",
            Self::TeardownStuck { .. } => "teardown_stuck",
            Self::Health { .. } => "health",
            Self::Check { .. } => "check",
            Self::CheckOutput { .. } => "check_output",
            Self::Missed { .. } => "missed",
        }
    }
}

/// Which events somebody wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Only of this container.
    pub handle: Option<String>,
    /// Only of these kinds, by [`EventKind::name`]; empty is all.
    pub kinds: Vec<String>,
    /// Also what happened since then, in milliseconds since the epoch, as far as it is remembered.
    pub since_ms: Option<u64>,
    /// Go on with what will happen.
    pub follow: bool,
}

impl EventFilter {
    /// Whether it wants this one. That events were missed, everybody is told.
    pub fn wants(&self, event: &Event) -> bool {
        if matches!(event.kind, EventKind::Missed { .. }) {
            return true;
        }
        let named = |kind: &String| kind == event.kind.name();
        self.handle
            .as_ref()
            .is_none_or(|handle| *handle == event.handle)
            && (self.kinds.is_empty() || self.kinds.iter().any(named))
    }
}

/// A bounded list of events, the oldest dropped.
#[derive(Debug, Default)]
pub(crate) struct Log {
    list: Mutex<VecDeque<Arc<Event>>>,
    journal: Mutex<journal::Written>,
}

impl Log {
    fn push(&self, event: &Arc<Event>, most: usize) {
        let mut log = lock(&self.list);
        if log.len() >= most {
            log.pop_front();
        }
        log.push_back(Arc::clone(event));
    }

    /// What is in it, oldest first.
    pub(crate) fn read(&self) -> Vec<Arc<Event>> {
        lock(&self.list).iter().cloned().collect()
    }
}

/// All events of one server. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Events(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    sequence: AtomicU64,
    recent: Log,
    /// Held while an event gets its number and its place, so that all see the same order. How many
    /// there were of each kind.
    order: Mutex<BTreeMap<&'static str, u64>>,
    stream: broadcast::Sender<Arc<Event>>,
}

impl Default for Events {
    fn default() -> Self {
        Self::after(0)
    }
}

impl Events {
    /// None yet; the first one's number is the next after `sequence`.
    pub(crate) fn after(sequence: u64) -> Self {
        Self(Arc::new(Inner {
            sequence: AtomicU64::new(sequence),
            recent: Log::default(),
            order: Mutex::default(),
            stream: broadcast::Sender::new(WAITING),
        }))
    }

    /// Remembers what an earlier server told, as far as there is room beside what is newer.
    pub(crate) fn recall(&self, events: Vec<Arc<Event>>) {
        let _in_order = lock(&self.0.order);
        let mut recent = lock(&self.0.recent.list);
        let mut all: Vec<_> = recent.drain(..).chain(events).collect();
        all.sort_by_key(|event| event.sequence);
        all.dedup_by_key(|event| event.sequence);
        recent.extend(all.drain(all.len().saturating_sub(RECENT)..));
    }

    /// Publishes an event, into the container's log too if there is one. Never waits.
    pub(crate) fn publish(
        &self,
        handle: &str,
        process: Option<&str>,
        kind: EventKind,
        log: Option<&Log>,
    ) {
        let mut in_order = lock(&self.0.order);
        *in_order.entry(kind.name()).or_default() += 1;
        let event = Arc::new(Event {
            sequence: self.0.sequence.fetch_add(1, Ordering::Relaxed) + 1,
            time_ms: now_ms(),
            handle: handle.to_owned(),
            process: process.map(str::to_owned),
            kind,
        });
        if let Some(log) = log {
            log.push(&event, REMEMBERED);
        }
        self.0.recent.push(&event, RECENT);
        // Nobody may listen.
        let _ = self.0.stream.send(event);
    }

    /// What is remembered, oldest first.
    pub(crate) fn recent(&self) -> Vec<Arc<Event>> {
        self.0.recent.read()
    }

    /// How many events there were, by kind.
    pub(crate) fn counts(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.0.order).clone()
    }

    /// What is remembered, with a container's own log if that is given, and what comes after it:
    /// nothing is in both, and nothing in neither.
    pub(crate) fn subscribe(&self, log: Option<&Log>) -> (Vec<Arc<Event>>, Subscription) {
        let _in_order = lock(&self.0.order);
        let mut past = self.0.recent.read();
        if let Some(log) = log {
            past.extend(log.read());
            past.sort_by_key(|event| event.sequence);
            past.dedup_by_key(|event| event.sequence);
        }
        (past, Subscription(self.0.stream.subscribe()))
    }
}

/// The events that somebody wants: those that are remembered, then, if wanted, those that happen.
#[derive(Debug)]
pub struct EventStream {
    filter: EventFilter,
    past: VecDeque<Arc<Event>>,
    future: Option<Subscription>,
}

impl EventStream {
    pub(crate) fn open(events: &Events, log: Option<&Log>, filter: EventFilter) -> Self {
        let (past, future) = events.subscribe(log);
        let since = filter.since_ms;
        let is_wanted = |event: &Arc<Event>| {
            // Without a time, whoever goes on with the future wants only that.
            let recent = match since {
                Some(since) => event.time_ms >= since,
                None => !filter.follow,
            };
            recent && filter.wants(event)
        };
        let past = past.into_iter().filter(is_wanted).collect();
        let future = filter.follow.then_some(future);
        Self {
            filter,
            past,
            future,
        }
    }

    /// One of these events only.
    #[cfg(test)]
    pub(crate) fn of(filter: EventFilter, events: impl IntoIterator<Item = Event>) -> Self {
        Self {
            filter,
            past: events.into_iter().map(Arc::new).collect(),
            future: None,
        }
    }

    /// The next event; `None` when there will be no more.
    pub async fn next(&mut self) -> Option<Arc<Event>> {
        loop {
            let event = match self.past.pop_front() {
                Some(event) => event,
                None => self.future.as_mut()?.next().await?,
            };
            if self.filter.wants(&event) {
                return Some(event);
            }
        }
    }
}

/// Events as they happen.
#[derive(Debug)]
pub(crate) struct Subscription(broadcast::Receiver<Arc<Event>>);

impl Subscription {
    /// The next one, or how many were missed; `None` when there will be no more.
    pub(crate) async fn next(&mut self) -> Option<Arc<Event>> {
        match self.0.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(count)) => Some(Arc::new(Event {
                sequence: 0,
                time_ms: now_ms(),
                handle: String::new(),
                process: None,
                kind: EventKind::Missed { count },
            })),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_bounded_and_keeps_the_last() {
        let (events, log) = (Events::default(), Log::default());
        for _ in 0..REMEMBERED + 5 {
            events.publish("a", None, EventKind::Created, Some(&log));
        }
        let kept = log.read();
        assert_eq!(kept.len(), REMEMBERED);
        assert_eq!(kept[0].sequence, 6);
    }

    #[tokio::test]
    async fn one_that_is_too_slow_is_told_how_many_it_missed_and_blocks_nobody() {
        let events = Events::default();
        let (_, mut slow) = events.subscribe(None);
        for _ in 0..WAITING + 7 {
            events.publish("a", None, EventKind::Created, None);
        }
        let first = slow.next().await.unwrap();
        assert_eq!(first.kind, EventKind::Missed { count: 7 });
        assert_eq!(slow.next().await.unwrap().sequence, 8);
    }

    #[tokio::test]
    async fn past_and_future_meet_without_a_gap() {
        let (events, log) = (Events::default(), Log::default());
        events.publish("a", None, EventKind::Created, Some(&log));
        for _ in 0..RECENT {
            events.publish("b", None, EventKind::Created, None);
        }
        let (past, mut future) = events.subscribe(Some(&log));
        events.publish("a", Some("p"), EventKind::Started, Some(&log));
        let only = EventFilter {
            handle: Some("a".into()),
            ..EventFilter::default()
        };
        let mine: Vec<_> = past.iter().filter(|event| only.wants(event)).collect();
        assert_eq!(
            mine.len(),
            1,
            "pushed out of the server's log, not of its own"
        );
        assert_eq!(future.next().await.unwrap().process.as_deref(), Some("p"));
    }

    #[test]
    fn an_event_is_one_flat_object() {
        let event = Event {
            sequence: 3,
            time_ms: 5,
            handle: "h".into(),
            process: Some("p".into()),
            kind: EventKind::Exited {
                code: 137,
                oom: true,
            },
        };
        let text = serde_json::to_string(&event).unwrap();
        assert_eq!(
            text,
            r#"{"sequence":3,"time_ms":5,"handle":"h","process":"p","event":"exited","code":137,"oom":true}"#
        );
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
        let filter = EventFilter {
            kinds: vec!["exited".into()],
            ..EventFilter::default()
        };
        assert!(filter.wants(&event));
    }
}
