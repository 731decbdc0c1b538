//! The stages of teardown, done: the other half of the queue in `garden-peas`.
//!
//! Each stage is idempotent: what is gone is done. What can hang in the kernel runs on a thread
//! of its own, which the stage waits for and the queue may stop waiting for.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use garden_peas::TeardownMode;
use garden_peas::teardown::{
    Job, Kind, Resources, Stage, StageError, Stages, Target, on_own_thread,
};

use crate::cgroup::Place;
use crate::checks;
use crate::container::Container;
use crate::depot::ContainerRecord;
use crate::events::EventKind;
use crate::model::Handle;
use crate::services::{Services, lock, process_state};
use crate::timeline;

/// How long one attempt waits for killed processes to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// Does the stages.
pub(super) struct Cleaner(Weak<Services>);

impl Cleaner {
    /// Holds its services weakly: they hold the queue, which holds this.
    pub(super) fn new(services: &Arc<Services>) -> Self {
        Self(Arc::downgrade(services))
    }
}

/// What there is to take away of a container whose directory was retired.
pub(super) fn container_target(
    services: &Services,
    handle: &Handle,
    record: &ContainerRecord,
) -> Target {
    Target {
        kind: Kind::Container,
        container: handle.to_string(),
        process: None,
        instance: record.instance.clone(),
        resources: Resources {
            cgroups: vec![PathBuf::from(&record.cgroup)],
            rootfs: Some(record.instance.clone()),
            records: vec![services.depot.gone(&record.instance)],
            ..Resources::default()
        },
    }
}

/// Marks the teardown of a pod whose container stays.
const POD: &str = "-pod";

/// What there is to take away of a container that is lost: all but its directory, which stays until
/// somebody destroys it. A job of its own, so that the destroy's is none of its business: both do
/// what is left to do.
pub(crate) fn pod_target(services: &Services, handle: &Handle, record: &ContainerRecord) -> Target {
    let mut target = container_target(services, handle, record);
    target.instance.push_str(POD);
    target.resources.records = vec![services.depot.container_path(handle)];
    target
}

/// The instance whose things a job takes away.
fn owner(target: &Target) -> &str {
    let instance = target.instance.as_str();
    instance.strip_suffix(POD).unwrap_or(instance)
}

/// The groups of a job, without those whose name is another container's by now.
fn groups(services: &Services, target: &Target) -> Vec<PathBuf> {
    let mut groups = target.resources.cgroups.clone();
    if target.kind == Kind::Container {
        groups.retain(|group| {
            let name = group.to_str().unwrap_or_default();
            !services.group_names.is_of_another(name, owner(target))
        });
    }
    groups
}

impl Cleaner {
    fn tell(&self, job: &Job, kind: EventKind) {
        let (container, process) = (&job.target.container, job.target.process.as_deref());
        // Runs of health checks come and go by the thousand.
        let routine = kind == EventKind::TeardownDone && process.is_some_and(checks::is_run);
        let Some(services) = self.0.upgrade().filter(|_| !routine) else {
            return;
        };
        match find(&services, container) {
            Some(of) => of.event_of(kind, process),
            None => services.events.publish(container, process, kind, None),
        }
    }
}

impl Stages for Cleaner {
    async fn run(&self, job: &Job, stage: Stage) -> Result<(), StageError> {
        let services = self
            .0
            .upgrade()
            .ok_or_else(|| StageError::message("the server is going down"))?;
        let target = &job.target;
        let (begun, timelines) = (timeline::begin(), services.timelines.clone());
        let outcome = match stage {
            Stage::Kill => kill(services, target).await,
            Stage::Network => disconnect(services, target).await,
            Stage::Free => Ok(()),
            Stage::Unmount => unmount(&services, target).await,
            Stage::Trash => trash(services, target).await,
            Stage::Cgroup => remove_cgroups(services, target).await,
            Stage::Records => remove_records(services, target).await,
        };
        let detail = if outcome.is_ok() { "" } else { "failed" };
        // A pea's instance is not its container's.
        let of = target.process.is_none().then_some(target.instance.as_str());
        let of = (target.container.as_str(), target.process.as_deref(), of);
        if !target.process.as_deref().is_some_and(checks::is_run) {
            timelines.step(of, &format!("teardown: {stage}"), begun, detail);
        }
        outcome
    }

    fn done(&self, job: &Job) {
        let container = job.target.kind == Kind::Container && !job.target.instance.ends_with(POD);
        if let (true, Some(services)) = (container, self.0.upgrade()) {
            services.group_names.release(&job.target.instance);
        }
        self.tell(job, EventKind::TeardownDone);
    }

    fn stuck(&self, job: &Job) {
        let stage = job.stage.to_string();
        self.tell(job, EventKind::TeardownStuck { stage });
    }
}

/// Kills what is left in the cgroups and waits until it is gone.
async fn kill(services: Arc<Services>, target: &Target) -> Result<(), StageError> {
    let groups = groups(&services, target);
    let kind = target.kind;
    let records = target.resources.records.clone();
    let owned = Arc::clone(&services);
    on_own_thread("garden-kill", move || {
        groups
            .iter()
            .try_for_each(|group| kill_group(&owned, group))
    })
    .await
    .map_err(|error| StageError::new("cannot start a thread", error))??;
    if kind == Kind::Container {
        for directory in records {
            end_shim(&directory).await?;
        }
    }
    Ok(())
}

