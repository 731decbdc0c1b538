//! Files into and out of a running container, as one of its users.
//!
//! Each stream is a worker of its own: a forked child that joins the container's user and mount
//! namespaces by the descriptors that the shim holds, and becomes the user. From then on it is the
//! kernel that protects: whatever an archive or a link names, the worker reaches only what that user
//! could reach from a shell in the container, however its processes move things about meanwhile.
//! Nothing of the host is opened, no program is run, and the worker dies with its shim.

mod unpack;

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use garden_tar::pack;
use garden_wire::{Pack, Unpack};
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::thread::LinkNameSpaceType;

use crate::failure::{Result, Step as _, other};
use crate::sys;
use crate::worker::{self, Report};

/// What is moved at once: with less, the calls cost more than the copying.
const PIECE: usize = 256 << 10;

type Namespaces<'a> = &'a [(String, OwnedFd)];

/// Who a worker becomes, in ids of the container.
struct Identity<'a> {
    uid: u32,
    gid: u32,
    groups: &'a [u32],
}

/// Unpacks, reports, and ends the process.
pub(crate) fn unpack(
    request: &Unpack,
    stream: &OwnedFd,
    namespaces: Namespaces<'_>,
    report: BorrowedFd<'_>,
) -> ! {
    let identity = Identity {
        uid: request.uid,
        gid: request.gid,
        groups: &request.groups,
    };
    let done = enter(namespaces, &identity)
        .and_then(|()| make_destination(&request.destination))
        .and_then(|destination| become_user(&identity).map(|()| destination))
        .and_then(|destination| {
            let copy = stream.try_clone().step("cannot read the stream")?;
            unpack::all(File::from(copy), destination, request.owners)
        });
    let message = match done {
        Ok(()) => Report::Running(0),
        Err(failure) => Report::Failed(failure),
    };
    worker::finish(report, &message, &[])
}

/// Opens the source, reports, and packs; how that ended is written to `status`, [`garden_wire::PACKED`]
/// when all went well. Ends the process.
pub(crate) fn pack(
    request: &Pack,
    stream: &OwnedFd,
    status: &OwnedFd,
    namespaces: Namespaces<'_>,
    report: BorrowedFd<'_>,
) -> ! {
    let identity = Identity {
        uid: request.uid,
        gid: request.gid,
        groups: &request.groups,
    };
    let opened = enter(namespaces, &identity)
        .and_then(|()| become_user(&identity))
        .and_then(|()| {
            let opened = pack::Source::open(&request.source, request.follow);
            opened.map_err(|error| other(error.to_string()))
        });
    let source = match opened {
        Ok(source) => source,
        Err(failure) => worker::finish(report, &Report::Failed(failure), &[]),
    };
    if garden_wire::send(report, &Report::Running(0), &[]).is_err() {
        sys::exit(1);
    }
    let packed = if request.head {
        pack::head_only(&source, stream.as_fd())
    } else {
        pack::all(&source, stream.as_fd())
    };
    let told = match packed {
        Ok(()) => garden_wire::PACKED.to_vec(),
        Err(error) => error.to_string().into_bytes(),
    };
    // One write, shorter than a pipe: it cannot wait.
    let told = told.get(..told.len().min(2048)).unwrap_or_default();
    let written = rustix::io::write(status, told);
    sys::exit(i32::from(written.is_err()))
}

/// Joins the container, as its root with the user's groups.
fn enter(namespaces: Namespaces<'_>, identity: &Identity<'_>) -> Result<()> {
    let find = |wanted: &str| {
        namespaces
            .iter()
            .find(|(name, _)| name == wanted)
            .map(|(_, fd)| fd.as_fd())
            .ok_or_else(|| other("the container's init is gone"))
    };
    let join = |fd: BorrowedFd<'_>, kind| rustix::thread::move_into_link_name_space(fd, Some(kind));
    // A privileged container is in the host's user namespace, which cannot be joined again.
    match join(find("user")?, LinkNameSpaceType::User) {
        Ok(()) | Err(Errno::INVAL) => {}
        Err(errno) => return Err(errno).step("cannot join the user namespace"),
    }
    // This also moves the root and the working directory to the container's root.
    join(find("mount")?, LinkNameSpaceType::Mount).step("cannot join the mount namespace")?;
    rustix::process::chdir("/").step("cannot enter the container's root")?;
    let groups: Vec<Gid> = identity
        .groups
        .iter()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    rustix::thread::set_thread_groups(&groups).step("cannot take the groups")?;
    let gid = Gid::from_raw(identity.gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid).step("cannot take the group")?;
    // The user, but root can be had back: what is made now is the user's from its first moment, so
    // that no change of owner can be turned onto something else.
    let uid = Uid::from_raw(identity.uid);
    rustix::thread::set_thread_res_uid(uid, uid, Uid::ROOT).step("cannot take the user")?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    Ok(())
}

/// Gives up for good what [`enter`] kept.
fn become_user(identity: &Identity<'_>) -> Result<()> {
    let uid = Uid::from_raw(identity.uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid).step("cannot take the user")?;
    // After the change of user, which clears it: a worker must not outlive its shim.
    let kill = Some(rustix::process::Signal::KILL);
    rustix::process::set_parent_process_death_signal(kill).step("cannot tie the worker to its shim")
}

/// Opens a directory; missing parts are made, whoever may write there, and belong to the user.
fn make_destination(path: &str) -> Result<OwnedFd> {
    let raise = |capability| caps::raise(None, caps::CapSet::Effective, capability);
    raise(caps::Capability::CAP_DAC_OVERRIDE).step("cannot use the container's root")?;
    let failed = || format!("cannot make the directory {path}");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |at: BorrowedFd<'_>, part: &str| rustix::fs::openat(at, part, flags, Mode::empty());
    let mut at = open(rustix::fs::CWD, "/").step("cannot open the container's root")?;
    for part in path.split('/').filter(|part| !part.is_empty()) {
        at = match open(at.as_fd(), part) {
            Err(Errno::NOENT) => {
                match rustix::fs::mkdirat(&at, part, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno).step(&failed()),
                }
                open(at.as_fd(), part).step(&failed())?
            }
            opened => opened.step(&failed())?,
        };
    }
    Ok(at)
}
