//! Creating a container.
//!
//! ```text
//! reserve the handle ─▶ record `creating` ─▶ ┬ root filesystem ┐
//!                                            ├ cgroup          ├─▶ init ─▶ network ─▶ cpu share
//!                                            └ shim            ┘               ─▶ record `created`
//! ```
//!
//! A failure anywhere hands what there is to the teardown queue, waits for it a while, and only
//! then returns the error. A crash anywhere leaves the record, by which the next server does the
//! same.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use garden_wire::{Kind, Role};
use tokio::sync::mpsc;

use super::Manager;
use super::cleaner;
use crate::bundle::{self, ContainerInput, ProcessInput, StagedBind};
use crate::cgroup::{Group, Place};
use crate::checks::{self, HealthRecord};
use crate::container::exits::Exits;
use crate::container::launch::{self, Passed, StartOrder};
use crate::container::{self, Container, INIT, names, peas};
use crate::depot::{ContainerDir, ContainerRecord, Phase, ProcessRecord};
use crate::devices;
use crate::error::Error;
use crate::events::EventKind;
use crate::ids::on_host;
use crate::model::{ContainerSpec, Handle, ImageRef, ProcessId};
use crate::roots::Root;
use crate::runtime::shim::{self, Event, Shim};
use crate::services::{Services, lock, new_instance, now_ms};
use crate::timeline;

/// How long an error waits for the undo of what had been made.
const UNDO_PATIENCE: Duration = Duration::from_secs(5);

type Connected = (Shim, mpsc::UnboundedReceiver<Event>);

impl Manager {
    /// Creates a container; it can run processes when this returns.
    ///
    /// # Errors
    /// [`Error::HandleInUse`], [`Error::Exhausted`], and whatever is wrong with the image or the
    /// host. Nothing of the container is left then.
    pub async fn create_container(&self, spec: ContainerSpec) -> Result<Handle, Error> {
        // On a task of its own: a caller that goes away half-way must not leave half a container.
        let manager = self.clone();
        let span = tracing::Span::current();
        let task = async move { manager.create_uncancelled(spec).await };
        let task = tokio::spawn(tracing::Instrument::instrument(task, span));
        task.await
            .map_err(|error| Error::host("creating the container failed", error))?
    }

    async fn create_uncancelled(&self, mut spec: ContainerSpec) -> Result<Handle, Error> {
        let begun = Instant::now();
        let services = Arc::clone(self.services());
        let handle = spec.handle.clone().unwrap_or_else(Handle::generate);
        spec.handle = Some(handle.clone());
        if spec.privileged && services.options.policy.disable_privileged {
            let text = "privileged container creation is disabled";
            return Err(Error::Invalid(text.to_owned()));
        }
        let image = self.image_of(&spec)?;
        services.cgroups.check(&spec.limits)?;
        spec = self.check_devices(spec).await?;
        services.networks.check(&spec)?;
        spec.image = Some(image.clone());
        let checks = std::mem::take(&mut spec.checks);
        checks::spec::validate_all(&checks)?;
        let Some(dir) = self.reserve(&handle)? else {
            return Err(Error::HandleInUse(handle));
        };
        let instance = new_instance();
        services.timelines.created(handle.as_str(), &instance);
        let cgroup = self.cgroup_name(&handle, &instance);
        let mut record = ContainerRecord::new(instance, cgroup, spec, now_ms());
        let described = services.take_ids(record.spec.privileged).and_then(|ids| {
            record.ids = ids;
            dir.write(&record)?;
            if !checks.is_empty() {
                dir.write_health(&HealthRecord {
                    checks,
                    saved: None,
                })?;
            }
            Ok(())
        });
        let made = match described {
            Ok(()) => self.make(&handle, dir, &mut record, &image).await,
            Err(error) => Err(error),
        };
        match made {
            Ok(container) => {
                self.insert(Arc::clone(&container));
                container.event(EventKind::Created, None);
                self.open_checks(&container);
                let ms = begun.elapsed().as_secs_f64() * 1000.0;
                tracing::info!(%handle, duration_ms = ms, "container created");
                Ok(handle)
            }
            Err(error) => {
                tracing::info!(%handle, error = error.report(), "container not created");
                let timelines = &services.timelines;
                timelines.event(handle.as_str(), None, &EventKind::Destroyed);
                self.undo(&services, &handle, &record).await;
                services.free_ids(&record);
                Err(error)
            }
        }
    }

