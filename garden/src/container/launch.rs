//! Starting processes: from what a user asked for to a request to the supervisor.
//!
//! Every start is the same chain: cgroup files to join, pipes, the specification, the request.
//! Nothing here makes or removes cgroups and root filesystems; whoever calls owns those.

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use garden_peas::teardown::on_own_thread;
use garden_wire::{Kind, Role, Start};
use oci_spec::runtime::Spec;
use rustix::fs::{Gid, Uid};
use rustix::pipe::{PipeFlags, pipe_with};

use super::process::Streams;
use crate::bundle::StagedBind;
use crate::cgroup::{Cgroups, Group, Place};
use crate::devices::{DeviceSpec, Node};
use crate::error::Error;
use crate::model::{BindMount, ContainerSpec};
use crate::process::streams::{Input, Output, reader, writer};
use crate::runtime::shim::Shim;

/// Descriptors of a start and what they are for.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    roles: Vec<Role>,
    fds: Vec<OwnedFd>,
}

impl Passed {
    /// Adds one.
    pub(crate) fn add(&mut self, role: Role, fd: OwnedFd) {
        self.roles.push(role);
        self.fds.push(fd);
    }

    /// Adds all of another.
    pub(crate) fn extend(&mut self, other: Self) {
        self.roles.extend(other.roles);
        self.fds.extend(other.fds);
    }

    /// Adds what a process needs to join its group, and to learn why it died.
    pub(crate) fn add_group(&mut self, group: Group) {
        for file in group.joins {
            self.add(Role::Cgroup, file);
        }
        if let Some(directory) = group.directory {
            self.add(Role::CgroupDirectory, directory);
        }
        if let Some(counter) = group.oom {
            self.add(Role::OomCounter, counter);
        }
    }
}

/// The server's ends of a process's pipes, before they are put to use.
#[derive(Debug)]
pub(crate) struct ServerEnds {
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

/// Makes the three pipes of a process. Its ends, and copies of ours for the supervisor to keep,
/// go to `passed`. They belong to `owner`, the process's user and group on the host: programs open
/// `/dev/stdout` again, by a path, and need the right to.
pub(crate) fn pipes(passed: &mut Passed, owner: (u32, u32)) -> Result<ServerEnds, Error> {
    let failed = |error| Error::host("cannot make the process's pipes", error);
    let (user, group) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
    let pipe = || {
        let made = pipe_with(PipeFlags::CLOEXEC).and_then(|(read, write)| {
            rustix::fs::fchown(&read, Some(user), Some(group))?;
            Ok((read, write))
        });
        made.map_err(std::io::Error::from).map_err(failed)
    };
    let (their_stdin, stdin) = pipe()?;
    let (stdout, their_stdout) = pipe()?;
    let (stderr, their_stderr) = pipe()?;
    for (number, theirs, ours) in [
        (0, their_stdin, &stdin),
        (1, their_stdout, &stdout),
        (2, their_stderr, &stderr),
    ] {
        passed.add(Role::Stream(number), theirs);
        passed.add(Role::Keep(number), ours.try_clone().map_err(failed)?);
    }
    Ok(ServerEnds {
        stdin,
        stdout,
        stderr,
    })
}

/// Puts the server's ends to use. `instance` is the process that its supervisor knows.
pub(crate) fn streams(ends: ServerEnds, shim: &Shim, instance: &str) -> Result<Streams, Error> {
    let failed = |error| Error::host("cannot use the process's pipes", error);
    let stdin = writer(ends.stdin).map_err(failed)?;
    Ok(Streams {
        stdin: Some(input(stdin, shim, instance)),
        stdout: Output::start(Some(reader(ends.stdout).map_err(failed)?)),
        stderr: Output::start(Some(reader(ends.stderr).map_err(failed)?)),
    })
}

/// Puts a terminal to use: it is input and output in one.
pub(crate) fn terminal(master: OwnedFd, shim: &Shim, instance: &str) -> Result<Streams, Error> {
    let failed = |error| Error::host("cannot use the process's terminal", error);
    let stdin = writer(master.try_clone().map_err(failed)?).map_err(failed)?;
    Ok(Streams {
        stdin: Some(input(stdin, shim, instance)),
        stdout: Output::start(Some(reader(master).map_err(failed)?)),
        stderr: Output::start(None),
    })
}

fn input(writer: tokio::net::unix::pipe::Sender, shim: &Shim, instance: &str) -> Input {
    let shim = shim.clone();
    let instance = instance.to_owned();
    Input::start(writer, async move {
        // The supervisor holds the pipe open too, for a server that restarts.
        let _ = shim.close_stdin(&instance).await;
    })
}

/// The streams that a supervisor has kept while there was no server.
pub(crate) async fn kept(shim: &Shim, instance: &str) -> Result<Streams, Error> {
    let (kept, is_terminal) = shim.streams(instance).await?;
    let mut ends = [None, None, None];
    for (number, fd) in kept {
        if let Some(place) = ends.get_mut(usize::from(number)) {
            *place = Some(fd);
        }
    }
    let [stdin, stdout, stderr] = ends;
    if let (true, Some(master)) = (is_terminal, &stdin) {
        let master = master
            .try_clone()
            .map_err(|error| Error::host("cannot use the process's terminal", error))?;
        return terminal(master, shim, instance);
    }
    let failed = |error| Error::host("cannot use the process's pipes", error);
    let stdin = stdin.map(writer).transpose().map_err(failed)?;
    Ok(Streams {
        stdin: stdin.map(|stdin| input(stdin, shim, instance)),
        stdout: Output::start(stdout.map(reader).transpose().map_err(failed)?),
        stderr: Output::start(stderr.map(reader).transpose().map_err(failed)?),
    })
}

/// What a start is, beside its descriptors.
pub(crate) struct StartOrder<'a> {
    /// The supervisor's name for the process.
    pub(crate) instance: &'a str,
    /// What it is.
    pub(crate) kind: Kind,
    /// Its specification.
    pub(crate) spec: &'a Spec,
    /// Its capabilities.
    pub(crate) capabilities: Vec<String>,
    /// Whether it is privileged: then there is no seccomp program.
    pub(crate) privileged: bool,
    /// Its terminal's size.
    pub(crate) terminal: Option<(u16, u16)>,
}

