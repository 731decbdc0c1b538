//! Finding everything again after a restart, while serving.
//!
//! ```text
//! survey (before the queue and the socket) ─▶ settle each record ─▶ serve
//!                                                   │ in the background, a few at a time
//!                                                   ├── take up what was usable
//!                                                   └── when all are: sweep what nobody has
//! ```
//!
//! - The survey only reads, and only small files on a tmpfs: which containers there are, and what of
//!   ours is on the host at all ([`Leftovers`]). Handles, ids and cgroup names are taken from then on.
//! - What was half made or half destroyed goes to the teardown queue at once: its handle is free.
//! - What was usable is listed at once, and taken up (`take_up.rs`) in the background. A call for
//!   one that is not yet waits for this one, at most [`PATIENCE`].
//! - One whose supervisor does not answer is lost: it stays listed, in that state, until somebody
//!   destroys it (`container/lost.rs`).
//! - What no record names is swept last (`sweep.rs`, whose head argues why a create that runs
//!   meanwhile has nothing to fear).
//!
//! Nothing here may take longer before serving because there is more to clean up.

use std::sync::Arc;
use std::time::Duration;

use garden_peas::teardown::{Kind as JobKind, Resources, Target};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::sweep::{Known, Leftovers};
use super::table::{Promise, Seat};
use super::{Manager, cleaner};
use crate::container::{Container, peas};
use crate::depot::{ContainerDir, ContainerRecord, Phase, ProcessRecord};
use crate::error::Error;
use crate::model::{ContainerSpec, Handle};
use crate::services::{Services, new_instance, now_ms};

/// How many containers are taken up at a time.
const AT_A_TIME: usize = 16;
/// How long a call waits for a container that is not taken up yet. A supervisor that does not answer
/// is given up before.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// What an earlier server left, as far as it can be read without asking anybody.
pub(super) struct Survey {
    found: Vec<Found>,
    leftovers: Leftovers,
}

struct Found {
    handle: Handle,
    dir: ContainerDir,
    /// `None` when the directory was made, but not described yet: nothing else existed by then.
    record: Option<ContainerRecord>,
}

impl Survey {
    /// Looks. Blocks on small files.
    pub(super) fn read(services: &Services) -> Result<Self, Error> {
        // Before the records: what there is now and no record read from here on names is nobody's.
        let leftovers = Leftovers::list(services)?;
        let mut found = Vec::new();
        for name in services.depot.names()? {
            let opened = name
                .parse::<Handle>()
                .map_err(|error| error.to_string())
                .and_then(|handle| {
                    let dir = services.depot.container(&handle);
                    dir.map(|dir| (handle, dir))
                        .map_err(|error| crate::error::report(&error))
                });
            match opened {
                Ok((handle, dir)) => {
                    let record = dir.read();
                    if let Some(record) = &record {
                        services.claim_ids(record);
                        // Two records that name one group would be a fault of an earlier server;
                        // the first has it, and the other's teardown keeps away from it.
                        let _ = services.group_names.claim(&record.cgroup, &record.instance);
                    }
                    found.push(Found {
                        handle,
                        dir,
                        record,
                    });
                }
                Err(error) => tracing::warn!(name, error, "not a container; left alone"),
            }
        }
        Ok(Self { found, leftovers })
    }
}

impl Manager {
    /// Settles what was found: afterwards every handle is known or free, and the rest goes on in the
    /// background.
    pub(super) fn restore(&self, survey: Survey) {
        let known = Arc::new(Known::default());
        let mut usable = Vec::new();
        for Found {
            handle,
            dir,
            record,
        } in survey.found
        {
            let record = record.unwrap_or_else(|| undescribed(&handle));
            known.add_container(&record);
            if matches!(record.phase, Phase::Created | Phase::Lost) {
                let promise = self.0.table.expect(handle.clone(), record.clone());
                usable.push((handle, dir, record, promise));
            } else {
                self.abandon(&handle, &dir, &record);
            }
        }
        let manager = self.clone();
        let leftovers = survey.leftovers;
        tokio::spawn(async move {
            manager.take_up_all(usable, &known).await;
            manager.sweep(leftovers, known).await;
            manager.0.restored.send_replace(true);
        });
    }