    /// Looks at the devices that are asked for, and refuses what this host cannot restrict.
    async fn check_devices(&self, mut spec: ContainerSpec) -> Result<ContainerSpec, Error> {
        let cgroups = self.services().cgroups.clone();
        if spec.devices.is_empty() && spec.device_rules.is_empty() {
            cgroups.check_devices(&Services::devices(&spec))?;
            return Ok(spec);
        }
        let checked = self.services().files.run(move || {
            devices::resolve(&mut spec.devices, &spec.device_rules)?;
            cgroups.check_devices(&Services::devices(&spec))?;
            Ok::<_, Error>(spec)
        });
        checked.await?
    }

    fn image_of(&self, spec: &ContainerSpec) -> Result<ImageRef, Error> {
        let default = || {
            let uri = self.services().options.default_image.clone()?;
            Some(ImageRef {
                uri,
                ..ImageRef::default()
            })
        };
        spec.image.clone().or_else(default).ok_or_else(|| {
            Error::Invalid(
                "no image was given and this server has no default one: name a tar, a \
                 directory or an oci:// layout"
                    .to_owned(),
            )
        })
    }

    /// Takes the handle, unless it is taken or the server is full.
    fn reserve(&self, handle: &Handle) -> Result<Option<ContainerDir>, Error> {
        let services = self.services();
        let Some(most) = services.options.max_containers else {
            return Ok(services.depot.reserve(handle)?);
        };
        // Counted and taken under one lock: parallel creates do not exceed the limit.
        let _one_at_a_time = lock(&self.0.reserving);
        if services.depot.names()?.len() >= most {
            return Err(Error::Exhausted("max containers reached".to_owned()));
        }
        Ok(services.depot.reserve(handle)?)
    }

    /// The handle, so that a person finds the group; with a suffix while the group of an earlier
    /// container of this handle is still being removed. Claims the name.
    fn cgroup_name(&self, handle: &Handle, instance: &str) -> String {
        let services = self.services();
        let is_there = services.cgroups.exists(&Place::Container(handle.as_str()));
        if !is_there && services.group_names.claim(handle.as_str(), instance) {
            return handle.as_str().to_owned();
        }
        let suffix = instance
            .get(instance.len().saturating_sub(8)..)
            .unwrap_or(instance);
        let name = format!("{handle}.{suffix}");
        // Nobody else comes to this name: half of it is used once only.
        let _ = services.group_names.claim(&name, instance);
        name
    }

