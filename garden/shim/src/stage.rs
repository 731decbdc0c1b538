//! The zygote's mount namespace: a small root of its own, and the stage for pods' mounts.
//!
//! Shims and workers inherit it. It holds what creating a container needs and nothing else, for
//! two reasons: libcontainer reads the mount table several times a create, and every mount that
//! is visible here would be copied into (and pinned by) each new container's namespace.
//!
//! ```text
//! /                 tmpfs
//! /proc  /sys       fresh, so that a container's user namespace may mount its own
//! /dev              the host's, for binding device nodes
//! /sys/fs/cgroup    see `mount_cgroup`
//! /stage/rootfs     where a worker attaches a root filesystem, in a namespace of its own
//! /stage/bind/N     where it attaches the mounts to bind from
//! /run              start sockets of libcontainer
//! ```

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use garden_wire::bind_source;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};

use crate::failure::{Result, Step as _};
use crate::sys;

/// Where a worker attaches the root filesystem.
pub(crate) const ROOTFS: &str = "/stage/rootfs";
/// Where libcontainer's start sockets are made.
pub(crate) const RUN: &str = "/run";
/// The cgroup path that specifications give to libcontainer; see [`mount_cgroup`].
pub(crate) const DECOY_CGROUP: &str = "/launch";

/// Makes the namespace and moves this process into it.
pub(crate) fn enter(cgroup2: Option<&str>) -> Result<()> {
    let devices = open_tree("/dev", true).step("cannot take a copy of the mounts below /dev")?;
    let cgroup = match cgroup2 {
        Some(path) => Some(
            open_tree(path, false)
                .step(&format!("cannot take a copy of the cgroup mount at {path}"))?,
        ),
        None => None,
    };
    sys::unshare_mounts().step("cannot make a mount namespace")?;
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::REC | MountPropagationFlags::PRIVATE,
    )
    .step("cannot make the new mount namespace private")?;
    let root = new_mount("tmpfs", &[("mode", "0755"), ("size", "4m")])
        .step("cannot make a tmpfs for the new root")?;
    for directory in [
        "proc",
        "sys",
        "dev",
        "run",
        "stage",
        "stage/rootfs",
        "stage/bind",
        "old",
    ] {
        rustix::fs::mkdirat(&root, directory, Mode::from_raw_mode(0o755))
            .step(&format!("cannot make /{directory}"))?;
    }
    // A place that surely exists; only this namespace sees what happens to it.
    attach(root.as_fd(), "/proc").step("cannot attach the new root")?;
    rustix::process::chdir("/proc").step("cannot enter the new root")?;
    let proc = new_mount("proc", &[]).step("cannot mount proc")?;
    let sysfs = new_mount("sysfs", &[]).step("cannot mount sysfs")?;
    rustix::process::pivot_root(".", "old").step("cannot change the root")?;
    rustix::process::chdir("/").step("cannot enter the new root")?;
    attach(proc.as_fd(), "/proc").step("cannot attach proc")?;
    attach(sysfs.as_fd(), "/sys").step("cannot attach sysfs")?;
    attach(devices.as_fd(), "/dev").step("cannot attach the device nodes")?;
    rustix::mount::unmount("/old", UnmountFlags::DETACH).step("cannot leave the old root")?;
    rustix::fs::unlinkat(CWD, "/old", rustix::fs::AtFlags::REMOVEDIR)
        .step("cannot remove the old root's place")?;
    mount_cgroup(cgroup)
}

/// Gives libcontainer a cgroup hierarchy in which joining does nothing.
///
/// Garden makes the cgroups and the process joins them itself, as its very last step before it
/// becomes the user's program: so a container's limits neither slow nor count its own set-up.
/// libcontainer insists on moving the process too, before the set-up. It decides by the type of
/// `/sys/fs/cgroup`: seeing cgroup2 it makes one write to `<path>/cgroup.procs`, which here is
/// a plain file. Where the host has no cgroup2 at all, an empty tmpfs makes it find a v1 host
/// without controllers, which costs it a look at the mount table for each of twelve.
fn mount_cgroup(cgroup2: Option<OwnedFd>) -> Result<()> {
    let Some(cgroup2) = cgroup2 else {
        let empty = new_mount("tmpfs", &[("size", "4k")]).step("cannot make a tmpfs")?;
        return attach(empty.as_fd(), "/sys/fs/cgroup").step("cannot attach /sys/fs/cgroup");
    };
    attach(cgroup2.as_fd(), "/sys/fs/cgroup").step("cannot attach /sys/fs/cgroup")?;
    let decoy =
        new_mount("tmpfs", &[("mode", "0755"), ("size", "16k")]).step("cannot make a tmpfs")?;
    rustix::fs::openat(
        &decoy,
        "cgroup.procs",
        OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::from_raw_mode(0o600),
    )
    .step("cannot make the file that stands for cgroup.procs")?;
    let place = format!("/sys/fs/cgroup{DECOY_CGROUP}");
    match rustix::fs::mkdir(&place, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(errno) => return Err(errno).step(&format!("cannot make the cgroup {place}")),
    }
    attach(decoy.as_fd(), &place).step("cannot attach the file that stands for cgroup.procs")
}

/// Attaches a pod's root filesystem. Call it in a mount namespace of the worker's own.
pub(crate) fn attach_rootfs(mount: BorrowedFd<'_>) -> Result<()> {
    attach(mount, ROOTFS).step("cannot attach the root filesystem")
}

/// Attaches the mount that a specification binds from [`bind_source`]`(index, directory)`.
pub(crate) fn attach_bind(mount: BorrowedFd<'_>, index: usize, directory: bool) -> Result<()> {
    // The places are shared by all workers; what is mounted on them is not.
    let place = bind_source(index, directory);
    let made = if directory {
        rustix::fs::mkdir(&place, Mode::from_raw_mode(0o755))
    } else {
        let flags = OFlags::CREATE | OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::open(&*place, flags, Mode::from_raw_mode(0o644)).map(drop)
    };
    match made {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(errno) => return Err(errno).step(&format!("cannot make {place} to mount on")),
    }
    attach(mount, &place).step(&format!("cannot attach a bind mount at {place}"))
}

fn open_tree(path: &str, recursive: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(CWD, Path::new(path), flags)
}

fn new_mount(kind: &str, options: &[(&str, &str)]) -> rustix::io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(context.as_fd(), "source", kind)?;
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    rustix::mount::fsconfig_create(context.as_fd())?;
    rustix::mount::fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
}

fn attach(mount: BorrowedFd<'_>, place: &str) -> rustix::io::Result<()> {
    rustix::mount::move_mount(
        mount,
        "",
        CWD,
        place,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
}

/// Gives this process a copy of the namespace that nobody else sees.
pub(crate) fn own_copy() -> Result<()> {
    sys::unshare_mounts().step("cannot make a mount namespace")
}
