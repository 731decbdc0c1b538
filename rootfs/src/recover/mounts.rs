//! Mounts below the store that nothing owns any more.
//!
//! Root filesystems are mounted without a name in the host's mount table; but an image plugin must
//! mount where its caller looks, and a killed one leaves what it mounted. Only mounts of our own
//! namespace are seen here. They are detached, the deepest first, and never looked into. What a
//! path leads to is opened beneath the store without following a link, as its last part may have
//! been written by a container.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::{UnmountFlags, unmount};

use crate::dirs::Dirs;
use crate::error::{Result, Step};
use crate::rootfs::State;
use crate::staging;
use crate::store::Store;

/// Detaches them; gives their number.
pub(super) fn detach(store: &Store) -> Result<usize> {
    let mut detached = 0;
    for path in leaked(store)? {
        match detach_one(&store.inner.dirs, &path) {
            Ok(()) => {
                tracing::info!(path = %path.display(), "detached a mount below the store");
                detached += 1;
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a mount below the store stays");
            }
        }
    }
    Ok(detached)
}

/// Mount points below the store, relative to it, that belong to nothing; the deepest first.
pub(crate) fn leaked(store: &Store) -> Result<Vec<PathBuf>> {
    let mut all = below(&store.inner.dirs)?;
    all.retain(|path| is_leaked(store, path));
    all.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    Ok(all)
}

fn is_leaked(store: &Store, path: &Path) -> bool {
    let parts: Vec<_> = path.iter().filter_map(|part| part.to_str()).collect();
    match parts[..] {
        ["trash", _, ..] => true,
        ["tmp", name, ..] => staging::is_free(&store.inner.dirs, name),
        ["rootfs", id, ..] => matches!(store.state(id), State::OfAnotherBoot | State::Gone),
        _ => false,
    }
}

/// All mount points below the store in this mount namespace (proc_pid_mountinfo(5), field 5).
fn below(dirs: &Dirs) -> Result<Vec<PathBuf>> {
    let link = format!("/proc/self/fd/{}", dirs.root.as_raw_fd());
    let store = fs::read_link(&link).step(|| format!("read {link}"))?;
    let table = fs::read("/proc/self/mountinfo").step(|| "read the mount table".to_owned())?;
    let points = table.split(|byte| *byte == b'\n').filter_map(|line| {
        let field = line.split(|byte| *byte == b' ').nth(4)?;
        let path = PathBuf::from(std::ffi::OsString::from_vec(unescape(field)));
        Some(path.strip_prefix(&store).ok()?.to_owned())
    });
    Ok(points.filter(|path| !path.as_os_str().is_empty()).collect())
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        let octal = match after {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] if *first == b'\\' => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        plain.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { &after[3..] } else { after };
    }
    plain
}

/// Detaches a mount by its path in the store.
pub(crate) fn detach_one(dirs: &Dirs, path: &Path) -> rustix::io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let path = path.as_os_str().as_bytes();
    let point: OwnedFd = rustix::fs::openat2(&dirs.root, path, flags, Mode::empty(), resolve)?;
    // By what was opened, not by its name: not following would mean the link in /proc itself.
    let link = format!("/proc/self/fd/{}", point.as_raw_fd());
    unmount(link, UnmountFlags::DETACH)
}

#[cfg(test)]
mod tests {
    use super::unescape;

    #[test]
    fn names_are_read_as_they_are() {
        for (field, name) in [
            ("/a\\040b", "/a b"),
            ("\\134\\012", "\\\n"),
            ("/plain", "/plain"),
            ("\\04", "\\04"),
            ("\\400", "\\400"),
        ] {
            assert_eq!(unescape(field.as_bytes()), name.as_bytes(), "{field}");
        }
    }
}
