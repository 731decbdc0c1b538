//! Private directories in which things are made before they get their name.
//!
//! Used by imports and by the creation of root filesystems. What is made here appears under its
//! name by one rename, or not at all; what is not published goes to the trash when it is dropped,
//! so that every error path leaves nothing. A lock on the directory tells a later start of the
//! server that somebody still works in it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, Mode};

use crate::dirs::{self, Dirs};
use crate::error::{Result, Step};
use crate::trash::Trash;

/// A private directory of the store.
#[derive(Debug)]
pub(crate) struct Staged {
    dirs: Arc<Dirs>,
    trash: Arc<Trash>,
    name: String,
    fd: OwnedFd,
    published: bool,
}

impl Staged {
    /// Makes one.
    pub(crate) fn new(dirs: &Arc<Dirs>, trash: &Arc<Trash>) -> Result<Self> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let boot: String = dirs.boot.chars().take(8).collect();
        let name = format!("{boot}-{}-{number}", std::process::id());
        let step = || format!("make a staging directory in {}", dirs.path.display());
        rustix::fs::mkdirat(&dirs.tmp, &name, Mode::RWXU).step(step)?;
        let fd = dirs::directory(&dirs.tmp, &name).step(step)?;
        let staged = Self {
            dirs: Arc::clone(dirs),
            trash: Arc::clone(trash),
            name,
            fd,
            published: false,
        };
        rustix::fs::flock(&staged.fd, FlockOperation::NonBlockingLockExclusive).step(step)?;
        Ok(staged)
    }

    /// Makes a directory in it. The mode is exact, whatever the process's umask.
    pub(crate) fn subdirectory(&self, name: &str, mode: Mode) -> Result<OwnedFd> {
        let make = || {
            rustix::fs::mkdirat(&self.fd, name, mode)?;
            let fd = dirs::directory(&self.fd, name)?;
            rustix::fs::fchmod(&fd, mode)?;
            Ok::<_, rustix::io::Errno>(fd)
        };
        make().step(|| {
            format!(
                "make the directory {name:?} in {}",
                self.dirs.path.display()
            )
        })
    }

    /// Gives it its name. When that is taken, the error is `EXIST` and this one is dropped.
    pub(crate) fn publish(mut self, to: BorrowedFd<'_>, name: &str) -> rustix::io::Result<()> {
        dirs::rename(&self.dirs.tmp, &self.name, to, name)?;
        self.published = true;
        Ok(())
    }
}

impl AsFd for Staged {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        // A rename is the whole roll-back; if even that fails, the next start finds it.
        if let Err(error) = self.trash.discard(&self.dirs.tmp, &self.name, Vec::new()) {
            tracing::warn!(staging = self.name, %error, "cannot roll back a half-made tree");
        }
    }
}
