//! One container in memory: its supervisor, its processes, its peas.
//!
//! - [`exits`]: exits by instance, as the supervisor reports them.
//! - [`launch`]: starting a container's init, a process, a pea's process.
//! - [`lost`]: the death of its supervisor.
//! - [`names`]: its `/etc/hosts` and `/etc/resolv.conf`.
//! - [`oom`]: learning that it ran out of memory.
//! - [`peas`]: what a pea needs from its container, for the life-cycle in `garden-peas`.
//! - [`process`]: a process as its users see it.
//!
//! The manager makes containers, finds them again after a restart, and destroys them; everything
//! that happens *in* one is here. Nothing here removes anything: that is the teardown's.

pub(crate) mod exits;
pub(crate) mod groups;
pub(crate) mod launch;
pub(crate) mod lost;
pub(crate) mod names;
pub(crate) mod oom;
pub(crate) mod peas;
pub(crate) mod process;

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use garden_peas::{PeaSet, Policy};
use tokio::sync::mpsc;

use crate::checks::Checks;
use crate::depot::{ContainerDir, ContainerRecord, DepotError};
use crate::error::Error;
use crate::events::{EventKind, Log};
use crate::logs::Logs;
use crate::model::{Handle, ProcessId};
use crate::runtime::shim::{Event, Shim};
use crate::services::{Services, lock};
use exits::Exits;
use peas::PodHost;
use process::ProcessEntry;

/// Ended processes and peas that can still be attached to, per container: a health check a second
/// must not fill the memory.
const ENDED_KEPT: usize = 100;

/// The supervisor's name for the init.
pub(crate) const INIT: &str = "init";

/// A container.
pub(crate) struct Container {
    pub(crate) handle: Handle,
    pub(crate) dir: ContainerDir,
    pub(crate) services: Arc<Services>,
    pub(crate) shim: Shim,
    pub(crate) exits: Exits,
    /// Its root directory; a lost one has none.
    root: Option<OwnedFd>,
    record: Mutex<ContainerRecord>,
    processes: Mutex<HashMap<ProcessId, Arc<ProcessEntry>>>,
    peas: OnceLock<PeaSet<PodHost>>,
    destroying: AtomicBool,
    lost: AtomicBool,
    /// Its health checks.
    pub(crate) checks: Checks,
    /// What happened to it last.
    pub(crate) log: Log,
    /// What its processes wrote, where that is kept.
    pub(crate) logs: Logs,
    told: oom::Told,
    throttled: AtomicBool,
    /// Taken by whoever changes its limits.
    pub(crate) limits_turn: tokio::sync::Semaphore,
    /// Taken by whoever changes its network.
    pub(crate) network_turn: tokio::sync::Semaphore,
}

impl Container {
    /// A container whose init runs. `events` is what its supervisor will say.
    #[expect(clippy::too_many_arguments, reason = "its parts, each made by another")]
    pub(crate) fn new(
        handle: Handle,
        dir: ContainerDir,
        services: Arc<Services>,
        shim: Shim,
        exits: Exits,
        root: Option<OwnedFd>,
        record: ContainerRecord,
        events: mpsc::UnboundedReceiver<Event>,
    ) -> Arc<Self> {
        let told = oom::Told::new(record.oom_kills);
        let container = Arc::new(Self {
            handle,
            dir,
            services,
            shim,
            exits,
            root,
            record: Mutex::new(record),
            processes: Mutex::default(),
            peas: OnceLock::new(),
            destroying: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            checks: Checks::default(),
            log: Log::default(),
            logs: Logs::default(),
            told,
            throttled: AtomicBool::new(false),
            limits_turn: tokio::sync::Semaphore::new(1),
            network_turn: tokio::sync::Semaphore::new(1),
        });
        tokio::spawn(follow(
            Arc::downgrade(&container),
            container.exits.clone(),
            events,
        ));
        container
    }

