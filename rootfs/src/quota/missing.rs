//! Why the kernel does not count, in a form that can be remembered and shown.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why the kernel does not count what root filesystems use. Its text says what to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NotCounted {
    /// The store is on a file system without quota.
    FileSystem,
    /// XFS or ext4, without project quota.
    NoProjects,
    /// The store itself belongs to a project.
    InProject,
    /// There is no device node, which old kernels need.
    NoDevice,
    /// Every project id is taken.
    NoIds,
    /// btrfs, whose quota is switched off.
    SwitchedOff,
    /// The kernel refused.
    Refused,
}

impl fmt::Display for NotCounted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FileSystem => "the store is not on XFS, ext4 or btrfs",
            Self::NoProjects => {
                "project quota is not switched on: mount the store's file system with the option \
                 prjquota (ext4 also needs the features project and quota, see tune2fs)"
            }
            Self::InProject => {
                "the directory of the store itself belongs to a project: clear it (chattr -P -p 0), \
                 since nothing can be moved between projects"
            }
            Self::NoDevice => {
                "the device of the store's file system has no node in /dev, which kernels before \
                 Linux 5.14 need"
            }
            Self::NoIds => "no project id is free: choose another range of ids",
            Self::SwitchedOff => {
                "quota is not switched on for this btrfs: run btrfs quota enable --simple (without \
                 --simple before Linux 6.7) on the store's file system"
            }
            Self::Refused => {
                "the kernel refused quota: it needs CAP_SYS_ADMIN in the initial user namespace"
            }
        })
    }
}
