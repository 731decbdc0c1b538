//! Fakes that behave: stages, root filesystems, users and processes that take as long, fail as often
//! and hang as stubbornly as a test says, and a journal of what was done when.

#![allow(dead_code, reason = "each test program uses its part")]

use std::collections::HashMap;
use std::future::pending;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use garden_peas::parts::{Host, Launch, Launcher, Order, PeaName, Process, Rootfs, Users};
use garden_peas::teardown::{
    Backoff, Job, Kind, Options, Queue, Resources, Stage, StageError, Stages, Target,
};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};

/// What happened, in order, with the time since the journal was begun.
#[derive(Clone)]
pub(crate) struct Journal {
    begun: Instant,
    lines: Arc<Mutex<Vec<(Duration, String)>>>,
}

impl Journal {
    pub(crate) fn new() -> Self {
        Self {
            begun: Instant::now(),
            lines: Arc::default(),
        }
    }

    pub(crate) fn note(&self, line: impl Into<String>) {
        let line = (self.begun.elapsed(), line.into());
        self.lines.lock().expect("journal").push(line);
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        let lines = self.lines.lock().expect("journal");
        lines.iter().map(|(_, line)| line.clone()).collect()
    }

    pub(crate) fn times(&self, wanted: &str) -> Vec<Duration> {
        let lines = self.lines.lock().expect("journal");
        let hits = lines.iter().filter(|(_, line)| line == wanted);
        hits.map(|(time, _)| *time).collect()
    }

    pub(crate) fn count(&self, wanted: &str) -> usize {
        self.times(wanted).len()
    }

    pub(crate) fn place(&self, wanted: &str) -> Option<usize> {
        self.lines().iter().position(|line| line == wanted)
    }
}

/// How a step goes.
#[derive(Clone)]
pub(crate) enum Script {
    Takes(Duration),
    Fails(usize),
    Panics(usize),
    Never,
    Until(Arc<Notify>),
}

/// Stages that follow scripts, by instance and stage.
#[derive(Clone)]
pub(crate) struct FakeStages {
    pub(crate) journal: Journal,
    scripts: Arc<Mutex<HashMap<(String, Stage), Script>>>,
    running: Arc<watch::Sender<(usize, usize)>>,
}

impl FakeStages {
    pub(crate) fn new() -> Self {
        Self {
            journal: Journal::new(),
            scripts: Arc::default(),
            running: Arc::new(watch::Sender::new((0, 0))),
        }
    }

    pub(crate) fn script(&self, instance: &str, stage: Stage, script: Script) {
        let key = (instance.to_owned(), stage);
        self.scripts.lock().expect("scripts").insert(key, script);
    }

    /// How many stages ran at the same time at most.
    pub(crate) fn most_at_a_time(&self) -> usize {
        self.running.borrow().1
    }

    fn next(&self, instance: &str, stage: Stage) -> Script {
        let mut scripts = self.scripts.lock().expect("scripts");
        let key = (instance.to_owned(), stage);
        match scripts.get_mut(&key) {
            None | Some(Script::Fails(0) | Script::Panics(0)) => Script::Takes(Duration::ZERO),
            Some(Script::Fails(left)) => {
                *left -= 1;
                Script::Fails(*left)
            }
            Some(Script::Panics(left)) => {
                *left -= 1;
                Script::Panics(*left)
            }
            Some(script) => script.clone(),
        }
    }
}

impl Stages for FakeStages {
    async fn run(&self, job: &Job, stage: Stage) -> Result<(), StageError> {
        let instance = &job.target.instance;
        self.journal.note(format!("{stage} {instance}"));
        self.running.send_modify(|(now, most)| {
            *now += 1;
            *most = (*most).max(*now);
        });
        let result = match self.next(instance, stage) {
            // Even a sleep of nothing costs a tick of the timer.
            Script::Takes(time) if time.is_zero() => Ok(()),
            Script::Takes(time) => {
                sleep(time).await;
                Ok(())
            }
            Script::Fails(_) => {
                let busy = io::Error::from_raw_os_error(16);
                Err(StageError::new(format!("cannot {stage} {instance}"), busy))
            }
            Script::Panics(_) => panic!("scripted"),
            Script::Never => pending().await,
            Script::Until(notify) => {
                notify.notified().await;
                Ok(())
            }
        };
        self.running.send_modify(|(now, _)| *now -= 1);
        result
    }
}

/// Options whose waits are the same in every run.
pub(crate) fn options() -> Options {
    Options {
        workers: 2,
        backoff: Backoff {
            base: Duration::from_millis(100),
            cap: Duration::from_secs(60),
            draw: || 1.0,
        },
        deadline: Duration::from_secs(10),
        ..Options::default()
    }
}

pub(crate) fn open(directory: &Path, stages: &FakeStages) -> Queue {
    Queue::open(directory, stages.clone(), options()).expect("queue")
}

pub(crate) fn target(instance: &str) -> Target {
    Target {
        kind: Kind::Pea,
        container: "c".into(),
        process: Some("p".into()),
        instance: instance.into(),
        resources: Resources::default(),
    }
}

