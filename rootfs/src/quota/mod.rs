//! Quota and usage of root filesystems.
//!
//! What there is depends on the file system of the store and is found out once, by trying, when it
//! is opened: projects (XFS, ext4), subvolumes (btrfs), or nothing. Every root filesystem, limited
//! or not, is set up for counting before anything is in it, so that its numbers are true from the
//! first byte. What the kernel does not count is counted by walks in the background. Asking for
//! usage never walks, never waits for the trash, and starts no program.
//!
//! Used by the creation of root filesystems, by the trash (for their end), and by the store.

mod account;
mod allocate;
mod btrfs;
mod limit;
mod measure;
mod missing;
mod project;
mod usage;
mod walk;

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

pub(crate) use account::watch;
pub use limit::{AppliedLimit, DiskLimit, Enforced, Scope, WithoutQuota};
pub use missing::NotCounted;
pub use usage::{Measured, Usage};

use crate::dirs::{self, Dirs};
use crate::error::{Error, Result, Step};
use crate::rootfs::RECORD;
use crate::staging::Staged;
use crate::store::StoreOptions;
use crate::trash::{Trash, WhenGone};
use project::Projects;

/// Where project ids come from when nobody says: far above what people give by hand.
pub(crate) const PROJECT_IDS: Range<u32> = 1 << 30..1 << 31;

/// What making a root filesystem may take on btrfs beyond its limit: until it commits, it reserves
/// many times of what little is written.
const MAKING: u64 = 64 << 20;

/// `f_type` of statfs(2).
const XFS: i64 = 0x5846_5342;
const EXT4: i64 = 0xef53;
const BTRFS: i64 = 0x9123_683e;

/// How the file system of a store counts and limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Project quota of XFS.
    XfsProject,
    /// Project quota of ext4.
    Ext4Project,
    /// Subvolumes of btrfs: bytes only.
    Btrfs,
    /// Not at all.
    None {
        /// What is missing, and what to do about it.
        why: NotCounted,
    },
}

#[derive(Debug)]
enum Backend {
    Projects(Projects),
    Btrfs,
    None(NotCounted),
}

/// What the kernel says of a root filesystem.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counted {
    pub(crate) bytes: u64,
    /// btrfs does not count them.
    pub(crate) inodes: Option<u64>,
}

/// Quota of one store.
#[derive(Debug)]
pub(crate) struct Quota {
    dirs: Arc<Dirs>,
    without: WithoutQuota,
    project_ids: Range<u32>,
    switch_on: bool,
    /// Found out when it is first needed: most tools do without.
    found: OnceLock<(Kind, Backend)>,
    /// On btrfs: what is to be forgotten later.
    stale: btrfs::Stale,
}

impl Quota {
    pub(crate) fn new(dirs: &Arc<Dirs>, options: &StoreOptions) -> Result<Self> {
        let ids = &options.project_ids;
        if ids.start == 0 || ids.is_empty() {
            let text = format!("{ids:?} has none but 0: give others");
            let error = io::Error::new(io::ErrorKind::InvalidInput, text);
            return Err(error).step(|| "use the range of project ids".to_owned());
        }
        Ok(Self {
            dirs: Arc::clone(dirs),
            without: options.without_quota,
            project_ids: ids.clone(),
            switch_on: options.switch_quota_on,
            found: OnceLock::new(),
            stale: btrfs::Stale::default(),
        })
    }

    fn found(&self) -> &(Kind, Backend) {
        self.found.get_or_init(|| self.probe())
    }

    fn backend(&self) -> &Backend {
        &self.found().1
    }

    pub(crate) fn kind(&self) -> Kind {
        self.found().0
    }

    /// Whether limits on bytes hold.
    pub(crate) fn enforces(&self) -> bool {
        match self.backend() {
            Backend::Projects(projects) => projects.enforced,
            Backend::Btrfs => true,
            Backend::None(_) => false,
        }
    }

    /// Whether somebody has to walk through the files to know all numbers.
    pub(crate) fn needs_walks(&self) -> bool {
        !matches!(self.backend(), Backend::Projects(_))
    }

    /// What becomes of a limit above an image of `base` bytes; refuses what cannot be.
    pub(crate) fn plan(&self, limit: &DiskLimit, base: u64) -> Result<AppliedLimit> {
        let mut applied = limit.on_writes(base)?;
        if limit.is_none() {
            return Ok(applied);
        }
        let missing = match self.backend() {
            Backend::Projects(projects) if projects.enforced => None,
            Backend::Projects(_) => Some(
                "projects are counted, but not limited: mount the store's file system with the \
                 option prjquota (not pqnoenforce)"
                    .to_owned(),
            ),
            Backend::Btrfs if limit.inodes.is_none() => None,
            Backend::Btrfs => Some("btrfs limits bytes, but not inodes".to_owned()),
            Backend::None(why) => Some(why.to_string()),
        };
        applied.enforced = match missing {
            None => Enforced::Kernel,
            Some(why) if self.without == WithoutQuota::Refuse => {
                return Err(Error::NoQuota(why));
            }
            Some(why) if applied.bytes.is_some() && matches!(self.backend(), Backend::Btrfs) => {
                Enforced::BytesOnly { why }
            }
            Some(why) => Enforced::Accounted { why },
        };
        Ok(applied)
    }

    /// Makes the private directory in which a root filesystem is made.
    pub(crate) fn stage(&self, trash: &Arc<Trash>) -> Result<Staged> {
        match self.backend() {
            Backend::Btrfs => Staged::subvolume(&self.dirs, trash),
            _ => Staged::new(&self.dirs, trash),
        }
    }

