//! Quota by projects: XFS and ext4.
//!
//! Every root filesystem belongs to a project of its own, whose id is an attribute of its top
//! directory and is inherited by everything in it. Used on the threads of whoever creates, asks
//! or removes; all calls are short.

use std::ffi::CString;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use garden_sys::quota::{self, Account, FileSystem, Project};
use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use super::allocate::{self, Ledger};
use super::limit::AppliedLimit;
use super::missing::NotCounted;
use crate::dirs::{self, Dirs};

/// The accounts that a sweep looks at, at most.
const MOST_SWEPT: usize = 100_000;

/// A file system with project quota.
#[derive(Debug)]
pub(super) struct Projects {
    dirs: Arc<Dirs>,
    /// The path of its device, for kernels that need it.
    device: Option<CString>,
    range: Range<u32>,
    /// Whether limits hold.
    pub(super) enforced: bool,
}

impl Projects {
    /// Tries it out.
    pub(super) fn probe(dirs: &Arc<Dirs>, range: &Range<u32>) -> Result<Self, NotCounted> {
        let mut projects = Self {
            dirs: Arc::clone(dirs),
            device: None,
            range: range.clone(),
            enforced: false,
        };
        let status = match quota::projects(projects.at()) {
            Err(error) if error.raw_os_error() == Some(Errno::NOSYS.raw_os_error()) => {
                // No such call, or no quota: the older call tells.
                projects.device = quota::device(&dirs.tmp);
                if projects.device.is_none() {
                    return Err(NotCounted::NoDevice);
                }
                quota::projects(projects.at())
            }
            other => other,
        };
        let status = status.map_err(|error| {
            tracing::debug!(%error, "no project quota");
            NotCounted::NoProjects
        })?;
        if !status.accounted {
            return Err(NotCounted::NoProjects);
        }
        if quota::project(&dirs.tmp).is_ok_and(|project| project.inherit) {
            return Err(NotCounted::InProject);
        }
        projects.enforced = status.enforced;
        match projects.try_out() {
            Ok(true) => Ok(projects),
            Ok(false) => Err(NotCounted::NoIds),
            Err(error) => {
                tracing::debug!(%error, "project quota cannot be used");
                Err(NotCounted::Refused)
            }
        }
    }

    /// Gives a directory a project and takes it away again.
    fn try_out(&self) -> io::Result<bool> {
        let trial = Trial::new(&self.dirs)?;
        let claimed = allocate::claim(self, &self.range, &trial.fd, random)?;
        if let Some(id) = claimed {
            // What is not to be refused when it is needed.
            quota::set_limits(self.at(), id, 0, 0)?;
        }
        Ok(claimed.is_some())
    }

    /// Gives an empty directory a project of its own, with these limits. `false` when no id is
    /// free.
    pub(super) fn set_up(&self, top: &OwnedFd, limit: &AppliedLimit) -> io::Result<bool> {
        let Some(id) = allocate::claim(self, &self.range, top, random)? else {
            return Ok(false);
        };
        let (bytes, inodes) = (limit.bytes.unwrap_or(0), limit.inodes.unwrap_or(0));
        // An earlier owner of the id may have left limits, if its end was not seen.
        let account = quota::account(self.at(), id)?;
        if (bytes, inodes) != (account.byte_limit, account.inode_limit) {
            quota::set_limits(self.at(), id, bytes, inodes)?;
        }
        Ok(true)
    }

    /// The account of a root filesystem; `None` when it has no project of its own.
    pub(super) fn account(&self, top: &OwnedFd) -> io::Result<Option<Account>> {
        match self.id(top)? {
            Some(id) => quota::account(self.at(), id).map(Some),
            None => Ok(None),
        }
    }

    /// The end of an emptied tree. `was_filled`: see [`allocate::release`].
    pub(super) fn release(&self, top: &OwnedFd, was_filled: bool) -> io::Result<()> {
        match self.id(top)? {
            Some(id) => allocate::release(self, id, was_filled),
            None => Ok(()),
        }
    }

    /// Lifts limits that were left behind by trees that are gone. Gives how many there were.
    pub(super) fn sweep(&self) -> io::Result<usize> {
        let mut stale = Vec::new();
        let mut from = self.range.start;
        for _ in 0..MOST_SWEPT {
            let Some((id, account)) = quota::next_account(self.at(), from)? else {
                break;
            };
            if !self.range.contains(&id) {
                break;
            }
            let limited = (account.byte_limit, account.inode_limit) != (0, 0);
            if limited && account.inodes == 0 {
                stale.push(id);
            }
            from = id + 1;
        }
        let mut lifted = 0;
        for id in stale {
            // As its owner: somebody may be taking it just now.
            let trial = Trial::new(&self.dirs)?;
            if allocate::claim_one(self, &trial.fd, id)? {
                self.lift(id)?;
                lifted += 1;
            }
        }
        Ok(lifted)
    }

