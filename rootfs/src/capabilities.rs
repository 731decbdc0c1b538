//! What this kernel and this disk can do for root filesystems.
//!
//! Probed once for each boot, when a store is opened, by trying: parsing of mount options without
//! mounting, and mounts without an upper directory, so that nothing syncs. The only thing looked
//! up in a table is the name of the file system.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use garden_sys::mount::{Change, set_attributes};
use garden_sys::userns::{self, IdRange};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsOpenFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_fd, fsconfig_set_flag,
    fsconfig_set_string, fsopen, open_tree,
};
use serde::{Deserialize, Serialize};

use crate::dirs::Dirs;
use crate::mount::{MOST_LAYERS, Mounter};
use crate::quota::{self, Quota};

/// How an overlay is asked not to sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Volatile {
    /// The option `volatile` (Linux 5.10).
    Flag,
    /// The option `fsync=volatile` (Linux 7.0 and stable 6.18.21), where the older is gone.
    Fsync,
}

/// The type of a file system (`statfs(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileSystem {
    /// ext4, or its elders ext2 and ext3, which have the same number.
    Ext4,
    /// XFS.
    Xfs,
    /// btrfs.
    Btrfs,
    /// tmpfs.
    Tmpfs,
    /// Another overlay, as in a container.
    Overlay,
    /// Any other, by its number.
    Other(u64),
}

/// What this kernel and this disk can do for root filesystems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// The file system of the store.
    pub file_system: FileSystem,
    /// Overlay mounts (Linux 5.10, the module `overlay`).
    pub overlay: bool,
    /// The most layers of an image; one fewer for a read-only root filesystem.
    pub most_layers: u32,
    /// Overlays that never sync, and how they are asked for.
    pub volatile: Option<Volatile>,
    /// Layers given one by one (`lowerdir+`, Linux 6.7).
    pub layers_one_by_one: bool,
    /// Layers given as descriptors (Linux 6.13).
    pub layers_as_descriptors: bool,
    /// Layers given as descriptors of mounts that are in no namespace (Linux 6.15): everything is
    /// mounted by descriptors. Otherwise a thread with a mount namespace of its own mounts.
    pub detached_layers: bool,
    /// Attributes of a mount can be changed before it is attached (Linux 5.12).
    pub mount_attributes: bool,
    /// Overlays of layers whose owners a mount maps (Linux 5.19, and the file system of the
    /// store). Otherwise there is a copy of each layer for each mapping.
    pub mapped_owners: bool,
    /// File systems in a plain file, without a loop device (EROFS, Linux 6.12).
    pub erofs_files: bool,
    /// Copies of files that share their blocks.
    pub reflink: bool,
    /// Lookups that cannot leave a directory (`openat2(2)`, Linux 5.6); nothing is unpacked
    /// without.
    pub openat2: bool,
    /// How what root filesystems use is counted and limited.
    pub quota: quota::Kind,
    /// Whether limits hold. `false` for projects that are only counted.
    pub quota_enforced: bool,
}

/// What is not to be used although this host has it.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pretend {
    /// Layers as descriptors.
    pub no_descriptors: bool,
    /// Mapped owners.
    pub no_mapped_owners: bool,
    /// Mounts that never sync.
    pub no_volatile: bool,
    /// Changes of detached mounts.
    pub no_mount_attributes: bool,
    /// Copies that share blocks.
    pub no_reflink: bool,
}

impl Capabilities {
    /// Tries everything.
    pub(crate) fn probe(dirs: &Arc<Dirs>, quota: &Quota, pretend: Pretend) -> Self {
        let context = || fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC);
        let takes = |test: &dyn Fn(BorrowedFd<'_>) -> rustix::io::Result<()>| {
            context().is_ok_and(|context| test(context.as_fd()).is_ok())
        };
        let volatile = if takes(&|context| fsconfig_set_flag(context, "volatile")) {
            Some(Volatile::Flag)
        } else if takes(&|context| fsconfig_set_string(context, "fsync", "volatile")) {
            Some(Volatile::Fsync)
        } else {
            None
        };
        let by_descriptors = Mounter::new(dirs, true);
        let detached_layers = !pretend.no_descriptors && by_descriptors.probe(None).is_ok();
        let by_paths;
        let mounter = if detached_layers {
            &by_descriptors
        } else {
            by_paths = Mounter::new(dirs, false);
            &by_paths
        };
        Self {
            file_system: file_system(&dirs.root),
            overlay: detached_layers || mounter.probe(None).is_ok(),
            most_layers: u32::try_from(MOST_LAYERS).unwrap_or(u32::MAX),
            volatile: volatile.filter(|_| !pretend.no_volatile),
            // Any directory will do: it is looked up, and nothing is mounted.
            layers_one_by_one: takes(&|context| fsconfig_set_string(context, "lowerdir+", "/")),
            layers_as_descriptors: !pretend.no_descriptors
                && takes(&|context| fsconfig_set_fd(context, "lowerdir+", &dirs.tmp)),
            detached_layers,
            mount_attributes: !pretend.no_mount_attributes && changes_detached(&dirs.tmp),
            mapped_owners: !pretend.no_mapped_owners && maps_owners(mounter),
            erofs_files: mounts_files(&dirs.tmp),
            reflink: !pretend.no_reflink && clones_files(&dirs.tmp).unwrap_or(false),
            openat2: resolves_beneath(&dirs.tmp),
            quota: quota.kind(),
            quota_enforced: quota.enforces(),
        }
    }
}

fn file_system(directory: &OwnedFd) -> FileSystem {
    let number = rustix::fs::fstatfs(directory).map_or(0, |stat| stat.f_type.cast_unsigned());
    // linux/magic.h
    match number {
        0xef53 => FileSystem::Ext4,
        0x5846_5342 => FileSystem::Xfs,
        0x9123_683e => FileSystem::Btrfs,
        0x0102_1994 => FileSystem::Tmpfs,
        0x794c_7630 => FileSystem::Overlay,
        other => FileSystem::Other(other),
    }
}

fn maps_owners(mounter: &Mounter) -> bool {
    let map = [IdRange {
        inside: 0,
        host: 1,
        size: 1,
    }];
    userns::create(&map, &map)
        .is_ok_and(|namespace| mounter.probe(Some(Arc::new(namespace))).is_ok())
}

fn changes_detached(directory: &OwnedFd) -> bool {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(directory, "", flags)
        .is_ok_and(|clone| set_attributes(&clone, &Change::default()).is_ok())
}

/// An empty file is no file system (`EINVAL`); where files are not mounted, it is no block device.
fn mounts_files(directory: &OwnedFd) -> bool {
    let tried = || {
        let file = unnamed(directory)?;
        file.set_len(65536).map_err(|_| Errno::IO)?;
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let context = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "source", path)?;
        fsconfig_set_flag(&context, "ro")?;
        fsconfig_create(&context)
    };
    tried() == Err(Errno::INVAL)
}

fn clones_files(directory: &OwnedFd) -> std::io::Result<bool> {
    let (from, to) = (unnamed(directory)?, unnamed(directory)?);
    from.write_all_at(&[1; 4096], 0)?;
    Ok(rustix::fs::ioctl_ficlone(&to, &from).is_ok())
}

fn unnamed(directory: &OwnedFd) -> rustix::io::Result<File> {
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::openat(directory, ".", flags, mode).map(File::from)
}

fn resolves_beneath(directory: &OwnedFd) -> bool {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH;
    rustix::fs::openat2(directory, ".", flags, Mode::empty(), resolve).is_ok()
}