/// Asks the supervisor. Returns the pid and, if there is a terminal, its master.
pub(crate) async fn start(
    shim: &Shim,
    order: StartOrder<'_>,
    passed: Passed,
) -> Result<(u32, Option<OwnedFd>), Error> {
    let spec = serde_json::to_string(order.spec)
        .map_err(|error| Error::host("cannot write the runtime specification", error))?;
    let start = Start {
        id: order.instance.to_owned(),
        kind: order.kind,
        spec,
        capabilities: order.capabilities,
        seccomp: !order.privileged,
        terminal: order.terminal,
        make_cwd: order.kind != Kind::Init,
        descriptors: passed.roles,
    };
    let fds: Vec<BorrowedFd<'_>> = passed.fds.iter().map(|fd| fd.as_fd()).collect();
    shim.start(start, &fds).await
}

/// The bind mounts that show a container or a pea the limits it has, read-only. On v1 they need
/// their own tmpfs, and privileged ones have none there, as in Guardian.
pub(crate) fn cgroup_views(
    cgroups: &Cgroups,
    place: &Place<'_>,
    privileged: bool,
) -> Vec<BindMount> {
    // A pea within its container's limits looks at those.
    let place = match place {
        Place::Nested { container, .. } => &Place::Container(container),
        other => other,
    };
    if privileged && !cgroups.is_pure_v2() {
        return Vec::new();
    }
    cgroups
        .views(place)
        .into_iter()
        .map(|(name, source)| BindMount {
            source,
            destination: Path::new("/sys/fs/cgroup").join(name),
            writable: false,
        })
        .collect()
}

/// How long the source of a bind mount may take to be opened.
const BIND_PATIENCE: Duration = Duration::from_secs(30);

/// Opens the sources and devices that a user or a plugin names, which may be on a file system that does not
/// answer any more: on a thread of its own, so that it takes nothing else along. The mounts are
/// numbered from `first` on.
///
/// # Errors
/// As [`open_binds`]; when it takes too long.
pub(crate) async fn open_asked(
    binds: Vec<BindMount>,
    devices: Vec<DeviceSpec>,
    first: usize,
) -> Result<(Vec<StagedBind>, Passed), Error> {
    if binds.is_empty() && devices.is_empty() {
        return Ok(Default::default());
    }
    let opened = on_own_thread("garden-bind", move || {
        let mut passed = Passed::default();
        let mut staged = open_binds(&binds, first, &mut passed)?;
        open_devices(&devices, first, &mut staged, &mut passed)?;
        Ok((staged, passed))
    });
    match tokio::time::timeout(BIND_PATIENCE, opened).await {
        Ok(Ok(opened)) => opened,
        Ok(Err(error)) => Err(Error::host("cannot open the bind mounts", error)),
        Err(elapsed) => Err(Error::host(
            "the source of a bind mount does not answer: is its file server down?",
            elapsed,
        )),
    }
}

