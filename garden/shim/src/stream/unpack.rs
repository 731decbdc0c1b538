//! A tar becomes files: what `tar -x --no-same-permissions --no-same-owner --xattrs` does.
//!
//! Runs in a worker that is the user already (see the module above). Owners are ignored, modes lose
//! what the umask and set-id bits are (unless the client wants both as they are), what is in the way of an entry is replaced. Links that lead
//! up or to the root are made last, so that the archive's own entries cannot go through them; links
//! that were there before are the user's and are followed. Ends at the first entry that fails.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use garden_tar::{Described, Entries, Entry, Kind, times};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, XattrFlags};
use rustix::io::Errno;

use super::PIECE;
use crate::failure::{Result, Step as _, other};

/// Bytes of names that are remembered until the end; a million directories have fewer.
const REMEMBERED: usize = 256 << 20;

/// Unpacks a whole stream into a directory.
pub(super) fn all(stream: File, destination: OwnedFd, owners: bool) -> Result<()> {
    if owners {
        // What cannot be opened has its mode from the first.
        rustix::process::umask(Mode::empty());
    }
    let mut reader = BufReader::with_capacity(PIECE, stream);
    let mut place = Place {
        root: destination,
        owners,
        parent: None,
        directories: Vec::new(),
        links: BTreeMap::new(),
        remembered: 0,
        buffer: vec![0; PIECE],
    };
    let mut entries = Entries::new(&mut reader);
    let mut last = String::from("the first entry");
    // A broken header has no name: the entry before it shows the place.
    while let Some(entry) = entries.next().step(&format!("the archive behind {last}"))? {
        last = format!("entry {:?}", String::from_utf8_lossy(&entry.name));
        place.entry(&entry, &mut entries).step_of(&last)?;
    }
    place.finish()?;
    // To the end: the sender's last blocks would otherwise meet a closed pipe.
    std::io::copy(&mut reader, &mut std::io::sink()).step("cannot read the stream's end")?;
    Ok(())
}

trait Of<T> {
    fn step_of(self, entry: &str) -> Result<T>;
}

impl<T> Of<T> for Result<T> {
    fn step_of(self, entry: &str) -> Result<T> {
        self.map_err(|failure| other(format!("{entry}: {}", failure.message)))
    }
}

struct Place {
    root: OwnedFd,
    /// Owners and modes are as the archive has them.
    owners: bool,
    /// The directory of the last entry, by its name.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Directories get their mode and time when nothing is made in them any more.
    directories: Vec<(Vec<u8>, Kept)>,
    /// Links that are made last, by their names.
    links: BTreeMap<Vec<u8>, Later>,
    remembered: usize,
    buffer: Vec<u8>,
}

/// What an object gets when it is complete.
#[derive(Clone, Copy)]
struct Kept {
    mode: u32,
    mtime: (i64, u32),
    owner: Option<(Uid, Gid)>,
}

/// A symbolic link that is made last.
#[derive(Clone)]
struct Later {
    target: Vec<u8>,
    kept: Kept,
    /// The name that it is only another name of.
    first: Option<Vec<u8>>,
    /// The directory that it belongs in, by file system and number: as long as links are missing,
    /// no way leads through one of the archive's.
    parent: (u64, u64),
}

/// A name without what means nothing; empty for the destination itself.
fn normal(name: &[u8]) -> Result<Vec<u8>> {
    let mut parts = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(other("a name must not contain '..'")),
            part => parts.push(part),
        }
    }
    Ok(parts.join(&b'/'))
}

fn path(name: &[u8]) -> &Path {
    let name = if name.is_empty() { b"." } else { name };
    Path::new(std::ffi::OsStr::from_bytes(name))
}

