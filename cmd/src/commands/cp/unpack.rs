//! A container's tar becomes files of this host.
//!
//! What arrives was made in a container, whose processes may have wanted it to go elsewhere. So all
//! of it is resolved beneath one open directory and through no symbolic link, nothing that exists is
//! written into (files are made anew, in place of what has their name), devices are not made, and
//! set-id bits only on request. Directories that were there stay as they are.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use garden_tar::{Described, Entries, Entry, Kind, times};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, XattrFlags};
use rustix::io::Errno;

/// Bytes moved at once.
const PIECE: usize = 256 << 10;

/// How an archive is unpacked.
#[derive(Debug)]
pub(super) struct How {
    /// The first part of each name in the archive, which is dropped.
    pub(super) root: Option<String>,
    /// What comes in its place; nothing: directly into the directory.
    pub(super) name: Option<String>,
    /// Owners, and modes as they are.
    pub(super) owners: bool,
}

/// Unpacks a whole stream; returns the names of devices and the like, which were left out.
pub(super) fn unpack(stream: impl Read, directory: OwnedFd, how: How) -> Result<Vec<String>> {
    let mut reader = BufReader::with_capacity(PIECE, stream);
    let mut place = Beneath {
        root: directory,
        how,
        parent: None,
        directories: Vec::new(),
        left_out: Vec::new(),
        buffer: vec![0; PIECE],
    };
    let mut entries = Entries::new(&mut reader);
    while let Some(entry) = entries.next()? {
        let name = String::from_utf8_lossy(&entry.name).into_owned();
        let put = place.entry(&entry, &mut entries);
        put.with_context(|| format!("cannot copy {name:?}"))?;
    }
    place.finish()?;
    std::io::copy(&mut reader, &mut std::io::sink())?;
    Ok(place.left_out)
}

struct Beneath {
    root: OwnedFd,
    how: How,
    /// The directory of the last entry, by its name.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// They get mode and time when nothing is made in them any more.
    directories: Vec<(Vec<u8>, Described)>,
    left_out: Vec<String>,
    buffer: Vec<u8>,
}

fn path(name: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(name))
}

fn split(name: &[u8]) -> (&[u8], &[u8]) {
    match name.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&name[..at], &name[at + 1..]),
        None => (b"", name),
    }
}

