//! Taking up one container of an earlier server, with all its processes and peas.
//!
//! Called by `restore.rs`, for several containers at a time. A container is complete when it is
//! handed to the manager: no exit, no stream and no event that its supervisor kept falls between.
//! One that cannot be reached is taken up as lost: what is on file of its processes can still be
//! asked for, and the rest goes.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use garden_peas::Found;
use garden_peas::parts::PeaName;
use garden_wire::{ExitRecord, Kind, ProcessState};
use tokio::sync::{mpsc, watch};

use super::Manager;
use super::create::open_root;
use super::run::{exit_of, follow_exec, follow_pea};
use crate::container::exits::{self, Exits};
use crate::container::peas::{self, PeaProcess};
use crate::container::process::ProcessEntry;
use crate::container::{Container, INIT, launch, lost};
use crate::depot::{ContainerDir, ContainerRecord, ProcessRecord};
use crate::error::Error;
use crate::events::EventKind;
use crate::model::Handle;
use crate::runtime::shim::{Event, Shim};

/// A supervisor that answered.
pub(super) struct Reached {
    shim: Shim,
    states: Vec<ProcessState>,
    events: mpsc::UnboundedReceiver<Event>,
    root: OwnedFd,
}

impl Manager {
    /// Connects to the supervisor of a container.
    pub(super) async fn reach(&self, dir: &ContainerDir) -> Result<Reached, Error> {
        let (shim, states, events) = Shim::connect(dir.fd()).await?;
        let init = states
            .iter()
            .find(|state| state.id == INIT && state.exit.is_none())
            .ok_or_else(|| Error::host("the container is not running", "its init has ended"))?;
        let root = open_root(init.pid)?;
        Ok(Reached {
            shim,
            states,
            events,
            root,
        })
    }

    /// Takes up a container whose supervisor was reached.
    pub(super) async fn take_up(
        &self,
        handle: &Handle,
        dir: ContainerDir,
        record: ContainerRecord,
        records: Vec<ProcessRecord>,
        reached: Reached,
    ) -> Arc<Container> {
        let Reached {
            shim,
            states,
            events,
            root,
        } = reached;
        let exits = Exits::new();
        let _ = exits.expect(INIT);
        // Expected before the supervisor's next word is heard, so that no exit falls between.
        let expected: Vec<_> = records
            .iter()
            .map(|process| exits.expect(&process.instance))
            .collect();
        let services = Arc::clone(self.services());
        let container = Container::new(
            handle.clone(),
            dir,
            services,
            shim,
            exits,
            Some(root),
            record,
            events,
        );
        container.recall_events();
        container.logs.find(container.dir.fd());
        for (process, exit) in records.into_iter().zip(expected) {
            if process.instance != INIT {
                let state = states.iter().find(|state| state.id == process.instance);
                self.take_up_process(&container, process, state, exit).await;
            }
        }
        let running = |instance: &str| {
            let mut all = container.processes().into_iter();
            all.any(|entry| entry.instance == instance && !entry.ended())
        };
        container.logs.close_all_but(running);
        super::limits::settle(&container).await;
        crate::container::oom::watch(&container);
        tracing::info!(%handle, processes = states.len(), "container found");
        container.event(EventKind::Found, None);
        container
    }

    /// Takes up a container whose supervisor is dead. `news` when nobody knew it before.
    pub(super) async fn take_up_lost(
        &self,
        handle: &Handle,
        dir: ContainerDir,
        record: ContainerRecord,
        records: Vec<ProcessRecord>,
        news: bool,
    ) -> Arc<Container> {
        let services = Arc::clone(self.services());
        let (_, never) = mpsc::unbounded_channel();
        let container = Container::new(
            handle.clone(),
            dir,
            services,
            Shim::dead(),
            Exits::new(),
            None,
            record,
            never,
        );
        container.recall_events();
        for process in records.iter().filter(|process| process.instance != INIT) {
            let entry = entry_of(process);
            if !process.check {
                match container.dir.read_exit(&process.instance) {
                    Some(exit) => entry.announce(exit_of(&exit)).await,
                    None => entry.lose(),
                }
                let _ = container.reserve(&entry);
            }
            if process.pea || process.check {
                self.abandon_pea(handle, &container.record(), process);
            }
        }
        let cause = if news {
            lost::Cause::Supervisor
        } else {
            lost::Cause::Known
        };
        lost::lose(&container, cause).await;
        container
    }

    async fn take_up_process(
        &self,
        container: &Arc<Container>,
        process: ProcessRecord,
        state: Option<&ProcessState>,
        exit: watch::Receiver<Option<ExitRecord>>,
    ) {
        let queue = self.services().queue();
        if (process.pea || process.check) && queue.has(&process.instance) {
            return;
        }
        if process.check {
            // Nobody waits for what it would say: its check is made anew.
            self.abandon_pea(&container.handle, &container.record(), &process);
            if state.is_some_and(|state| state.exit.is_none()) {
                let shim = container.shim.clone();
                tokio::spawn(async move {
                    exits::wait(exit).await;
                    let _ = shim.forget(&process.instance).await;
                });
            }
            return;
        }
        let Some(state) = state else {
            if let Some(record) = container.dir.read_exit(&process.instance)
                && !process.pea
            {
                // It has ended, and its supervisor was told to forget it.
                let entry = entry_of(&process);
                entry.announce(exit_of(&record)).await;
                let _ = container.reserve(&entry);
                return;
            }
            // It was about to be started when the server died.
            container.exits.forget(&process.instance);
            if process.pea {
                self.abandon_pea(&container.handle, &container.record(), &process);
            } else {
                container.dir.remove_process(&process.instance);
            }
            return;
        };
        if let Some(record) = &state.exit {
            container.exits.ended(record.clone());
        }
        let entry = entry_of(&process);
        match launch::kept(&container.shim, &process.instance).await {
            Ok(streams) => {
                entry.started(state.pid, streams);
                // Its size is on file.
                let kept = container.logs.has(&entry.instance);
                if let Some(outputs) = kept.then(|| entry.listen(true)).flatten() {
                    super::run::keep_log(container, &entry, 0, outputs);
                }
            }
            Err(error) => {
                tracing::warn!(process = %process.id, error = error.report(), "its streams are lost");
            }
        }
        if let Err(error) = container.reserve(&entry) {
            tracing::warn!(process = %process.id, error = error.report(), "found twice");
        }
        if state.kind == Kind::Pea {
            self.adopt(container, &entry, &process, state.pid, exit);
        } else {
            follow_exec(container, &entry, exit);
        }
    }

    fn adopt(
        &self,
        container: &Arc<Container>,
        entry: &Arc<ProcessEntry>,
        process: &ProcessRecord,
        pid: u32,
        exit: watch::Receiver<Option<ExitRecord>>,
    ) {
        let record = container.record();
        let found = Found {
            name: PeaName {
                container: container.handle.to_string(),
                process: process.id.to_string(),
            },
            instance: process.instance.clone(),
            resources: peas::resources(
                container,
                &record.cgroup,
                &process.instance,
                process.own_limits,
            ),
            process: PeaProcess {
                pid,
                instance: process.instance.clone(),
                shim: container.shim.clone(),
                exit,
            },
        };
        match container.peas().adopt(found) {
            Ok(pea) => follow_pea(container, entry, pea, process.own_limits),
            Err(error) => tracing::warn!(process = %process.id, %error, "pea not taken up"),
        }
    }
}

fn entry_of(process: &ProcessRecord) -> Arc<ProcessEntry> {
    ProcessEntry::new(
        process.id.clone(),
        process.instance.clone(),
        process.pea,
        process.path.clone(),
    )
}
