//! Asking what a root filesystem uses: the work behind `Store::usage`.

use std::time::Duration;

use rustix::io::Errno;

use super::account::{self, Walked};
use super::usage::{Measured, Usage};
use crate::dirs;
use crate::error::{Error, Result, Step};
use crate::rootfs::check_id;
use crate::store::Store;

impl Store {
    /// What a root filesystem uses, in microseconds: it asks the kernel, or gives what the last
    /// walk in the background found; before the first one, that is nothing, as of its creation.
    /// Never waits for anything that removes, imports or walks.
    pub fn usage(&self, id: &str) -> Result<Usage> {
        let step = || format!("tell what the root filesystem {id:?} uses");
        let missing = || Error::NoSuchRootfs(id.to_owned());
        check_id(id).map_err(|_| missing())?;
        let directory = match dirs::directory(&self.inner.dirs.rootfs, id) {
            Err(Errno::NOENT) => return Err(missing()),
            other => other.step(step)?,
        };
        // Of another boot, or destroyed just now.
        let info = self.info(id).ok_or_else(missing)?;
        let walked = account::last(&directory);
        let counted = self.inner.quota.count(&directory).step(step)?;
        let (bytes, inodes, how) = match counted {
            Some(counted) => {
                let walked = walked.map_or(0, |walked| walked.inodes);
                let inodes = counted.inodes.unwrap_or(walked);
                (counted.bytes, inodes, Measured::Kernel)
            }
            // Nothing can be written, or it is not the store's.
            None if info.read_only || info.directory.is_some() => (
                0,
                0,
                Measured::Walk {
                    age: Duration::ZERO,
                },
            ),
            None => {
                let walked = walked.unwrap_or(Walked {
                    bytes: 0,
                    inodes: 0,
                    at_ms: info.created_ms,
                });
                let age = dirs::now_ms().saturating_sub(walked.at_ms);
                let how = Measured::Walk {
                    age: Duration::from_millis(age),
                };
                (walked.bytes, walked.inodes, how)
            }
        };
        Ok(Usage {
            exclusive_bytes: bytes,
            exclusive_inodes: inodes,
            base_bytes: info.base_bytes,
            base_inodes: info.base_inodes,
            quota_bytes: info.limit.bytes.unwrap_or(0),
            how,
        })
    }

    /// Walks through all root filesystems, if the kernel does not count them all by itself, so
    /// that [`Store::usage`] has new numbers. A server does so in the background; short-lived
    /// programs may, when nobody waits. Gives how many were walked through.
    pub fn count_usage(&self) -> usize {
        if !self.inner.quota.needs_walks() {
            return 0;
        }
        account::round(&self.inner.dirs, &|| false, &|_| ())
    }
}
