//! The last steps of a process before it becomes the user's program.
//!
//! libcontainer calls this in the new process, which already has its namespaces and its root, and
//! is root with every capability of its user namespace. The order matters and is the security of
//! the thing:
//!
//! 0. the mounts, and the settings of a container's new namespaces; the terminal; then the user and
//!    the groups of the process, with the capabilities kept,
//! 1. the working directory (made if asked for) while it can still be entered,
//! 2. the cgroups: from here on the container's limits apply, and not earlier,
//! 3. resource limits,
//! 4. the seccomp program, while the capability for it is held (`no_new_privs` is off by
//!    default, because setuid programs must work),
//! 5. the capability sets, reduced to what the process may have,
//! 6. execve. It closes every descriptor above 2: all are close-on-exec by then.
//!
//! What fails is reported through a pipe that the successful execve closes.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::RawFd;

use garden_wire::{Failure, FailureKind};
use libcontainer::capabilities::{drop_privileges, reset_effective};
use libcontainer::oci_spec::runtime::{LinuxCapabilities, Spec};
use libcontainer::syscall::syscall::create_syscall;
use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};

use rustix::process::{Gid, Uid};

use crate::failure::{Result, Step as _, other};
use crate::mounts::Mounts;
use crate::seccomp::Program;
use crate::{sys, terminal};

/// What the executor does; descriptors by number, because it crosses libcontainer's clones.
#[derive(Clone)]
pub(crate) struct GardenExecutor {
    /// The program and its arguments.
    pub(crate) arguments: Vec<CString>,
    /// Its environment, in its order.
    pub(crate) environment: Vec<CString>,
    /// What is mounted, and what is hidden, before anything else.
    pub(crate) mounts: Mounts,
    /// Whose process it is.
    pub(crate) identity: Identity,
    /// The program of a container's init; `None`: what the specification names.
    pub(crate) init: Option<RawFd>,
    /// cgroup files to join by writing `0`.
    pub(crate) cgroups: Vec<RawFd>,
    /// The seccomp program, unless privileged.
    pub(crate) seccomp: Option<std::rc::Rc<Program>>,
    /// The final capability sets.
    pub(crate) capabilities: LinuxCapabilities,
    /// Resource limits: number, soft and hard value.
    pub(crate) limits: Vec<(rustix::process::Resource, u64)>,
    /// Settings of the new namespaces of a container's init: name and value.
    pub(crate) sysctls: Vec<(String, String)>,
    /// The size of its terminal, if it has one.
    pub(crate) terminal: Option<(u16, u16)>,
    /// The working directory.
    pub(crate) directory: String,
    /// Whether it is made when missing.
    pub(crate) make_directory: bool,
    /// Where a failure is written.
    pub(crate) report: RawFd,
}

/// A user with its groups, as the inside of a container counts them.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    /// The user.
    pub(crate) user: u32,
    /// Its group.
    pub(crate) group: u32,
    /// All other groups.
    pub(crate) groups: Vec<u32>,
}

impl Identity {
    /// Becomes it. The capabilities are kept: the executor needs them, and reduces them itself.
    fn assume(&self) -> Result<()> {
        let (user, group) = (Uid::from_raw(self.user), Gid::from_raw(self.group));
        let groups: Vec<Gid> = self.groups.iter().copied().map(Gid::from_raw).collect();
        // Also when there are none: those of the server are not the container's.
        rustix::thread::set_thread_groups(&groups).step("cannot set the supplementary groups")?;
        let changed = rustix::thread::set_keep_capabilities(true)
            .and_then(|()| rustix::thread::set_thread_res_gid(group, group, group))
            .and_then(|()| rustix::thread::set_thread_res_uid(user, user, user))
            .and_then(|()| rustix::thread::set_keep_capabilities(false));
        changed.step(&format!(
            "cannot become user {} and group {}",
            self.user, self.group
        ))?;
        reset_effective(create_syscall().as_ref()).step("cannot keep the capabilities")
    }
}

impl GardenExecutor {
    fn become_program(&self) -> Failure {
        if let Err(failure) = self.prepare() {
            return failure;
        }
        match self.init {
            Some(init) => {
                let program = sys::borrow(init);
                let error = sys::execute_file(program, &self.arguments, &self.environment);
                other(format!("cannot start the container's init: {error}"))
            }
            None => execute(&self.arguments, &self.environment),
        }
    }

