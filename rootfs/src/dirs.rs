//! The directories of a store, opened once.
//!
//! Everything in the store is reached through these descriptors; no path is looked up again after
//! the store was opened. Made by `Store::open`, shared by everything that works on the store.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{AtFlags, CWD, Dir, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use rustix::path::Arg;

use crate::error::{Result, Step};

/// The directories of a store.
#[derive(Debug)]
pub(crate) struct Dirs {
    pub(crate) path: PathBuf,
    /// Which boot this is: what is not durable does not outlive it.
    pub(crate) boot: String,
    /// The store itself, for its lock files.
    pub(crate) root: OwnedFd,
    pub(crate) tmp: OwnedFd,
    pub(crate) layers: OwnedFd,
    pub(crate) images: OwnedFd,
    pub(crate) pins: OwnedFd,
    pub(crate) rootfs: OwnedFd,
    pub(crate) trash: OwnedFd,
    /// Locks of what is being imported.
    pub(crate) locks: OwnedFd,
}

/// A lock of the store that one process has at a time, until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock(OwnedFd);

/// The lock of the one server.
pub(crate) const SERVER: &str = "lock";
/// The lock of whoever clears up.
pub(crate) const MAINTENANCE: &str = "maintenance.lock";

impl Lock {
    /// Takes it, or gives `None` when another process has it.
    pub(crate) fn take(dirs: &Dirs, name: &str) -> Result<Option<Self>> {
        let step = || format!("lock {name:?} of the store {}", dirs.path.display());
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let lock = rustix::fs::openat(&dirs.root, name, flags, mode).step(step)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => Ok(None),
            other => other.map(|()| Some(Self(lock))).step(step),
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
    /// Makes what is missing; reads nothing, so that it costs the same whatever the store holds.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let told = |what: &str| format!("{what} the store {}", path.display());
        let root = match directory(CWD, path) {
            Err(Errno::NOENT) => {
                if let Some(parent) = path.parent() {
                    std::fs::create_dir_all(parent).step(|| told("make the directory around"))?;
                }
                ensure_directory(CWD, path)
            }
            other => other,
        };
        let root = root.step(|| told("open the directory of"))?;
        // Layers hold set-id programs and other people's files (CVE-2021-41091).
        let stat = rustix::fs::fstat(&root).step(|| told("look at"))?;
        let mode = Mode::from_raw_mode(stat.st_mode);
        // A group may walk through ([`crate::Store::let_group_pass`]).
        if mode - Mode::XGRP != Mode::RWXU {
            rustix::fs::fchmod(&root, Mode::RWXU).step(|| told("close to others"))?;
        }
        let inside =
            |name: &str| ensure_directory(&root, name).step(|| told("make a directory in"));
        Ok(Self {
            path: path.to_owned(),
            boot: boot_id()?,
            tmp: inside("tmp")?,
            layers: inside("layers")?,
            images: inside("images")?,
            pins: inside("pins")?,
            rootfs: inside("rootfs")?,
            trash: inside("trash")?,
            locks: inside("locks")?,
            root,
        })
    }
}

/// Flags that open a directory itself, never through a link.
pub(crate) const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Opens a directory by its name in another.
pub(crate) fn directory(parent: impl AsFd, name: impl Arg) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(parent, name, DIRECTORY, Mode::empty())
}

fn ensure_directory(parent: impl AsFd, name: impl Arg + Copy) -> rustix::io::Result<OwnedFd> {
    match directory(&parent, name) {
        Err(Errno::NOENT) => {}
        other => return other,
    }
    match rustix::fs::mkdirat(&parent, name, Mode::RWXU) {
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

/// Milliseconds since the epoch.
pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |since| since.as_millis().try_into().unwrap_or(u64::MAX))
}

fn boot_id() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(path).step(|| format!("read {path}"))?;
    Ok(text.trim().to_owned())
}
