//! Using and collecting the same objects from many processes, without a lock that covers both.
//!
//! Used by imports and creates (which hold what they use) and by collection, recovery and repair
//! (which condemn what nobody uses). An object is a directory `layers/KEY` or a record
//! `images/ID.json`.
//!
//! Using: open it, take a shared `flock` on it, see that its name still leads to it, and stamp it:
//! its modification time becomes now, with nanoseconds that are a random number. The lock is kept
//! until another record refers to the object (a root filesystem to its layers, an image to its).
//!
//! Collecting: (1) read the stamp, (2) read all records that could refer to it, (3) take an
//! exclusive `flock` without waiting, (4) see that name and stamp are unchanged, (5) rename it into
//! the trash, (6) let go.
//!
//! Why nothing in use is ever collected. Take a use whose lock was granted. If the lock was taken
//! after (5), the name did not lead to the object any more and the user saw that. So it was taken
//! before (5), and as the collector was alone from (3) on, before (3). If it was still held then,
//! (3) fails. If it was let go before (3), a record that refers to the object was there before (3),
//! too. Either that record was there when (2) read it: then it counts; or it came later, and then
//! the lock on the object either was taken after (1), so that (4) sees another stamp, or was held
//! since before (1) until after (2). For that last case, step (1) comes with a try of the exclusive
//! lock, given back at once: an object that is being used is no candidate.
//!
//! An exclusive lock is held for two `stat` and one `rename`, so a user that waits for it waits for
//! those. What a process held is let go by the kernel when the process dies.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

/// How long a user waits for a collector at most: much longer than two `stat` and a `rename` take,
/// so that only one that was stopped in the middle is not waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// An object that is in use, until this is dropped.
#[derive(Debug)]
pub(crate) struct Hold {
    fd: OwnedFd,
    inode: (u64, u64),
}

/// An object that nobody else can use, until this is dropped.
#[derive(Debug)]
pub(crate) struct Condemned(OwnedFd);

/// When an object was used last, told apart from every other use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    inode: (u64, u64),
    seconds: i64,
    /// Of a use, a random number; the type is the C library's.
    nanoseconds: u64,
}

/// Why an object was not condemned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// It is not there any more.
    Gone,
    /// Somebody holds it.
    InUse,
    /// Somebody used it since its stamp was read.
    Used,
}

/// Holds an object and stamps it; `None` when it is not there.
pub(crate) fn hold(parent: &OwnedFd, name: &str) -> io::Result<Option<Hold>> {
    let deadline = Instant::now() + PATIENCE;
    while let Some(fd) = open(parent, name)? {
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockShared) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_micros(200));
                continue;
            }
            Err(error) => return Err(error.into()),
        }
        // From here on it is let go when it is dropped.
        let mut hold = Hold { fd, inode: (0, 0) };
        if let Some(stat) = leads_to(parent, name, &hold.fd)? {
            hold.inode = (stat.st_dev, stat.st_ino);
            touch(&hold.fd)?;
            return Ok(Some(hold));
        }
    }
    Ok(None)
}

impl Hold {
    /// Turns an exclusive lock on an object that has no name yet into a hold.
    pub(crate) fn share(fd: OwnedFd) -> rustix::io::Result<Self> {
        rustix::fs::flock(&fd, FlockOperation::NonBlockingLockShared)?;
        touch(&fd)?;
        let stat = rustix::fs::fstat(&fd)?;
        let inode = (stat.st_dev, stat.st_ino);
        Ok(Self { fd, inode })
    }

    /// The object itself.
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Which object it is, as long as it is open.
    pub(crate) fn inode(&self) -> (u64, u64) {
        self.inode
    }
}

/// The stamp of an object that nobody uses, as the first step of collecting it.
pub(crate) fn stamp(parent: &OwnedFd, name: &str) -> io::Result<Result<Stamp, Kept>> {
    Ok(alone(parent, name)?.map(|(_, stamp)| stamp))
}

/// Makes sure that nobody uses an object, nor did since its stamp was read. While the result
/// lives, nobody can begin to.
pub(crate) fn condemn(
    parent: &OwnedFd,
    name: &str,
    since: Stamp,
) -> io::Result<Result<Condemned, Kept>> {
    Ok(match alone(parent, name)? {
        Ok((condemned, stamp)) if stamp == since => Ok(condemned),
        Ok(_) => Err(Kept::Used),
        Err(kept) => Err(kept),
    })
}

impl Stamp {
    /// How long ago the use was; nothing when it seems to be in the future.
    pub(crate) fn age(&self) -> Duration {
        self.time().elapsed().unwrap_or_default()
    }

