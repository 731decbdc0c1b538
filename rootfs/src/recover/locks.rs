//! Lock files of processes that died: see the flights, whose files these are.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::dirs::{self, Dirs};
use crate::error::{Error, Result, Step};

/// Removes them; gives their number.
pub(super) fn sweep(dirs: &Dirs) -> Result<usize> {
    let mut swept = 0;
    for name in stale(dirs)? {
        swept += usize::from(remove(dirs, &name)?);
    }
    Ok(swept)
}

/// The names of lock files that nobody has locked.
pub(crate) fn stale(dirs: &Dirs) -> Result<Vec<String>> {
    let mut names = dirs::names(&dirs.locks).step(|| "list locks".to_owned())?;
    let step = || "look at the locks".to_owned();
    let mut stale = Vec::new();
    for name in names.drain(..) {
        if lock(dirs, &name).step(step)?.is_some() {
            stale.push(name);
        }
    }
    Ok(stale)
}

/// Removes one by the rule of the flights: while it is locked, and then it has no name.
pub(crate) fn remove(dirs: &Dirs, name: &str) -> Result<bool> {
    let step = || format!("remove the lock {name:?} of a process that died");
    let Some(_locked) = lock(dirs, name).step(step)? else {
        return Ok(false);
    };
    match rustix::fs::unlinkat(&dirs.locks, name, AtFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(Error::host(step(), error)),
    }
}

/// A lock file that this process has locked, and nobody else had.
struct Locked(OwnedFd);

impl Drop for Locked {
    fn drop(&mut self) {
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

fn lock(dirs: &Dirs, name: &str) -> rustix::io::Result<Option<Locked>> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(&dirs.locks, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        other => other?,
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Ok(None),
        other => other?,
    }
    let locked = Locked(file);
    let named = rustix::fs::fstat(&locked.0)?.st_nlink > 0;
    Ok(named.then_some(locked))
}
