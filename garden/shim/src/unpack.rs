//! Unpacks a tar stream inside the container, as one of its users.
//!
//! Runs in a forked child that has joined the container's user and mount namespaces and then
//! become the user: whatever the archive names, it can only reach what that user could reach
//! from a shell in the container. Ownership in the archive is ignored, the process's umask is
//! applied to its modes.

use std::fs::File;
use std::io::BufReader;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use garden_wire::Unpack;
use rustix::thread::LinkNameSpaceType;

use crate::failure::{Result, Step as _, other};
use crate::sys;
use crate::worker::Report;

/// Does the work, reports, and ends the process.
pub(crate) fn main(
    request: &Unpack,
    stream: &OwnedFd,
    namespaces: &[(String, OwnedFd)],
    report: BorrowedFd<'_>,
) -> ! {
    let message = match enter(request, namespaces).and_then(|()| extract(request, stream)) {
        Ok(()) => Report::Running(0),
        Err(failure) => Report::Failed(failure),
    };
    let sent = garden_wire::send(report, &message, &[]);
    sys::exit(i32::from(sent.is_err()))
}

fn enter(request: &Unpack, namespaces: &[(String, OwnedFd)]) -> Result<()> {
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
        Ok(()) | Err(rustix::io::Errno::INVAL) => {}
        Err(errno) => return Err(errno).step("cannot join the user namespace"),
    }
    join(find("mount")?, LinkNameSpaceType::Mount).step("cannot join the mount namespace")?;
    rustix::process::chdir("/").step("cannot enter the container's root")?;
    rustix::thread::set_thread_groups(&[]).step("cannot drop the groups")?;
    let gid = rustix::fs::Gid::from_raw(request.gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid).step("cannot take the group")?;
    let uid = rustix::fs::Uid::from_raw(request.uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid).step("cannot take the user")?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    Ok(())
}

fn extract(request: &Unpack, stream: &OwnedFd) -> Result<()> {
    let destination = Path::new(&request.destination);
    std::fs::create_dir_all(destination).step(&format!(
        "cannot make the directory {}",
        request.destination
    ))?;
    let copy = stream.try_clone().step("cannot read the stream")?;
    let reader = BufReader::with_capacity(256 * 1024, File::from(copy));
    let mut archive = tar::Archive::new(reader);
    archive.set_preserve_permissions(false);
    archive.set_overwrite(true);
    archive
        .unpack(destination)
        .step(&format!("cannot unpack into {}", request.destination))?;
    // To the end: the sender's last blocks would otherwise meet a closed pipe.
    let mut rest = archive.into_inner();
    std::io::copy(&mut rest, &mut std::io::sink()).step("cannot read the stream's end")?;
    Ok(())
}