    /// Its root directory, for looking up users in it.
    ///
    /// # Errors
    /// [`Error::ContainerLost`].
    pub(crate) fn root(&self) -> Result<BorrowedFd<'_>, Error> {
        let lost = || Error::ContainerLost(self.handle.clone());
        self.root.as_ref().map(AsFd::as_fd).ok_or_else(lost)
    }

    /// A copy of its record.
    pub(crate) fn record(&self) -> ContainerRecord {
        lock(&self.record).clone()
    }

    /// Changes its record, in memory and on file.
    pub(crate) fn change<T>(
        &self,
        change: impl FnOnce(&mut ContainerRecord) -> T,
    ) -> Result<T, DepotError> {
        // The lock is held over the write, which is one small file on a tmpfs: two changes must
        // not reach the file in the other order.
        let mut record = lock(&self.record);
        let value = change(&mut record);
        self.dir.write(&record)?;
        Ok(value)
    }

    /// Tells everybody who listens that something happened to it, or to a process in it.
    pub(crate) fn event(&self, kind: EventKind, process: Option<&ProcessId>) {
        self.event_of(kind, process.map(ProcessId::as_str));
    }

    /// The same, of a process that may be known by its name only.
    pub(crate) fn event_of(&self, kind: EventKind, process: Option<&str>) {
        let timelines = &self.services.timelines;
        timelines.event(self.handle.as_str(), process, &kind);
        let events = &self.services.events;
        events.publish(self.handle.as_str(), process, kind, Some(&self.log));
        self.log.keep(&self.dir);
    }

    /// Remembers what an earlier server told of it.
    pub(crate) fn recall_events(&self) {
        self.services.events.recall(self.log.recall(&self.dir));
    }

    /// Its peas.
    pub(crate) fn peas(self: &Arc<Self>) -> &PeaSet<PodHost> {
        self.peas.get_or_init(|| {
            let policy = Policy {
                teardown: self.services.options.teardown,
                ..Policy::default()
            };
            PeaSet::new(Arc::new(PodHost::new(self)), policy)
        })
    }

    /// Whether its CPU share is lowered.
    pub(crate) fn is_throttled(&self) -> bool {
        self.throttled.load(Ordering::Relaxed)
    }

    /// Notes whether its CPU share is lowered.
    pub(crate) fn set_throttled(&self, throttled: bool) {
        self.throttled.store(throttled, Ordering::Relaxed);
    }

    /// Takes it out of service. `false` when somebody has done so already.
    pub(crate) fn begin_destroy(&self) -> bool {
        !self.destroying.swap(true, Ordering::SeqCst)
    }

    /// Puts it back: its destruction failed and may be tried again.
    pub(crate) fn destroy_failed(&self) {
        self.destroying.store(false, Ordering::SeqCst);
    }

    /// Whether it is being destroyed.
    pub(crate) fn is_destroying(&self) -> bool {
        self.destroying.load(Ordering::SeqCst)
    }

    /// Takes a process id, unless a process that lives has it.
    pub(crate) fn reserve(&self, entry: &Arc<ProcessEntry>) -> Result<(), Error> {
        let mut processes = lock(&self.processes);
        if processes.get(&entry.id).is_some_and(|other| !other.ended()) {
            return Err(Error::ProcessIdInUse(entry.id.clone()));
        }
        processes.insert(entry.id.clone(), Arc::clone(entry));
        let forgotten = oldest_ended(&processes);
        for id in &forgotten {
            // A pea's records are its teardown's to remove.
            if let Some(old) = processes.remove(id).filter(|old| !old.pea) {
                self.dir.remove_process(&old.instance);
            }
        }
        Ok(())
    }

    /// Gives a process id back: what had it did not start.
    pub(crate) fn unreserve(&self, entry: &Arc<ProcessEntry>) {
        let mut processes = lock(&self.processes);
        if processes
            .get(&entry.id)
            .is_some_and(|other| Arc::ptr_eq(other, entry))
        {
            processes.remove(&entry.id);
        }
    }

    /// Forgets a process that has ended and whose end somebody was told of, where the operator
    /// wants that. Its records on file are its follower's to remove.
    pub(crate) fn forget_waited(&self, entry: &Arc<ProcessEntry>) -> bool {
        entry.waited() && self.forget_told(entry)
    }

    /// The same of one whose end somebody is just being told of: who knows of it finds it no more.
    pub(crate) fn forget_told(&self, entry: &Arc<ProcessEntry>) -> bool {
        let forget = self.services.options.policy.forget_waited;
        if forget {
            self.unreserve(entry);
        }
        forget
    }

    /// A process or a pea, also one that has ended.
    pub(crate) fn process(&self, id: &ProcessId) -> Option<Arc<ProcessEntry>> {
        lock(&self.processes).get(id).cloned()
    }

    /// All processes and peas, also ended ones.
    pub(crate) fn processes(&self) -> Vec<Arc<ProcessEntry>> {
        lock(&self.processes).values().cloned().collect()
    }
}

/// The ended processes that are to be forgotten, so that not more than [`ENDED_KEPT`] stay.
fn oldest_ended(processes: &HashMap<ProcessId, Arc<ProcessEntry>>) -> Vec<ProcessId> {
    let mut ended: Vec<_> = processes
        .values()
        .filter_map(|entry| entry.ended_at().map(|at| (at, entry.id.clone())))
        .collect();
    if ended.len() <= ENDED_KEPT {
        return Vec::new();
    }
    ended.sort_unstable_by_key(|(at, _)| *at);
    ended.truncate(ended.len() - ENDED_KEPT);
    ended.into_iter().map(|(_, id)| id).collect()
}

/// Hands a supervisor's events on, until it is gone.
async fn follow(
    container: Weak<Container>,
    exits: Exits,
    mut events: mpsc::UnboundedReceiver<Event>,
) {
    while let Some(event) = events.recv().await {
        match event {
            Event::Exited(record) => {
                let init = record.id == INIT;
                exits.ended(record);
                if let (true, Some(container)) = (init, container.upgrade())
                    && !container.is_destroying()
                {
                    lost::lose(&container, lost::Cause::Init).await;
                }
            }
            Event::Gone => {
                let container = container.upgrade();
                if let Some(container) = &container {
                    lost::lose(container, lost::Cause::Supervisor).await;
                }
                exits.lost(|instance| container.as_ref()?.dir.read_exit(instance));
                return;
            }
        }
    }
}
