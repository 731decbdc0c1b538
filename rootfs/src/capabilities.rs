//! What this kernel and this disk can do for root filesystems.
//!
//! Probed once, when a store is opened, by trying: parsing of mount options without mounting, and
//! one id-mapped clone. Nothing is mounted with an upper directory, so that nothing syncs.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use garden_sys::userns::{self, IdRange};
use rustix::mount::{FsOpenFlags, fsconfig_set_fd, fsconfig_set_flag, fsconfig_set_string, fsopen};
use serde::{Deserialize, Serialize};

use crate::overlay;
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

/// What this kernel and this disk can do for root filesystems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Overlay mounts through file system contexts (Linux 5.2).
    pub overlay: bool,
    /// Overlays that never sync, and how they are asked for.
    pub volatile: Option<Volatile>,
    /// Layers given one by one (`lowerdir+`, Linux 6.7).
    pub layers_one_by_one: bool,
    /// Layers given as descriptors (Linux 6.13).
    pub layers_as_descriptors: bool,
    /// Mounts of the store's disk whose owners are mapped (Linux 5.12, and the file system).
    pub mapped_owners: bool,
    /// How what root filesystems use is counted and limited.
    pub quota: quota::Kind,
    /// Whether limits hold. `false` for projects that are only counted.
    pub quota_enforced: bool,
}

impl Capabilities {
    /// Tries everything. `directory` is any directory of the store.
    pub(crate) fn probe(directory: &OwnedFd, quota: &Quota) -> Self {
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
        Self {
            overlay: context().is_ok(),
            volatile,
            // Any directory will do: it is looked up, and nothing is mounted.
            layers_one_by_one: takes(&|context| fsconfig_set_string(context, "lowerdir+", "/")),
            layers_as_descriptors: takes(&|context| {
                fsconfig_set_fd(context, "lowerdir+", directory)
            }),
            mapped_owners: can_map(directory),
            quota: quota.kind(),
            quota_enforced: quota.enforces(),
        }
    }
}

fn can_map(directory: &OwnedFd) -> bool {
    let map = [IdRange {
        inside: 0,
        host: 1,
        size: 1,
    }];
    userns::create(&map, &map)
        .is_ok_and(|namespace| overlay::view(directory, Some(namespace.as_fd())).is_ok())
}
