//! Runs one pea, from its root filesystem to the announcement of its exit.
//!
//! One task owns a pea for all its life and carries out [`crate::life`]; callers hold a [`Pea`],
//! and none of them going away changes anything. Whoever calls has put the pea's record on file
//! before, so that a crash in the middle of a start is found and undone by the next server.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::life::{Action, Event, Life, TeardownMode};
use crate::parts::{
    ErrorOf, ExitOf, Host, Launch, Launcher, OrderOf, PeaName, Process, ProcessOf, Rootfs,
    Teardown, Users,
};
use crate::teardown::{Kind, Resources, Target};

/// Keeps the names of peas. Called by the task that owns a pea, on the path of its exit: it must
/// only change a table in memory.
pub trait Names<Exit>: Send + Sync {
    /// The pea runs; called before the caller of [`run_pea`] hears of it.
    fn started(&self, pea: &Pea<Exit>);

    /// The name is free. Called once per pea, right before its exit is announced or the error of its
    /// start is returned; a later pea may bear the same name but never the same instance.
    fn release(&self, name: &PeaName, instance: &str);
}

/// How peas are run.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// When the teardown is done, seen from those who wait for the exit.
    pub teardown: TeardownMode,
    /// How long the error of a failed start is held back for its undo to finish. The undo itself
    /// goes on until it succeeded.
    pub undo_patience: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            teardown: TeardownMode::Queued,
            undo_patience: Duration::from_secs(5),
        }
    }
}

/// Why a pea does not run. What was made of it is gone, or on its way.
#[derive(Debug, thiserror::Error)]
pub enum RunError<E: std::error::Error + 'static> {
    /// A pea of this name lives. (Clients compare this text.)
    #[error("process ID '{}' already in use", .0.process)]
    InUse(PeaName),
    /// Its container is being destroyed.
    #[error("pea {0} is not run because its container is being destroyed")]
    Destroyed(PeaName),
    /// Its root filesystem cannot be made.
    #[error("cannot make the root filesystem of pea {name}")]
    Rootfs {
        /// The pea.
        name: PeaName,
        /// Why.
        #[source]
        source: E,
    },
    /// Its user cannot be found.
    #[error("cannot look up the user of pea {name} in its image")]
    User {
        /// The pea.
        name: PeaName,
        /// Why.
        #[source]
        source: E,
    },
    /// Its process cannot be started.
    #[error("cannot start pea {name}")]
    Launch {
        /// The pea.
        name: PeaName,
        /// Why.
        #[source]
        source: E,
    },
    /// The task that owned it has died; the server's log says why.
    #[error("pea {0} was lost while it started; see the server's log")]
    Lost(PeaName),
}

impl<E: std::error::Error + 'static> RunError<E> {
    /// The host's own error, for callers that map kinds of errors.
    pub fn into_source(self) -> Option<E> {
        match self {
            Self::Rootfs { source, .. }
            | Self::User { source, .. }
            | Self::Launch { source, .. } => Some(source),
            Self::InUse(_) | Self::Destroyed(_) | Self::Lost(_) => None,
        }
    }
}

/// The task that owned the pea is gone without an exit: the server is going down.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the exit of pea {0} is not known; ask again after the restart")]
pub struct ExitUnknown(PeaName);

/// How long each step of a start took.
#[derive(Debug, Clone, Copy, Default)]
pub struct StartTimes {
    /// Making the root filesystem.
    pub rootfs: Duration,
    /// Looking up the user.
    pub user: Duration,
    /// Starting the process.
    pub launch: Duration,
}

/// A pea that was started. Clones are other handles on the same pea.
#[derive(Debug, Clone)]
pub struct Pea<Exit> {
    /// Its name.
    pub name: PeaName,
    /// Its instance.
    pub instance: String,
    /// Its pid on the host.
    pub pid: u32,
    /// How long each step of its start took.
    pub times: StartTimes,
    exit: watch::Receiver<Option<Exit>>,
    doom: CancellationToken,
}

impl<Exit: Clone> Pea<Exit> {
    /// Waits for its exit; returns at once, and always the same, after it.
    ///
    /// # Errors
    /// When the server goes down before the exit.
    pub async fn wait(&self) -> Result<Exit, ExitUnknown> {
        let mut exit = self.exit.clone();
        let known = exit.wait_for(Option::is_some).await;
        known
            .ok()
            .and_then(|exit| exit.clone())
            .ok_or_else(|| ExitUnknown(self.name.clone()))
    }

    /// Its exit, if it has ended.
    pub fn exited(&self) -> Option<Exit> {
        self.exit.borrow().clone()
    }

