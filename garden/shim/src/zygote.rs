//! The zygote: prepares once what every shim needs, then forks a shim whenever the server asks.
//!
//! It ends when the server's end of its socket closes. The shims do not: each is in a session of
//! its own, and belongs to nobody but its pod.

use std::os::fd::{AsFd as _, OwnedFd};
use std::process::ExitCode;
use std::rc::Rc;

use garden_wire::{IdRange, PROTOCOL, ZygoteReply, ZygoteRequest};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::process::{PidfdFlags, WaitId, WaitIdOptions};

use crate::failure::{Result, Step as _, other};
use crate::seccomp::Program;
use crate::supervisor::Supervisor;
use crate::{namespaces, seccomp, stage, sys};

/// The container's init, built by `build.rs`.
const INIT_PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/garden-init"));

/// The zygote's command line: the server's socket is its standard input.
pub(crate) struct Options {
    cgroup2: Option<String>,
}

impl Options {
    /// Reads `[--cgroup2 PATH] [--tag TAG]`. The tag is for people and tools that look for the
    /// supervisors of one server: every shim shows its zygote's command line.
    pub(crate) fn parse(
        mut arguments: impl Iterator<Item = String>,
    ) -> std::result::Result<Self, String> {
        let mut options = Self { cgroup2: None };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--cgroup2" => {
                    let path = arguments.next().ok_or("--cgroup2 needs a path")?;
                    options.cgroup2 = Some(path);
                }
                "--tag" => {
                    arguments.next().ok_or("--tag needs a tag")?;
                }
                unknown => return Err(format!("unknown argument {unknown}")),
            }
        }
        Ok(options)
    }
}

/// What every shim inherits.
struct Prepared {
    seccomp: Rc<Program>,
    init: Rc<OwnedFd>,
}

/// What it is told of a new pod.
struct Pod<'a> {
    /// For logs and the process title.
    handle: &'a str,
    /// The ids of its user namespace; `None`: it has none of its own.
    ids: Option<&'a [IdRange]>,
}

/// Runs the zygote until the server is gone.
pub(crate) fn run(options: &Options) -> ExitCode {
    // Whatever the server's own parent left open would otherwise live as long as any pod.
    if let Err(error) = sys::close_from(3) {
        sys::log(&format!(
            "garden-shim: cannot close inherited descriptors: {error}"
        ));
        return ExitCode::FAILURE;
    }
    if let Err(failure) = seal_self() {
        sys::log(&format!("garden-shim: {}", failure.message));
        return ExitCode::FAILURE;
    }
    let socket = match take_socket() {
        Ok(socket) => socket,
        Err(failure) => {
            sys::log(&format!("garden-shim: {}", failure.message));
            return ExitCode::FAILURE;
        }
    };
    let prepared = match prepare(options) {
        Ok(prepared) => prepared,
        Err(failure) => {
            let reply = ZygoteReply::Failed {
                message: failure.message,
            };
            let _ = garden_wire::send(socket.as_fd(), &reply, &[]);
            return ExitCode::FAILURE;
        }
    };
    let ready = ZygoteReply::Ready {
        protocol: PROTOCOL,
        seccomp_instructions: prepared.seccomp.len(),
    };
    if garden_wire::send(socket.as_fd(), &ready, &[]).is_err() {
        return ExitCode::FAILURE;
    }
    serve(&socket, &prepared)
}

/// Goes on as a copy of this program in a sealed memory file, unless it is one already.
///
/// On its way into a container a process is for a moment this program, with `/proc/<pid>/exe`
/// within reach of a privileged container's root, who is the host's: what it can open there it
/// could write to later, and the next start would run what it wrote (CVE-2019-5736).
fn seal_self() -> Result<()> {
    const NAME: &str = "garden-shim";
    let own = std::fs::read_link("/proc/self/exe").step("cannot find this program's file")?;
    if own.to_string_lossy().starts_with("/memfd:") {
        // The kernel has named the process after the memory file.
        return std::fs::write("/proc/self/comm", NAME).step("cannot name this process");
    }
    let mut program =
        std::fs::File::open("/proc/self/exe").step("cannot open this program's file")?;
    let copy = sealed_copy(NAME, &mut program)?;
    let strings = |texts: &mut dyn Iterator<Item = std::ffi::OsString>| {
        texts
            .map(|text| std::ffi::CString::new(text.into_encoded_bytes()))
            .collect::<std::result::Result<Vec<_>, _>>()
            .step("a zero byte on the command line")
    };
    let arguments = strings(&mut std::env::args_os())?;
    let error = sys::execute_file(copy.as_fd(), &arguments, &[]);
    Err(other(format!(
        "cannot go on as a copy of this program: {error}"
    )))
}

