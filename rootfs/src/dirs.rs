//! The directories of a store, opened once.
//!
//! Everything in the store is reached through these descriptors; no path is looked up again after
//! the store was opened. Made by `Store::open`, shared by everything that works on the store.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::error::{Error, Result, Step};

/// The directories of a store.
#[derive(Debug)]
pub(crate) struct Dirs {
    pub(crate) path: PathBuf,
    /// Which boot this is: what is not durable does not outlive it.
    pub(crate) boot: String,
    pub(crate) tmp: OwnedFd,
    pub(crate) layers: OwnedFd,
    pub(crate) images: OwnedFd,
    pub(crate) rootfs: OwnedFd,
    pub(crate) trash: OwnedFd,
    /// Locks of what is being imported.
    pub(crate) locks: OwnedFd,
}

/// Says that a server works in a store, until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock(OwnedFd);

impl Lock {
    fn take(root: &OwnedFd, path: &Path) -> Result<Self> {
        let step = || format!("lock the store {}", path.display());
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock = rustix::fs::openat(root, "lock", flags, Mode::RUSR | Mode::WUSR).step(step)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => Err(Error::StoreInUse(path.to_owned())),
            other => other.map(|()| Self(lock)).step(step),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a process that is just being started may hold a copy of the
        // descriptor for a moment. Failing is harmless, as the copies go away.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

impl Dirs {
    /// Makes what is missing and takes the lock.
    pub(crate) fn open(path: &Path) -> Result<(Self, Lock)> {
        let told = |what: &str| format!("{what} the store {}", path.display());
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).step(|| told("make the directory around"))?;
        }
        match rustix::fs::mkdirat(CWD, path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(Error::host(told("make the directory of"), error)),
        }
        let root = rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty())
            .step(|| told("open the directory of"))?;
        // Layers hold set-id programs and other people's files (CVE-2021-41091).
        rustix::fs::fchmod(&root, Mode::RWXU).step(|| told("close to others"))?;
        let lock = Lock::take(&root, path)?;
        let inside = |name| ensure_directory(&root, name).step(|| told("make a directory in"));
        let dirs = Self {
            path: path.to_owned(),
            boot: boot_id()?,
            tmp: inside("tmp")?,
            layers: inside("layers")?,
            images: inside("images")?,
            rootfs: inside("rootfs")?,
            trash: inside("trash")?,
            locks: inside("locks")?,
        };
        Ok((dirs, lock))
    }
}

/// Flags that open a directory itself, never through a link.
pub(crate) const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Opens a directory by its name in another.
pub(crate) fn directory(parent: impl AsFd, name: &str) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(parent, name, DIRECTORY, Mode::empty())
}

fn ensure_directory(parent: &OwnedFd, name: &str) -> rustix::io::Result<OwnedFd> {
    match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => directory(parent, name),
        Err(error) => Err(error),
    }
}

/// The names in a directory, without those that start with a dot.
pub(crate) fn names(directory: &OwnedFd) -> rustix::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy();
        if !name.starts_with('.') {
            names.push(name.into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Reads a small file whole; `None` when it is not there.
pub(crate) fn read(directory: impl AsFd, name: &str) -> std::io::Result<Option<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(directory, name, flags, Mode::empty()) {
        Ok(fd) => {
            let mut bytes = Vec::new();
            File::from(fd).read_to_end(&mut bytes)?;
            Ok(Some(bytes))
        }
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Writes a file that is not there yet.
pub(crate) fn write(directory: impl AsFd, name: &str, bytes: &[u8]) -> std::io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    let mut file = File::from(rustix::fs::openat(directory, name, flags, mode)?);
    file.write_all(bytes)?;
    Ok(file)
}

/// Renames, unless the new name is taken: then `Errno::EXIST`.
pub(crate) fn rename(
    from: impl AsFd,
    name: &str,
    to: impl AsFd,
    new: &str,
) -> rustix::io::Result<()> {
    rustix::fs::renameat_with(from, name, to, new, RenameFlags::NOREPLACE)
}

/// Whether a name is there.
pub(crate) fn exists(directory: impl AsFd, name: &str) -> bool {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

fn boot_id() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(path).step(|| format!("read {path}"))?;
    Ok(text.trim().to_owned())
}
