//! Root filesystems for programs that find them by a path on the host.
//!
//! Used by `garden rootfs`, whose callers hand a path to a runtime; a server of containers passes
//! descriptors and needs none of this. Such a root filesystem has a directory more, and a mount
//! that the host's mount table shows:
//!
//! ```text
//! STORE/rootfs/ID/rootfs/    where its mount is, and with it the whole root filesystem
//! ```
//!
//! Taking it away costs the same whatever was written: the mount is detached, and the directory with
//! all that is in it renamed into the trash. Nothing is ever removed through a mount: what removes
//! trees refuses to cross one.
//!
//! The store is closed to everybody but root. A runtime that has entered the user namespace of a
//! container is nobody there, and still must walk to the root filesystem: for it the way, and
//! nothing beside the way, is open to the group that is the container's root.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use garden_sys::mount::{Change, Propagation, set_attributes};
use garden_sys::userns::IdRange;
use rustix::fs::{AtFlags, CWD, Gid, Mode, StatVfsMountFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};

use crate::capabilities::Volatile;
use crate::dirs::{self, Lock};
use crate::error::{Error, Result, Step};
use crate::image::Image;
use crate::layers::TREE;
use crate::plugin::overlay::escape;
use crate::remove;
use crate::rootfs::{Mapping, Rootfs, check_id};
use crate::shifted;
use crate::store::Store;

/// The directory that a mount is attached to.
const MOUNT_POINT: &str = "rootfs";
const WORK: &str = "work";
/// Mounts on top of each other that are detached at most: only a mistake puts a second one there.
const MOST_MOUNTS: usize = 16;
/// How long the removal of a store waits for whoever empties its trash.
const PATIENCE: Duration = Duration::from_secs(30);
/// What mount(2) takes of its last argument, with the NUL at its end.
const PAGE: usize = 4096;

