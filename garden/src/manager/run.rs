//! Running processes and peas in a container.

use std::sync::{Arc, OnceLock};

use garden_peas::parts::{Order, PeaName};
use garden_peas::teardown::{Kind as JobKind, Target};
use garden_peas::{Pea, RunError};
use garden_wire::{ExitRecord, Kind};
use tokio::sync::watch;

use super::Manager;
use crate::bundle::{self, ProcessInput};
use crate::cgroup::Group;
use crate::checks;
use crate::container::launch::{self, Passed, StartOrder};
use crate::container::peas::{self, PeaImage, PeaSpec};
use crate::container::process::ProcessEntry;
use crate::container::{Container, exits, oom};
use crate::depot::{ContainerRecord, ProcessRecord};
use crate::error::Error;
use crate::events::EventKind;
use crate::logs::{self, LogInfo};
use crate::metrics::Seat;
use crate::model::{Exit, Handle, Limits, ProcessId, ProcessSpec};
use crate::process::Attachment;
use crate::services::{self, Services, new_instance};
use crate::{env, timeline, users};

impl Manager {
    /// Starts a process, or a pea if the specification has an image.
    ///
    /// # Errors
    /// [`Error::ContainerNotFound`], [`Error::ProcessIdInUse`], [`Error::ExecutableNotFound`],
    /// [`Error::NotExecutable`], and what is wrong with user, directory or image.
    pub async fn run_process(
        &self,
        handle: &Handle,
        spec: ProcessSpec,
    ) -> Result<Attachment, Error> {
        let container = self.find_alive(handle).await?;
        if container.is_destroying() {
            return Err(Error::BeingDestroyed(handle.clone()));
        }
        if !spec.is_pea() && !spec.bind_mounts.is_empty() {
            return Err(Error::Invalid(
                "Running a process with bind mounts and no image provided is not allowed"
                    .to_owned(),
            ));
        }
        if !spec.is_pea() && spec.disk.is_some() {
            return Err(Error::Invalid(
                "a disk limit is for a process with an image: others share their container's"
                    .to_owned(),
            ));
        }
        if !spec.is_pea() && spec.pids.is_some() {
            return Err(Error::Invalid(
                "a limit on processes is for a process with an image: others share their \
                 container's"
                    .to_owned(),
            ));
        }
        self.services().cgroups.check(&peas::limits(&spec))?;
        logs::check(spec.log_bytes)?;
        // On a task of its own: what has begun to start is either known or undone, whatever
        // becomes of the caller.
        let task = tokio::spawn(start(container, spec));
        task.await
            .map_err(|error| Error::host("starting the process failed", error))?
    }

    /// Joins a process or a pea, also one that has ended.
    ///
    /// # Errors
    /// [`Error::ContainerNotFound`], [`Error::ProcessNotFound`].
    pub async fn attach_process(
        &self,
        handle: &Handle,
        id: &ProcessId,
    ) -> Result<Attachment, Error> {
        let container = self.find(handle).await?;
        let entry = container
            .process(id)
            .ok_or_else(|| Error::ProcessNotFound(id.clone()))?;
        let attachment = entry
            .attach(&container.shim)
            .ok_or_else(|| Error::ProcessNotFound(id.clone()))?;
        told(&container, &entry);
        Ok(attachment)
    }
}

/// Nobody may have waited for a process when it ended; who is attached to it now is told.
fn told(container: &Container, entry: &Arc<ProcessEntry>) {
    if container.forget_waited(entry) && !entry.pea {
        container.dir.remove_process(&entry.instance);
    }
}

async fn start(container: Arc<Container>, spec: ProcessSpec) -> Result<Attachment, Error> {
    let (_, attachment) = start_known(container, spec).await?;
    Ok(attachment)
}