    async fn make(
        &self,
        handle: &Handle,
        dir: ContainerDir,
        record: &mut ContainerRecord,
        image: &ImageRef,
    ) -> Result<Arc<Container>, Error> {
        let services = self.services();
        let privileged = record.spec.privileged;
        let (rootfs, ground, connected) = tokio::join!(
            stage(
                (services, handle),
                "rootfs",
                services.make_rootfs(
                    &record.instance,
                    image,
                    privileged,
                    &record.ids,
                    record.spec.limits.disk
                )
            ),
            stage(
                (services, handle),
                "cgroup",
                prepare_host(services, handle, record, &dir)
            ),
            stage(
                (services, handle),
                "shim",
                spawn_shim(services, handle, record, &dir)
            ),
        );
        if let Ok(rootfs) = &rootfs {
            // From here on, whatever fails: its last close may have to write to the disk.
            let mount = copy_of_mount(rootfs)?;
            services
                .roots
                .hold(&record.instance, rootfs.volatile, mount);
        }
        let (shim, events) = connected?;
        let (rootfs, ground) = (rootfs?, ground?);
        record.image_env.clone_from(&rootfs.config.env);
        if let Some(why) = &rootfs.not_enforced {
            record
                .events
                .push(format!("Disk limit is not enforced: {why}"));
        }
        let exits = Exits::new();
        let _ = exits.expect(INIT);
        dir.write_process(&ProcessRecord::new(
            ProcessId::generate(),
            INIT.to_owned(),
            "/tmp/garden-init".to_owned(),
        ))?;
        let started = self.start_init(handle, record, &shim, rootfs, ground);
        let pid = stage((services, handle), "init", started).await?;
        let root = open_root(pid)?;
        let connected = self.connect(handle, &dir, record, pid);
        stage((services, handle), "network", connected).await?;
        let place = Place::Container(&record.cgroup);
        if services.cgroups.is_incomplete(&place, &record.spec.limits) {
            let cgroups = services.cgroups.clone();
            let (name, limits) = (record.cgroup.clone(), record.spec.limits.clone());
            let limited = services
                .files
                .run(move || cgroups.complete(&Place::Container(&name), &limits));
            limited.await??;
        }
        record.init_pid = pid;
        record.phase = Phase::Created;
        dir.write(record)?;
        let services = Arc::clone(services);
        let record = record.clone();
        let handle = handle.clone();
        let root = Some(root);
        let container = Container::new(handle, dir, services, shim, exits, root, record, events);
        container::oom::watch(&container);
        Ok(container)
    }