fn kill_group(services: &Services, group: &Path) -> Result<(), StageError> {
    let Some(place) = place_of(group) else {
        return Ok(());
    };
    services
        .cgroups
        .kill(&place)
        .map_err(|error| StageError::new(format!("cannot kill in {}", group.display()), error))?;
    let deadline = std::time::Instant::now() + KILL_PATIENCE;
    loop {
        let left = services.cgroups.processes(&place);
        left.iter().for_each(|pid| services.cgroups.thaw(*pid));
        let Some(first) = left.first() else {
            return Ok(());
        };
        if std::time::Instant::now() >= deadline {
            return Err(StageError::message(format!(
                "{} of {} processes do not end; pid {first} is in state {}",
                group.display(),
                left.len(),
                process_state(*first)
            )));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A group as its job names it: one or two names below the parent of all groups.
fn place_of(group: &Path) -> Option<Place<'_>> {
    let names: Vec<&str> = group.iter().filter_map(|name| name.to_str()).collect();
    match names.as_slice() {
        [container] => Some(Place::Container(container)),
        [container, pea] => Some(Place::Nested { container, pea }),
        _ => None,
    }
}

/// Ends the supervisor of a container whose processes are gone. One that is gone is fine, one
/// that refuses has a process that the kill has just ended and is asked again: it must not stay
/// when its socket goes.
async fn end_shim(directory: &Path) -> Result<(), StageError> {
    use std::os::fd::AsFd as _;
    let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let Ok(directory) = rustix::fs::open(directory, flags, rustix::fs::Mode::empty()) else {
        return Ok(());
    };
    let Ok((shim, _, _)) = crate::runtime::shim::Shim::connect(directory.as_fd()).await else {
        return Ok(());
    };
    let deadline = tokio::time::Instant::now() + KILL_PATIENCE;
    while let Err(error) = shim.shutdown().await {
        if shim.is_dead() {
            break;
        }
        if tokio::time::Instant::now() >= deadline {
            return Err(StageError::new("the supervisor does not end", error));
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// Takes the container's part of the network away. What it was is in its record, which is removed
/// last.
async fn disconnect(services: Arc<Services>, target: &Target) -> Result<(), StageError> {
    if target.instance.ends_with(POD) {
        // Its links went with its processes. Its addresses and ports stay its own until it is
        // destroyed: clients still know it by them.
        return Ok(());
    }
    let (handle, instance) = (target.container.clone(), target.instance.clone());
    on_own_thread("garden-unlink", move || {
        let record = services.depot.gone_record(&instance);
        let network = record.as_ref().map(|(_, record)| &record.network);
        services
            .networks
            .disconnect(&handle, &instance, network)
            .map_err(|error| StageError::new("cannot take the network away", error))?;
        let Some((_, record)) = record else {
            return Ok(());
        };
        (services.depot.forget_network(&instance, record))
            .map_err(|error| StageError::new("cannot note that the network is gone", error))
    })
    .await
    .map_err(|error| StageError::new("cannot start a thread", error))?
}

/// Drops what refers to the mount, besides its processes.
async fn unmount(services: &Arc<Services>, target: &Target) -> Result<(), StageError> {
    if target.kind == Kind::Pea
        && let Some(container) = find(services, &target.container)
    {
        // A supervisor that is gone keeps nothing.
        let _ = container.shim.forget(&target.instance).await;
    }
    if services.options.teardown == TeardownMode::Inline
        && let Some(mount) = services.roots.release(&target.instance)
    {
        // As it was done of old: whoever waits for this pays the sync of the whole disk.
        on_own_thread("garden-unmount", move || drop(mount))
            .await
            .map_err(|error| StageError::new("cannot start a thread", error))?;
    }
    Ok(())
}

fn find(services: &Services, handle: &str) -> Option<Arc<Container>> {
    lock(&services.pods).get(handle).and_then(Weak::upgrade)
}

/// Moves the tree to the trash; a mount that would sync is closed after its data is gone.
async fn trash(services: Arc<Services>, target: &Target) -> Result<(), StageError> {
    let Some(id) = target.resources.rootfs.clone() else {
        return Ok(());
    };
    let roots = Arc::clone(&services.roots);
    on_own_thread("garden-trash", move || roots.destroy(&id))
        .await
        .map_err(|error| StageError::new("cannot start a thread", error))?
        .map_err(|error| StageError::new("cannot take the root filesystem away", error))
}

async fn remove_cgroups(services: Arc<Services>, target: &Target) -> Result<(), StageError> {
    let groups = groups(&services, target);
    on_own_thread("garden-cgroup", move || {
        for group in &groups {
            let Some(place) = place_of(group) else {
                continue;
            };
            services
                .cgroups
                .remove(&place, KILL_PATIENCE)
                .map_err(|error| {
                    StageError::new(
                        format!("cannot remove the cgroup {}", group.display()),
                        error,
                    )
                })?;
        }
        Ok(())
    })
    .await
    .map_err(|error| StageError::new("cannot start a thread", error))?
}

async fn remove_records(services: Arc<Services>, target: &Target) -> Result<(), StageError> {
    match target.kind {
        // Its container's directory stays; only what is the pea's own goes.
        Kind::Pea => {
            for directory in &target.resources.records {
                let processes = directory.join("processes");
                for suffix in ["json", "exit"] {
                    let file = processes.join(format!("{}.{suffix}", target.instance));
                    match std::fs::remove_file(&file) {
                        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                            let doing = format!("cannot remove {}", file.display());
                            return Err(StageError::new(doing, error));
                        }
                        _ => {}
                    }
                }
            }
            Ok(())
        }
        Kind::Container => {
            let gone = services.depot.gone(&target.instance);
            on_own_thread("garden-records", move || {
                match std::fs::remove_dir_all(&gone) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(
                        StageError::new(format!("cannot remove {}", gone.display()), error),
                    ),
                    _ => Ok(()),
                }
            })
            .await
            .map_err(|error| StageError::new("cannot start a thread", error))?
        }
    }
}
