//! Finding everything again after a restart.
//!
//! Containers whose record says `created` and whose supervisor answers are taken up with all
//! their processes and peas. Everything else (half made, half destroyed, without a supervisor,
//! root filesystems and cgroups that no record names) goes to the teardown queue. The server
//! serves meanwhile.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use garden_peas::Found;
use garden_peas::parts::PeaName;
use garden_peas::teardown::{Kind as JobKind, Resources, Target};
use garden_wire::{Kind, ProcessState};
use tokio::sync::watch;

use super::create::{INIT, open_root};
use super::run::{exit_of, follow_exec, follow_pea};
use super::{Manager, cleaner};
use crate::container::exits::{self, Exits};
use crate::container::peas::{self, PeaProcess};
use crate::container::process::ProcessEntry;
use crate::container::{Container, launch};
use crate::depot::{ContainerDir, ContainerRecord, Phase, ProcessRecord};
use crate::error::Error;
use crate::events::EventKind;
use crate::model::{ContainerSpec, Handle};
use crate::runtime::shim::Shim;
use crate::services::{Services, new_instance, now_ms};

impl Manager {
    pub(super) async fn restore(&self) -> Result<(), Error> {
        for name in self.services().depot.names()? {
            match name.parse::<Handle>() {
                Ok(handle) => self.restore_one(&handle).await?,
                Err(error) => {
                    tracing::warn!(name, %error, "not a container; left alone");
                }
            }
        }
        self.sweep().await
    }

    async fn restore_one(&self, handle: &Handle) -> Result<(), Error> {
        let dir = self.services().depot.container(handle)?;
        let Some(record) = dir.read() else {
            // Made, but not yet described: nothing else existed by then.
            let record = ContainerRecord::new(
                new_instance(),
                handle.to_string(),
                ContainerSpec::default(),
                now_ms(),
            );
            return self.abandon(handle, &record);
        };
        if record.phase != Phase::Created {
            return self.abandon(handle, &record);
        }
        match self.take_up(handle, dir, record.clone()).await {
            Ok(()) => Ok(()),
            Err(error) => {
                tracing::error!(%handle, error = error.report(), "container lost; cleaning up");
                self.abandon(handle, &record)
            }
        }
    }

    /// Hands what a container left to the teardown queue.
    fn abandon(&self, handle: &Handle, record: &ContainerRecord) -> Result<(), Error> {
        let services = self.services();
        for process in services.depot.container(handle)?.read_processes() {
            if process.pea || process.check {
                self.abandon_pea(handle, record, &process);
            }
        }
        services.depot.retire(handle, &record.instance)?;
        if !services.queue().has(&record.instance) {
            services
                .queue()
                .enqueue(cleaner::container_target(services, handle, record));
        }
        Ok(())
    }

    /// Hands what a pea, or a run of a health check, left to the teardown queue.
    fn abandon_pea(&self, handle: &Handle, record: &ContainerRecord, process: &ProcessRecord) {
        let services = self.services();
        if services.queue().has(&process.instance) {
            return;
        }
        let place = peas::place(&record.cgroup, &process.instance, process.own_limits);
        services.queue().enqueue(Target {
            kind: JobKind::Pea,
            container: handle.to_string(),
            process: Some(process.id.to_string()),
            instance: process.instance.clone(),
            resources: Resources {
                cgroups: vec![peas::group_path(&place)],
                rootfs: process.pea.then(|| process.instance.clone()),
                records: vec![services.depot.container_path(handle)],
                ..Resources::default()
            },
        });
    }

    async fn take_up(
        &self,
        handle: &Handle,
        dir: ContainerDir,
        record: ContainerRecord,
    ) -> Result<(), Error> {
        let (shim, states, events) = Shim::connect(dir.fd()).await?;
        let init = states
            .iter()
            .find(|state| state.id == INIT && state.exit.is_none())
            .ok_or_else(|| Error::host("the container is not running", "its init has ended"))?;
        let root = open_root(init.pid)?;
        self.services().claim_ids(&record);
        let exits = Exits::new();
        let _ = exits.expect(INIT);
        let records = dir.read_processes();
        // Expected before the supervisor's next word is heard, so that no exit falls between.
        let expected: Vec<_> = records
            .iter()
            .map(|process| exits.expect(&process.instance))
            .collect();
        let container = Container::new(
            handle.clone(),
            dir,
            Arc::clone(self.services()),
            shim,
            exits,
            root,
            record,
            events,
        );
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
        self.insert(Arc::clone(&container));
        container.event(EventKind::Found, None);
        self.open_checks(&container);
        Ok(())
    }

    async fn take_up_process(
        &self,
        container: &Arc<Container>,
        process: ProcessRecord,
        state: Option<&ProcessState>,
        exit: watch::Receiver<Option<garden_wire::ExitRecord>>,
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
                let entry = ProcessEntry::new(
                    process.id.clone(),
                    process.instance.clone(),
                    false,
                    process.path.clone(),
                );
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
        let entry = ProcessEntry::new(
            process.id.clone(),
            process.instance.clone(),
            process.pea,
            process.path.clone(),
        );
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
        exit: watch::Receiver<Option<garden_wire::ExitRecord>>,
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

    /// Takes away what no record names.
    async fn sweep(&self) -> Result<(), Error> {
        let services = Arc::clone(self.services());
        let mut known: HashSet<String> = HashSet::new();
        let mut groups: HashSet<String> =
            HashSet::from(["privileged".into(), "unprivileged".into()]);
        for container in self.all() {
            let record = container.record();
            known.insert(record.instance);
            groups.insert(record.cgroup);
            for process in container.processes() {
                known.insert(process.instance.clone());
                groups.insert(process.instance.clone());
            }
        }
        let sweep = self.services().images.run(move || {
            let queue = services.queue();
            let jobs = queue.snapshot().jobs;
            let busy: HashSet<&str> = jobs.iter().map(|job| job.container.as_str()).collect();
            let store = services.roots.store();
            // Those of `garden rootfs` are others'.
            let owned = |id: &str| known.contains(id) || queue.has(id) || store.is_for_host(id);
            for id in store.retain(owned)? {
                tracing::info!(rootfs = id, "root filesystem without an owner");
            }
            for name in services.depot.gone_names()? {
                if !queue.has(&name) {
                    // Retired, but its job was not on file yet. Its supervisor may still live.
                    queue.enqueue(orphan(&services, name));
                }
            }
            for group in services.cgroups.names() {
                let in_use = groups.contains(&group)
                    || queue.has(&group)
                    || busy.iter().any(|handle| belongs(&group, handle));
                if !in_use {
                    tracing::info!(group, "cgroup without an owner");
                    // What lives in it may take its time to die; serving does not wait for that.
                    queue.enqueue(orphan(&services, group));
                }
            }
            Ok::<_, Error>(())
        });
        sweep.await?
    }
}

/// What a name without a record may stand for: a retired directory, a cgroup, a root filesystem.
/// Whatever of these there is goes.
fn orphan(services: &Services, name: String) -> Target {
    Target {
        kind: JobKind::Container,
        container: name.clone(),
        process: None,
        resources: Resources {
            cgroups: vec![PathBuf::from(&name)],
            rootfs: Some(name.clone()),
            records: vec![services.depot.gone(&name)],
            ..Resources::default()
        },
        instance: name,
    }
}

/// Whether a cgroup is one that a container of this handle may have: see `Manager::cgroup_name`.
fn belongs(group: &str, handle: &str) -> bool {
    group
        .strip_prefix(handle)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}