impl Place {
    fn entry(&mut self, entry: &Entry, entries: &mut Entries<'_>) -> Result<()> {
        let name = normal(&entry.name)?;
        let described = match &entry.attributes {
            Ok(described) => described,
            Err(error) => return Err(other(error.to_string())),
        };
        self.links.remove(&name);
        if entry.kind == Kind::Directory {
            return self.directory(name, described);
        }
        if name.is_empty() {
            return Err(other("only a directory can be the destination"));
        }
        match entry.kind {
            Kind::File => self.file(&name, entry, described, entries),
            Kind::HardLink => self.hard_link(name, &entry.link),
            Kind::Symlink => self.symlink(name, &entry.link, self.kept(described)?),
            Kind::Pipe => {
                let mode = Mode::from_raw_mode(described.mode & 0o777);
                self.put(&name, "make the pipe", |parent, leaf| {
                    rustix::fs::mknodat(parent, leaf, FileType::Fifo, mode, 0)
                })?;
                let kept = self.kept(described)?;
                self.finish_leaf(&name, kept)
            }
            _ => Err(other(
                "devices, and types that only one archiver knows, are not unpacked",
            )),
        }
    }

    fn remember(&mut self, bytes: usize) -> Result<()> {
        self.remembered += bytes + 64;
        if self.remembered > REMEMBERED {
            return Err(other("too many directories and links: send them in parts"));
        }
        Ok(())
    }