/// Starts a process or a pea in a container that is not being destroyed.
pub(crate) async fn start_known(
    container: Arc<Container>,
    spec: ProcessSpec,
) -> Result<(Arc<ProcessEntry>, Attachment), Error> {
    let id = spec.id.clone().unwrap_or_else(ProcessId::generate);
    let (pea, check) = (spec.is_pea(), spec.check);
    let (log_bytes, begun) = (spec.log_bytes, timeline::begin());
    let entry = ProcessEntry::new(id, new_instance(), pea, spec.path.clone());
    container.reserve(&entry)?;
    let started = if pea {
        start_pea(&container, &entry, spec).await
    } else {
        start_exec(&container, &entry, spec).await
    };
    if started.is_ok() {
        // Before anybody attaches, which is when output is read at first: the log has all of it.
        if let (Some(bytes), Some(outputs)) = (log_bytes, entry.listen(false)) {
            keep_log(&container, &entry, bytes, outputs);
        }
        if !check {
            let of = (container.handle.as_str(), Some(entry.id.as_str()), None);
            container.services.timelines.step(of, "start", begun, "");
        }
    }
    let attachment = started.and_then(|()| {
        entry
            .attach(&container.shim)
            .ok_or_else(|| Error::host("cannot attach to the process", "it did not start"))
    });
    if attachment.is_ok() {
        told(&container, &entry);
    } else {
        container.unreserve(&entry);
        if !pea {
            container.exits.forget(&entry.instance);
            container.dir.remove_process(&entry.instance);
        }
        if check && !pea {
            tear_down_check(&container, &entry);
        }
    }
    Ok((entry, attachment?))
}

/// Has the output of a process kept.
pub(super) fn keep_log(
    container: &Container,
    entry: &ProcessEntry,
    bytes: u64,
    outputs: logs::Outputs,
) {
    let info = LogInfo {
        process: entry.id.clone(),
        pea: entry.pea,
        since_ms: services::now_ms(),
        over: false,
    };
    let wanted = (entry.instance.as_str(), info, bytes);
    let (directory, threads) = (container.dir.fd(), &container.services.files);
    if let Err(error) = container.logs.record(directory, threads, wanted, outputs) {
        tracing::warn!(process = %entry.id, %error, "a process's output is not kept");
    }
}

async fn start_exec(
    container: &Arc<Container>,
    entry: &Arc<ProcessEntry>,
    spec: ProcessSpec,
) -> Result<(), Error> {
    let record = container.record();
    let privileged = record.spec.privileged;
    let (user, group) = prepare(container, &record, entry, &spec).await?;
    let owner = services::owner(&container.services.ids(&record), &user)?;
    let mut passed = Passed::default();
    passed.add_group(group);
    let ends = match spec.tty {
        Some(_) => None,
        None => Some(launch::pipes(&mut passed, owner)?),
    };
    let environment = env::effective(&[&record.image_env, &record.spec.env, &spec.env], &user);
    let oci = bundle::exec(
        privileged,
        &ProcessInput {
            args: peas::command(&spec),
            env: environment,
            cwd: spec.dir.as_deref().unwrap_or(&user.home),
            uid: user.uid,
            gid: user.gid,
            additional_gids: &user.additional_gids,
            rlimits: &spec.rlimits,
            terminal: spec.tty.is_some(),
            confinement: container.services.options.policy.confinement(privileged),
        },
    )?;
    let exit = container.exits.expect(&entry.instance);
    let mut process =
        ProcessRecord::new(entry.id.clone(), entry.instance.clone(), spec.path.clone());
    process.check = spec.check;
    container.dir.write_process(&process)?;
    let order = StartOrder {
        instance: &entry.instance,
        kind: Kind::Exec,
        spec: &oci,
        capabilities: container.services.capabilities(privileged),
        privileged,
        terminal: spec.tty.map(|size| (size.columns, size.rows)),
    };
    let (pid, master) = launch::start(&container.shim, order, passed).await?;
    let streams = match (ends, master) {
        (Some(ends), _) => launch::streams(ends, &container.shim, &entry.instance)?,
        (None, Some(master)) => launch::terminal(master, &container.shim, &entry.instance)?,
        (None, None) => return Err(Error::host("cannot run the process", "no terminal came")),
    };
    entry.started(pid, streams);
    if spec.check {
        follow_check(container, entry, exit);
    } else {
        container.event(EventKind::Started, Some(&entry.id));
        follow_exec(container, entry, exit);
    }
    Ok(())
}