    async fn take_up_all(
        &self,
        usable: Vec<(Handle, ContainerDir, ContainerRecord, Promise)>,
        known: &Arc<Known>,
    ) {
        let places = Arc::new(Semaphore::new(AT_A_TIME));
        let mut tasks = JoinSet::new();
        for (handle, dir, record, promise) in usable {
            let (manager, known) = (self.clone(), Arc::clone(known));
            let places = Arc::clone(&places);
            tasks.spawn(async move {
                // It is never closed.
                let _place = places.acquire_owned().await;
                let container = manager.take_up_or_lose(&handle, dir, record, &known).await;
                manager.insert(Arc::clone(&container));
                drop(promise);
                if !container.is_lost() {
                    manager.open_checks(&container);
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            if let Err(error) = done {
                tracing::error!(%error, "taking up a container failed; the next start tries again");
            }
        }
    }

    async fn take_up_or_lose(
        &self,
        handle: &Handle,
        dir: ContainerDir,
        record: ContainerRecord,
        known: &Known,
    ) -> Arc<Container> {
        let processes = dir.read_processes();
        known.add_processes(&processes);
        if record.phase == Phase::Lost {
            let lost = self.take_up_lost(handle, dir, record, processes, false);
            return lost.await;
        }
        match self.reach(&dir).await {
            Ok(reached) => self.take_up(handle, dir, record, processes, reached).await,
            Err(error) => {
                tracing::error!(%handle, error = error.report(), "cannot take up the container");
                self.take_up_lost(handle, dir, record, processes, true)
                    .await
            }
        }
    }

    /// A container that can be used or asked about; one that is not taken up yet is waited for.
    ///
    /// # Errors
    /// [`Error::ContainerNotFound`]; that it is not taken up in time.
    pub(crate) async fn find(&self, handle: &Handle) -> Result<Arc<Container>, Error> {
        let not_found = || Error::ContainerNotFound(handle.clone());
        let awaited = match self.0.table.look(handle).ok_or_else(not_found)? {
            Seat::Ready(container) => return Ok(container),
            Seat::Awaited(awaited) => awaited,
        };
        let _ = tokio::time::timeout(PATIENCE, awaited.settled()).await;
        match self.0.table.look(handle).ok_or_else(not_found)? {
            Seat::Ready(container) => Ok(container),
            Seat::Awaited(_) => Err(Error::host(
                format!("cannot use the container {handle}"),
                "the server has just been started and has not taken it up yet: try again",
            )),
        }
    }

    /// The same, for what needs its processes.
    ///
    /// # Errors
    /// As [`Manager::find`]; [`Error::ContainerLost`].
    pub(crate) async fn find_alive(&self, handle: &Handle) -> Result<Arc<Container>, Error> {
        let container = self.find(handle).await?;
        container.expect_alive()?;
        Ok(container)
    }

    /// What the record of a container says, also of one that is not taken up yet.
    ///
    /// # Errors
    /// [`Error::ContainerNotFound`].
    pub(super) fn record_of(&self, handle: &Handle) -> Result<ContainerRecord, Error> {
        let seat = self.0.table.look(handle);
        seat.map(|seat| seat.record())
            .ok_or_else(|| Error::ContainerNotFound(handle.clone()))
    }

    /// Waits until everything that an earlier server left is taken up or on its way to be removed.
    pub async fn restored(&self) {
        // The sender is part of the manager: it cannot be gone.
        let _ = self.0.restored.subscribe().wait_for(|done| *done).await;
    }

    /// Hands what a container left to the teardown queue, and frees its handle.
    fn abandon(&self, handle: &Handle, dir: &ContainerDir, record: &ContainerRecord) {
        let services = self.services();
        for process in dir.read_processes() {
            if process.pea || process.check {
                self.abandon_pea(handle, record, &process);
            }
        }
        if let Err(error) = services.depot.retire(handle, &record.instance) {
            let error = crate::error::report(&error);
            tracing::error!(%handle, error, "cannot free the handle of a container; the next start tries again");
        }
        if !services.queue().has(&record.instance) {
            services
                .queue()
                .enqueue(cleaner::container_target(services, handle, record));
        }
        services.free_ids(record);
    }

    /// Hands what a pea, or a run of a health check, left to the teardown queue.
    pub(super) fn abandon_pea(
        &self,
        handle: &Handle,
        record: &ContainerRecord,
        process: &ProcessRecord,
    ) {
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
}

/// Stands for the record of a container that was never described.
fn undescribed(handle: &Handle) -> ContainerRecord {
    let spec = ContainerSpec::default();
    ContainerRecord::new(new_instance(), handle.to_string(), spec, now_ms())
}
