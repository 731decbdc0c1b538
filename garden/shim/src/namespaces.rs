//! The namespaces of a pod that are made before its init is: user, network and IPC.
//!
//! A shim makes them as its first act, while the server is still busy with the root filesystem:
//! a network namespace is the most expensive of all that a container consists of. The init then
//! joins them by descriptor. They belong to this one pod; nothing of them is ever used again.
//!
//! libcontainer could make the user namespace too, but with more than one range it wants the
//! `newuidmap` programs of an unprivileged user. As root the maps are simply written: by the shim,
//! from outside, for a child that has nothing else to do than to be in the namespaces meanwhile.
//! The others are made by that child, so that they belong to the user namespace.

use std::os::fd::OwnedFd;

use garden_wire::IdRange;
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::PidfdFlags;

use crate::failure::{Result, Step as _, other};
use crate::sys;

/// Namespaces by their names in the OCI specification.
pub(crate) type Namespaces = Vec<(String, OwnedFd)>;

/// Namespaces that are made, and who was in them meanwhile.
pub(crate) struct Prepared {
    pub(crate) namespaces: Namespaces,
    /// The pidfd of a child that is ending, and is to be reaped.
    pub(crate) holder: OwnedFd,
}

/// Makes them: with a user namespace of these ids, or in the host's.
pub(crate) fn make(ids: Option<&[IdRange]>) -> Result<Prepared> {
    let (told, tell) = pipe_with(PipeFlags::CLOEXEC).step("cannot make a pipe")?;
    let (go, let_go) = pipe_with(PipeFlags::CLOEXEC).step("cannot make a pipe")?;
    match sys::fork().step("cannot fork for the namespaces")? {
        sys::Fork::Child => {
            drop((told, let_go));
            // Ends when the parent is done, or dead; what is in its way the parent says.
            let _ = hold(ids.is_some(), &tell, &go);
            sys::exit(0)
        }
        sys::Fork::Parent(pid) => {
            drop((tell, go));
            let holder = rustix::process::pidfd_open(pid, PidfdFlags::empty())
                .step("cannot get hold of the namespaces' holder")?;
            // The child ends with `let_go`.
            let namespaces = make_with(pid.as_raw_nonzero().get(), ids, &told, &let_go)?;
            Ok(Prepared { namespaces, holder })
        }
    }
}

/// The child: in new namespaces until its parent has them open.
fn hold(users: bool, tell: &OwnedFd, go: &OwnedFd) -> std::io::Result<()> {
    let mut word = [0_u8; 1];
    if users {
        sys::unshare_users()?;
        rustix::io::write(tell, b"u")?;
        if rustix::io::read(go, &mut word)? == 0 {
            return Ok(());
        }
    }
    sys::unshare_network_and_ipc()?;
    rustix::io::write(tell, b"n")?;
    sys::raise_loopback()?;
    rustix::io::write(tell, b"l")?;
    rustix::io::read(go, &mut word)?;
    Ok(())
}

fn make_with(
    pid: i32,
    ids: Option<&[IdRange]>,
    told: &OwnedFd,
    let_go: &OwnedFd,
) -> Result<Namespaces> {
    let expect = |text: &str| match rustix::io::read(told, &mut [0_u8; 1]) {
        Ok(1) => Ok(()),
        _ => Err(other(text)),
    };
    let mut names = Vec::new();
    if let Some(ids) = ids {
        expect(
            "cannot make a user namespace: does the host forbid it (sysctl \
             user.max_user_namespaces)?",
        )?;
        map(pid, ids)?;
        rustix::io::write(let_go, b"g").step("the holder of the new user namespace is gone")?;
        names.push(("user", "user"));
    }
    expect(
        "cannot make a network namespace: has the host no more (sysctl user.max_net_namespaces)?",
    )?;
    expect("cannot bring the loopback interface up")?;
    names.extend([("net", "network"), ("ipc", "ipc")]);
    names
        .into_iter()
        .map(|(file, name)| Ok((name.to_owned(), open(pid, file)?)))
        .collect()
}

fn map(pid: i32, ids: &[IdRange]) -> Result<()> {
    let lines: String = ids
        .iter()
        .map(|range| format!("{} {} {}\n", range.inside, range.outside, range.size))
        .collect();
    for file in ["uid_map", "gid_map"] {
        // In one write: the kernel takes a map only once.
        std::fs::write(format!("/proc/{pid}/{file}"), &lines).step(&format!(
            "cannot write the {file} of the new user namespace"
        ))?;
    }
    Ok(())
}

/// Opens a namespace of a process by its file name below `/proc/<pid>/ns`. The process must be one
/// that cannot have been reaped.
pub(crate) fn open(pid: i32, file: &str) -> Result<OwnedFd> {
    let path = format!("/proc/{pid}/ns/{file}");
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(&*path, flags, Mode::empty()).step(&format!("cannot open {path}"))
}
