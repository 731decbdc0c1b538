//! A worker: the disposable process in which libcontainer makes one process of a pod.
//!
//! Forked by the supervisor for one [`Start`], ended after its report. What it does to itself
//! (mount namespace, working directory, dumpable flag) ends with it. The process that it makes
//! is cloned with `CLONE_PARENT` and so is a child of the shim.

use std::ffi::CString;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, IntoRawFd as _, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use garden_wire::{Failure, FailureKind, Kind, POD_NAMESPACES, Role, Start, bind_source};
use libcontainer::notify_socket::{NotifyListener, NotifySocket};
use libcontainer::oci_spec::runtime::{
    Capabilities, LinuxCapabilities, LinuxCapabilitiesBuilder, LinuxNamespaceType, PosixRlimitType,
    Spec, User,
};
use libcontainer::process::args::{ContainerArgs, ContainerType};
use libcontainer::process::container_main_process::container_main_process;
use libcontainer::syscall::syscall::SyscallType;
use serde::{Deserialize, Serialize};

use crate::executor::{GardenExecutor, Identity};
use crate::failure::{Result, Step as _, other};
use crate::mounts::{self, Mounts};
use crate::seccomp::Program;
use crate::{stage, sys};

/// What a worker tells its supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The process runs the user's program. With a terminal: its master goes along.
    Running(i32),
    /// It does not.
    Failed(Failure),
    /// What a probe has found; see [`garden_wire::Answer::Probed`].
    Probed {
        /// Whether that is as expected.
        passed: bool,
        /// The same for a person.
        message: String,
        /// When that was known.
        at_ns: u64,
    },
}

/// What a worker is given, beside the request.
pub(crate) struct Inputs<'a> {
    /// The request.
    pub(crate) start: &'a Start,
    /// The request's descriptors, in the order of its roles.
    pub(crate) descriptors: &'a [OwnedFd],
    /// The pod's namespaces by OCI type name; for its init those that are made already.
    pub(crate) namespaces: &'a [(String, OwnedFd)],
    /// The compiled seccomp program.
    pub(crate) seccomp: &'a Rc<Program>,
    /// The init program.
    pub(crate) init: BorrowedFd<'a>,
}

/// Does the work, reports, and ends the process.
pub(crate) fn main(inputs: &Inputs<'_>, report: BorrowedFd<'_>) -> ! {
    let (message, master) = match launch(inputs) {
        Ok((pid, master)) => (Report::Running(pid), master),
        Err(failure) => (Report::Failed(failure), None),
    };
    let descriptors: Vec<BorrowedFd<'_>> = master.iter().map(|fd| fd.as_fd()).collect();
    finish(report, &message, &descriptors)
}

/// Reports, and ends the process: the last that a worker does.
pub(crate) fn finish(
    report: BorrowedFd<'_>,
    message: &Report,
    descriptors: &[BorrowedFd<'_>],
) -> ! {
    let sent = garden_wire::send(report, message, descriptors);
    sys::exit(i32::from(sent.is_err()))
}

fn launch(inputs: &Inputs<'_>) -> Result<(i32, Option<OwnedFd>)> {
    let start = inputs.start;
    let spec: Spec = serde_json::from_str(&start.spec).step("cannot read the specification")?;
    let (spec, mounts) = match start.kind {
        Kind::Exec => (spec, Mounts::default()),
        Kind::Init | Kind::Pea => place_mounts(inputs, spec)?,
    };
    let (failures, report) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).step("cannot make a pipe")?;
    let (spec, executor) = prepare(inputs, spec, mounts, report.as_raw_fd())?;
    let console = match start.terminal {
        Some(_) => Some(garden_wire::socket_pair().step("cannot make a socket pair")?),
        None => None,
    };
    let console_socket = console.as_ref().map(|(_, theirs)| theirs.as_raw_fd());
    let arguments = container_args(inputs, spec, executor, report.as_raw_fd(), console_socket)?;
    let made = container_main_process(&arguments);
    // Our copy of the pipe's writing end must go, or its reading end never sees the execve.
    drop(report);
    let failure = read_failure(&failures)?;
    let pid = match (made, failure) {
        (_, Some(failure)) => return Err(failure),
        (Ok(pid), None) => pid.as_raw(),
        (Err(error), None) => return Err(libcontainer_failure(&error)),
    };
    let master = match console {
        Some((ours, _)) => Some(receive_master(ours.as_fd())?),
        None => None,
    };
    Ok((pid, master))
}

