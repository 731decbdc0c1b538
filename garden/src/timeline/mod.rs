//! What happened to a container, and how long each step took: `garden timeline`.
//!
//! ```text
//! <runtime>/timeline/<handle>.<number>   lines of JSON, at most two files for each handle
//! ```
//!
//! Told by single calls where the manager knows a step anyway. A call takes a time and puts a line
//! into a bounded queue: no system call, no lock that waits, and when the queue is full the line is
//! lost. One thread (`keeper.rs`) writes. The lines are on a tmpfs and stay for a while after the
//! container. They have no arguments, environment or secrets in them.

mod keeper;

use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::events::EventKind;
use crate::workers::Workers;
use keeper::Keeper;

/// Lines that may wait to be written before some are lost.
const WAITING: usize = 4096;
/// How long the end waits for what is to be written.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);
/// Bytes of one container.
const MOST_BYTES: u64 = 128 << 10;

/// The name of the line that begins a container.
pub const CREATE: &str = "create";
/// The name of the line that ends it.
pub const DESTROYED: &str = "destroyed";

/// A step, or the beginning or the end of something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// What it is: `create`, `rootfs`, `process`, `unmount`, ….
    pub step: String,
    /// Which part of it is told.
    pub part: Part,
    /// When that was, in microseconds since the epoch; of a whole step its beginning.
    pub at_us: u64,
    /// How long a whole step took, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_us: Option<u64>,
    /// The process or pea that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// What tells containers of one handle apart, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// A word on how it went.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// What a line tells of its step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// All of it, with its duration.
    Whole,
    /// That it has begun.
    Begin,
    /// That it has ended.
    End,
    /// It has no duration.
    Moment,
}

/// The life of one container, as far as it is remembered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// Its lines, in the order in which they were told.
    pub lines: Vec<Line>,
}

impl Timeline {
    /// From lines of JSON; those of earlier containers of the handle are left out.
    fn read(text: &[u8]) -> Self {
        let lines = text.split(|byte| *byte == b'\n');
        let lines: Vec<Line> = lines
            .filter_map(|line| serde_json::from_slice(line).ok())
            .collect();
        let is_begin = |line: &Line| line.step == CREATE && line.part == Part::Begin;
        let begin = lines.iter().rposition(is_begin).unwrap_or(0);
        let instance = lines.get(begin).and_then(|line| line.instance.clone());
        let mut lines = lines.get(begin..).unwrap_or_default().to_vec();
        // What an earlier one left may still be on its way out.
        lines.retain(|line| match (&line.instance, &instance) {
            (Some(of), Some(this)) => of == this,
            _ => true,
        });
        Self { lines }
    }

    /// Whether its container has come to its end.
    pub fn is_over(&self) -> bool {
        self.lines.iter().any(|line| line.step == DESTROYED)
    }
}

/// Where lines go.
#[derive(Debug, Clone)]
pub(crate) struct Timelines {
    queue: SyncSender<Told>,
    directory: PathBuf,
}

/// What the thread is told.
#[derive(Debug)]
enum Told {
    /// A line of a container.
    Line(String, Line),
    /// To end, and to say so.
    End(oneshot::Sender<()>),
}

/// A moment from which a step is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Begun {
    at_us: u64,
    clock: std::time::Instant,
}

/// Begins to measure.
pub(crate) fn begin() -> Begun {
    Begun {
        at_us: now_us(),
        clock: std::time::Instant::now(),
    }
}

fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    micros(now.unwrap_or_default())
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Timelines {
    /// Starts the thread that writes below `runtime`; it ends with the last clone of this.
    ///
    /// # Errors
    /// When the host has no thread left.
    pub(crate) fn start(runtime: &std::path::Path) -> std::io::Result<Self> {
        let directory = runtime.join("timeline");
        let (queue, lines) = sync_channel(WAITING);
        let keeper = Keeper::new(directory.clone(), MOST_BYTES);
        std::thread::Builder::new()
            .name("garden-timeline".to_owned())
            .spawn(move || keeper.run(&lines))?;
        Ok(Self { queue, directory })
    }

    /// Ends the thread: nothing is written when this returns, nor after it.
    pub(crate) async fn close(&self) {
        let (done, ended) = oneshot::channel();
        if self.queue.try_send(Told::End(done)).is_ok() {
            let _ = tokio::time::timeout(CLOSE_PATIENCE, ended).await;
        }
    }

    fn tell(&self, handle: &str, line: Line) {
        // Full: something of a container's story is lost, but nothing waits for it.
        let _ = self.queue.try_send(Told::Line(handle.to_owned(), line));
    }

    /// A container is being made.
    pub(crate) fn created(&self, handle: &str, instance: &str) {
        let mut line = Line::new(CREATE, Part::Begin, now_us());
        line.instance = Some(instance.to_owned());
        self.tell(handle, line);
    }

    /// A step has ended.
    pub(crate) fn step(
        &self,
        (handle, process, instance): (&str, Option<&str>, Option<&str>),
        step: &str,
        begun: Begun,
        detail: &str,
    ) {
        let mut line = Line::new(step, Part::Whole, begun.at_us);
        line.took_us = Some(micros(begun.clock.elapsed()));
        line.process = process.map(str::to_owned);
        line.instance = instance.map(str::to_owned);
        detail.clone_into(&mut line.detail);
        self.tell(handle, line);
    }

    /// An exit is known to everybody; it happened then, in nanoseconds since the epoch.
    pub(crate) fn told(&self, handle: &str, process: &str, exited_at_ns: u64) {
        let at_us = exited_at_ns / 1000;
        let mut line = Line::new("exit known", Part::Whole, at_us);
        line.took_us = Some(now_us().saturating_sub(at_us));
        line.process = Some(process.to_owned());
        self.tell(handle, line);
    }

    /// Something happened that everybody is told.
    pub(crate) fn event(&self, handle: &str, process: Option<&str>, kind: &EventKind) {
        let code = |code: &i32, oom: &bool| match oom {
            true => format!("code {code}, out of memory"),
            false => format!("code {code}"),
        };
        let (step, part, detail) = match kind {
            EventKind::Created => (CREATE, Part::End, String::new()),
            EventKind::Started => ("process", Part::Begin, String::new()),
            EventKind::PeaStarted => ("pea", Part::Begin, String::new()),
            EventKind::Exited { code: c, oom } => ("process", Part::End, code(c, oom)),
            EventKind::PeaExited { code: c, oom } => ("pea", Part::End, code(c, oom)),
            EventKind::Found => ("found", Part::Moment, "by a server that started".to_owned()),
            EventKind::Stopped => ("stopped", Part::Moment, String::new()),
            EventKind::Destroyed => (DESTROYED, Part::Moment, String::new()),
            EventKind::InitDied => ("init died", Part::Moment, String::new()),
            EventKind::SupervisorDied => ("supervisor died", Part::Moment, String::new()),
            EventKind::Health { to, reason, .. } => {
                ("health", Part::Moment, format!("{to}: {reason}"))
            }
            EventKind::TeardownStuck { stage } => ("stuck", Part::Moment, stage.clone()),
            EventKind::TeardownDone
            | EventKind::Check { .. }
            | EventKind::CheckOutput { .. }
            | EventKind::Missed { .. } => return,
        };
        let mut line = Line::new(step, part, now_us());
        line.process = process.map(str::to_owned);
        line.detail = detail;
        self.tell(handle, line);
    }

    /// What is remembered of the newest container of a handle; `None` when that is nothing.
    pub(crate) async fn read(&self, threads: &Workers, handle: &str) -> Option<Timeline> {
        let (directory, handle) = (self.directory.clone(), handle.to_owned());
        let read = threads.run(move || keeper::read(&directory, &handle));
        let text = read.await.ok()?.ok()?;
        let timeline = Timeline::read(&text);
        (!timeline.lines.is_empty()).then_some(timeline)
    }
}

impl Line {
    fn new(step: &str, part: Part, at_us: u64) -> Self {
        Self {
            step: step.to_owned(),
            part,
            at_us,
            took_us: None,
            process: None,
            instance: None,
            detail: String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_life_is_read_back_and_an_earlier_one_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let threads = Workers::start("test-files", 1).unwrap();
        let timelines = Timelines::start(dir.path()).unwrap();
        timelines.created("web", "i1");
        timelines.event("web", None, &EventKind::Created);
        timelines.event("web", None, &EventKind::Destroyed);
        timelines.created("web", "i2");
        timelines.step(("web", None, Some("i1")), "unmount", begin(), "");
        timelines.step(("web", None, None), "rootfs", begin(), "");
        let exited = EventKind::Exited {
            code: 3,
            oom: false,
        };
        timelines.event("web", Some("p"), &exited);
        let life = loop {
            let life = timelines.read(&threads, "web").await;
            if let Some(life) = life.filter(|life| life.lines.len() == 3) {
                break life;
            }
            tokio::task::yield_now().await;
        };
        let steps: Vec<_> = life.lines.iter().map(|line| line.step.as_str()).collect();
        assert_eq!(steps, [CREATE, "rootfs", "process"]);
        assert_eq!(life.lines[2].detail, "code 3");
        assert!(!life.is_over());
        assert_eq!(timelines.read(&threads, "we").await, None);
    }

    #[test]
    fn a_line_that_is_not_understood_is_left_out() {
        let life = Timeline::read(b"{\"step\":\"x\"\nnonsense\n\n");
        assert_eq!(life, Timeline::default());
    }
}