impl Store {
    /// Shows the mount of a root filesystem to the host, and returns where. `group` may walk there.
    pub fn attach(&self, rootfs: &Rootfs, group: Option<u32>) -> Result<PathBuf> {
        let step = || format!("attach the mount of the root filesystem {:?}", rootfs.id);
        let (directory, path) = self.mount_point(&rootfs.id, group)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&rootfs.mount, "", &directory, MOUNT_POINT, flags).step(step)?;
        // Below a shared mount it has become shared itself. What a runtime mounts in it is its own.
        let change = Change {
            propagation: Some(Propagation::Private),
            ..Change::default()
        };
        match set_attributes(&rootfs.mount, &change) {
            // Before Linux 5.12.
            Err(error) if error.raw_os_error() == Some(Errno::NOSYS.raw_os_error()) => {}
            other => other.step(step)?,
        }
        Ok(path)
    }

    /// Describes the overlay of a root filesystem for somebody else who mounts it, once: the path
    /// of an empty directory for it, and the option string of mount(2), whose paths are absolute.
    /// The mount that the root filesystem came with is given up.
    ///
    /// An option string cannot say that owners are mapped, so with a mapping the layers are copies
    /// whose owners are shifted. The copies are opened to `group`, and with them the way to the
    /// layers themselves, whose set-id programs belong to the host's users: that is refused unless
    /// the store is on a file system without set-id programs (`nosuid`).
    pub fn describe(
        &self,
        rootfs: Rootfs,
        image: &Image,
        mapping: &Mapping,
        group: Option<u32>,
    ) -> Result<(PathBuf, String)> {
        let Rootfs {
            id,
            mount,
            volatile,
            ..
        } = rootfs;
        let step = || format!("describe the root filesystem {id:?}");
        // Nobody has written to it, so this is quick even where it syncs.
        drop(mount);
        let (directory, path) = self.mount_point(&id, group)?;
        // The kernel has marked it: what a volatile mount used cannot be mounted again.
        remove::tree(&directory, WORK.as_ref(), &|| false).step(step)?;
        rustix::fs::mkdirat(&directory, WORK, Mode::RWXU).step(step)?;
        if let Some((uid, gid)) = root_of(mapping) {
            // Whoever mounts it works in it; where that is not allowed, the mount is read-only.
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(&directory, WORK, Some(uid), Some(gid), flags).step(step)?;
        }
        let around = path.parent().unwrap_or(&path);
        let layers = self.inner.dirs.path.join("layers");
        let mut options = String::from("lowerdir=");
        for (number, layer) in image.layers.iter().rev().enumerate() {
            if number > 0 {
                options.push(':');
            }
            options.push_str(&escaped(
                &layers.join(self.shown(&layer.key, mapping, group)?),
            ));
        }
        for (key, name) in [("upperdir", "upper"), ("workdir", WORK)] {
            options.push_str(&format!(",{key}="));
            options.push_str(&escaped(&around.join(name)));
        }
        match self.capabilities().volatile.filter(|_| volatile) {
            Some(Volatile::Flag) => options.push_str(",volatile"),
            Some(Volatile::Fsync) => options.push_str(",fsync=volatile"),
            None => {}
        }
        if options.len() >= PAGE {
            let text = format!(
                "its {} layers make an option string of {} bytes, and mount(2) takes less than \
                 {PAGE}: have it mounted here instead",
                image.layers.len(),
                options.len()
            );
            let error = io::Error::new(io::ErrorKind::InvalidInput, text);
            return Err(Error::host(step(), error));
        }
        Ok((path, options))
    }

    fn mount_point(&self, id: &str, group: Option<u32>) -> Result<(OwnedFd, PathBuf)> {
        let step = || format!("make the mount point of the root filesystem {id:?}");
        let id = check_id(id)?;
        let directory = dirs::directory(&self.inner.dirs.rootfs, id).step(step)?;
        match rustix::fs::mkdirat(&directory, MOUNT_POINT, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(Error::host(step(), error)),
        }
        if let Some(group) = group {
            let_pass(&directory, group).step(step)?;
        }
        let path = self
            .inner
            .dirs
            .path
            .join("rootfs")
            .join(id)
            .join(MOUNT_POINT);
        Ok((directory, path))
    }

    /// Detaches what is mounted for a root filesystem. Returns a descriptor of the mount, if there
    /// was one: where it is not volatile, whoever closes the last one waits for the disk, so it is
    /// best kept until the data is gone ([`Store::destroy_holding`]).
    pub fn detach(&self, id: &str) -> Result<Option<OwnedFd>> {
        let step = || format!("detach the mount of the root filesystem {id:?}");
        let id = check_id(id)?;
        let directory = match dirs::directory(&self.inner.dirs.rootfs, id) {
            Err(Errno::NOENT) => return Ok(None),
            other => other.step(step)?,
        };
        let mut pin = None;
        for _ in 0..MOST_MOUNTS {
            let open = OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
            let mounted = open_tree(&directory, MOUNT_POINT, open);
            // By the descriptor: the path may lead elsewhere by now.
            let path = format!("/proc/self/fd/{}/{MOUNT_POINT}", directory.as_raw_fd());
            match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                Ok(()) => pin = mounted.ok(),
                // Not a mount point (any more), or none was ever made.
                Err(Errno::INVAL | Errno::NOENT) => return Ok(pin),
                Err(error) => return Err(Error::host(step(), error)),
            }
        }
        Err(Error::host(step(), Errno::BUSY))
    }

    /// Whether a root filesystem is for programs that find it by its path, and so belongs to
    /// somebody else than the server of the store.
    pub fn is_for_host(&self, id: &str) -> bool {
        check_id(id)
            .is_ok_and(|id| dirs::exists(&self.inner.dirs.rootfs, &format!("{id}/{MOUNT_POINT}")))
    }

    /// The tree of a layer as somebody in a user namespace may mount it, in the directory of all
    /// layers.
    fn shown(&self, key: &str, mapping: &Mapping, group: Option<u32>) -> Result<String> {
        let Mapping::Mapped { uid, gid } = mapping else {
            return Ok(format!("{key}/{TREE}"));
        };
        let dirs = &self.inner.dirs;
        let step = || format!("show the layer {key} to a user namespace");
        let flags = rustix::fs::fstatvfs(&dirs.layers).step(step)?.f_flag;
        if !flags.contains(StatVfsMountFlags::NOSUID) {
            let text = "the store must be on a file system that is mounted with nosuid: make it with \
                        a size, or have root filesystems mounted here";
            let error = io::Error::new(io::ErrorKind::PermissionDenied, text);
            return Err(Error::host(step(), error));
        }
        let tree = shifted::tree(self, key, (uid, gid))?;
        if group.is_some() {
            // By anybody who came through the store's own directory. Not by the group: it has no
            // place in the mapping, and what has none cannot be entered where owners are mapped.
            let passable = Mode::RWXU | Mode::XGRP | Mode::XOTH;
            rustix::fs::fchmod(&dirs.layers, passable).step(step)?;
            let mut way = Path::new(&tree).parent();
            while let Some(part) = way.filter(|part| !part.as_os_str().is_empty()) {
                let directory =
                    rustix::fs::openat(&dirs.layers, part, dirs::DIRECTORY, Mode::empty());
                rustix::fs::fchmod(directory.step(step)?, passable).step(step)?;
                way = part.parent();
            }
        }
        Ok(tree)
    }

    /// Whether there is a root filesystem of this id.
    pub fn contains(&self, id: &str) -> bool {
        check_id(id).is_ok_and(|id| dirs::exists(&self.inner.dirs.rootfs, id))
    }

    /// Whether there is something in the trash, of this process or another.
    pub fn has_trash(&self) -> Result<bool> {
        let names = dirs::names(&self.inner.dirs.trash).step(|| "read the trash".to_owned())?;
        Ok(!names.is_empty())
    }

    /// Lets a group walk through the store to its root filesystems, and to nothing else.
    pub fn let_group_pass(&self, group: u32) -> Result<()> {
        let step = || format!("let the group {group} walk through the store");
        let root = rustix::fs::open(&self.inner.dirs.path, dirs::DIRECTORY, Mode::empty());
        let_pass(&root.step(step)?, group).step(step)?;
        let_pass(&self.inner.dirs.rootfs, group).step(step)
    }

    /// Whether there is a store at a path.
    pub fn is_at(path: &Path) -> bool {
        ["layers", "rootfs", "trash"]
            .iter()
            .all(|name| path.join(name).is_dir())
    }

    /// Removes everything in the directory of a store, whose mounts are detached before. The
    /// directory itself stays. Takes as long as unlinking takes. It is fine when it is not there.
    ///
    /// # Errors
    /// [`Error::StoreInUse`] while a server works in it.
    pub fn delete(path: &Path) -> Result<()> {
        let told = || format!("remove the store {}", path.display());
        let root = match rustix::fs::openat(CWD, path, dirs::DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(()),
            other => other.step(told)?,
        };
        let mut options = crate::StoreOptions::new(path);
        options.role = crate::Role::Tool;
        let store = Self::open(&options)?;
        let Some(_alone) = Lock::take(&store.inner.dirs, dirs::SERVER)? else {
            return Err(Error::StoreInUse(path.to_owned()));
        };
        let _quiet = wait_for_maintenance(&store)?;
        for id in dirs::names(&store.inner.dirs.rootfs).step(told)? {
            store.detach(&id)?;
        }
        for name in dirs::names(&root).step(told)? {
            remove::tree(&root, name.as_ref(), &|| false)
                .step(|| format!("remove {name:?} of the store {}", path.display()))?;
        }
        Ok(())
    }
}