    fn id(&self, top: &OwnedFd) -> io::Result<Option<u32>> {
        let project = quota::project(top)?;
        Ok((project.inherit && self.range.contains(&project.id)).then_some(project.id))
    }

    fn at(&self) -> FileSystem<'_> {
        match &self.device {
            Some(path) => FileSystem::On(path),
            None => FileSystem::Of(self.dirs.tmp.as_fd()),
        }
    }
}

impl Ledger for Projects {
    type Tree = OwnedFd;

    fn inodes(&self, id: u32) -> io::Result<u64> {
        quota::account(self.at(), id).map(|account| account.inodes)
    }

    fn carry(&self, tree: &OwnedFd, id: u32) -> io::Result<()> {
        quota::set_project(tree, Project { id, inherit: true })
    }

    fn lift(&self, id: u32) -> io::Result<()> {
        quota::set_limits(self.at(), id, 0, 0)
    }
}

/// An empty directory for a moment. One that is left by a crash is swept with the staging
/// directories.
struct Trial<'a> {
    dirs: &'a Dirs,
    name: String,
    fd: OwnedFd,
}

impl<'a> Trial<'a> {
    fn new(dirs: &'a Dirs) -> io::Result<Self> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("quota-{}-{number}", std::process::id());
        rustix::fs::mkdirat(&dirs.tmp, &name, Mode::RWXU)?;
        let fd = dirs::directory(&dirs.tmp, &name)?;
        Ok(Self { dirs, name, fd })
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        let _ = rustix::fs::unlinkat(&self.dirs.tmp, &self.name, AtFlags::REMOVEDIR);
    }
}

fn random() -> u32 {
    uuid::Uuid::new_v4().as_fields().0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::PROJECT_IDS;
    use crate::quota::limit::Enforced;

    #[test]
    fn root_projects_are_claimed_limited_and_released() {
        for name in ["GARDEN_TEST_XFS", "GARDEN_TEST_EXT4"] {
            let Ok(path) = std::env::var(name) else {
                println!("SKIPPED root_projects_are_claimed_limited_and_released: no {name}");
                continue;
            };
            let dir = tempfile::tempdir_in(path).unwrap();
            let dirs = Dirs::open(&dir.path().join("store")).unwrap();
            let dirs = Arc::new(dirs);
            let projects = Projects::probe(&dirs, &PROJECT_IDS).unwrap();
            assert!(projects.enforced);
            let by_path = Projects {
                dirs: Arc::clone(&dirs),
                device: Some(quota::device(&dirs.tmp).unwrap()),
                range: PROJECT_IDS,
                enforced: true,
            };
            rustix::fs::mkdirat(&dirs.rootfs, "one", Mode::RWXU).unwrap();
            let top = dirs::directory(&dirs.rootfs, "one").unwrap();
            assert_eq!(by_path.account(&top).unwrap(), None);
            let limit = AppliedLimit {
                bytes: Some(1 << 20),
                inodes: Some(99),
                enforced: Enforced::Kernel,
            };
            assert!(projects.set_up(&top, &limit).unwrap());
            rustix::fs::mkdirat(&top, "upper", Mode::RWXU).unwrap();
            for projects in [&projects, &by_path] {
                let account = projects.account(&top).unwrap().unwrap();
                assert_eq!((account.inodes, account.inode_limit), (2, 99));
                assert_eq!(account.byte_limit, 1 << 20);
            }
            // Nobody else gets it, and no sweep takes its limits.
            let id = projects.id(&top).unwrap().unwrap();
            let trial = Trial::new(&dirs).unwrap();
            assert!(!allocate::claim_one(&projects, &trial.fd, id).unwrap());
            projects.release(&trial.fd, false).unwrap();
            drop(trial);
            projects.sweep().unwrap();
            assert_eq!(projects.account(&top).unwrap().unwrap().inode_limit, 99);

            rustix::fs::unlinkat(&top, "upper", AtFlags::REMOVEDIR).unwrap();
            by_path.release(&top, true).unwrap();
            assert_eq!(projects.account(&top).unwrap().unwrap().inode_limit, 0);
            drop(top);
            rustix::fs::unlinkat(&dirs.rootfs, "one", AtFlags::REMOVEDIR).unwrap();
        }
    }
}
