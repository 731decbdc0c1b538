//! What is free on the disk of a store.
//!
//! Measured by `statfs(2)`: only the disk knows what others write to it. Inodes run out as bytes
//! do, where the file system has a fixed number of them.

use serde::Serialize;

use super::Amount;
use crate::dirs::Dirs;
use crate::error::{Result, Step};

/// An amount of space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Space {
    /// Bytes.
    Bytes(u64),
    /// Hundredths of the disk: of its bytes, and of its inodes.
    Percent(u8),
}

/// When to begin to make room, and when to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct WaterMarks {
    /// With less free than this, room is made,
    pub low: Space,
    /// until so much is free.
    pub high: Space,
}

impl Default for WaterMarks {
    fn default() -> Self {
        Self {
            low: Space::Percent(5),
            high: Space::Percent(10),
        }
    }
}

/// The disk of a store, as it is for somebody without special rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// All of it.
    pub total_bytes: u64,
    /// What can still be written.
    pub free_bytes: u64,
    /// How many inodes it has; 0 where there is no fixed number.
    pub total_inodes: u64,
    /// How many more can be made.
    pub free_inodes: u64,
}

impl Disk {
    /// Measures it.
    pub(crate) fn look(dirs: &Dirs) -> Result<Self> {
        let disk = rustix::fs::fstatvfs(&dirs.root)
            .step(|| format!("measure the disk of the store {}", dirs.path.display()))?;
        Ok(Self {
            total_bytes: disk.f_blocks.saturating_mul(disk.f_frsize),
            free_bytes: disk.f_bavail.saturating_mul(disk.f_frsize),
            total_inodes: disk.f_files,
            free_inodes: disk.f_favail,
        })
    }

    /// What is missing to the high mark, once `coming` bytes more are free; `None` when there is
    /// more free than the low one.
    pub(super) fn missing(&self, marks: WaterMarks, coming: u64) -> Option<Amount> {
        let (low, high) = (self.mark(marks.low), self.mark(marks.high));
        let short = self.free_bytes < low.bytes || self.free_inodes < low.inodes;
        let soon = self.free_bytes.saturating_add(coming);
        // What goes below only one of the two marks says nothing about the other.
        let bytes = match self.free_bytes < low.bytes {
            true => high.bytes.max(low.bytes).saturating_sub(soon),
            false => 0,
        };
        let inodes = match self.free_inodes < low.inodes {
            true => high.inodes.max(low.inodes).saturating_sub(self.free_inodes),
            false => 0,
        };
        short.then_some(Amount { bytes, inodes })
    }

    /// Whether there is less than the low mark.
    pub(crate) fn is_short(&self, marks: WaterMarks) -> bool {
        self.missing(marks, 0).is_some()
    }

    fn mark(&self, space: Space) -> Amount {
        match space {
            Space::Bytes(bytes) => Amount { bytes, inodes: 0 },
            Space::Percent(percent) => {
                let percent = u64::from(percent.min(100));
                Amount {
                    bytes: self.total_bytes / 100 * percent,
                    inodes: self.total_inodes / 100 * percent,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_made_from_the_low_mark_to_the_high_one() {
        let disk = |free_bytes, free_inodes| Disk {
            total_bytes: 1000,
            free_bytes,
            total_inodes: 500,
            free_inodes,
        };
        let marks = WaterMarks {
            low: Space::Percent(10),
            high: Space::Percent(20),
        };
        let amount = |bytes, inodes| Some(Amount { bytes, inodes });
        assert_eq!(disk(100, 50).missing(marks, 0), None);
        assert_eq!(disk(99, 50).missing(marks, 0), amount(101, 0));
        assert_eq!(disk(99, 50).missing(marks, 60), amount(41, 0));
        assert_eq!(disk(99, 50).missing(marks, 600), amount(0, 0));
        assert_eq!(disk(100, 49).missing(marks, 0), amount(0, 51));
        let without = Disk {
            total_inodes: 0,
            free_inodes: 0,
            ..disk(99, 0)
        };
        assert_eq!(without.missing(marks, 0), amount(101, 0));
        let bytes = WaterMarks {
            low: Space::Bytes(10),
            high: Space::Bytes(5),
        };
        assert_eq!(disk(9, 0).missing(bytes, 0), amount(1, 0));
    }
}