/// A memory file with the content of another file, that nobody can change any more.
fn sealed_copy(name: &str, content: &mut dyn std::io::Read) -> Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = rustix::fs::memfd_create(name, flags)
        .step(&format!("cannot make a memory file for {name}"))?;
    let mut file = std::fs::File::from(file);
    std::io::copy(content, &mut file).step(&format!("cannot copy {name}"))?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(0o755)).step("cannot set its mode")?;
    let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals).step(&format!("cannot seal {name}"))?;
    Ok(file.into())
}

/// Moves the socket away from standard input, which processes of containers will use.
fn take_socket() -> Result<OwnedFd> {
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)
        .step("standard input is not the server's socket")?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .step("cannot open /dev/null")?;
    rustix::stdio::dup2_stdin(&null).step("cannot replace standard input")?;
    rustix::stdio::dup2_stdout(&null).step("cannot replace standard output")?;
    Ok(socket)
}

fn prepare(options: &Options) -> Result<Prepared> {
    let seccomp = seccomp::compile()?;
    stage::enter(options.cgroup2.as_deref())?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    Ok(Prepared {
        seccomp: Rc::new(seccomp),
        init: Rc::new(sealed_copy("garden-init", &mut &*INIT_PROGRAM)?),
    })
}

fn serve(socket: &OwnedFd, prepared: &Prepared) -> ExitCode {
    loop {
        let received = match garden_wire::receive::<ZygoteRequest>(socket.as_fd()) {
            Ok(received) => received,
            Err(garden_wire::PacketError::Closed) => {
                collect_the_ending();
                return ExitCode::SUCCESS;
            }
            Err(error) => {
                sys::log(&format!(
                    "garden-shim: the server's request is unusable: {error}"
                ));
                return ExitCode::FAILURE;
            }
        };
        reap();
        let ZygoteRequest::Spawn { handle, ids } = received.value;
        let pod = Pod {
            handle: &handle,
            ids: ids.as_deref(),
        };
        let sent = match spawn(socket, prepared, received.descriptors, &pod) {
            Ok((pid, pidfd)) => garden_wire::send(
                socket.as_fd(),
                &ZygoteReply::Spawned { pid },
                &[pidfd.as_fd()],
            ),
            Err(failure) => {
                let reply = ZygoteReply::Failed {
                    message: failure.message,
                };
                garden_wire::send(socket.as_fd(), &reply, &[])
            }
        };
        if sent.is_err() {
            return ExitCode::SUCCESS;
        }
    }
}

/// Collects shims that have ended since the last request.
fn reap() {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    while let Ok(Some(_)) = rustix::process::waitid(WaitId::All, options) {}
}

/// Collects shims that are ending right now: a server that dissolves has just told them to. Those
/// that stay are adopted by the host's init.
fn collect_the_ending() {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    for _ in 0..20 {
        match rustix::process::waitid(WaitId::All, options) {
            Err(_) => return,
            Ok(Some(_)) => {}
            Ok(None) => std::thread::sleep(std::time::Duration::from_millis(5)),
        }
    }
}

fn spawn(
    socket: &OwnedFd,
    prepared: &Prepared,
    descriptors: Vec<OwnedFd>,
    pod: &Pod<'_>,
) -> Result<(u32, OwnedFd)> {
    let mut descriptors = descriptors.into_iter();
    let (Some(listener), Some(records)) = (descriptors.next(), descriptors.next()) else {
        return Err(other("a shim needs its socket and its record directory"));
    };
    match sys::fork().step("cannot fork a shim")? {
        sys::Fork::Parent(pid) => {
            let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())
                .step("cannot get hold of the new shim")?;
            Ok((pid.as_raw_nonzero().get().unsigned_abs(), pidfd))
        }
        sys::Fork::Child => {
            // The zygote's socket must close with the zygote and the server, not live on here.
            sys::close_inherited(socket);
            become_shim(prepared, listener, records, pod)
        }
    }
}

fn become_shim(prepared: &Prepared, listener: OwnedFd, records: OwnedFd, pod: &Pod<'_>) -> ! {
    let handle = pod.handle;
    let title: String = format!("gn:{handle}").chars().take(15).collect();
    let _ = std::fs::write("/proc/self/comm", title);
    let setup = rustix::process::setsid()
        .map_err(std::io::Error::from)
        .and_then(|_| sys::become_subreaper());
    if let Err(error) = setup {
        sys::log(&format!(
            "garden-shim: cannot set up the shim of {handle}: {error}"
        ));
        sys::exit(1);
    }
    let seccomp = Rc::clone(&prepared.seccomp);
    let init = Rc::clone(&prepared.init);
    // Before anything is asked of it: the server is not done with the root filesystem by then.
    let namespaces = namespaces::make(pod.ids);
    Supervisor::new(listener, records, seccomp, init, namespaces).run();
    sys::exit(0)
}
