//! A new user namespace for a container, with its id maps.
//!
//! libcontainer makes one too, but with more than one range it wants the `newuidmap` programs
//! of an unprivileged user. As root the maps are simply written: by the worker, from outside,
//! for a child that has nothing else to do than to be in the namespace while that happens.

use std::os::fd::OwnedFd;

use libcontainer::oci_spec::runtime::LinuxIdMapping;
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::failure::{Result, Step as _, other};
use crate::sys;

/// Makes it and returns the descriptor that keeps it.
pub(crate) fn make(users: &[LinuxIdMapping], groups: &[LinuxIdMapping]) -> Result<OwnedFd> {
    let (made, tell_made) = pipe_with(PipeFlags::CLOEXEC).step("cannot make a pipe")?;
    let (go, tell_go) = pipe_with(PipeFlags::CLOEXEC).step("cannot make a pipe")?;
    match sys::fork().step("cannot fork for the user namespace")? {
        sys::Fork::Child => {
            drop((made, tell_go));
            if sys::unshare_users().is_ok() && rustix::io::write(&tell_made, b"m").is_ok() {
                // Ends when the parent is done, or dead.
                let _ = rustix::io::read(&go, &mut [0_u8; 1]);
            }
            sys::exit(0)
        }
        sys::Fork::Parent(pid) => {
            drop((tell_made, go));
            let namespace = match rustix::io::read(&made, &mut [0_u8; 1]) {
                Ok(1) => map(pid.as_raw_nonzero().get(), users, groups),
                _ => Err(other(
                    "cannot make a user namespace: does the host forbid it \
                     (sysctl user.max_user_namespaces)?",
                )),
            };
            drop(tell_go);
            let none = rustix::process::WaitOptions::empty();
            let _ = rustix::process::waitpid(Some(pid), none);
            namespace
        }
    }
}

fn map(pid: i32, users: &[LinuxIdMapping], groups: &[LinuxIdMapping]) -> Result<OwnedFd> {
    for (file, ranges) in [("uid_map", users), ("gid_map", groups)] {
        let lines: String = ranges
            .iter()
            .map(|r| format!("{} {} {}\n", r.container_id(), r.host_id(), r.size()))
            .collect();
        // In one write: the kernel takes a map only once.
        std::fs::write(format!("/proc/{pid}/{file}"), lines).step(&format!(
            "cannot write the {file} of the new user namespace"
        ))?;
    }
    let path = format!("/proc/{pid}/ns/user");
    rustix::fs::open(&*path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .step("cannot open the new user namespace")
}
