//! A directory as a layer: a copy of it, and a cheap way to see whether it changed.
//!
//! Called by the importer. The copy goes through the same tree as an archive, so that the same
//! rules hold; names mean themselves here (`.wh.x` is a file). Both walks stay on one mount: what
//! is mounted inside is left out, so that `/` can be given. The fingerprint reads no content: a
//! change that keeps size, times and inode of a file goes unseen.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::attributes::{self, Attributes};
use super::name::Name;
use super::tree::{Content, Tree};
use super::{Doing, Fault, Limits};
use crate::digest::Digest;
use crate::error::{Error, Rule};

/// Something in the directory.
struct Found<'a> {
    directory: &'a OwnedFd,
    name: Name,
    last: Vec<u8>,
    stat: Stat,
    kind: FileType,
}

/// A digest that changes when the directory does: names, types, owners, modes, sizes, times,
/// inodes, and the targets of symbolic links.
pub(crate) fn fingerprint(root: &OwnedFd, limits: &Limits, image: &str) -> Result<Digest, Error> {
    let mut hasher = Sha256::new();
    let stat = rustix::fs::fstat(root)
        .doing("look at the directory")
        .map_err(|fault| fault.of(image, None))?;
    describe(&mut hasher, &stat);
    let mut count = 0;
    walk(root, limits, image, &mut |found| {
        count += 1;
        if count > limits.entries {
            return Err(Rule::Entries(limits.entries).into());
        }
        hasher.update((found.name.bytes().len() as u64).to_le_bytes());
        hasher.update(found.name.bytes());
        describe(&mut hasher, &found.stat);
        if found.kind == FileType::Symlink {
            let target = target(found)?;
            hasher.update((target.len() as u64).to_le_bytes());
            hasher.update(target);
        }
        Ok(())
    })?;
    Ok(Digest::from_hasher(hasher))
}

fn describe(hasher: &mut Sha256, stat: &Stat) {
    let numbers = [
        u64::from(stat.st_mode),
        u64::from(stat.st_uid),
        u64::from(stat.st_gid),
        stat.st_size.cast_unsigned(),
        stat.st_mtime.cast_unsigned(),
        stat.st_mtime_nsec,
        stat.st_ctime.cast_unsigned(),
        stat.st_ctime_nsec,
        stat.st_ino,
    ];
    for number in numbers {
        hasher.update(number.to_le_bytes());
    }
}

/// Copies a directory into a tree.
pub(crate) fn copy(
    root: &OwnedFd,
    tree: &mut Tree<'_>,
    limits: &Limits,
    image: &str,
) -> Result<(), Error> {
    let of_root = attributes_of(root, tree).map_err(|fault| fault.of(image, None))?;
    let made = tree.directory(Name::default(), of_root);
    made.map_err(|fault| fault.of(image, None))?;
    // Files with several names, by device and inode: the first name that was copied.
    let mut linked: HashMap<(u64, u64), Name> = HashMap::new();
    walk(root, limits, image, &mut |found| {
        tree.count(&found.name)?;
        one(found, tree, &mut linked)
    })
}

fn one(
    found: &Found<'_>,
    tree: &mut Tree<'_>,
    linked: &mut HashMap<(u64, u64), Name>,
) -> Result<(), Fault> {
    let name = &found.name;
    let identity = (found.stat.st_dev, found.stat.st_ino);
    let usable = matches!(
        found.kind,
        FileType::RegularFile | FileType::Symlink | FileType::Fifo
    );
    if usable && found.stat.st_nlink > 1 {
        if let Some(first) = linked.get(&identity) {
            return tree.hard_link(name.clone(), first);
        }
        linked.insert(identity, name.clone());
    }
    match found.kind {
        FileType::Directory => {
            let fd = open(found, OFlags::RDONLY | OFlags::DIRECTORY, false)?;
            let given = attributes_of(&fd, tree)?;
            tree.directory(name.clone(), given)
        }
        FileType::RegularFile => {
            let mut file = File::from(open(found, OFlags::RDONLY | OFlags::NONBLOCK, true)?);
            let given = attributes_of(&file, tree)?;
            let size = found.stat.st_size.cast_unsigned();
            let content = Content {
                size,
                bytes: &mut file,
                sparse: found.stat.st_blocks.cast_unsigned() < size / 512,
            };
            tree.file(name.clone(), given, content)
        }
        FileType::Symlink => {
            let given = plain_attributes(&found.stat)?;
            tree.symlink(name.clone(), given, &target(found)?)
        }
        FileType::Fifo => tree.pipe(name.clone(), plain_attributes(&found.stat)?),
        _ => {
            tree.skip();
            Ok(())
        }
    }
}