    /// When the use was, to the second.
    pub(crate) fn time(&self) -> SystemTime {
        let seconds = u64::try_from(self.seconds).unwrap_or(0);
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    pub(crate) fn of(stat: &Stat) -> Self {
        Self {
            inode: (stat.st_dev, stat.st_ino),
            seconds: stat.st_mtime,
            nanoseconds: stat.st_mtime_nsec,
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        unlock(&self.fd);
    }
}

impl Drop for Condemned {
    fn drop(&mut self) {
        unlock(&self.0);
    }
}

/// Closing is not enough: a process that is just being started may hold a copy of the descriptor
/// for a moment. Failing is harmless, as the copies go away.
fn unlock(fd: &OwnedFd) {
    let _ = rustix::fs::flock(fd, FlockOperation::Unlock);
}

fn alone(parent: &OwnedFd, name: &str) -> io::Result<Result<(Condemned, Stamp), Kept>> {
    let Some(fd) = open(parent, name)? else {
        return Ok(Err(Kept::Gone));
    };
    match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(Err(Kept::InUse)),
        Err(error) => return Err(error.into()),
    }
    let condemned = Condemned(fd);
    Ok(match leads_to(parent, name, &condemned.0)? {
        Some(stat) => Ok((condemned, Stamp::of(&stat))),
        None => Err(Kept::Gone),
    })
}

fn open(parent: &OwnedFd, name: &str) -> io::Result<Option<OwnedFd>> {
    // Not blocking: a foreign pipe of that name must not hold anybody up.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Looks at what is open, if the name still leads to it.
fn leads_to(parent: &OwnedFd, name: &str, fd: &OwnedFd) -> io::Result<Option<Stat>> {
    let there = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let here = rustix::fs::fstat(fd)?;
    let same = (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino);
    Ok(same.then_some(here))
}

/// Stamps an object. Two uses within one tick of the clock, or before and after the clock was set
/// back, differ in the random part.
fn touch(fd: &OwnedFd) -> rustix::io::Result<()> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let seconds = now.map_or(0, |since| since.as_secs());
    let random = uuid::Uuid::new_v4().as_u64_pair().1 % 1_000_000_000;
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: seconds.try_into().unwrap_or(i64::MAX),
            tv_nsec: random.try_into().unwrap_or(0),
        },
    };
    rustix::fs::futimens(fd, &times)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("object")).unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap().into();
        (dir, fd)
    }

    #[test]
    fn what_is_held_is_not_condemned() {
        let (_dir, parent) = place();
        let since = stamp(&parent, "object").unwrap().unwrap();
        let held = hold(&parent, "object").unwrap().unwrap();
        let also = hold(&parent, "object").unwrap().unwrap();
        assert_eq!(stamp(&parent, "object").unwrap(), Err(Kept::InUse));
        drop(held);
        let kept = condemn(&parent, "object", since).unwrap();
        assert_eq!(kept.unwrap_err(), Kept::InUse);
        drop(also);
        let kept = condemn(&parent, "object", since).unwrap();
        assert_eq!(kept.unwrap_err(), Kept::Used);
        let since = stamp(&parent, "object").unwrap().unwrap();
        condemn(&parent, "object", since).unwrap().unwrap();
    }

    #[test]
    fn every_use_has_its_own_stamp() {
        let (_dir, parent) = place();
        let mut seen = Vec::new();
        for _ in 0..100 {
            drop(hold(&parent, "object").unwrap().unwrap());
            seen.push(stamp(&parent, "object").unwrap().unwrap().nanoseconds);
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 100);
    }

    #[test]
    fn what_went_away_is_not_held() {
        let (dir, parent) = place();
        let since = stamp(&parent, "object").unwrap().unwrap();
        let condemned = condemn(&parent, "object", since).unwrap().unwrap();
        std::thread::scope(|scope| {
            let user = scope.spawn(|| hold(&parent, "object").unwrap().is_none());
            std::thread::sleep(Duration::from_millis(20));
            std::fs::rename(dir.path().join("object"), dir.path().join("gone")).unwrap();
            drop(condemned);
            assert!(user.join().unwrap());
        });
        let kept = condemn(&parent, "object", since).unwrap();
        assert_eq!(kept.unwrap_err(), Kept::Gone);
        // Another one of the same name is not the same.
        std::fs::create_dir(dir.path().join("object")).unwrap();
        let kept = condemn(&parent, "object", since).unwrap();
        assert_eq!(kept.unwrap_err(), Kept::Used);
    }
}