impl Beneath {
    /// Where an entry goes: without what means nothing, and under the name that was asked for.
    fn target(&self, name: &[u8]) -> Result<Vec<u8>> {
        let mut parts = Vec::new();
        for part in name.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => bail!("its name contains '..'"),
                part => parts.push(part),
            }
        }
        if let Some(root) = &self.how.root {
            if parts.first() != Some(&root.as_bytes()) {
                bail!("its name does not begin with {root:?}");
            }
            parts.remove(0);
        }
        if let Some(name) = &self.how.name {
            parts.insert(0, name.as_bytes());
        }
        Ok(parts.join(&b'/'))
    }

    fn open(&self, directory: &[u8], how: OFlags) -> rustix::io::Result<OwnedFd> {
        let directory = if directory.is_empty() {
            b"."
        } else {
            directory
        };
        let flags = how | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        rustix::fs::openat2(&self.root, path(directory), flags, Mode::empty(), resolve)
    }

    /// Opens a directory of the copy; missing parts of the way are made.
    fn directory_at(&self, directory: &[u8]) -> Result<OwnedFd> {
        match self.open(directory, OFlags::PATH) {
            Err(Errno::NOENT) => {}
            opened => return opened.context(refused(directory)),
        }
        let (parent, leaf) = split(directory);
        let parent = self.directory_at(parent)?;
        match rustix::fs::mkdirat(&parent, path(leaf), Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).context("cannot make its directory"),
        }
        self.open(directory, OFlags::PATH)
            .context(refused(directory))
    }

    fn parent_of<'n>(&mut self, name: &'n [u8]) -> Result<(&OwnedFd, &'n Path)> {
        let (directory, leaf) = split(name);
        if !matches!(&self.parent, Some((known, _)) if known == directory) {
            self.parent = Some((directory.to_vec(), self.directory_at(directory)?));
        }
        let (_, fd) = self.parent.as_ref().context("no directory")?;
        Ok((fd, path(leaf)))
    }

    /// Makes something, in place of what is no directory and has its name.
    fn put<T>(
        &mut self,
        name: &[u8],
        make: impl Fn(&OwnedFd, &Path) -> rustix::io::Result<T>,
    ) -> Result<T> {
        let (parent, leaf) = self.parent_of(name)?;
        match make(parent, leaf) {
            Err(Errno::EXIST) => {}
            made => return Ok(made?),
        }
        match rustix::fs::unlinkat(parent, leaf, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) => bail!("a directory has its name"),
            Err(errno) => return Err(errno).context("cannot replace what has its name"),
        }
        Ok(make(parent, leaf)?)
    }

    fn entry(&mut self, entry: &Entry, entries: &mut Entries<'_>) -> Result<()> {
        let name = self.target(&entry.name)?;
        let described = match &entry.attributes {
            Ok(described) => described,
            Err(error) => bail!("{error}"),
        };
        if name.is_empty() {
            return match entry.kind {
                Kind::Directory => Ok(()),
                _ => bail!("it is no directory, and would replace one"),
            };
        }
        match entry.kind {
            Kind::Directory => self.directory(name, described),
            Kind::File => self.file(&name, entry, described, entries),
            Kind::Symlink => {
                self.put(&name, |parent, leaf| {
                    rustix::fs::symlinkat(path(&entry.link), parent, leaf)
                })?;
                self.dress(&name, described)
            }
            Kind::HardLink => {
                let target = self.target(&entry.link)?;
                let (directory, leaf) = split(&target);
                let from = self.directory_at(directory)?;
                self.put(&name, |parent, to| {
                    rustix::fs::linkat(&from, path(leaf), parent, to, AtFlags::empty())
                })
            }
            Kind::Pipe => {
                let mode = Mode::from_raw_mode(described.mode & 0o777);
                self.put(&name, |parent, leaf| {
                    rustix::fs::mknodat(parent, leaf, FileType::Fifo, mode, 0)
                })?;
                self.dress(&name, described)
            }
            Kind::Unusable => {
                let name = String::from_utf8_lossy(&entry.name);
                self.left_out.push(name.into_owned());
                Ok(())
            }
        }
    }

    fn directory(&mut self, name: Vec<u8>, described: &Described) -> Result<()> {
        let (parent, leaf) = self.parent_of(&name)?;
        match rustix::fs::mkdirat(parent, leaf, Mode::from_raw_mode(0o700)) {
            Ok(()) => {
                self.directories.push((name, described.clone()));
            }
            Err(Errno::EXIST) => {
                let found = rustix::fs::statat(parent, leaf, AtFlags::SYMLINK_NOFOLLOW)?;
                match FileType::from_raw_mode(found.st_mode) {
                    FileType::Directory => {}
                    FileType::Symlink => bail!("a symbolic link has its name, and is not followed"),
                    _ => bail!("a file has its name"),
                }
            }
            Err(errno) => return Err(errno).context("cannot make the directory"),
        }
        Ok(())
    }

    fn file(
        &mut self,
        name: &[u8],
        entry: &Entry,
        described: &Described,
        entries: &mut Entries<'_>,
    ) -> Result<()> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        let file = self.put(name, |parent, leaf| {
            rustix::fs::openat(parent, leaf, flags | OFlags::NOFOLLOW, mode)
        })?;
        let file = File::from(file);
        entries.fill(entry, &file, &mut self.buffer)?;
        self.attributes(&file, described)
    }

    /// What an open file or directory gets when it is complete.
    fn attributes(&self, file: impl AsFd, described: &Described) -> Result<()> {
        for (name, value) in &described.xattrs {
            // Others mean something to this host's kernel.
            if name.starts_with("user.") {
                match rustix::fs::fsetxattr(&file, name.as_str(), value, XattrFlags::empty()) {
                    Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM | Errno::INVAL) => {}
                    Err(errno) => return Err(errno).context("cannot set an extended attribute"),
                }
            }
        }
        let kept = if self.how.owners {
            let (uid, gid) = owner(described)?;
            rustix::fs::fchown(&file, Some(uid), Some(gid))
                .context("cannot set its owner: --archive needs root")?;
            0o7777
        } else {
            0o777
        };
        rustix::fs::fchmod(&file, Mode::from_raw_mode(described.mode & kept))
            .context("cannot set its mode")?;
        rustix::fs::futimens(&file, &times(described.mtime)).context("cannot set its time")
    }

    /// What a link or a pipe gets.
    fn dress(&mut self, name: &[u8], described: &Described) -> Result<()> {
        let owners = self.how.owners;
        let (parent, leaf) = self.parent_of(name)?;
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        if owners {
            let (uid, gid) = owner(described)?;
            rustix::fs::chownat(parent, leaf, Some(uid), Some(gid), flags)
                .context("cannot set its owner: --archive needs root")?;
        }
        rustix::fs::utimensat(parent, leaf, &times(described.mtime), flags)
            .context("cannot set its time")
    }

    /// Directories, from the inside out.
    fn finish(&mut self) -> Result<()> {
        for (name, described) in std::mem::take(&mut self.directories).into_iter().rev() {
            let directory = self.open(&name, OFlags::RDONLY).context(refused(&name))?;
            let dressed = self.attributes(&directory, &described);
            dressed.with_context(|| format!("cannot copy {:?}", String::from_utf8_lossy(&name)))?;
        }
        Ok(())
    }
}

fn refused(directory: &[u8]) -> String {
    let directory = String::from_utf8_lossy(directory);
    format!("cannot open the directory {directory:?} of the copy (links are not followed)")
}

fn owner(described: &Described) -> Result<(Uid, Gid)> {
    let id = |id: u64| u32::try_from(id).context("its owner is out of range");
    Ok((
        Uid::from_raw(id(described.uid)?),
        Gid::from_raw(id(described.gid)?),
    ))
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