/// The job files of a directory.
pub(crate) fn files(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("list");
    let read = |entry: io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(entry.expect("entry").path()).expect("read")
    };
    entries.map(read).collect()
}

/// What the fake host complains about.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("scripted failure of {0}")]
pub(crate) struct HostError(pub(crate) &'static str);

type Ends = Arc<Mutex<HashMap<String, watch::Sender<Option<i32>>>>>;

/// A host of fakes.
pub(crate) struct FakeHost {
    pub(crate) journal: Journal,
    pub(crate) queue: Queue,
    /// Steps (`rootfs`, `users`, `launch`) that do not simply succeed.
    scripts: Mutex<HashMap<&'static str, Script>>,
    ends: Ends,
}

impl FakeHost {
    pub(crate) fn new(stages: &FakeStages, queue: Queue) -> Self {
        Self {
            journal: stages.journal.clone(),
            queue,
            scripts: Mutex::default(),
            ends: Ends::default(),
        }
    }

    pub(crate) fn script(&self, step: &'static str, script: Script) {
        self.scripts.lock().expect("scripts").insert(step, script);
    }

    /// Ends the process of an instance.
    pub(crate) fn end(&self, instance: &str, code: i32) {
        let ends = self.ends.lock().expect("ends");
        ends[instance].send_replace(Some(code));
    }

    /// A running process of an instance.
    pub(crate) fn process(&self, instance: &str) -> FakeProcess {
        let (sender, exit) = watch::channel(None);
        let mut ends = self.ends.lock().expect("ends");
        ends.insert(instance.to_owned(), sender);
        FakeProcess {
            instance: instance.to_owned(),
            journal: self.journal.clone(),
            ends: Arc::clone(&self.ends),
            exit,
        }
    }

    async fn step(&self, step: &'static str, instance: &str) -> Result<(), HostError> {
        self.journal.note(format!("{step} {instance}"));
        let script = self.scripts.lock().expect("scripts").get(step).cloned();
        match script {
            None => Ok(()),
            Some(Script::Takes(time)) => {
                sleep(time).await;
                Ok(())
            }
            Some(Script::Until(notify)) => {
                notify.notified().await;
                Ok(())
            }
            Some(Script::Never) => pending().await,
            Some(Script::Fails(_) | Script::Panics(_)) => Err(HostError(step)),
        }
    }
}

pub(crate) struct FakeProcess {
    instance: String,
    journal: Journal,
    ends: Ends,
    exit: watch::Receiver<Option<i32>>,
}

impl Process for FakeProcess {
    type Exit = i32;

    fn pid(&self) -> u32 {
        4711
    }

    async fn exit(&mut self) -> i32 {
        let ended = self.exit.wait_for(Option::is_some).await.expect("sender");
        ended.expect("some")
    }

    fn kill(&self) -> io::Result<()> {
        self.journal.note(format!("SIGKILL {}", self.instance));
        let ends = self.ends.lock().expect("ends");
        ends[&self.instance].send_if_modified(|end| {
            let alive = end.is_none();
            end.get_or_insert(137);
            alive
        });
        Ok(())
    }
}

/// The instance stands for the mounted root.
pub(crate) struct FakeRoot(String);

impl Rootfs for FakeHost {
    type Image = ();
    type Root = FakeRoot;
    type Error = HostError;

    async fn create(&self, id: &str, (): &()) -> Result<FakeRoot, HostError> {
        self.step("rootfs", id).await?;
        Ok(FakeRoot(id.to_owned()))
    }
}

impl Users for FakeHost {
    type Root = FakeRoot;
    type User = u32;
    type Error = HostError;

    async fn resolve(&self, root: &FakeRoot, _user: &str) -> Result<u32, HostError> {
        self.step("users", &root.0).await?;
        Ok(1000)
    }
}

impl Launcher for FakeHost {
    type Root = FakeRoot;
    type User = u32;
    type Spec = ();
    type Process = FakeProcess;
    type Error = HostError;

    async fn launch(&self, launch: Launch<FakeRoot, u32, ()>) -> Result<FakeProcess, HostError> {
        assert_eq!(
            (launch.root.0, launch.user),
            (launch.instance.clone(), 1000)
        );
        self.step("launch", &launch.instance).await?;
        Ok(self.process(&launch.instance))
    }
}

impl Host for FakeHost {
    type Rootfs = Self;
    type Users = Self;
    type Launcher = Self;
    type Teardown = Queue;

    fn rootfs(&self) -> &Self {
        self
    }

    fn users(&self) -> &Self {
        self
    }

    fn launcher(&self) -> &Self {
        self
    }

    fn teardown(&self) -> &Queue {
        &self.queue
    }
}

/// An order for a pea of that process id and instance.
pub(crate) fn order(process: &str, instance: &str) -> Order<(), ()> {
    Order {
        name: PeaName {
            container: "c".into(),
            process: process.into(),
        },
        instance: instance.into(),
        image: (),
        user: "alice".into(),
        spec: (),
        resources: Resources::default(),
    }
}