/// Opens the sources of bind mounts. Blocks. The mounts go to `passed`, numbered from `first` on.
///
/// # Errors
/// When a source does not exist: the text says which.
pub(crate) fn open_binds(
    binds: &[BindMount],
    first: usize,
    passed: &mut Passed,
) -> Result<Vec<StagedBind>, Error> {
    use rustix::mount::{OpenTreeFlags, open_tree};
    let mut staged = Vec::with_capacity(binds.len());
    for (index, bind) in (first..).zip(binds) {
        let failed = |errno: rustix::io::Errno| {
            Error::Invalid(format!(
                "the source {} of a bind mount cannot be used ({}): it must exist on the host",
                bind.source.display(),
                std::io::Error::from(errno)
            ))
        };
        // A clone of the one mount, not of those below it; it stays in its peer group, so that
        // what is mounted below a shared source later appears inside.
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let mount = open_tree(rustix::fs::CWD, &bind.source, flags).map_err(failed)?;
        let bind = stage(&mount, index, bind.destination.clone(), bind.writable).map_err(failed)?;
        let directory = bind.directory;
        staged.push(bind);
        passed.add(Role::Bind { index, directory }, mount);
    }
    Ok(staged)
}

/// The devices that a container gets as binds: all, unless it may make nodes itself.
pub(crate) fn nodes(spec: &ContainerSpec) -> Vec<DeviceSpec> {
    if spec.privileged {
        return Vec::new();
    }
    spec.devices.clone()
}

/// Opens the nodes of devices, as binds: in a user namespace nobody can make a node. Blocks. The
/// mounts go to `passed`; the first of `staged` has the number `first`.
///
/// # Errors
/// When a node is not there any more, or has become another device's.
pub(crate) fn open_devices(
    devices: &[DeviceSpec],
    first: usize,
    staged: &mut Vec<StagedBind>,
    passed: &mut Passed,
) -> Result<(), Error> {
    use rustix::mount::{OpenTreeFlags, open_tree};
    for device in devices {
        let failed = |error: std::io::Error| {
            Error::Invalid(format!(
                "the device {} cannot be used any more ({error})",
                device.source.display()
            ))
        };
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let mount = open_tree(rustix::fs::CWD, &device.source, flags);
        let mount = File::from(mount.map_err(|errno| failed(errno.into()))?);
        let now = Node::of(&mount.metadata().map_err(failed)?);
        // What the container was given is a device, not whatever has the name.
        match (now, device.node) {
            (Some(now), Some(before)) if now.is_same_device(&before) => {}
            _ => return Err(failed(std::io::Error::other("it is another one now"))),
        }
        let mount = OwnedFd::from(mount);
        let index = first + staged.len();
        let bind = stage(&mount, index, device.destination.clone(), true)
            .map_err(|errno| failed(errno.into()))?;
        staged.push(bind);
        let directory = false;
        passed.add(Role::Bind { index, directory }, mount);
    }
    Ok(())
}

/// What the specification has to know of a mount that the supervisor will stage.
pub(crate) fn stage(
    mount: &OwnedFd,
    index: usize,
    destination: PathBuf,
    writable: bool,
) -> rustix::io::Result<StagedBind> {
    let stat = rustix::fs::fstat(mount)?;
    let directory =
        rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory;
    let flags = rustix::fs::fstatvfs(mount)?.f_flag;
    Ok(StagedBind {
        index,
        directory,
        destination,
        writable,
        inherited: inherited(flags),
    })
}

/// Flags of the source's mount that a user namespace may not clear.
fn inherited(flags: rustix::fs::StatVfsMountFlags) -> Vec<&'static str> {
    use rustix::fs::StatVfsMountFlags as Flags;
    [
        (Flags::NODEV, "nodev"),
        (Flags::NOEXEC, "noexec"),
        (Flags::NOSUID, "nosuid"),
        (Flags::NOATIME, "noatime"),
        (Flags::NODIRATIME, "nodiratime"),
        (Flags::RELATIME, "relatime"),
    ]
    .into_iter()
    .filter(|(flag, _)| flags.contains(*flag))
    .map(|(_, name)| name)
    .collect()
}