    /// Hands its teardown over and kills it. Does not wait; does nothing after its end.
    pub fn destroy(&self) {
        self.doom.cancel();
    }
}

/// Runs a pea: makes the root filesystem, finds the user in it, launches, and returns. Afterwards
/// the exit is told to all who [`Pea::wait`] as soon as its teardown is on file. A start that fails
/// is undone before the error is returned.
///
/// `doom` destroys the pea when it is cancelled, at any time. `names` holds its name, reserved by
/// the caller.
///
/// Must be called inside a tokio runtime. Dropping the future does not stop the start.
///
/// # Errors
/// Any step that failed; nothing of the pea is left, or the teardown queue is at it.
pub async fn run_pea<H: Host>(
    host: Arc<H>,
    order: OrderOf<H>,
    policy: Policy,
    doom: CancellationToken,
    names: Arc<dyn Names<ExitOf<H>>>,
) -> Result<Pea<ExitOf<H>>, RunError<ErrorOf<H>>> {
    let name = order.name.clone();
    let span = tracing::info_span!("pea", handle = name.container, pea = name.process);
    let (reply, answer) = oneshot::channel();
    let (exit, _) = watch::channel(None);
    let owner = Owner {
        name: order.name.clone(),
        instance: order.instance.clone(),
        target: Some(target_of(
            &order.name,
            &order.instance,
            order.resources.clone(),
        )),
        host,
        policy,
        doom,
        exit,
        reply: Some(reply),
        names,
    };
    tokio::spawn(owner.live(order).instrument(span));
    answer.await.unwrap_or(Err(RunError::Lost(name)))
}

/// A pea that outlived the server that started it.
#[derive(Debug)]
pub struct Found<Process> {
    /// Its name.
    pub name: PeaName,
    /// Its instance, as in its order.
    pub instance: String,
    /// What there is to take away, as in its order.
    pub resources: Resources,
    /// Its process; one that has ended meanwhile knows its exit at once.
    pub process: Process,
}

/// Takes up a pea where an earlier server left it, running or ended: from here on its life is that
/// of any other. See [`run_pea`] for the arguments.
///
/// Must be called inside a tokio runtime, once per pea, and not for one whose instance is in the
/// teardown queue already.
pub fn adopt_pea<H: Host>(
    host: Arc<H>,
    found: Found<ProcessOf<H>>,
    policy: Policy,
    doom: CancellationToken,
    names: Arc<dyn Names<ExitOf<H>>>,
) -> Pea<ExitOf<H>> {
    let name = found.name;
    let span = tracing::info_span!("pea", handle = name.container, pea = name.process);
    let owner = Owner {
        target: Some(target_of(&name, &found.instance, found.resources)),
        name,
        instance: found.instance,
        host,
        policy,
        doom,
        exit: watch::channel(None).0,
        reply: None,
        names,
    };
    let pea = owner.pea(found.process.pid(), StartTimes::default());
    owner.names.started(&pea);
    let mut life = Life::new(policy.teardown);
    life.on(Event::Started);
    tokio::spawn(owner.follow(life, found.process).instrument(span));
    pea
}

fn target_of(name: &PeaName, instance: &str, mut resources: Resources) -> Target {
    resources.rootfs = Some(instance.to_owned());
    Target {
        kind: Kind::Pea,
        container: name.container.clone(),
        process: Some(name.process.clone()),
        instance: instance.to_owned(),
        resources,
    }
}

type Answer<H> = Result<Pea<ExitOf<H>>, RunError<ErrorOf<H>>>;

/// The one task that owns a pea.
struct Owner<H: Host> {
    name: PeaName,
    instance: String,
    target: Option<Target>,
    host: Arc<H>,
    policy: Policy,
    doom: CancellationToken,
    exit: watch::Sender<Option<ExitOf<H>>>,
    reply: Option<oneshot::Sender<Answer<H>>>,
    names: Arc<dyn Names<ExitOf<H>>>,
}

/// What an event brings along for its actions.
struct Facts<'a, H: Host> {
    process: Option<&'a ProcessOf<H>>,
    answer: Option<Answer<H>>,
    exit: Option<ExitOf<H>>,
}

impl<H: Host> Facts<'_, H> {
    const NONE: Self = Self {
        process: None,
        answer: None,
        exit: None,
    };
}

impl<H: Host> Owner<H> {
    async fn live(mut self, order: OrderOf<H>) {
        let mut life = Life::new(self.policy.teardown);
        match self.start(order).await {
            Ok((process, times)) => {
                if self.doom.is_cancelled() {
                    life.on(Event::Destroy);
                }
                let facts = Facts {
                    answer: Some(Ok(self.pea(process.pid(), times))),
                    process: Some(&process),
                    exit: None,
                };
                self.act(life.on(Event::Started), facts).await;
                self.follow(life, process).await;
            }
            Err(error) => {
                let facts = Facts {
                    answer: Some(Err(error)),
                    ..Facts::NONE
                };
                self.act(life.on(Event::StartFailed), facts).await;
            }
        }
    }

