//! Removing a directory tree that foreign programs wrote.
//!
//! Used by the trash, on its background threads, and by unpacking. Walks by descriptors only:
//! follows no link, never crosses a mount point (the kernel refuses, also for a bind mount of the
//! same disk), and needs a bounded number of descriptors however deep the tree is, because what
//! lies too deep is first moved to the top.

use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, FileType, IFlags, Mode, OFlags, RawDir, ResolveFlags};
use rustix::io::Errno;

/// How many directories are open at once, at most.
const DEPTH: usize = 64;
/// Larger files are cut down to nothing in steps of as much: freeing all of a huge one at once
/// would hold up everybody who waits for the journal of the file system.
const STEP: u64 = 128 << 20;

/// How fast to go, and what was done.
pub(crate) trait Pace {
    /// Called before each object is removed; may wait. An error ends the removal.
    fn go_on(&self) -> io::Result<()>;

    /// Called between the steps in which a huge file is removed; may wait.
    fn step(&self) -> io::Result<()> {
        self.go_on()
    }

    /// So many bytes were set free.
    fn freed(&self, _bytes: u64) {}
}

/// Goes as fast as it can, until it is told to stop.
impl<F: Fn() -> bool> Pace for F {
    fn go_on(&self) -> io::Result<()> {
        match self() {
            true => Err(io::ErrorKind::Interrupted.into()),
            false => Ok(()),
        }
    }
}

/// Removes `top/name`, whatever it is; it is fine when it is not there. Gives up early, with
/// `Interrupted`, when its pace says so. A mount point inside is `CrossesDevices`.
pub(crate) fn tree(top: impl AsFd, name: &OsStr, pace: &dyn Pace) -> io::Result<()> {
    let mut walk = Walk {
        top: top.as_fd(),
        moved: vec![name.as_bytes().to_vec()],
        pace,
    };
    while let Some(name) = walk.moved.pop() {
        walk.remove(walk.top, &name, 0)?;
    }
    Ok(())
}

/// Removes what is in the directory `top/name`, but for one name in it. It is fine when it is no
/// directory, or not there.
pub(crate) fn contents(
    top: impl AsFd,
    name: &OsStr,
    but: &OsStr,
    pace: &dyn Pace,
) -> io::Result<()> {
    let directory = match open(top.as_fd(), name.as_bytes()) {
        Ok(Some(directory)) => directory,
        Ok(None) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(()),
        Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => return Ok(()),
        Err(error) => return Err(error),
    };
    // What lies too deep is moved into the directory itself, which may be a subvolume, and found
    // by the next round.
    let mut walk = Walk {
        top: directory.as_fd(),
        moved: Vec::new(),
        pace,
    };
    loop {
        walk.empty(&directory, 0, Some(but.as_bytes()))?;
        if walk.moved.is_empty() {
            return Ok(());
        }
        walk.moved.clear();
    }
}

struct Walk<'a> {
    top: BorrowedFd<'a>,
    /// Names in `top` that are still to be removed.
    moved: Vec<Vec<u8>>,
    pace: &'a dyn Pace,
}