    /// Sets the top directory of a root filesystem up for counting and limits it. Nothing may be
    /// in it yet.
    pub(crate) fn set_up(&self, top: &OwnedFd, limit: AppliedLimit) -> Result<AppliedLimit> {
        let done = match self.backend() {
            Backend::Projects(projects) => match projects.set_up(top, &limit) {
                Ok(false) => Err(io::Error::other("no project id is free")),
                other => other.map(drop),
            },
            Backend::Btrfs => (limit.bytes).map_or(Ok(()), |bytes| {
                btrfs::limit(top, bytes.saturating_add(MAKING))
            }),
            Backend::None(_) => Ok(()),
        };
        let Err(error) = done else {
            return Ok(limit);
        };
        if limit.enforced != Enforced::None && self.without == WithoutQuota::Refuse {
            return Err(Error::host("limit the root filesystem", error));
        }
        // Rather a container that is not counted than none: somebody switched quota off.
        tracing::warn!(%error, "a root filesystem is not counted by the kernel");
        let enforced = match limit.enforced {
            Enforced::None => Enforced::None,
            _ => Enforced::Accounted {
                why: format!("the kernel refused: {error}"),
            },
        };
        Ok(AppliedLimit { enforced, ..limit })
    }

    /// Brings the limit of a root filesystem to what it is to be, when it is made.
    pub(crate) fn finish(&self, top: &OwnedFd, limit: &AppliedLimit) -> Result<()> {
        let held = matches!(
            limit.enforced,
            Enforced::Kernel | Enforced::BytesOnly { .. }
        );
        match (self.backend(), limit.bytes) {
            (Backend::Btrfs, Some(bytes)) if held => {
                btrfs::limit(top, bytes).step(|| "limit the root filesystem".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// What the kernel counts for a root filesystem; `None` when it does not.
    pub(crate) fn count(&self, top: &OwnedFd) -> io::Result<Option<Counted>> {
        match self.backend() {
            Backend::Projects(projects) => Ok(projects.account(top)?.map(|account| Counted {
                bytes: account.bytes,
                inodes: Some(account.inodes),
            })),
            Backend::Btrfs => Ok(btrfs::bytes(top)?.map(|bytes| Counted {
                bytes,
                inodes: None,
            })),
            Backend::None(_) => Ok(None),
        }
    }

    /// The bytes that the kernel counts for `rootfs/ID`, if it does.
    pub(crate) fn bytes_of(&self, id: &str) -> Option<u64> {
        let top = dirs::directory(&self.dirs.rootfs, id).ok()?;
        Some(self.count(&top).ok()??.bytes)
    }

    /// Takes away limits and accounts that nothing carries any more; gives how many.
    pub(crate) fn sweep(&self) -> Result<usize> {
        let swept = match self.backend() {
            Backend::Projects(projects) => projects.sweep(),
            Backend::Btrfs => self.stale.sweep(&self.dirs.tmp),
            Backend::None(_) => Ok(0),
        };
        swept.step(|| "look for limits of what is gone".to_owned())
    }

    /// Takes away what could not be taken away before. A server calls it now and then.
    pub(crate) fn tidy(&self) {
        self.stale.forget(&self.dirs.tmp);
    }

    fn probe(&self) -> (Kind, Backend) {
        let dirs = &self.dirs;
        let none = |why| (Kind::None { why }, Backend::None(why));
        let kind = match rustix::fs::fstatfs(dirs.tmp.as_fd()).map(|stat| stat.f_type) {
            Ok(XFS) => Kind::XfsProject,
            Ok(EXT4) => Kind::Ext4Project,
            Ok(BTRFS) => Kind::Btrfs,
            Ok(_) | Err(_) => return none(NotCounted::FileSystem),
        };
        if kind == Kind::Btrfs {
            if self.switch_on
                && let Err(error) = btrfs::switch_on(&dirs.tmp)
                && error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error())
            {
                tracing::warn!(%error, "cannot switch the quota of btrfs on");
            }
            return match btrfs::probe(&dirs.tmp) {
                Ok(()) => (kind, Backend::Btrfs),
                Err(why) => none(why),
            };
        }
        match Projects::probe(dirs, &self.project_ids) {
            Ok(projects) => (kind, Backend::Projects(projects)),
            Err(why) => none(why),
        }
    }
}

impl WhenGone for Arc<Quota> {
    fn remove(&self, name: &str, tree: &OwnedFd) -> bool {
        match self.backend() {
            Backend::Projects(_) => false,
            // Also where quota was switched off meanwhile.
            _ => self.stale.remove(&self.dirs.trash, name, tree),
        }
    }

    /// Limits are lifted when the tree is empty, by what is the last to go: until then, nobody else
    /// can have got the id.
    fn gone(&self, name: &str, tree: &OwnedFd, _: Option<&[u8]>) -> io::Result<()> {
        match self.backend() {
            Backend::Projects(projects) => {
                // The record is written right after the claim, and is the last in the tree.
                let was_filled = dirs::exists(tree, RECORD);
                // Limits that cannot be lifted are no reason to keep the tree.
                if let Err(error) = projects.release(tree, was_filled) {
                    tracing::warn!(%error, "a project keeps its limits");
                }
            }
            // What was in its way is gone.
            _ => {
                self.stale.remove(&self.dirs.trash, name, tree);
            }
        }
        Ok(())
    }
}
