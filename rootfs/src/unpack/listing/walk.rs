//! Reading a tree: what is there, object by object.
//!
//! Used by the listing: to verify a tree, and to list one whose history is too strange to follow.
//! Walks by descriptors, follows no link, leaves no mount, and opens no pipe or device.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use garden_sys::xattr;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::super::attributes::{Attributes, time_of};
use super::super::name::Name;
use super::{Sum, Summing, What, Writer};

const STRICT: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Opens a directory of a tree by a way without links.
pub(super) fn open(tree: BorrowedFd<'_>, name: &Name) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    loop {
        match rustix::fs::openat2(tree, name.path(), flags, Mode::empty(), STRICT) {
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
}

/// Opens a file or a directory for reading, without a trace in its access time.
pub(super) fn open_at(parent: &OwnedFd, last: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::openat2(parent, last, flags | OFlags::NOATIME, Mode::empty(), STRICT) {
        // Only for the owner and for root.
        Err(Errno::PERM) => rustix::fs::openat2(parent, last, flags, Mode::empty(), STRICT),
        other => other,
    }
}

/// The attributes of an open file or directory that a listing tells: those that an image may have,
/// and those that overlay acts upon.
pub(super) fn attributes(fd: impl AsFd) -> io::Result<Attributes> {
    let mut given = of_stat(&rustix::fs::fstat(&fd)?);
    for name in xattr::names(&fd)? {
        let listed = ["user.", "trusted.overlay.", "security.capability"];
        if listed.iter().any(|listed| name.starts_with(listed))
            && let Some(value) = xattr::get(&fd, &name)?
        {
            given.xattrs.push((name, value));
        }
    }
    given.xattrs.sort();
    Ok(given)
}

/// The attributes that a `stat` tells.
pub(super) fn of_stat(stat: &Stat) -> Attributes {
    Attributes {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: time_of(stat),
        xattrs: Vec::new(),
    }
}

/// The size and the sum of a file's content.
pub(super) fn content(mut file: &File, buffer: &mut [u8]) -> io::Result<(u64, Sum)> {
    let (mut size, mut summing) = (0, Summing::new());
    loop {
        match file.read(buffer) {
            Ok(0) => return Ok((size, summing.sum())),
            Ok(length) => {
                size += length as u64;
                summing.add(&buffer[..length]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The objects in a directory: last parts and types.
pub(super) fn entries(directory: &OwnedFd) -> io::Result<Vec<(Vec<u8>, FileType)>> {
    let mut entries = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let last = entry.file_name().to_bytes();
        if matches!(last, b"." | b"..") {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => {
                let stat = rustix::fs::statat(directory, last, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode)
            }
            kind => kind,
        };
        entries.push((last.to_vec(), kind));
    }
    entries.sort_unstable_by(|one, other| one.0.cmp(&other.0));
    Ok(entries)
}

/// Lists everything in a tree.
pub(super) fn list(tree: BorrowedFd<'_>, listing: &mut Writer) -> io::Result<()> {
    let mut linked: HashMap<u64, Name> = HashMap::new();
    let mut buffer = vec![0; 128 * 1024];
    let mut left = vec![Name::default()];
    while let Some(name) = left.pop() {
        let directory = open(tree, &name)?;
        let given = attributes(&directory)?;
        listing.add(false, &name, &given, What::Directory)?;
        for (last, kind) in entries(&directory)? {
            let name = name.join(&last);
            if kind == FileType::Directory {
                left.push(name);
                continue;
            }
            let stat = rustix::fs::statat(&directory, &*last, AtFlags::SYMLINK_NOFOLLOW)?;
            if kind == FileType::CharacterDevice {
                listing.whiteout(&name)?;
                continue;
            }
            if stat.st_nlink > 1 {
                if let Some(first) = linked.get(&stat.st_ino) {
                    listing.hard_link(false, &name, first)?;
                    continue;
                }
                linked.insert(stat.st_ino, name.clone());
            }
            match kind {
                FileType::RegularFile => {
                    let file = File::from(open_at(&directory, &last)?);
                    let (size, sum) = content(&file, &mut buffer)?;
                    let given = attributes(&file)?;
                    listing.add(false, &name, &given, What::File { size, sum })?;
                }
                FileType::Symlink => {
                    let target = rustix::fs::readlinkat(&directory, &*last, Vec::new())?;
                    let what = What::Symlink(target.as_bytes());
                    listing.add(false, &name, &of_stat(&stat), what)?;
                }
                _ => listing.add(false, &name, &of_stat(&stat), What::Pipe)?,
            }
        }
    }
    Ok(())
}