fn open(found: &Found<'_>, access: OFlags, same_mount: bool) -> Result<OwnedFd, Fault> {
    let flags = access | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    resolve.set(ResolveFlags::NO_XDEV, same_mount);
    loop {
        match rustix::fs::openat2(found.directory, &*found.last, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            other => return other.doing("open it"),
        }
    }
}

fn target(found: &Found<'_>) -> Result<Vec<u8>, Fault> {
    let target = rustix::fs::readlinkat(found.directory, &*found.last, Vec::new());
    Ok(target.doing("read the symbolic link")?.into_bytes())
}

fn attributes_of(fd: impl AsFd, tree: &mut Tree<'_>) -> Result<Attributes, Fault> {
    let given = Attributes::read(fd).doing("read owner and mode")?;
    attributes::owner(given.uid.into())?;
    attributes::owner(given.gid.into())?;
    tree.allow(given)
}

fn plain_attributes(stat: &Stat) -> Result<Attributes, Rule> {
    Ok(Attributes {
        mode: stat.st_mode & 0o7777,
        uid: attributes::owner(stat.st_uid.into())?,
        gid: attributes::owner(stat.st_gid.into())?,
        mtime: (stat.st_mtime, stat.st_mtime_nsec.try_into().unwrap_or(0)),
        xattrs: Vec::new(),
    })
}

/// Visits everything in a directory, parents first, names in order. Keeps one directory open.
fn walk(
    root: &OwnedFd,
    limits: &Limits,
    image: &str,
    visit: &mut dyn FnMut(&Found<'_>) -> Result<(), Fault>,
) -> Result<(), Error> {
    let mut left = vec![Name::default()];
    while let Some(directory) = left.pop() {
        let deeper = one_directory(root, &directory, limits, visit)
            .map_err(|(name, fault)| fault.of(image, Some(name.path())))?;
        left.extend(deeper.into_iter().rev());
    }
    Ok(())
}

fn one_directory(
    root: &OwnedFd,
    directory: &Name,
    limits: &Limits,
    visit: &mut dyn FnMut(&Found<'_>) -> Result<(), Fault>,
) -> Result<Vec<Name>, (Name, Fault)> {
    let here = |fault| (directory.clone(), fault);
    let fd = match super::tree::open_beneath(root, directory, OFlags::RDONLY) {
        // Something is mounted on it, or it went away.
        Err(Errno::XDEV | Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Vec::new()),
        other => other.doing("open the directory").map_err(here)?,
    };
    let mut names = Vec::new();
    for entry in Dir::read_from(&fd)
        .doing("read the directory")
        .map_err(here)?
    {
        let entry = entry.doing("read the directory").map_err(here)?;
        let last = entry.file_name().to_bytes();
        if !matches!(last, b"." | b"..") {
            names.push(last.to_vec());
        }
    }
    names.sort();
    let mut deeper = Vec::new();
    for last in names {
        let name = directory.join(&last);
        let there = |fault| (name.clone(), fault);
        Name::parse(name.bytes(), limits).map_err(|rule| there(rule.into()))?;
        let stat = match rustix::fs::statat(&fd, &*last, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => continue,
            other => other.doing("look at it").map_err(there)?,
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let found = Found {
            directory: &fd,
            name: name.clone(),
            last,
            stat,
            kind,
        };
        visit(&found).map_err(there)?;
        if kind == FileType::Directory {
            deeper.push(name);
        }
    }
    Ok(deeper)
}
