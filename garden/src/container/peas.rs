//! What a pea needs from its container: the traits of `garden-peas`, made real.
//!
//! The order of things (root filesystem, user, launch; exit, teardown on file, announcement) is
//! decided there; here are only the single steps.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, Weak};

use garden_peas::parts::{self, Launch};
use garden_peas::teardown::Queue;
use garden_rootfs::ImageConfig;
use garden_wire::{ExitRecord, Kind, Role};
use tokio::sync::watch;

use super::launch::{self, Passed, StartOrder};
use super::process::Streams;
use super::{Container, exits, names};
use crate::bundle::{self, ContainerInput, ProcessInput, StagedBind};
use crate::cgroup::{Group, Place};
use crate::error::Error;
use crate::model::{BindMount, DiskLimit, Handle, ImageRef, Limits, ProcessSpec};
use crate::runtime::shim::Shim;
use crate::services::{self, Services};
use crate::{env, users};

/// One container as a home for peas.
pub(crate) struct PodHost {
    pod: Pod,
    queue: Queue,
}

/// The part of it that makes and starts things.
pub(crate) struct Pod {
    services: Arc<Services>,
    container: Weak<Container>,
}

/// A pea's root filesystem.
pub(crate) struct PeaRoot {
    mount: Arc<OwnedFd>,
    volatile: bool,
    config: ImageConfig,
    /// What an image plugin wants to be mounted in it.
    binds: Vec<BindMount>,
}

/// What the launcher needs beside root filesystem and user.
pub(crate) struct PeaSpec {
    /// What was asked for.
    pub(crate) process: ProcessSpec,
    /// Where its streams go when it runs.
    pub(crate) streams: Arc<OnceLock<Streams>>,
}

/// A pea's process.
pub(crate) struct PeaProcess {
    pub(crate) pid: u32,
    pub(crate) instance: String,
    pub(crate) shim: Shim,
    pub(crate) exit: watch::Receiver<Option<ExitRecord>>,
}

/// A pea's cgroup: below its container's, or beside it with limits of its own.
pub(crate) fn place<'a>(container: &'a str, instance: &'a str, own_limits: bool) -> Place<'a> {
    if own_limits {
        Place::Beside(instance)
    } else {
        Place::Nested {
            container,
            pea: instance,
        }
    }
}

impl PodHost {
    /// A home for the peas of `container`.
    pub(crate) fn new(container: &Arc<Container>) -> Self {
        let services = Arc::clone(&container.services);
        let queue = services.queue().clone();
        Self {
            pod: Pod {
                services,
                container: Arc::downgrade(container),
            },
            queue,
        }
    }
}

impl Pod {
    fn container(&self) -> Result<Arc<Container>, Error> {
        self.container
            .upgrade()
            .ok_or_else(|| Error::host("cannot run the pea", "its container is gone"))
    }
}

/// What a pea's root filesystem is made from.
pub(crate) struct PeaImage {
    pub(crate) image: ImageRef,
    /// What it may grow to.
    pub(crate) disk: Option<DiskLimit>,
}

impl parts::Rootfs for Pod {
    type Image = PeaImage;
    type Root = PeaRoot;
    type Error = Error;

    async fn create(&self, id: &str, wanted: &PeaImage) -> Result<PeaRoot, Error> {
        let record = self.container()?.record();
        let privileged = record.spec.privileged;
        let ids = self.services.ids(&record);
        let rootfs = self
            .services
            .make_rootfs(id, &wanted.image, privileged, &ids, wanted.disk)
            .await?;
        Ok(PeaRoot {
            mount: Arc::new(rootfs.mount),
            volatile: rootfs.volatile,
            config: rootfs.config,
            binds: rootfs.binds,
        })
    }
}

impl parts::Users for Pod {
    type Root = PeaRoot;
    type User = users::User;
    type Error = Error;

    async fn resolve(&self, root: &PeaRoot, user: &str) -> Result<users::User, Error> {
        let mount = Arc::clone(&root.mount);
        let user = user.to_owned();
        let found = self
            .services
            .files
            .run(move || users::resolve(mount.as_fd(), &user));
        Ok(found.await??)
    }
}

