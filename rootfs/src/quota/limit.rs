//! What a root filesystem may grow to, in the words of callers, and what becomes of it.
//!
//! Arithmetic only; used by the creation of root filesystems before anything is made.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// No limit on bytes is smaller: a root filesystem needs some for itself.
const LEAST_BYTES: u64 = 256 * 1024;
/// No limit on inodes is smaller: directories and records of its own take about eight.
const LEAST_INODES: u64 = 16;
/// No limit is larger: some file systems refuse what does not fit a signed number.
const MOST: u64 = 1 << 62;

/// What the bytes of a [`DiskLimit`] count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The layers of the image and what is written: the image's size is taken off the limit.
    #[default]
    Total,
    /// Only what is written.
    Exclusive,
}

/// How large a root filesystem may become. The default is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskLimit {
    /// Bytes. What is written may always have 256 KiB.
    pub bytes: Option<u64>,
    /// Files, directories and so on that are made or changed; never those of the image. At least
    /// 16, of which up to eight are the root filesystem's own.
    pub inodes: Option<u64>,
    /// What `bytes` counts.
    pub scope: Scope,
}

/// What to do with a limit where nothing can enforce it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WithoutQuota {
    /// Refuse to make the root filesystem: [`Error::NoQuota`].
    Refuse,
    /// Make it, say in the answer that the limit does not hold, and count what is used.
    #[default]
    Account,
}

/// Who holds a root filesystem to its limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Enforced {
    /// There is no limit.
    #[default]
    None,
    /// The kernel does: writing fails with `ENOSPC` (XFS) or `EDQUOT` (ext4, btrfs).
    Kernel,
    /// The kernel holds it to the bytes, but only counts the inodes.
    BytesOnly {
        /// What is missing.
        why: String,
    },
    /// Nobody: what is used is only counted.
    Accounted {
        /// What is missing, and what to do about it.
        why: String,
    },
}

/// The limit of a root filesystem as it was made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedLimit {
    /// The most bytes that may be written, without those of the image.
    pub bytes: Option<u64>,
    /// The most inodes that may be made.
    pub inodes: Option<u64>,
    /// Whether it holds.
    pub enforced: Enforced,
}

impl DiskLimit {
    /// Whether nothing is limited.
    pub fn is_none(&self) -> bool {
        self.bytes.is_none() && self.inodes.is_none()
    }

    /// The limits on what is written, above an image of `base` bytes.
    pub(super) fn on_writes(&self, base: u64) -> Result<AppliedLimit> {
        let bytes = match (self.bytes, self.scope) {
            (Some(limit), Scope::Total) => {
                let rest = limit.checked_sub(base);
                Some(rest.ok_or(Error::DiskLimitTooSmall {
                    limit,
                    volume: base,
                })?)
            }
            (bytes, _) => bytes,
        };
        Ok(AppliedLimit {
            bytes: bytes.map(|bytes| bytes.clamp(LEAST_BYTES, MOST)),
            inodes: self.inodes.map(|inodes| inodes.clamp(LEAST_INODES, MOST)),
            enforced: Enforced::None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(limit: u64, scope: Scope, base: u64) -> Result<Option<u64>> {
        let limit = DiskLimit {
            bytes: Some(limit),
            inodes: None,
            scope,
        };
        limit.on_writes(base).map(|applied| applied.bytes)
    }

    #[test]
    fn an_inclusive_limit_counts_the_image() {
        let mib = 1 << 20;
        assert_eq!(
            bytes(10 * mib, Scope::Total, 4 * mib).unwrap(),
            Some(6 * mib)
        );
        assert_eq!(
            bytes(10 * mib, Scope::Exclusive, 4 * mib).unwrap(),
            Some(10 * mib)
        );
        assert_eq!(
            bytes(4 * mib, Scope::Total, 4 * mib).unwrap(),
            Some(LEAST_BYTES)
        );
        assert_eq!(bytes(1, Scope::Exclusive, mib).unwrap(), Some(LEAST_BYTES));
        assert_eq!(bytes(u64::MAX, Scope::Total, 0).unwrap(), Some(MOST));
    }

    #[test]
    fn a_limit_below_the_image_names_both_numbers() {
        let error = bytes(99, Scope::Total, 100).unwrap_err();
        assert!(matches!(
            error,
            Error::DiskLimitTooSmall {
                limit: 99,
                volume: 100
            }
        ));
        let text = error.to_string();
        assert!(text.starts_with("disk limit is smaller than volume size"));
        assert!(text.contains("99") && text.contains("100"), "{text}");
    }

    #[test]
    fn inodes_never_count_the_image() {
        let limit = DiskLimit {
            inodes: Some(3),
            ..DiskLimit::default()
        };
        let applied = limit.on_writes(u64::MAX).unwrap();
        assert_eq!((applied.bytes, applied.inodes), (None, Some(LEAST_INODES)));
        assert!(!limit.is_none() && DiskLimit::default().is_none());
    }
}