/// Attaches what libcontainer mounts from, in a namespace of this process's own, and takes the
/// other mounts, and the masked paths, out of the specification.
fn place_mounts(inputs: &Inputs<'_>, mut spec: Spec) -> Result<(Spec, Mounts)> {
    let start = inputs.start;
    stage::own_copy()?;
    let passed: Vec<(&Role, BorrowedFd<'_>)> = (start.descriptors.iter())
        .zip(inputs.descriptors)
        .map(|(role, fd)| (role, fd.as_fd()))
        .collect();
    let all = spec.mounts().clone().unwrap_or_default();
    let (left, mut ours) = mounts::split(all, &passed, start.terminal.is_some())?;
    for (role, fd) in passed {
        match role {
            Role::Rootfs => stage::attach_rootfs(fd)?,
            Role::Bind { index, directory } => {
                let source = PathBuf::from(bind_source(*index, *directory));
                if left
                    .iter()
                    .any(|mount| mount.source().as_ref() == Some(&source))
                {
                    stage::attach_bind(fd, *index, *directory)?;
                }
            }
            _ => {}
        }
    }
    if let Some(root) = spec.root_mut() {
        ours.read_only = root.readonly().unwrap_or(false);
        root.set_readonly(Some(false));
    }
    spec.set_mounts(Some(left));
    if let Some(linux) = spec.linux_mut() {
        ours.masked = linux.masked_paths().clone().unwrap_or_default();
        linux.set_masked_paths(None);
    }
    Ok((spec, ours))
}

/// Puts the pod's namespaces into the specification, and takes out what the executor does.
fn prepare(
    inputs: &Inputs<'_>,
    mut spec: Spec,
    mounts: Mounts,
    report: RawFd,
) -> Result<(Spec, GardenExecutor)> {
    let start = inputs.start;
    let mut linux = spec
        .linux()
        .clone()
        .ok_or_else(|| other("no linux section in the spec"))?;
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    for namespace in &mut namespaces {
        let path = namespace.path().as_ref().and_then(|path| path.to_str());
        let wanted = path.map(|path| {
            let name = path.strip_prefix(POD_NAMESPACES).unwrap_or(path);
            name.trim_start_matches('/')
        });
        let name = match wanted {
            Some(name) => name,
            None => match made_before(namespace.typ()) {
                Some(name) => name,
                None => continue,
            },
        };
        let (_, fd) = inputs
            .namespaces
            .iter()
            .find(|(known, _)| known == name)
            .ok_or_else(|| {
                other(format!(
                    "the pod has no {name} namespace (its init is gone)"
                ))
            })?;
        // `self` is the process that opens it, which inherits the descriptor: no pid is named
        // that could by now be another's.
        namespace.set_path(Some(PathBuf::from(format!(
            "/proc/self/fd/{}",
            fd.as_raw_fd()
        ))));
    }
    linux.set_namespaces(Some(namespaces));
    linux.set_uid_mappings(None).set_gid_mappings(None);
    linux.set_cgroups_path(Some(PathBuf::from(stage::DECOY_CGROUP)));
    linux.set_resources(None);
    let sysctls = linux.sysctl().clone().unwrap_or_default();
    linux.set_sysctl(None);
    spec.set_linux(Some(linux));

    let mut process = spec
        .process()
        .clone()
        .ok_or_else(|| other("no process in the spec"))?;
    let limits = process.rlimits().clone().unwrap_or_default();
    let directory = process.cwd().to_string_lossy().into_owned();
    let arguments = c_strings(process.args().as_deref().unwrap_or_default(), "argument")?;
    let environment = c_strings(
        process.env().as_deref().unwrap_or_default(),
        "environment entry",
    )?;
    let identity = Identity {
        user: process.user().uid(),
        group: process.user().gid(),
        groups: process.user().additional_gids().clone().unwrap_or_default(),
    };
    process.set_rlimits(None).set_capabilities(None);
    process.set_cwd(PathBuf::from("/"));
    process.set_user(User::default());
    // Without a home libcontainer asks glibc for it, which reads files of the image, and loads
    // libraries of the image that they name, in a process that holds descriptors of the host.
    process.set_env(Some(vec!["HOME=/".to_owned()]));
    spec.set_process(Some(process));

    let mut raised = Vec::new();
    for limit in &limits {
        let resource = resource(limit.typ())?;
        allow(resource, limit.hard())?;
        raised.push((resource, limit.hard()));
    }
    let executor = GardenExecutor {
        arguments,
        environment,
        mounts,
        identity,
        init: (start.kind == Kind::Init).then(|| inputs.init.as_raw_fd()),
        cgroups: roles(inputs, |role| matches!(role, Role::Cgroup)).collect(),
        seccomp: start.seccomp.then(|| Rc::clone(inputs.seccomp)),
        capabilities: capability_sets(&start.capabilities)?,
        limits: raised,
        sysctls: sysctls.into_iter().collect(),
        terminal: start.terminal,
        directory,
        make_directory: start.make_cwd,
        report,
    };
    Ok((spec, executor))
}

/// The name of a namespace that the supervisor makes before a container's init.
fn made_before(kind: LinuxNamespaceType) -> Option<&'static str> {
    match kind {
        LinuxNamespaceType::User => Some("user"),
        LinuxNamespaceType::Network => Some("network"),
        LinuxNamespaceType::Ipc => Some("ipc"),
        _ => None,
    }
}