impl parts::Launcher for Pod {
    type Root = PeaRoot;
    type User = users::User;
    type Spec = PeaSpec;
    type Process = PeaProcess;
    type Error = Error;

    async fn launch(
        &self,
        launch: Launch<PeaRoot, users::User, PeaSpec>,
    ) -> Result<PeaProcess, Error> {
        let Launch {
            instance,
            root,
            user,
            spec,
            ..
        } = launch;
        let PeaSpec { process, streams } = spec;
        let container = self.container()?;
        let record = container.record();
        let privileged = record.spec.privileged;
        let Ground {
            group,
            mut binds,
            names,
            mut passed,
        } = self
            .prepare(&container, &instance, &process, privileged)
            .await?;
        let cgroup_tmpfs = binds.len() > 1;
        let asked = [&root.binds, &process.bind_mounts];
        let asked = asked.into_iter().flatten().cloned().collect();
        let nodes = launch::nodes(&record.spec);
        let (asked, more) = launch::open_asked(asked, nodes, binds.len() + names.len()).await?;
        passed.extend(more);
        binds.extend(asked.into_iter().chain(names));
        let ids = self.services.ids(&record);
        let owner = services::owner(&ids, &user)?;
        let mount = root
            .mount
            .try_clone()
            .map_err(|error| Error::host("cannot duplicate the pea's mount", error))?;
        passed.add(Role::Rootfs, mount);
        passed.add_group(group);
        let hostname = hostname(&container.handle);
        let input = ContainerInput {
            privileged,
            hostname: &hostname,
            ids: &ids,
            binds: &binds,
            devices: &record.spec.devices,
            cgroup_tmpfs,
            read_only: false,
            sysctls: std::collections::HashMap::new(),
        };
        let environment = env::effective(&[&root.config.env, &process.env], &user);
        let spec = bundle::pea(
            &input,
            &ProcessInput {
                args: command(&process),
                env: environment,
                cwd: process.dir.as_deref().unwrap_or("/"),
                uid: user.uid,
                gid: user.gid,
                additional_gids: &user.additional_gids,
                rlimits: &process.rlimits,
                terminal: process.tty.is_some(),
                confinement: self.services.options.policy.confinement(privileged),
            },
        )?;
        let ends = match process.tty {
            Some(_) => None,
            None => Some(launch::pipes(&mut passed, owner)?),
        };
        let exit = container.exits.expect(&instance);
        let order = StartOrder {
            instance: &instance,
            kind: Kind::Pea,
            spec: &spec,
            capabilities: self.services.capabilities(privileged),
            privileged,
            terminal: process.tty.map(|size| (size.columns, size.rows)),
        };
        let shim = container.shim.clone();
        let (pid, master) = launch::start(&shim, order, passed).await.inspect_err(|_| {
            container.exits.forget(&instance);
        })?;
        let completed = self
            .complete_group(&record.cgroup, &instance, &process)
            .await;
        if let Err(error) = completed {
            let _ = shim.signal(&instance, 9).await;
            return Err(error);
        }
        let made = match (ends, master) {
            (Some(ends), _) => launch::streams(ends, &shim, &instance)?,
            (None, Some(master)) => launch::terminal(master, &shim, &instance)?,
            (None, None) => return Err(Error::host("cannot run the pea", "no terminal came")),
        };
        let _ = streams.set(made);
        if let Ok(mount) = Arc::try_unwrap(root.mount) {
            (self.services.roots).hold(&instance, root.volatile, mount);
        }
        Ok(PeaProcess {
            pid,
            instance,
            shim,
            exit,
        })
    }
}

/// What a pea needs of the host beside its root filesystem.
struct Ground {
    group: Group,
    /// The views of its cgroups.
    binds: Vec<StagedBind>,
    /// The files with names that it shares with its container.
    names: Vec<StagedBind>,
    passed: Passed,
}