impl Walk<'_> {
    /// Removes one object of unknown type.
    fn remove(&mut self, parent: BorrowedFd<'_>, name: &[u8], depth: usize) -> io::Result<()> {
        let bytes = self.shrink(parent, name)?;
        match unlink(parent, name, AtFlags::empty()) {
            Ok(()) => {
                self.pace.freed(bytes);
                Ok(())
            }
            Err(Errno::ISDIR) => self.directory(parent, name, depth),
            Err(error) => Err(error.into()),
        }
    }

    /// Cuts a huge file down; gives how many bytes its removal sets free. What cannot be cut is
    /// removed as it is.
    fn shrink(&self, parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<u64> {
        let Ok(stat) = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) else {
            return Ok(0);
        };
        // What has another name is not removed with this one.
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_nlink != 1 {
            return Ok(0);
        }
        let bytes = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        if bytes <= STEP {
            return Ok(bytes);
        }
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(file) = rustix::fs::openat(parent, name, flags, Mode::empty()) else {
            return Ok(bytes);
        };
        // By its blocks: a sparse file may be as long as it wants.
        let steps = bytes.div_ceil(STEP);
        let length = u64::try_from(stat.st_size).unwrap_or(0);
        for left in (0..steps).rev() {
            let end = length / steps * left;
            if rustix::fs::ftruncate(&file, end).is_err() {
                break;
            }
            self.pace.step()?;
        }
        Ok(bytes)
    }

    fn directory(&mut self, parent: BorrowedFd<'_>, name: &[u8], depth: usize) -> io::Result<()> {
        if depth >= DEPTH {
            return self.move_to_top(parent, name);
        }
        let Some(directory) = open(parent, name)? else {
            return Ok(());
        };
        // A directory may look empty too early while something is still written to it.
        for _ in 0..8 {
            self.empty(&directory, depth, None)?;
            match unlink(parent, name, AtFlags::REMOVEDIR) {
                Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                other => return Ok(other?),
            }
        }
        Err(Errno::NOTEMPTY.into())
    }

    fn empty(&mut self, directory: &OwnedFd, depth: usize, but: Option<&[u8]>) -> io::Result<()> {
        rustix::fs::seek(directory, rustix::fs::SeekFrom::Start(0))?;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut entries = RawDir::new(directory, &mut buffer);
        while let Some(entry) = entries.next() {
            self.pace.go_on()?;
            let entry = match entry {
                // Somebody else removed the directory itself.
                Err(Errno::NOENT) => break,
                other => other?,
            };
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") || but == Some(name) {
                continue;
            }
            if entry.file_type() == FileType::Directory {
                self.directory(directory.as_fd(), name, depth + 1)?;
            } else {
                self.remove(directory.as_fd(), name, depth + 1)?;
            }
        }
        Ok(())
    }

    fn move_to_top(&mut self, parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
        static MOVED: AtomicU64 = AtomicU64::new(0);
        let number = MOVED.fetch_add(1, Ordering::Relaxed);
        let aside = format!("deep-{}-{number}", std::process::id());
        match rustix::fs::renameat(parent, name, self.top, &*aside) {
            Err(Errno::NOENT) => return Ok(()),
            Err(Errno::PERM) => {
                release(parent, name);
                rustix::fs::renameat(parent, name, self.top, &*aside)?;
            }
            other => other?,
        }
        self.moved.push(aside.into_bytes());
        Ok(())
    }
}