/// Announces a process's exit, and lets its supervisor forget it when nothing more can come of it.
pub(super) fn follow_exec(
    container: &Arc<Container>,
    entry: &Arc<ProcessEntry>,
    exit: watch::Receiver<Option<ExitRecord>>,
) {
    let entry = Arc::clone(entry);
    let shim = container.shim.clone();
    let container = Arc::downgrade(container);
    tokio::spawn(async move {
        if let Some(record) = exits::wait(exit).await {
            if let (true, Some(container)) = (record.out_of_memory, container.upgrade()) {
                tell_out_of_memory(&container, &entry, false).await;
            }
            if exits::is_unknown(&record) {
                return entry.lose();
            }
            let forget = || {
                if let Some(container) = container.upgrade() {
                    container.forget_told(&entry);
                }
            };
            entry.announce_after(exit_of(&record), forget).await;
            if let Some(container) = container.upgrade() {
                let (code, oom) = (record.code, record.out_of_memory);
                container.event(EventKind::Exited { code, oom }, Some(&entry.id));
            }
            log_exit(&entry, &record);
            tell_timeline(container.upgrade().as_deref(), &entry, &record);
            let forgotten = container
                .upgrade()
                .is_some_and(|container| container.forget_waited(&entry));
            entry.output_over().await;
            let _ = shim.forget(&entry.instance).await;
            // Else its record on file stays, for a server that restarts.
            if let (true, Some(container)) = (forgotten, container.upgrade()) {
                container.dir.remove_process(&entry.instance);
            }
        }
    });
}

/// Announces the exit of a run of a health check in the container. Nothing of it stays.
fn follow_check(
    container: &Arc<Container>,
    entry: &Arc<ProcessEntry>,
    exit: watch::Receiver<Option<ExitRecord>>,
) {
    let (container, entry) = (Arc::clone(container), Arc::clone(entry));
    tokio::spawn(async move {
        if let Some(record) = exits::wait(exit).await {
            tear_down_check(&container, &entry);
            if exits::is_unknown(&record) {
                return entry.lose();
            }
            entry.reaped(record.exited_at_ns);
            entry.announce(exit_of(&record)).await;
        }
    });
}

/// Hands what a run of a health check in the container left to the teardown queue.
pub(super) fn tear_down_check(container: &Container, entry: &ProcessEntry) {
    let record = container.record();
    let mut resources = peas::resources(container, &record.cgroup, &entry.instance, false);
    resources.rootfs = None;
    container.services.queue().enqueue(Target {
        kind: JobKind::Pea,
        container: container.handle.to_string(),
        process: Some(entry.id.to_string()),
        instance: entry.instance.clone(),
        resources,
    });
}

/// Looks the user up in the container and opens its cgroup, or makes that of a health check: one
/// trip to a worker thread.
async fn prepare(
    container: &Arc<Container>,
    record: &ContainerRecord,
    entry: &ProcessEntry,
    spec: &ProcessSpec,
) -> Result<(users::User, Group), Error> {
    let user = spec.user.clone();
    let instance = spec.check.then(|| entry.instance.clone());
    let files = &container.services.files;
    let container = Arc::clone(container);
    let services = Arc::clone(&container.services);
    let (cgroup, limits) = (record.cgroup.clone(), record.spec.limits.clone());
    let devices = Services::devices(&record.spec);
    let prepared = files.run(move || {
        let user = users::resolve(container.root()?, user.as_deref().unwrap_or_default())?;
        let group = match &instance {
            None => services
                .cgroups
                .open_container(&cgroup, &limits, &devices)?,
            Some(instance) => {
                let place = peas::place(&cgroup, instance, false);
                services
                    .cgroups
                    .create(&place, &Limits::default(), &limits, &devices)?
            }
        };
        Ok::<_, Error>((user, group))
    });
    prepared.await?
}

async fn start_pea(
    container: &Arc<Container>,
    entry: &Arc<ProcessEntry>,
    spec: ProcessSpec,
) -> Result<(), Error> {
    let Some(image) = spec.image.clone() else {
        return Err(Error::host("cannot run the pea", "it has no image"));
    };
    let (own_limits, check) = (spec.own_limits.is_some(), spec.check);
    let record = container.record();
    let mut process =
        ProcessRecord::new(entry.id.clone(), entry.instance.clone(), spec.path.clone());
    process.pea = true;
    process.own_limits = own_limits;
    process.check = spec.check;
    container.dir.write_process(&process)?;
    let streams = Arc::new(OnceLock::new());
    let order = Order {
        name: PeaName {
            container: container.handle.to_string(),
            process: entry.id.to_string(),
        },
        instance: entry.instance.clone(),
        image: PeaImage {
            image,
            disk: spec.disk,
        },
        user: spec.user.clone().unwrap_or_default(),
        resources: peas::resources(container, &record.cgroup, &entry.instance, own_limits),
        spec: PeaSpec {
            process: spec,
            streams: Arc::clone(&streams),
        },
    };
    let pea = container
        .peas()
        .run(order)
        .await
        .map_err(|error| pea_error(container, entry, error))?;
    let Some(streams) = Arc::into_inner(streams).and_then(OnceLock::into_inner) else {
        pea.destroy();
        return Err(Error::host(
            "cannot run the pea",
            "its streams were not made",
        ));
    };
    entry.started(pea.pid, streams);
    if !check {
        container.event(EventKind::PeaStarted, Some(&entry.id));
    }
    follow_pea(container, entry, pea, own_limits);
    Ok(())
}

