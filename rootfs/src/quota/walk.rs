//! Counting a directory tree that foreign programs are writing to.
//!
//! Used by the background counting, on its own thread. Looks at every object's inode, opens
//! directories only, beneath descriptors, follows no link and crosses no mount point. What it
//! needs is bounded: descriptors by [`OPEN`], memory for hard links by [`LINKS`], and the whole by
//! the number of entries that its caller allows. What changes while it walks is counted or not.

use std::collections::HashSet;
use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat};
use rustix::io::Errno;

/// Directories that are open at once, at most; those above are opened again on the way back.
const OPEN: usize = 64;
/// Files with several names that are remembered, so that they count once.
const LINKS: usize = 1 << 20;
/// `st_blocks` counts these.
const BLOCK: u64 = 512;

/// What a tree holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) bytes: u64,
    pub(super) inodes: u64,
}

/// A directory on the way down.
struct Level {
    /// Closed when too many are open.
    fd: Option<OwnedFd>,
    /// Which directory it is: to be sure of it on the way back.
    identity: (u64, u64),
    /// Directories in it that are still to be walked.
    left: Vec<CString>,
}

struct Walk<'a> {
    sum: Sum,
    links: HashSet<(u64, u64)>,
    /// Entries that may still be looked at.
    entries: u64,
    stop: &'a dyn Fn() -> bool,
}

/// Counts `top` and everything in it. `Interrupted` when `stop` says so, `TimedOut` after too
/// many entries, `StaleNetworkFileHandle` when a directory was moved away underneath.
pub(super) fn tree(top: &OwnedFd, most_entries: u64, stop: &dyn Fn() -> bool) -> io::Result<Sum> {
    let mut walk = Walk {
        sum: Sum::default(),
        links: HashSet::new(),
        entries: most_entries,
        stop,
    };
    let Some(top) = open(top.as_fd(), c".")? else {
        return Ok(walk.sum);
    };
    walk.count(&rustix::fs::fstat(&top)?);
    let mut way = vec![walk.enter(top)?];
    while let Some(level) = way.last_mut() {
        let name = level.left.pop();
        let here = level.fd.as_ref().ok_or(Errno::STALE)?.as_fd();
        match name {
            Some(name) => {
                if let Some(fd) = open(here, &name)? {
                    let next = walk.enter(fd)?;
                    way.push(next);
                    close_far(&mut way);
                }
            }
            None => leave(&mut way)?,
        }
    }
    Ok(walk.sum)
}

impl Walk<'_> {
    /// Counts what is in a directory, and remembers the directories.
    fn enter(&mut self, fd: OwnedFd) -> io::Result<Level> {
        let stat = rustix::fs::fstat(&fd)?;
        let mut left = Vec::new();
        let mut buffer = [MaybeUninit::uninit(); 8192];
        let mut entries = RawDir::new(&fd, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = match entry {
                // The directory itself was removed.
                Err(Errno::NOENT) => break,
                other => other?,
            };
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if (self.stop)() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            self.entries = self.entries.checked_sub(1).ok_or(io::ErrorKind::TimedOut)?;
            let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
            match rustix::fs::statat(&fd, name, flags) {
                Ok(stat) => {
                    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                        left.push(name.to_owned());
                    }
                    self.count(&stat);
                }
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Level {
            identity: (stat.st_dev, stat.st_ino),
            fd: Some(fd),
            left,
        })
    }

    fn count(&mut self, stat: &Stat) {
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let again = !directory
            && stat.st_nlink > 1
            && self.links.len() < LINKS
            && !self.links.insert((stat.st_dev, stat.st_ino));
        if !again {
            self.sum.inodes += 1;
            let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
            self.sum.bytes = self.sum.bytes.saturating_add(blocks.saturating_mul(BLOCK));
        }
    }
}

/// Closes the directory that is farthest above, if too many are open.
fn close_far(way: &mut [Level]) {
    if let Some(far) = way.len().checked_sub(OPEN + 1) {
        way[far].fd = None;
    }
}

/// Goes back up.
fn leave(way: &mut Vec<Level>) -> io::Result<()> {
    let below = way.pop().and_then(|level| level.fd);
    let (Some(above), Some(below)) = (way.last_mut(), below) else {
        return Ok(());
    };
    if above.fd.is_none() {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&below, "..", flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&fd)?;
        // Whoever moves directories must not lead us elsewhere.
        if (stat.st_dev, stat.st_ino) != above.identity {
            return Err(Errno::STALE.into());
        }
        above.fd = Some(fd);
    }
    Ok(())
}

/// Opens a directory; `None` when it is gone, no directory any more, or a mount point.
fn open(parent: BorrowedFd<'_>, name: &std::ffi::CStr) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    loop {
        match rustix::fs::openat2(parent, name, flags, Mode::empty(), resolve) {
            Ok(fd) => return Ok(Some(fd)),
            Err(Errno::AGAIN) => {}
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn sum(path: &Path) -> Sum {
        let top = std::fs::File::open(path).unwrap().into();
        tree(&top, 1_000_000, &|| false).unwrap()
    }

    #[test]
    fn everything_counts_once() {
        let dir = tempfile::tempdir().unwrap();
        let empty = sum(dir.path());
        assert_eq!(empty.inodes, 1);
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        let directories = sum(dir.path());
        std::fs::write(dir.path().join("a/f"), vec![1; 1 << 20]).unwrap();
        std::fs::hard_link(dir.path().join("a/f"), dir.path().join("a/b/g")).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("link")).unwrap();
        let full = sum(dir.path());
        assert_eq!((directories.inodes, full.inodes), (3, 5));
        let grown = full.bytes - directories.bytes;
        assert!((1 << 20..1 << 21).contains(&grown), "{grown}");
    }

    #[test]
    fn depth_costs_no_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        let depth = 4 * OPEN;
        let mut at: OwnedFd = std::fs::File::open(dir.path()).unwrap().into();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        for _ in 0..depth {
            for name in ["d", "e"] {
                rustix::fs::mkdirat(&at, name, Mode::RWXU).unwrap();
            }
            at = rustix::fs::openat(&at, "d", flags, Mode::empty()).unwrap();
        }
        assert_eq!(sum(dir.path()).inodes, 1 + 2 * depth as u64);
    }

    #[test]
    fn a_walk_ends_when_it_must() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..10 {
            std::fs::write(dir.path().join(number.to_string()), "").unwrap();
        }
        let top = std::fs::File::open(dir.path()).unwrap().into();
        let error = tree(&top, 5, &|| false).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let error = tree(&top, 100, &|| true).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    }
}