    /// Opens the directory of an entry; missing parts of the way are made.
    fn parent_of<'n>(&mut self, name: &'n [u8]) -> Result<(&OwnedFd, &'n Path)> {
        let slash = name.iter().rposition(|byte| *byte == b'/');
        let (directory, leaf) = match slash {
            Some(at) => (&name[..at], &name[at + 1..]),
            None => (&[][..], name),
        };
        let known = matches!(&self.parent, Some((known, _)) if known == directory);
        if !known {
            let opened = match self.open(directory, OFlags::PATH) {
                Err(Errno::NOENT) => self.make(directory)?,
                opened => opened.step("cannot open its directory")?,
            };
            self.parent = Some((directory.to_vec(), opened));
        }
        let (_, fd) = self.parent.as_ref().ok_or_else(|| other("no directory"))?;
        Ok((fd, path(leaf)))
    }

    fn identity_of_parent(&mut self, name: &[u8]) -> Result<(u64, u64)> {
        let (parent, _) = self.parent_of(name)?;
        let found = rustix::fs::fstat(parent).step("cannot look at its directory")?;
        Ok((found.st_dev, found.st_ino))
    }

    fn open(&self, directory: &[u8], how: OFlags) -> rustix::io::Result<OwnedFd> {
        let flags = how | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&self.root, path(directory), flags, Mode::empty(), resolve)
    }

    fn make(&self, directory: &[u8]) -> Result<OwnedFd> {
        let ends = directory
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'/');
        for end in ends.map(|(at, _)| at).chain([directory.len()]) {
            let part = path(&directory[..end]);
            match rustix::fs::mkdirat(&self.root, part, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno).step("cannot make its directory"),
            }
        }
        self.open(directory, OFlags::PATH)
            .step("cannot open its directory")
    }

    /// Makes something, replacing what is in the way.
    fn put<T>(
        &mut self,
        name: &[u8],
        doing: &str,
        make: impl Fn(&OwnedFd, &Path) -> rustix::io::Result<T>,
    ) -> Result<T> {
        let doing = format!("cannot {doing}");
        let (parent, leaf) = self.parent_of(name)?;
        match make(parent, leaf) {
            Err(Errno::EXIST) => {}
            made => return made.step(&doing),
        }
        match rustix::fs::unlinkat(parent, leaf, AtFlags::empty()) {
            Err(Errno::ISDIR) => {
                rustix::fs::unlinkat(parent, leaf, AtFlags::REMOVEDIR)
                    .step("cannot replace the directory of that name")?;
            }
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno).step("cannot replace what has that name"),
        }
        let made = make(parent, leaf).step(&doing);
        // It may be the directory that was replaced.
        self.parent = None;
        made
    }

    /// What a description comes to under the client's wishes.
    fn kept(&self, described: &Described) -> Result<Kept> {
        let id = |id: u64| u32::try_from(id).step("its owner is out of range");
        let owner = match self.owners {
            true => Some((
                Uid::from_raw(id(described.uid)?),
                Gid::from_raw(id(described.gid)?),
            )),
            false => None,
        };
        Ok(Kept {
            mode: described.mode & if self.owners { 0o7777 } else { 0o755 },
            mtime: described.mtime,
            owner,
        })
    }

    /// Owner and time of what is not opened.
    fn finish_leaf(&mut self, name: &[u8], kept: Kept) -> Result<()> {
        let (parent, leaf) = self.parent_of(name)?;
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        if let Some((uid, gid)) = kept.owner {
            rustix::fs::chownat(parent, leaf, Some(uid), Some(gid), flags)
                .step("cannot set the owner")?;
        }
        rustix::fs::utimensat(parent, leaf, &times(kept.mtime), flags).step("cannot set the time")
    }

    fn directory(&mut self, name: Vec<u8>, described: &Described) -> Result<()> {
        self.remember(name.len())?;
        if !name.is_empty() {
            // Entries will be made in it; its own mode comes last.
            let mode = Mode::from_raw_mode(described.mode & 0o777 | 0o700);
            self.put(
                &name,
                "make the directory",
                |parent, leaf| match rustix::fs::mkdirat(parent, leaf, mode) {
                    Err(Errno::EXIST) => {
                        let found = rustix::fs::statat(parent, leaf, AtFlags::SYMLINK_NOFOLLOW)?;
                        match FileType::from_raw_mode(found.st_mode) {
                            FileType::Directory => Ok(()),
                            _ => Err(Errno::EXIST),
                        }
                    }
                    made => made,
                },
            )?;
        }
        let fd = self.open(&name, OFlags::RDONLY | OFlags::NOFOLLOW);
        if let Ok(fd) = fd {
            set_xattrs(&fd, &described.xattrs)?;
        }
        let kept = self.kept(described)?;
        self.directories.push((name, kept));
        Ok(())
    }

    fn file(
        &mut self,
        name: &[u8],
        entry: &Entry,
        described: &Described,
        entries: &mut Entries<'_>,
    ) -> Result<()> {
        let wanted = described.mode & 0o777;
        // Attributes can only be set by who may write, whatever the descriptor was opened for.
        let first = if described.xattrs.is_empty() {
            wanted
        } else {
            wanted | 0o200
        };
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(first);
        let file = self.put(name, "make the file", |parent, leaf| {
            rustix::fs::openat(parent, leaf, flags | OFlags::NOFOLLOW, mode)
        })?;
        let file = File::from(file);
        let filled = entries.fill(entry, &file, &mut self.buffer);
        filled.or_else(|error| Err(error.source).step(error.doing))?;
        set_xattrs(&file, &described.xattrs)?;
        let kept = self.kept(described)?;
        if let Some((uid, gid)) = kept.owner {
            rustix::fs::fchown(&file, Some(uid), Some(gid)).step("cannot set the owner")?;
        }
        if first != wanted || kept.owner.is_some() {
            let mode = Mode::from_raw_mode(kept.mode);
            rustix::fs::fchmod(&file, mode).step("cannot set the mode")?;
        }
        rustix::fs::futimens(&file, &times(described.mtime)).step("cannot set the time")
    }

    fn hard_link(&mut self, name: Vec<u8>, target: &[u8]) -> Result<()> {
        let target = normal(target)?;
        if target == name {
            return Ok(());
        }
        if let Some(link) = self.links.get(&target).cloned() {
            self.remember(name.len() + link.target.len() + target.len())?;
            let link = Later {
                first: Some(link.first.unwrap_or(target)),
                parent: self.identity_of_parent(&name)?,
                ..link
            };
            self.links.insert(name, link);
            return Ok(());
        }
        let root = self.root.try_clone().step("cannot link")?;
        let doing = format!("link to {:?}", String::from_utf8_lossy(&target));
        self.put(&name, &doing, |parent, leaf| {
            rustix::fs::linkat(&root, path(&target), parent, leaf, AtFlags::empty())
        })
    }

    fn symlink(&mut self, name: Vec<u8>, target: &[u8], kept: Kept) -> Result<()> {
        let up = target.split(|byte| *byte == b'/').any(|part| part == b"..");
        if target.starts_with(b"/") || up {
            self.remember(name.len() + target.len())?;
            let link = Later {
                target: target.to_vec(),
                kept,
                first: None,
                parent: self.identity_of_parent(&name)?,
            };
            self.links.insert(name, link);
            return Ok(());
        }
        self.link(&name, target)?;
        self.finish_leaf(&name, kept)
    }

    fn link(&mut self, name: &[u8], target: &[u8]) -> Result<()> {
        self.put(name, "make the symbolic link", |parent, leaf| {
            rustix::fs::symlinkat(target, parent, leaf)
        })
    }

    fn late_link(&mut self, name: &[u8], link: &Later) -> Result<()> {
        if self.identity_of_parent(name)? != link.parent {
            return Err(other("a link of the archive leads there"));
        }
        if let Some(first) = &link.first {
            // Where the first name was replaced meanwhile, the link is made once more.
            let root = self.root.try_clone().step("cannot link")?;
            let found = rustix::fs::readlinkat(&root, path(first), Vec::new());
            if found.is_ok_and(|found| found.to_bytes() == link.target) {
                return self.put(name, "link", |parent, leaf| {
                    rustix::fs::linkat(&root, path(first), parent, leaf, AtFlags::empty())
                });
            }
        }
        self.link(name, &link.target)?;
        self.finish_leaf(name, link.kept)
    }

    /// What had to wait: outward links, then directories from the inside out.
    fn finish(&mut self) -> Result<()> {
        let links = std::mem::take(&mut self.links);
        let (more, links): (Vec<_>, Vec<_>) =
            (links.into_iter()).partition(|(_, link)| link.first.is_some());
        for (name, link) in links.iter().chain(&more) {
            let entry = format!("entry {:?}", String::from_utf8_lossy(name));
            self.late_link(name, link).step_of(&entry)?;
        }
        for (name, kept) in std::mem::take(&mut self.directories).into_iter().rev() {
            let done = (|| {
                let fd = self.open(&name, OFlags::RDONLY | OFlags::NOFOLLOW)?;
                if let Some((uid, gid)) = kept.owner {
                    rustix::fs::fchown(&fd, Some(uid), Some(gid))?;
                }
                rustix::fs::fchmod(&fd, Mode::from_raw_mode(kept.mode))?;
                rustix::fs::futimens(&fd, &times(kept.mtime))
            })();
            match done {
                // A directory that was there before may be another's, or be a link by now.
                Ok(()) | Err(Errno::PERM | Errno::ACCESS | Errno::LOOP | Errno::NOTDIR) => {}
                Err(Errno::NOENT) => {}
                Err(errno) => {
                    let entry = format!("entry {:?}", String::from_utf8_lossy(&name));
                    return Err(errno).step("cannot set mode and time").step_of(&entry);
                }
            }
        }
        Ok(())
    }
}

/// Sets what the user may set; the rest is left out, as GNU tar does with a warning.
fn set_xattrs(file: impl std::os::fd::AsFd, xattrs: &[(String, Vec<u8>)]) -> Result<()> {
    for (name, value) in xattrs {
        match rustix::fs::fsetxattr(&file, name.as_str(), value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::PERM | Errno::OPNOTSUPP | Errno::INVAL) => {}
            Err(errno) => {
                return Err(errno).step(&format!("cannot set the extended attribute {name:?}"));
            }
        }
    }
    Ok(())
}