    /// From the start to the announcement of the exit.
    async fn follow(mut self, mut life: Life, mut process: ProcessOf<H>) {
        while !life.is_over() {
            tokio::select! {
                // An exit that is there is told before anything else is looked at.
                biased;
                exit = process.exit() => {
                    let facts = Facts { exit: Some(exit), ..Facts::NONE };
                    self.act(life.on(Event::Exited), facts).await;
                }
                () = self.doom.cancelled(), if life.heeds_destroy() => {
                    let facts = Facts { process: Some(&process), ..Facts::NONE };
                    self.act(life.on(Event::Destroy), facts).await;
                }
            }
        }
    }

    /// The steps of a start. Undoing them is not done here.
    async fn start(
        &self,
        order: OrderOf<H>,
    ) -> Result<(ProcessOf<H>, StartTimes), RunError<ErrorOf<H>>> {
        let name = || self.name.clone();
        let begun = Instant::now();
        self.unless_doomed()?;
        let root = self.host.rootfs().create(&order.instance, &order.image);
        let root = root.await.map_err(|source| RunError::Rootfs {
            name: name(),
            source,
        })?;
        let made = Instant::now();
        self.unless_doomed()?;
        let user = self.host.users().resolve(&root, &order.user);
        let user = user.await.map_err(|source| RunError::User {
            name: name(),
            source,
        })?;
        let found = Instant::now();
        self.unless_doomed()?;
        let launch = self.host.launcher().launch(Launch {
            name: order.name,
            instance: order.instance,
            root,
            user,
            spec: order.spec,
        });
        let process = launch.await.map_err(|source| RunError::Launch {
            name: name(),
            source,
        })?;
        let times = StartTimes {
            rootfs: made - begun,
            user: found - made,
            launch: found.elapsed(),
        };
        tracing::info!(
            pid = process.pid(),
            rootfs_us = times.rootfs.as_micros(),
            user_us = times.user.as_micros(),
            launch_us = times.launch.as_micros(),
            "pea started"
        );
        Ok((process, times))
    }

    fn unless_doomed(&self) -> Result<(), RunError<ErrorOf<H>>> {
        if self.doom.is_cancelled() {
            return Err(RunError::Destroyed(self.name.clone()));
        }
        Ok(())
    }

    async fn act(&mut self, actions: &[Action], mut facts: Facts<'_, H>) {
        for action in actions {
            match action {
                Action::Reply | Action::ReplyError => self.answer(facts.answer.take()),
                Action::Enqueue => self.enqueue(),
                Action::TearDownInline => self.tear_down().await,
                Action::Undo => self.undo().await,
                Action::Kill => self.kill(facts.process),
                Action::Release => self.names.release(&self.name, &self.instance),
                Action::Announce => {
                    self.exit.send_replace(facts.exit.take());
                }
            }
        }
    }

    fn answer(&mut self, answer: Option<Answer<H>>) {
        if let Some(Ok(pea)) = &answer {
            self.names.started(pea);
        }
        if let (Some(reply), Some(answer)) = (self.reply.take(), answer) {
            // The caller may have gone; the pea lives on without it.
            let _ = reply.send(answer);
        }
    }

    fn enqueue(&mut self) {
        if let Some(target) = self.target.take() {
            self.host.teardown().enqueue(target);
        }
    }

    async fn tear_down(&mut self) {
        if let Some(target) = self.target.take() {
            self.host
                .teardown()
                .enqueue_direct(target)
                .attempted()
                .await;
        }
    }

    async fn undo(&mut self) {
        let patience = self.policy.undo_patience;
        match timeout(patience, self.tear_down()).await {
            Ok(()) => tracing::debug!("failed start is undone"),
            Err(_) => tracing::warn!(
                ?patience,
                "undo of a failed start goes on in the background"
            ),
        }
    }

    fn kill(&self, process: Option<&ProcessOf<H>>) {
        if let Some(Err(error)) = process.map(Process::kill) {
            tracing::warn!(%error, "cannot kill a pea at once; its teardown will");
        }
    }

    fn pea(&self, pid: u32, times: StartTimes) -> Pea<ExitOf<H>> {
        Pea {
            name: self.name.clone(),
            instance: self.instance.clone(),
            pid,
            times,
            exit: self.exit.subscribe(),
            doom: self.doom.clone(),
        }
    }
}