fn c_strings(texts: &[String], what: &str) -> Result<Vec<CString>> {
    texts
        .iter()
        .map(|text| CString::new(text.as_str()).step(&format!("a zero byte in an {what}")))
        .collect()
}

fn roles<'a>(
    inputs: &'a Inputs<'_>,
    wanted: impl Fn(&Role) -> bool + 'a,
) -> impl Iterator<Item = RawFd> + 'a {
    inputs
        .start
        .descriptors
        .iter()
        .zip(inputs.descriptors)
        .filter(move |(role, _)| wanted(role))
        .map(|(_, fd)| fd.as_raw_fd())
}

fn container_args(
    inputs: &Inputs<'_>,
    spec: Spec,
    executor: GardenExecutor,
    report: RawFd,
    console_socket: Option<RawFd>,
) -> Result<ContainerArgs> {
    let stream = |number: u8| {
        roles(inputs, |role| *role == Role::Stream(number))
            .next()
            .map(|fd| rustix::io::fcntl_dupfd_cloexec(sys::borrow(fd), 3))
            .transpose()
            .map(|fd| fd.map(|fd| fd.into_raw_fd()))
            .step("cannot duplicate a standard stream")
    };
    let container_type = match inputs.start.kind {
        Kind::Exec => ContainerType::TenantContainer {
            // libcontainer closes it in the intermediate process and writes to it when the
            // new process fails before our executor runs.
            exec_notify_fd: report,
        },
        Kind::Init | Kind::Pea => ContainerType::InitContainer,
    };
    Ok(ContainerArgs {
        container_type,
        syscall: SyscallType::Linux,
        spec: Rc::new(spec),
        rootfs: PathBuf::from(stage::ROOTFS),
        console_socket,
        notify_listener: started_listener()?,
        preserve_fds: 0,
        container: None,
        // It is joined by path, like the others: see `namespaces`.
        user_ns_config: None,
        cgroup_config: libcgroups::common::CgroupConfig {
            cgroup_path: PathBuf::from(stage::DECOY_CGROUP),
            systemd_cgroup: false,
            container_name: String::new(),
        },
        detached: true,
        executor: Box::new(executor),
        no_pivot: false,
        stdin: stream(0)?,
        stdout: stream(1)?,
        stderr: stream(2)?,
        as_sibling: true,
        pid_file: None,
    })
}