/// Opens a directory for reading; `None` when it is gone, or no directory any more.
fn open(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    loop {
        match rustix::fs::openat2(parent, name, flags, Mode::empty(), resolve) {
            Ok(fd) => return Ok(Some(fd)),
            Err(Errno::AGAIN) => {}
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Unlinks, also what was marked as immutable by a privileged container.
fn unlink(parent: BorrowedFd<'_>, name: &[u8], flags: AtFlags) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(parent, name, flags) {
        Err(Errno::NOENT) => Ok(()),
        Err(Errno::PERM) => {
            release(parent, name);
            rustix::fs::unlinkat(parent, name, flags)
        }
        other => other,
    }
}

/// Clears the flags that forbid removal, of an object and of the directory around it. What fails
/// here shows when the removal is tried again.
fn release(parent: BorrowedFd<'_>, name: &[u8]) {
    let held = IFlags::IMMUTABLE | IFlags::APPEND;
    let clear = |fd: OwnedFd| {
        if let Ok(flags) = rustix::fs::ioctl_getflags(&fd)
            && flags.intersects(held)
        {
            let _ = rustix::fs::ioctl_setflags(&fd, flags - held);
        }
    };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    if let Ok(fd) = rustix::fs::openat(parent, ".", flags, Mode::empty()) {
        clear(fd);
    }
    // Only files and directories carry flags; opening a device could do anything.
    let plain = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| {
        matches!(
            FileType::from_raw_mode(stat.st_mode),
            FileType::RegularFile | FileType::Directory
        )
    });
    if plain && let Ok(fd) = rustix::fs::openat(parent, name, flags, Mode::empty()) {
        clear(fd);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn top() -> (tempfile::TempDir, File) {
        let dir = tempfile::tempdir().unwrap();
        let fd = File::open(dir.path()).unwrap();
        (dir, fd)
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        let (dir, fd) = top();
        let kept = tempfile::tempdir().unwrap();
        std::fs::write(kept.path().join("f"), "x").unwrap();
        std::fs::create_dir_all(dir.path().join("t/a/b")).unwrap();
        std::os::unix::fs::symlink(kept.path(), dir.path().join("t/a/link")).unwrap();
        tree(&fd, "t".as_ref(), &|| false).unwrap();
        assert!(!dir.path().join("t").exists());
        assert!(kept.path().join("f").exists());
        tree(&fd, "t".as_ref(), &|| false).unwrap();
    }

    #[test]
    fn depth_costs_no_descriptors() {
        let (dir, fd) = top();
        let mut at: OwnedFd = fd.try_clone().unwrap().into();
        rustix::fs::mkdirat(&at, "t", Mode::RWXU).unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        at = rustix::fs::openat(&at, "t", flags, Mode::empty()).unwrap();
        for _ in 0..5 * DEPTH {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            rustix::fs::mkdirat(&at, "e", Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, "d", flags, Mode::empty()).unwrap();
        }
        tree(&fd, "t".as_ref(), &|| false).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn huge_files_go_in_steps() {
        #[derive(Default)]
        struct Count(std::cell::Cell<(u64, u64)>);
        impl Pace for Count {
            fn go_on(&self) -> io::Result<()> {
                Ok(())
            }
            fn step(&self) -> io::Result<()> {
                let (steps, freed) = self.0.get();
                self.0.set((steps + 1, freed));
                Ok(())
            }
            fn freed(&self, bytes: u64) {
                let (steps, freed) = self.0.get();
                self.0.set((steps, freed + bytes));
            }
        }
        let (dir, fd) = top();
        let huge = File::create(dir.path().join("huge")).unwrap();
        let mode = rustix::fs::FallocateFlags::empty();
        if rustix::fs::fallocate(&huge, mode, 0, 2 * STEP + 1).is_err() {
            println!("SKIPPED huge_files_go_in_steps: this disk does not allocate ahead");
            return;
        }
        let count = Count::default();
        tree(&fd, "huge".as_ref(), &count).unwrap();
        let (steps, freed) = count.0.get();
        assert_eq!(steps, 3);
        assert!(freed > 2 * STEP);
        // With another name it is not touched.
        let kept = File::create(dir.path().join("kept")).unwrap();
        rustix::fs::fallocate(&kept, mode, 0, 2 * STEP).unwrap();
        std::fs::hard_link(dir.path().join("kept"), dir.path().join("also")).unwrap();
        tree(&fd, "also".as_ref(), &|| false).unwrap();
        assert_eq!(kept.metadata().unwrap().len(), 2 * STEP);
    }

    #[test]
    fn a_stop_is_heard() {
        let (dir, fd) = top();
        std::fs::create_dir_all(dir.path().join("t/a")).unwrap();
        let error = tree(&fd, "t".as_ref(), &|| true).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        tree(&fd, "t".as_ref(), &|| false).unwrap();
    }

    #[test]
    fn root_a_mount_inside_is_left_alone() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED root_a_mount_inside_is_left_alone: needs root");
            return;
        }
        let (dir, fd) = top();
        let kept = tempfile::tempdir().unwrap();
        std::fs::write(kept.path().join("f"), "x").unwrap();
        let inside = dir.path().join("t/m");
        std::fs::create_dir_all(&inside).unwrap();
        rustix::mount::mount_bind(kept.path(), &inside).unwrap();
        let error = tree(&fd, "t".as_ref(), &|| false).unwrap_err();
        rustix::mount::unmount(&inside, rustix::mount::UnmountFlags::DETACH).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::CrossesDevices);
        assert!(kept.path().join("f").exists());
        tree(&fd, "t".as_ref(), &|| false).unwrap();
    }

    #[test]
    fn root_immutable_files_are_removed() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED root_immutable_files_are_removed: needs root");
            return;
        }
        let (dir, fd) = top();
        std::fs::create_dir_all(dir.path().join("t/a")).unwrap();
        let held = File::create(dir.path().join("t/a/f")).unwrap();
        if rustix::fs::ioctl_setflags(&held, IFlags::IMMUTABLE).is_err() {
            println!("SKIPPED root_immutable_files_are_removed: no such flag on this disk");
            return;
        }
        let directory = File::open(dir.path().join("t/a")).unwrap();
        rustix::fs::ioctl_setflags(&directory, IFlags::IMMUTABLE).unwrap();
        tree(&fd, "t".as_ref(), &|| false).unwrap();
        assert!(!dir.path().join("t").exists());
    }
}