/// Announces a pea's exit when its teardown is on file.
pub(super) fn follow_pea(
    container: &Arc<Container>,
    entry: &Arc<ProcessEntry>,
    pea: Pea<ExitRecord>,
    own_limits: bool,
) {
    let seat = Seat {
        container: Arc::downgrade(container),
        instance: entry.instance.clone(),
        own_limits,
    };
    container.services.pea_index.add(entry.id.clone(), seat);
    let (container, entry) = (Arc::downgrade(container), Arc::clone(entry));
    tokio::spawn(async move {
        let ended = pea.wait().await;
        let container = container.upgrade();
        if let Some(container) = &container {
            let index = &container.services.pea_index;
            index.remove(&entry.id, &entry.instance);
        }
        if let Ok(record) = ended {
            if let (Some(container), true) = (&container, record.out_of_memory) {
                tell_out_of_memory(container, &entry, own_limits).await;
            }
            if exits::is_unknown(&record) {
                return entry.lose();
            }
            entry.reaped(record.exited_at_ns);
            let forget = || {
                if let Some(container) = &container {
                    container.forget_told(&entry);
                }
            };
            entry.announce_after(exit_of(&record), forget).await;
            let told = container
                .as_ref()
                .filter(|_| !checks::is_run(entry.id.as_str()));
            if let Some(container) = told {
                let (code, oom) = (record.code, record.out_of_memory);
                container.event(EventKind::PeaExited { code, oom }, Some(&entry.id));
            }
            log_exit(&entry, &record);
            if told.is_some() {
                tell_timeline(container.as_deref(), &entry, &record);
            }
            if let Some(container) = container {
                container.forget_waited(&entry);
            }
        }
    });
}

/// Has what the exit of a process says of its memory known before the exit is.
async fn tell_out_of_memory(container: &Arc<Container>, entry: &ProcessEntry, own_limits: bool) {
    tracing::info!(handle = %container.handle, process = %entry.id, "ran out of memory");
    if !own_limits {
        oom::look(container).await;
    }
}

fn tell_timeline(container: Option<&Container>, entry: &ProcessEntry, record: &ExitRecord) {
    if let Some(container) = container {
        let timelines = &container.services.timelines;
        let (handle, process) = (container.handle.as_str(), entry.id.as_str());
        timelines.told(handle, process, record.exited_at_ns);
    }
}

/// How long it took from the moment the supervisor reaped it until all attachments knew.
fn log_exit(entry: &ProcessEntry, record: &ExitRecord) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let exited = std::time::Duration::from_nanos(record.exited_at_ns);
    let took = now.unwrap_or_default().saturating_sub(exited);
    crate::metrics::exit_told().record(took);
    tracing::debug!(
        process = %entry.id,
        pea = entry.pea,
        code = record.code,
        duration_us = took.as_micros(),
        "exit told"
    );
}

pub(super) fn exit_of(record: &ExitRecord) -> Exit {
    Exit {
        code: record.code,
        out_of_memory: record.out_of_memory,
    }
}

fn pea_error(container: &Container, entry: &ProcessEntry, error: RunError<Error>) -> Error {
    match error {
        RunError::InUse(_) => Error::ProcessIdInUse(entry.id.clone()),
        RunError::Destroyed(_) => Error::BeingDestroyed(container.handle.clone()),
        RunError::Lost(_) => Error::host("cannot run the pea", "it was lost while it started"),
        other => other
            .into_source()
            .unwrap_or_else(|| Error::host("cannot run the pea", "for an unknown reason")),
    }
}