/// A start socket to which the start has been sent already: the new process, which waits for
/// it when it is complete, goes on without a further round trip.
fn started_listener() -> Result<NotifyListener> {
    let path = format!("{}/{}", stage::RUN, std::process::id());
    let path = Path::new(&path);
    let listener = NotifyListener::new(path).step("cannot make the start socket")?;
    NotifySocket::new(path)
        .notify_container_start()
        .step("cannot use the start socket")?;
    std::fs::remove_file(path).step("cannot remove the start socket")?;
    Ok(listener)
}

/// Waits until the process has become the user's program, or told why not.
fn read_failure(failures: &OwnedFd) -> Result<Option<Failure>> {
    let mut text = Vec::new();
    let mut buffer = [0_u8; 4096];
    loop {
        match rustix::io::read(failures, &mut buffer) {
            Ok(0) => break,
            Ok(count) => text.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno).step("cannot read the new process's report"),
        }
    }
    if text.is_empty() {
        return Ok(None);
    }
    // libcontainer writes plain text here, our executor a serialised failure.
    let failure = serde_json::from_slice(&text)
        .unwrap_or_else(|_| other(String::from_utf8_lossy(&text).into_owned()));
    Ok(Some(failure))
}

fn libcontainer_failure(error: &dyn std::error::Error) -> Failure {
    let mut message = format!("cannot set the process up: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        message.push_str(": ");
        message.push_str(&cause.to_string());
        source = cause.source();
    }
    other(message)
}

/// Takes the terminal's master from libcontainer's message: one descriptor beside its name.
fn receive_master(socket: BorrowedFd<'_>) -> Result<OwnedFd> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
    let mut name = [0_u8; 64];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    rustix::net::recvmsg(
        socket,
        &mut [std::io::IoSliceMut::new(&mut name)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .step("cannot receive the terminal")?;
    control
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .ok_or_else(|| other("the terminal did not arrive"))
}

/// Effective, permitted and bounding are the given set; inheritable and ambient are empty, so
/// that a program run by another user than root starts with none.
fn capability_sets(names: &[String]) -> Result<LinuxCapabilities> {
    let mut set = Capabilities::new();
    for name in names {
        let value = serde_json::Value::from(name.as_str());
        set.insert(serde_json::from_value(value).step(&format!("unknown capability {name}"))?);
    }
    LinuxCapabilitiesBuilder::default()
        .bounding(set.clone())
        .effective(set.clone())
        .permitted(set)
        .inheritable(Capabilities::new())
        .ambient(Capabilities::new())
        .build()
        .step("cannot build the capability sets")
}

/// Makes room for a resource limit. In a user namespace a process can only lower its limits, so
/// that this one's own, which it inherits, must not be the lower ones.
fn allow(resource: rustix::process::Resource, wanted: u64) -> Result<()> {
    let own = rustix::process::getrlimit(resource);
    let Some(hard) = own.maximum.filter(|hard| wanted > *hard) else {
        return Ok(());
    };
    let raised = rustix::process::Rlimit {
        current: own.current,
        maximum: Some(wanted),
    };
    rustix::process::setrlimit(resource, raised).map_err(|errno| Failure {
        kind: FailureKind::ResourceLimit,
        message: format!(
            "the resource limit {} of {wanted} is above the server's own of {hard}, which \
             it may not raise ({errno}): ask for less, or give the server CAP_SYS_RESOURCE and, \
             for open files, a higher sysctl fs.nr_open",
            format!("{resource:?}").to_lowercase()
        ),
    })
}

fn resource(kind: PosixRlimitType) -> Result<rustix::process::Resource> {
    use rustix::process::Resource;
    Ok(match kind {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    })
}
