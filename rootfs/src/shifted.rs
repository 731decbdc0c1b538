//! Copies of layers whose owners are shifted, for hosts on which mounts cannot map owners.
//!
//! Used by the mounting of root filesystems. A copy is a directory in the layer's own, so that it
//! is collected, and repaired, together with it:
//!
//! ```text
//! layers/KEY/shifted-MAPPING/    tree/  record.json  durable
//! ```
//!
//! It is made once for each mapping and published like a layer: complete in one rename, and until
//! it is `durable` only for the boot in which it was made. Everything but owners is as in the
//! layer. An owner that the mapping does not hold is an error: it must never pass as another.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use garden_sys::userns::IdRange;
use garden_sys::xattr;
use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::dirs;
use crate::error::{Error, Result, Step};
use crate::layers::TREE;
use crate::staging::Staged;
use crate::store::Store;
use crate::unpack::name::Name;
use crate::unpack::tree::open_beneath;

/// Changes when copies are made differently.
const VERSION: u32 = 1;
const RECORD: &str = "record.json";
const DURABLE: &str = "durable";
const CAPABILITY: &str = "security.capability";

/// Users and groups: ranges of ids.
pub(crate) type Maps<'a> = (&'a [IdRange], &'a [IdRange]);

/// What is known of a copy.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    version: u32,
    /// The boot in which it was made.
    boot: String,
    /// The maps: inside, host, size.
    uid: Vec<(u32, u32, u32)>,
    gid: Vec<(u32, u32, u32)>,
}

/// The tree of a layer with these owners, as a path in the directory of all layers. The caller
/// holds the layer. The first call for a mapping copies the layer.
pub(crate) fn tree(store: &Store, key: &str, maps: Maps<'_>) -> Result<String> {
    let inner = &store.inner;
    let plain = |ranges: &[IdRange]| -> Vec<_> {
        let mut ranges: Vec<_> = (ranges.iter().map(|r| (r.inside, r.host, r.size))).collect();
        ranges.sort_unstable();
        ranges
    };
    let record = Record {
        version: VERSION,
        boot: inner.dirs.boot.clone(),
        uid: plain(maps.0),
        gid: plain(maps.1),
    };
    let step = || format!("copy the layer {key} with shifted owners");
    let failed = |error| Error::host(step(), error);
    let text = serde_json::to_vec(&(VERSION, &record.uid, &record.gid))
        .map_err(|error| failed(io::Error::from(error)))?;
    let name = format!("shifted-{}", &Digest::of(&text).hex()[..32]);
    let path = format!("{key}/{name}/{TREE}");
    let layer = dirs::directory(&inner.dirs.layers, key).step(step)?;
    if usable(&layer, &name, &record) {
        return Ok(path);
    }
    // Other threads and processes wait for the one that copies.
    let flight = format!("{key}.{name}");
    let Ok(_flight) = inner.flights.take(&inner.dirs.locks, &flight, &|| false)? else {
        return Err(failed(io::ErrorKind::Interrupted.into()));
    };
    if usable(&layer, &name, &record) {
        return Ok(path);
    }
    let staged = Staged::new(&inner.dirs, &inner.trash)?;
    let from = inner.layers.tree(key)?;
    let to = staged.subdirectory(TREE, Mode::RWXU)?;
    Copy::new(&from, &to, maps)
        .run()
        .map_err(|error| match error {
            Fault::Owner(id, what) => Error::InvalidMapping(format!(
                "it has no place for the {what} {id}, which owns a file of the layer {key}"
            )),
            Fault::Host(error) => failed(error),
        })?;
    let text = serde_json::to_vec(&record).map_err(|error| failed(error.into()))?;
    dirs::write(&staged, RECORD, &text).step(step)?;
    // Only one of an earlier boot can be there.
    inner.trash.discard(&layer, &name, Vec::new()).step(step)?;
    drop(staged.publish(layer.as_fd(), &name).step(step)?);
    store.published(vec![format!("{key}/{name}")]);
    Ok(path)
}

/// Whether a copy is there and can be trusted.
fn usable(layer: &OwnedFd, name: &str, wanted: &Record) -> bool {
    let look = || -> Option<bool> {
        let directory = dirs::directory(layer, name).ok()?;
        let bytes = dirs::read(&directory, RECORD).ok()??;
        let mut record: Record = serde_json::from_slice(&bytes).ok()?;
        if dirs::exists(&directory, DURABLE) {
            record.boot.clone_from(&wanted.boot);
        }
        Some(record == *wanted && dirs::exists(&directory, TREE))
    };
    look().unwrap_or(false)
}

/// Why a layer was not copied.
enum Fault {
    /// An owner that the mapping does not hold.
    Owner(u32, &'static str),
    Host(io::Error),
}

impl<E: Into<io::Error>> From<E> for Fault {
    fn from(error: E) -> Self {
        Self::Host(error.into())
    }
}

struct Copy<'a> {
    from: &'a OwnedFd,
    to: &'a OwnedFd,
    maps: Maps<'a>,
    /// Files with several names, by inode: the first name that was copied.
    linked: HashMap<u64, Name>,
    /// Directories, parents first: they get their attributes when everything is in them.
    directories: Vec<Name>,
}

impl<'a> Copy<'a> {
    fn new(from: &'a OwnedFd, to: &'a OwnedFd, maps: Maps<'a>) -> Self {
        Self {
            from,
            to,
            maps,
            linked: HashMap::new(),
            directories: vec![Name::default()],
        }
    }