    fn prepare(&self) -> Result<()> {
        self.mounts.make()?;
        for (name, value) in &self.sysctls {
            // Of the procfs that has just been mounted for the container.
            let path = format!("/proc/sys/{}", name.replace('.', "/"));
            std::fs::write(path, value).step(&format!("cannot set {name} to {value}"))?;
        }
        if let Some(size) = self.terminal {
            terminal::hand_over(size, self.identity.user).step("cannot hand the terminal over")?;
        }
        self.identity.assume()?;
        self.enter_directory()?;
        for file in &self.cgroups {
            rustix::io::write(sys::borrow(*file), b"0").step("cannot join the cgroup")?;
        }
        for (resource, value) in &self.limits {
            let limit = rustix::process::Rlimit {
                current: Some(*value),
                maximum: Some(*value),
            };
            rustix::process::setrlimit(*resource, limit).step(&format!(
                "cannot set the resource limit {resource:?} to {value}"
            ))?;
        }
        if let Some(program) = &self.seccomp {
            sys::load_seccomp(program).step("cannot load the seccomp program")?;
        }
        drop_privileges(&self.capabilities, create_syscall().as_ref())
            .step("cannot reduce the capabilities")
    }

    fn enter_directory(&self) -> Result<()> {
        let failed = |error: std::io::Error| Failure {
            kind: FailureKind::WorkingDirectory,
            message: format!(
                "cannot enter the working directory {}: {error}",
                self.directory
            ),
        };
        if self.make_directory {
            match std::fs::create_dir_all(&self.directory) {
                // Something is there; entering it tells what is wrong with it, if anything is.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                made => made.map_err(failed)?,
            }
        }
        std::env::set_current_dir(&self.directory).map_err(failed)?;
        // A directory that leaked in from the host would be outside this root; the kernel says
        // so (CVE-2024-21626).
        match rustix::process::getcwd(Vec::new()) {
            Ok(path) if path.as_bytes().starts_with(b"/") => Ok(()),
            _ => Err(Failure {
                kind: FailureKind::WorkingDirectory,
                message: format!(
                    "the working directory {} is outside the root",
                    self.directory
                ),
            }),
        }
    }
}

/// Looks the program up and becomes it. Returns only a failure.
fn execute(arguments: &[CString], environment: &[CString]) -> Failure {
    let Some(name) = arguments.first().and_then(|first| first.to_str().ok()) else {
        return other("the executable's name is empty or not UTF-8");
    };
    if name.is_empty() {
        return not_found(name, "no executable was named");
    }
    if name.contains('/') {
        let Ok(path) = CString::new(name) else {
            return not_found(name, "a zero byte");
        };
        return explain(name, name, &sys::execute(&path, arguments, environment));
    }
    let search = environment
        .iter()
        .rev()
        .find_map(|entry| entry.to_str().ok()?.strip_prefix("PATH="))
        .unwrap_or("/usr/local/bin:/usr/bin:/bin");
    let mut refused = None;
    for directory in search
        .split(':')
        .filter(|directory| directory.starts_with('/'))
    {
        let candidate = format!("{}/{name}", directory.trim_end_matches('/'));
        let Ok(path) = CString::new(candidate.as_str()) else {
            continue;
        };
        let error = sys::execute(&path, arguments, environment);
        let absent = matches!(
            error.raw_os_error(),
            Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ENAMETOOLONG)
        );
        if !absent || std::fs::symlink_metadata(&candidate).is_ok() {
            refused.get_or_insert_with(|| explain(name, &candidate, &error));
        }
    }
    refused.unwrap_or_else(|| not_found(name, "executable file not found in $PATH"))
}

fn explain(name: &str, path: &str, error: &std::io::Error) -> Failure {
    let missing = error.raw_os_error() == Some(libc::ENOENT);
    if missing && std::fs::metadata(path).is_err() {
        return not_found(name, &format!("stat {path}: no such file or directory"));
    }
    let hint = if missing {
        " (its interpreter or loader is not in the image)"
    } else if error.raw_os_error() == Some(libc::ENOEXEC) {
        " (not a program of this machine, or a script without #!)"
    } else {
        ""
    };
    Failure {
        kind: FailureKind::NotExecutable,
        message: format!("exec: \"{name}\": {path}: {error}{hint}"),
    }
}

/// The wording is the one that clients of Guardian match.
fn not_found(name: &str, detail: &str) -> Failure {
    Failure {
        kind: FailureKind::ExecutableNotFound,
        message: format!("unable to start container process: exec: \"{name}\": {detail}"),
    }
}

impl Executor for GardenExecutor {
    fn exec(&self, _: &Spec) -> std::result::Result<(), ExecutorError> {
        let failure = self.become_program();
        let text = serde_json::to_vec(&failure).unwrap_or_default();
        let _ = rustix::io::write(sys::borrow(self.report), &text);
        // Not an error to libcontainer: it would report it a second time, as text, and its
        // own ending runs the exit handlers of the cloned process.
        sys::exit(127)
    }

    fn validate(&self, _: &Spec) -> std::result::Result<(), ExecutorValidationError> {
        Ok(())
    }

    fn setup_envs(
        &self,
        _: HashMap<String, String>,
    ) -> std::result::Result<(), ExecutorSetEnvsError> {
        // The environment goes to execve as the specification has it: its order is kept.
        Ok(())
    }
}