    async fn start_init(
        &self,
        handle: &Handle,
        record: &ContainerRecord,
        shim: &Shim,
        rootfs: Root,
        ground: Ground,
    ) -> Result<u32, Error> {
        let services = self.services();
        let privileged = record.spec.privileged;
        let hostname = peas::hostname(handle);
        let Ground {
            group,
            mut binds,
            names,
            mut passed,
            sysctls,
        } = ground;
        let cgroup_tmpfs = binds.len() > 1;
        // What an image plugin wants comes first, so that the user's own can cover it.
        let asked = [&rootfs.binds, &record.spec.bind_mounts];
        let asked = asked.into_iter().flatten().cloned().collect();
        let nodes = launch::nodes(&record.spec);
        let (asked, more) = launch::open_asked(asked, nodes, binds.len() + names.len()).await?;
        passed.extend(more);
        binds.extend(asked.into_iter().chain(names));
        passed.add(Role::Rootfs, copy_of_mount(&rootfs)?);
        passed.add_group(group);
        // Not the supervisor's: its standard error is the server's log.
        let null = rustix::fs::open(
            "/dev/null",
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .map_err(|errno| Error::host("cannot open /dev/null", std::io::Error::from(errno)))?;
        for number in 0..3 {
            let copy = null
                .try_clone()
                .map_err(|error| Error::host("cannot duplicate a descriptor", error))?;
            passed.add(Role::Stream(number), copy);
        }
        let input = ContainerInput {
            privileged,
            hostname: &hostname,
            ids: &record.ids,
            binds: &binds,
            devices: &record.spec.devices,
            cgroup_tmpfs,
            read_only: record.spec.read_only,
            sysctls,
        };
        let process = ProcessInput {
            args: vec!["/tmp/garden-init".to_owned()],
            cwd: "/",
            confinement: services.options.policy.confinement(privileged),
            ..ProcessInput::default()
        };
        let order = StartOrder {
            instance: INIT,
            kind: Kind::Init,
            spec: &bundle::init(&input, &process)?,
            capabilities: services.capabilities(privileged),
            privileged,
            terminal: None,
        };
        let started = launch::start(shim, order, passed).await;
        let (pid, _) = started.map_err(|error| {
            if privileged {
                error
            } else {
                services.options.policy.explain(error)
            }
        })?;
        Ok(pid)
    }

    /// Takes away what a failed create has made.
    async fn undo(&self, services: &Arc<Services>, handle: &Handle, record: &ContainerRecord) {
        if let Err(error) = services.depot.retire(handle, &record.instance) {
            let error = crate::error::report(&error);
            tracing::error!(%handle, error, "cannot free the handle of a failed create");
        }
        let target = cleaner::container_target(services, handle, record);
        let mut ticket = services.queue().enqueue_direct(target);
        if tokio::time::timeout(UNDO_PATIENCE, ticket.finished())
            .await
            .is_err()
        {
            tracing::warn!(%handle, "the undo of a failed create goes on in the background");
        }
    }
}

fn copy_of_mount(rootfs: &Root) -> Result<OwnedFd, Error> {
    let copy = rootfs.mount.try_clone();
    copy.map_err(|error| Error::host("cannot duplicate the root filesystem's mount", error))
}

/// Tells how long a stage took.
async fn stage<T, E>(
    (services, handle): (&Services, &Handle),
    stage: &'static str,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let (begun, watch) = (Instant::now(), timeline::begin());
    let value = work.await;
    let detail = if value.is_ok() { "" } else { "failed" };
    let of = (handle.as_str(), None, None);
    services.timelines.step(of, stage, watch, detail);
    tracing::debug!(
        stage,
        duration_us = begun.elapsed().as_micros(),
        "stage of a create"
    );
    value
}

/// What a container needs of the host beside its root filesystem.
struct Ground {
    group: Group,
    /// The views of its cgroups.
    binds: Vec<StagedBind>,
    /// The files with its names.
    names: Vec<StagedBind>,
    passed: Passed,
    sysctls: HashMap<String, String>,
}

async fn prepare_host(
    services: &Arc<Services>,
    handle: &Handle,
    record: &ContainerRecord,
    dir: &ContainerDir,
) -> Result<Ground, Error> {
    let (name, limits) = (record.cgroup.clone(), record.spec.limits.clone());
    let devices = Services::devices(&record.spec);
    let privileged = record.spec.privileged;
    let directory = dir.fd().try_clone_to_owned();
    let directory =
        directory.map_err(|error| Error::host("cannot duplicate a descriptor", error))?;
    let (handle, ids) = (handle.clone(), record.ids.clone());
    let shared = Arc::clone(services);
    let made = services.files.run(move || {
        let place = Place::Container(&name);
        let group = shared.cgroups.create(&place, &limits, &limits, &devices)?;
        let mut passed = Passed::default();
        let views = launch::cgroup_views(&shared.cgroups, &place, privileged);
        let binds = launch::open_binds(&views, 0, &mut passed)?;
        names::make(directory.as_fd(), &handle, on_host(&ids, 0).unwrap_or(0))?;
        let names = names::open(directory.as_fd(), binds.len(), &mut passed)?;
        let sysctls = shared.options.policy.sysctls(privileged, &ids)?;
        Ok::<_, Error>(Ground {
            group,
            binds,
            names,
            passed,
            sysctls,
        })
    });
    made.await?
}

/// Makes a supervisor for the container and connects to it.
async fn spawn_shim(
    services: &Arc<Services>,
    handle: &Handle,
    record: &ContainerRecord,
    dir: &ContainerDir,
) -> Result<Connected, Error> {
    let ids = (!record.spec.privileged).then_some(record.ids.as_slice());
    let listen = || shim::listen(dir.fd());
    services
        .zygote
        .spawn(handle, ids, listen, dir.processes())
        .await?;
    let (shim, _, events) = Shim::connect(dir.fd()).await?;
    Ok((shim, events))
}

/// The container's root directory, by its init. The pid cannot be another's: its supervisor has
/// not reaped it, or the open fails and with it the create.
pub(super) fn open_root(init_pid: u32) -> Result<OwnedFd, Error> {
    let path = format!("/proc/{init_pid}/root");
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open(&*path, flags, rustix::fs::Mode::empty()).map_err(|errno| {
        Error::host(
            "cannot open the container's root",
            std::io::Error::from(errno),
        )
    })
}