    fn run(mut self) -> std::result::Result<(), Fault> {
        let mut next = 0;
        while let Some(name) = self.directories.get(next).cloned() {
            next += 1;
            let from = open_beneath(self.from, &name, OFlags::RDONLY)?;
            let to = open_beneath(self.to, &name, OFlags::RDONLY)?;
            for entry in Dir::read_from(&from)? {
                let entry = entry?;
                let last = entry.file_name().to_bytes();
                if !matches!(last, b"." | b"..") {
                    self.object(&from, &to, last, name.join(last))?;
                }
            }
        }
        for name in self.directories.iter().rev() {
            let from = open_beneath(self.from, name, OFlags::RDONLY)?;
            let to = open_beneath(self.to, name, OFlags::RDONLY)?;
            self.attributes(&from, &to)?;
        }
        Ok(())
    }

    fn object(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        last: &[u8],
        name: Name,
    ) -> std::result::Result<(), Fault> {
        let stat = rustix::fs::statat(from, last, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            rustix::fs::mkdirat(to, last, Mode::RWXU)?;
            self.directories.push(name);
            return Ok(());
        }
        if stat.st_nlink > 1 {
            if let Some(first) = self.linked.get(&stat.st_ino) {
                rustix::fs::linkat(self.to, first.path(), to, last, AtFlags::empty())?;
                return Ok(());
            }
            self.linked.insert(stat.st_ino, name);
        }
        match kind {
            FileType::RegularFile => return self.file(from, to, last),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(from, last, Vec::new())?;
                rustix::fs::symlinkat(&target, to, last)?;
            }
            _ => {
                let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
                rustix::fs::mknodat(to, last, kind, mode, stat.st_rdev)?;
                // A whiteout: nobody sees whose it is.
                if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
                    return Ok(());
                }
            }
        }
        let (uid, gid) = self.owner(&stat)?;
        rustix::fs::chownat(to, last, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        if kind != FileType::Symlink {
            // A change of owner takes set-id bits away, and making it heeded the umask.
            let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
            rustix::fs::chmodat(to, last, mode, AtFlags::empty())?;
        }
        Ok(rustix::fs::utimensat(
            to,
            last,
            &times(&stat),
            AtFlags::SYMLINK_NOFOLLOW,
        )?)
    }

    fn file(&self, from: &OwnedFd, to: &OwnedFd, last: &[u8]) -> std::result::Result<(), Fault> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NOATIME | OFlags::CLOEXEC;
        let source = rustix::fs::openat(from, last, flags, Mode::empty())?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let copy = rustix::fs::openat(to, last, flags, Mode::RUSR | Mode::WUSR)?;
        // Shares the blocks where the file system can; else the kernel copies.
        if rustix::fs::ioctl_ficlone(&copy, &source).is_err() {
            let mut source = File::from(source.try_clone()?);
            io::copy(&mut source, &mut File::from(copy.try_clone()?))?;
        }
        self.attributes(&source, &copy)
    }

    /// Gives a file or a directory what its original has; in the order of
    /// [`crate::unpack::attributes::Attributes::apply`], for the same reasons.
    fn attributes(&self, from: &OwnedFd, to: &OwnedFd) -> std::result::Result<(), Fault> {
        let stat = rustix::fs::fstat(from)?;
        let (uid, gid) = self.owner(&stat)?;
        rustix::fs::fchown(to, Some(uid), Some(gid))?;
        rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        for name in xattr::names(from)? {
            let Some(value) = xattr::get(from, &name)? else {
                continue;
            };
            match &*name {
                // The host's security modules label files by themselves.
                CAPABILITY => {
                    if let Some(value) = self.capability(&value) {
                        xattr::set(to, &name, &value)?;
                    }
                }
                name if name.starts_with("security.") => {}
                name => xattr::set(to, name, &value)?,
            }
        }
        Ok(rustix::fs::futimens(to, &times(&stat))?)
    }

    fn owner(&self, stat: &Stat) -> std::result::Result<(Uid, Gid), Fault> {
        let user = on_host(self.maps.0, stat.st_uid);
        let group = on_host(self.maps.1, stat.st_gid);
        Ok((
            Uid::from_raw(user.ok_or(Fault::Owner(stat.st_uid, "user"))?),
            Gid::from_raw(group.ok_or(Fault::Owner(stat.st_gid, "group"))?),
        ))
    }

    /// File capabilities count in the user namespace whose root they name (capabilities(7)): a
    /// mount that maps owners does the same to those that name none. `None` without such a root.
    fn capability(&self, value: &[u8]) -> Option<Vec<u8>> {
        const REVISION: u32 = 0xff00_0000;
        let root = on_host(self.maps.0, 0)?;
        let (head, rest) = value.split_first_chunk::<4>()?;
        let magic = u32::from_le_bytes(*head);
        if magic & REVISION != 0x0200_0000 || rest.len() != 16 {
            return None;
        }
        let magic = magic & !REVISION | 0x0300_0000;
        Some([&magic.to_le_bytes(), rest, &root.to_le_bytes()].concat())
    }
}

/// The id on the host, if it has one.
pub(crate) fn on_host(ranges: &[IdRange], id: u32) -> Option<u32> {
    ranges.iter().find_map(|range| {
        let offset = id.checked_sub(range.inside)?;
        (offset < range.size).then(|| range.host.checked_add(offset))?
    })
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.try_into().unwrap_or(0),
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_outside_the_map_has_no_place() {
        let range = |inside, host, size| IdRange { inside, host, size };
        let map = [
            range(0, 4_294_967_294, 1),
            range(1, 1, 1000),
            range(5000, u32::MAX, 2),
        ];
        assert_eq!(on_host(&map, 0), Some(4_294_967_294));
        assert_eq!(on_host(&map, 1000), Some(1000));
        assert_eq!(on_host(&map, 1001), None);
        assert_eq!(on_host(&map, 5001), None);
    }
}
