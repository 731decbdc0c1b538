//! Private directories in which things are made before they get their name.
//!
//! Used by imports and by the creation of root filesystems. What is made here appears under its
//! name by one rename, or not at all; what is not published goes to the trash when it is dropped,
//! so that every error path leaves nothing. A lock on the directory tells whoever clears up, in this
//! process or another, that somebody still works in it; see [`sweep`].

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, FlockOperation, Mode};
use rustix::io::Errno;

use crate::dirs::{self, Dirs};
use crate::error::{Result, Step};
use crate::store::hold::Hold;
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
        Self::made(dirs, trash, |name| {
            rustix::fs::mkdirat(&dirs.tmp, name, Mode::RWXU)
        })
    }

    /// Makes one that is a subvolume of btrfs.
    pub(crate) fn subvolume(dirs: &Arc<Dirs>, trash: &Arc<Trash>) -> Result<Self> {
        let staged = Self::made(dirs, trash, |name| {
            let made = garden_sys::btrfs::create_subvolume(&dirs.tmp, name);
            made.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
        })?;
        // Subvolumes are made for everybody.
        rustix::fs::fchmod(&staged.fd, Mode::RWXU)
            .step(|| format!("close to others a subvolume in {}", dirs.path.display()))?;
        Ok(staged)
    }

    fn made(
        dirs: &Arc<Dirs>,
        trash: &Arc<Trash>,
        make: impl Fn(&str) -> rustix::io::Result<()>,
    ) -> Result<Self> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let boot: String = dirs.boot.chars().take(8).collect();
        let step = || format!("make a staging directory in {}", dirs.path.display());
        loop {
            let number = COUNTER.fetch_add(1, Ordering::Relaxed);
            let name = format!("{boot}-{}-{number}", std::process::id());
            match make(&name) {
                Ok(()) => {}
                // Of a process that had the same number before.
                Err(Errno::EXIST) => continue,
                other => other.step(step)?,
            }
            // Until it is locked, it looks as if nobody worked in it, and may be swept away.
            if let Some(fd) = lock(dirs, &name).step(step)? {
                return Ok(Self {
                    dirs: Arc::clone(dirs),
                    trash: Arc::clone(trash),
                    name,
                    fd,
                    published: false,
                });
            }
            // Somebody looked at it just then; if it is still there, it is nobody's.
            let _ = rustix::fs::unlinkat(&dirs.tmp, &name, AtFlags::REMOVEDIR);
        }
    }

    /// Its name among the staging directories, for as long as it is one.
    pub(crate) fn name(&self) -> &str {
        &self.name
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

    /// Gives it its name. When that is taken, the error is `EXIST` and this one is dropped. What
    /// got its name is held (see [`crate::store::hold`]), without a gap in which somebody could
    /// collect it.
    pub(crate) fn publish(mut self, to: BorrowedFd<'_>, name: &str) -> rustix::io::Result<Hold> {
        let hold = Hold::share(self.fd.try_clone().map_err(|_| Errno::MFILE)?)?;
        dirs::rename(&self.dirs.tmp, &self.name, to, name)?;
        self.published = true;
        Ok(hold)
    }
}

impl Staged {
    /// The directory itself.
    pub(crate) fn directory(&self) -> &OwnedFd {
        &self.fd
    }
}

/// Opens and locks a new staging directory; `None` when it was swept away before.
fn lock(dirs: &Dirs, name: &str) -> rustix::io::Result<Option<OwnedFd>> {
    let fd = match dirs::directory(&dirs.tmp, name) {
        Err(Errno::NOENT) => return Ok(None),
        other => other?,
    };
    match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Ok(None),
        other => other?,
    }
    match rustix::fs::statat(&dirs.tmp, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(there) => {
            let here = rustix::fs::fstat(&fd)?;
            let same = (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino);
            Ok(same.then_some(fd))
        }
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether nobody works in a staging directory.
pub(crate) fn is_free(dirs: &Dirs, name: &str) -> bool {
    match dirs::directory(&dirs.tmp, name) {
        Ok(fd) => {
            let free = rustix::fs::flock(&fd, FlockOperation::NonBlockingLockShared).is_ok();
            let _ = rustix::fs::flock(&fd, FlockOperation::Unlock);
            free && dirs::exists(&dirs.tmp, name)
        }
        // A file is nobody's for longer than it takes to rename it.
        Err(error) => matches!(error, Errno::NOTDIR | Errno::LOOP),
    }
}

/// Discards staging directories in which nobody works any more; gives their number.
pub(crate) fn sweep(dirs: &Dirs, trash: &Trash) -> Result<usize> {
    let mut swept = 0;
    for name in dirs::names(&dirs.tmp).step(|| "list staging directories".to_owned())? {
        swept += usize::from(sweep_one(dirs, trash, &name)?);
    }
    Ok(swept)
}

/// Discards one, if nobody works in it.
pub(crate) fn sweep_one(dirs: &Dirs, trash: &Trash, name: &str) -> Result<bool> {
    let step = || format!("discard the staging directory {name}");
    let _lock = match dirs::directory(&dirs.tmp, name) {
        Ok(fd) => match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Ok(false),
            other => {
                other.step(step)?;
                Some(fd)
            }
        },
        // Published or discarded just now.
        Err(Errno::NOENT) => return Ok(false),
        Err(Errno::NOTDIR | Errno::LOOP) => None,
        Err(error) => return Err(crate::Error::host(step(), error)),
    };
    trash.discard(&dirs.tmp, name, Vec::new()).step(step)
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
