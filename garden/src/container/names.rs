//! `/etc/hosts` and `/etc/resolv.conf` of a container.
//!
//! Two files in its directory in the depot, bound into the container and into each of its peas,
//! so that all of them see the same, and container root may edit them. They are made before the
//! container, and written again when the network knows its address; they are never replaced,
//! because what is bound is the file and not its place. What they say is `network::names`' to know.

use std::io::Write as _;
use std::os::fd::{BorrowedFd, OwnedFd};

use garden_net::dns;
use garden_wire::Role;
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::mount::{OpenTreeFlags, open_tree};

use super::launch::{self, Passed};
use crate::bundle::StagedBind;
use crate::error::Error;
use crate::model::Handle;
use crate::network::names::Contents;

/// In the depot, and inside.
const FILES: [(&str, &str); 2] = [("hosts", "/etc/hosts"), ("resolv.conf", "/etc/resolv.conf")];

/// Makes both in the container's directory, owned by `owner`, who is its root on the host.
///
/// Until there is an address, or where none ever comes, the name is the loopback's.
pub(crate) fn make(directory: BorrowedFd<'_>, handle: &Handle, owner: u32) -> Result<(), Error> {
    let hosts = dns::hosts(handle.as_str(), None, None, &[]);
    for (name, text) in [(FILES[0].0, hosts.as_str()), (FILES[1].0, "")] {
        let failed = |error| Error::host(format!("cannot make the container's {name}"), error);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o644);
        let file = rustix::fs::openat(directory, name, flags, mode)
            .map_err(|errno| failed(errno.into()))?;
        let mut file = std::fs::File::from(file);
        file.write_all(text.as_bytes()).map_err(failed)?;
        let (user, group) = (Uid::from_raw(owner), Gid::from_raw(owner));
        // The server's umask may be any.
        rustix::fs::fchmod(&file, mode)
            .and_then(|()| rustix::fs::fchown(&file, Some(user), Some(group)))
            .map_err(|errno| failed(errno.into()))?;
    }
    Ok(())
}

/// Writes what the network knows into both. They may be bound already, and are looked at.
pub(crate) fn write(directory: &OwnedFd, contents: &Contents) -> Result<(), Error> {
    for (name, text) in [
        (FILES[0].0, &contents.hosts),
        (FILES[1].0, &contents.resolv_conf),
    ] {
        let failed = |error| Error::host(format!("cannot write the container's {name}"), error);
        let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(directory, name, flags, Mode::empty())
            .map_err(|errno| failed(errno.into()))?;
        std::fs::File::from(file)
            .write_all(text.as_bytes())
            .map_err(failed)?;
    }
    Ok(())
}

/// Opens both for binding. Blocks. The mounts go to `passed`, numbered from `first` on.
///
/// A container of an earlier release has none.
pub(crate) fn open(
    directory: BorrowedFd<'_>,
    first: usize,
    passed: &mut Passed,
) -> Result<Vec<StagedBind>, Error> {
    let mut staged = Vec::with_capacity(FILES.len());
    for (name, destination) in FILES {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
        let failed = |errno: rustix::io::Errno| {
            let error = std::io::Error::from(errno);
            Error::host(format!("cannot open the container's {name}"), error)
        };
        let mount = match open_tree(directory, name, flags) {
            Ok(mount) => mount,
            Err(rustix::io::Errno::NOENT) => continue,
            Err(errno) => return Err(failed(errno)),
        };
        let index = first + staged.len();
        let bind = launch::stage(&mount, index, destination.into(), true).map_err(failed)?;
        let directory = bind.directory;
        passed.add(Role::Bind { index, directory }, mount);
        staged.push(bind);
    }
    Ok(staged)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn the_name_is_known_and_the_files_are_its_roots() {
        let place = tempfile::tempdir().unwrap();
        let directory = std::fs::File::open(place.path()).unwrap();
        let own = rustix::process::getuid().as_raw();
        let web = "web".parse().unwrap();
        make(directory.as_fd(), &web, own).unwrap();
        let read = |name| std::fs::read_to_string(place.path().join(name)).unwrap();
        assert_eq!(
            read("hosts"),
            "127.0.0.1 localhost\n::1 localhost\n127.0.0.1 web\n"
        );
        // Made once: what a container has must not be replaced under it.
        assert!(make(directory.as_fd(), &web, own).is_err());
        let contents = Contents {
            hosts: "10.254.0.2 web\n".to_owned(),
            resolv_conf: "nameserver 9.9.9.9\n".to_owned(),
        };
        write(&directory.into(), &contents).unwrap();
        assert_eq!(read("hosts"), contents.hosts);
        assert_eq!(read("resolv.conf"), contents.resolv_conf);
    }
}