/// Waits until nobody clears up, for some time: what two remove at once, both may stumble over.
fn wait_for_maintenance(store: &Store) -> Result<Option<Lock>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let lock = Lock::take(&store.inner.dirs, dirs::MAINTENANCE)?;
        if lock.is_some() || Instant::now() >= deadline {
            return Ok(lock);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Lets a group walk through a directory: neither list nor change it.
fn let_pass(directory: &impl AsFd, group: u32) -> rustix::io::Result<()> {
    let passable = Mode::RWXU | Mode::XGRP;
    let stat = rustix::fs::fstat(directory)?;
    if stat.st_gid == group && Mode::from_raw_mode(stat.st_mode) == passable {
        return Ok(());
    }
    rustix::fs::fchown(directory, None, Some(Gid::from_raw(group)))?;
    rustix::fs::fchmod(directory, passable)
}

/// Who the root inside is on the host, unless that is the host's root.
fn root_of(mapping: &Mapping) -> Option<(Uid, Gid)> {
    let Mapping::Mapped { uid, gid } = mapping else {
        return None;
    };
    let root = |ranges: &[IdRange]| {
        let range = ranges.iter().find(|range| range.inside == 0)?;
        Some(range.host)
    };
    Some((Uid::from_raw(root(uid)?), Gid::from_raw(root(gid)?)))
}

/// A path in an option string.
fn escaped(path: &Path) -> String {
    escape(&path.to_string_lossy())
}

/// Sees to it that processes which this one leaves behind inherit nothing but its standard streams.
pub fn keep_descriptors_from_children() {
    // Before Linux 5.11 there is no such call, and whoever runs us must have closed them.
    if let Err(error) = garden_sys::fds::close_on_exec() {
        tracing::debug!(%error, "descriptors may be inherited");
    }
}
