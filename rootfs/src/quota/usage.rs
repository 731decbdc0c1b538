//! What a root filesystem uses, as callers see it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How a [`Usage`] is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measured {
    /// The kernel counts: XFS and ext4 at once, btrfs as of its last commit (at most 30 s ago).
    Kernel,
    /// The store has looked through the files.
    Walk {
        /// How long ago. Zero for what cannot change.
        age: Duration,
    },
}

/// What a root filesystem uses.
///
/// One definition for all: the *base* are the bytes in the regular files of the image's layers,
/// fixed when they were unpacked; what is *exclusive* are the blocks that are allocated for what
/// was written, changed files of the image and a few directories and records of the root
/// filesystem's own included; the total is both together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes allocated for what was written.
    pub exclusive_bytes: u64,
    /// Files, directories and so on that were made or changed. On btrfs, whose quota does not
    /// count them, as of the last walk through the files.
    pub exclusive_inodes: u64,
    /// Bytes of the image.
    pub base_bytes: u64,
    /// Files, directories and so on of the image.
    pub base_inodes: u64,
    /// The most bytes that may be written: the limit, without what the image takes of it. 0 is
    /// unlimited.
    pub quota_bytes: u64,
    /// How the exclusive bytes are known.
    pub how: Measured,
}

impl Usage {
    /// Bytes of the image and of what was written.
    pub fn total_bytes(&self) -> u64 {
        self.base_bytes.saturating_add(self.exclusive_bytes)
    }

    /// Inodes of the image and of what was written.
    pub fn total_inodes(&self) -> u64 {
        self.base_inodes.saturating_add(self.exclusive_inodes)
    }

    /// Bytes that the image takes and that writing may take.
    pub fn committed_bytes(&self) -> u64 {
        self.base_bytes.saturating_add(self.quota_bytes)
    }
}