impl Pod {
    async fn prepare(
        &self,
        container: &Arc<Container>,
        instance: &str,
        process: &ProcessSpec,
        privileged: bool,
    ) -> Result<Ground, Error> {
        let services = Arc::clone(&self.services);
        let record = container.record();
        let devices = Services::devices(&record.spec);
        let (cgroup, instance) = (record.cgroup, instance.to_owned());
        let (own, limits) = (process.own_limits.is_some(), limits(process));
        let within = if own {
            Limits::default()
        } else {
            record.spec.limits
        };
        let container = Arc::clone(container);
        let made = self.services.files.run(move || {
            let place = place(&cgroup, &instance, own);
            let group = services
                .cgroups
                .create(&place, &limits, &within, &devices)?;
            let mut passed = Passed::default();
            let views = launch::cgroup_views(&services.cgroups, &place, privileged);
            let binds = launch::open_binds(&views, 0, &mut passed)?;
            let names = names::open(container.dir.fd(), binds.len(), &mut passed)?;
            Ok::<_, Error>(Ground {
                group,
                binds,
                names,
                passed,
            })
        });
        made.await?
    }

    /// Takes back the room that starting the pea needed, where it had any.
    async fn complete_group(
        &self,
        cgroup: &str,
        instance: &str,
        process: &ProcessSpec,
    ) -> Result<(), Error> {
        let (own, limits) = (process.own_limits.is_some(), limits(process));
        let cgroups = self.services.cgroups.clone();
        if !cgroups.is_incomplete(&place(cgroup, instance, own), &limits) {
            return Ok(());
        }
        let (cgroup, instance) = (cgroup.to_owned(), instance.to_owned());
        let done = self.services.files.run(move || {
            let place = place(&cgroup, &instance, own);
            match cgroups.complete(&place, &limits) {
                // It has ended, and its teardown was faster.
                Err(_) if !cgroups.exists(&place) => Ok(()),
                other => other,
            }
        });
        Ok(done.await??)
    }
}

/// The limits of a pea's own group.
pub(crate) fn limits(process: &ProcessSpec) -> Limits {
    let own = process.own_limits.clone().unwrap_or_default();
    let pids = [own.pids, process.pids].into_iter().flatten().min();
    Limits { pids, ..own }
}

/// The executable and its arguments.
pub(crate) fn command(process: &ProcessSpec) -> Vec<String> {
    std::iter::once(&process.path)
        .chain(&process.args)
        .cloned()
        .collect()
}

/// A host name has room for 64 bytes; Guardian takes the last 49 of the handle.
pub(crate) fn hostname(handle: &Handle) -> String {
    garden_net::dns::host_name(handle.as_str()).to_owned()
}

impl parts::Process for PeaProcess {
    type Exit = ExitRecord;

    fn pid(&self) -> u32 {
        self.pid
    }

    async fn exit(&mut self) -> ExitRecord {
        match exits::wait(self.exit.clone()).await {
            Some(record) => record,
            // The container is dropped with the server; nobody is there to be told.
            None => std::future::pending().await,
        }
    }

    fn kill(&self) -> std::io::Result<()> {
        let (shim, instance) = (self.shim.clone(), self.instance.clone());
        tokio::spawn(async move {
            let _ = shim.signal(&instance, 9).await;
        });
        Ok(())
    }
}

impl parts::Host for PodHost {
    type Rootfs = Pod;
    type Users = Pod;
    type Launcher = Pod;
    type Teardown = Queue;

    fn rootfs(&self) -> &Pod {
        &self.pod
    }

    fn users(&self) -> &Pod {
        &self.pod
    }

    fn launcher(&self) -> &Pod {
        &self.pod
    }

    fn teardown(&self) -> &Queue {
        &self.queue
    }
}

/// A group as a teardown job names it: one or two names below the parent of all groups.
pub(crate) fn group_path(place: &Place<'_>) -> PathBuf {
    match place {
        Place::Nested { container, pea } => PathBuf::from(container).join(pea),
        Place::Container(name) | Place::Beside(name) => PathBuf::from(name),
    }
}

/// What there is to take away of a pea.
pub(crate) fn resources(
    container: &Container,
    cgroup: &str,
    instance: &str,
    own_limits: bool,
) -> garden_peas::teardown::Resources {
    garden_peas::teardown::Resources {
        cgroups: vec![group_path(&place(cgroup, instance, own_limits))],
        rootfs: Some(instance.to_owned()),
        records: vec![container.dir.path().to_owned()],
        ..garden_peas::teardown::Resources::default()
    }
}
