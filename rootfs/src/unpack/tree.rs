//! A layer while it is made: the only code of unpacking that touches the disk.
//!
//! Driven by the front ends, one object at a time, in a private directory that nobody else
//! writes. Every way is opened beneath that directory by the kernel (`openat2` with
//! `RESOLVE_BENEATH`), the last part is always handled by name with a call that follows no link,
//! and a later object replaces an earlier one of the same name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

use super::attributes::{self, Attributes, times};
use super::name::Name;
use super::{Doing, Fault, Limits};
use crate::error::Rule;
use crate::remove;

/// A layer while it is made.
pub(crate) struct Tree<'a> {
    /// The staging directory around it: what is replaced is moved there to be removed.
    staging: BorrowedFd<'a>,
    root: Rc<OwnedFd>,
    limits: &'a Limits,
    /// The directory that was used last; most objects lie beside the one before.
    recent: Option<(Name, Rc<OwnedFd>)>,
    pub(super) made: Made,
    names: u64,
    displaced: u64,
    buffer: Vec<u8>,
}

/// What is known of a layer besides its tree.
#[derive(Debug, Default)]
pub(crate) struct Made {
    /// Objects that were described.
    pub(crate) entries: u64,
    /// Bytes in regular files.
    pub(crate) bytes: u64,
    /// Objects that were left out: devices, and types that only some archiver knows.
    pub(crate) skipped: u64,
    /// Extended attributes that were left out.
    pub(crate) attributes: u64,
    /// Attributes of the root, if it was described.
    pub(crate) root: Option<Attributes>,
    /// Whether the layer hides everything below it.
    pub(crate) opaque_root: bool,
    /// Directories that exist only because something lies in them.
    pub(crate) implied: BTreeSet<Name>,
    /// Times of all directories; the epoch where nothing described one.
    pub(super) directories: BTreeMap<Name, (i64, u32)>,
    /// Names that hide lower ones.
    pub(crate) whiteouts: BTreeSet<Name>,
    pub(super) opaque: BTreeSet<Name>,
}

const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

impl<'a> Tree<'a> {
    /// Starts in an empty directory.
    pub(crate) fn new(staging: BorrowedFd<'a>, root: OwnedFd, limits: &'a Limits) -> Self {
        Self {
            staging,
            root: Rc::new(root),
            limits,
            recent: None,
            made: Made::default(),
            names: 0,
            displaced: 0,
            buffer: vec![0; 128 * 1024],
        }
    }

    /// Counts an entry, and the memory that its name may need.
    pub(crate) fn count(&mut self, name: &Name) -> Result<(), Fault> {
        self.made.entries += 1;
        if self.made.entries > self.limits.entries {
            return Err(Rule::Entries(self.limits.entries).into());
        }
        self.names += name.bytes().len() as u64;
        if self.names > self.limits.names {
            return Err(Rule::Names(self.limits.names).into());
        }
        Ok(())
    }

    /// Counts an entry that is left out.
    pub(crate) fn skip(&mut self) {
        self.made.skipped += 1;
    }

    /// Drops the extended attributes that are not on the allow-list.
    pub(crate) fn allow(&mut self, mut given: Attributes) -> Attributes {
        let before = given.xattrs.len();
        given.xattrs = (given.xattrs.into_iter())
            .filter_map(|(name, value)| {
                attributes::allowed(&name, &value).map(|value| (name, value))
            })
            .collect();
        given.xattrs.sort();
        self.made.attributes += (before - given.xattrs.len()) as u64;
        given
    }

    /// A name that lower layers may have and this image has not.
    pub(crate) fn whiteout(&mut self, name: Name) {
        self.made.whiteouts.insert(name);
    }

    /// A directory that hides what lower layers have in it.
    pub(crate) fn opaque(&mut self, directory: Name) {
        self.made.opaque.insert(directory);
    }

    /// A directory; merges with one that is there.
    pub(crate) fn directory(&mut self, name: &Name, given: Attributes) -> Result<(), Fault> {
        let fd = match name.split() {
            None => {
                self.made.root = Some(given.clone());
                self.open_directory(name)?
            }
            Some((parent, last)) => {
                let parent = self.parent(&parent)?;
                self.make_directory(&parent, name, last, false)?;
                self.made.implied.remove(name);
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(&*parent, last, flags, Mode::empty())
                    .doing("open the new directory")?
            }
        };
        self.made.attributes += given.apply(&fd)?;
        self.made.directories.insert(name.clone(), given.mtime);
        Ok(())
    }

    /// A regular file of this size.
    pub(crate) fn file(
        &mut self,
        name: &Name,
        given: &Attributes,
        size: u64,
        content: &mut dyn Read,
    ) -> Result<(), Fault> {
        let (parent, last) = self.place(name)?;
        self.made.bytes = self.made.bytes.saturating_add(size);
        if self.made.bytes > self.limits.bytes {
            return Err(Rule::Bytes(self.limits.bytes).into());
        }
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(&*parent, &last, flags, Mode::RUSR | Mode::WUSR);
        let fd = match open() {
            Err(Errno::EXIST) => {
                self.displace(&parent, name, &last)?;
                open()
            }
            other => other,
        };
        let mut file = File::from(fd.doing("create the file")?);
        loop {
            match content.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(length) => (file.write_all(&self.buffer[..length])).doing("write the file")?,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Fault::reading(error)),
            }
        }
        self.made.attributes += given.apply(&file)?;
        rustix::fs::futimens(&file, &times(given.mtime)).doing("set the time")
    }

    /// A symbolic link. Where it leads is the business of whoever will follow it inside.
    pub(crate) fn symlink(
        &mut self,
        name: &Name,
        given: &Attributes,
        target: &[u8],
        limits: &Limits,
    ) -> Result<(), Fault> {
        if target.is_empty() || target.contains(&0) {
            return Err(Rule::Name.into());
        }
        if target.len() > limits.name {
            return Err(Rule::Length(limits.name).into());
        }
        let (parent, last) = self.place(name)?;
        match rustix::fs::symlinkat(target, &*parent, &last) {
            Err(Errno::EXIST) => {
                self.displace(&parent, name, &last)?;
                rustix::fs::symlinkat(target, &*parent, &last)
            }
            other => other,
        }
        .doing("make the symbolic link")?;
        self.made.attributes += given.xattrs.len() as u64;
        owner_and_time(&parent, &last, given)
    }

    /// A named pipe.
    pub(crate) fn pipe(&mut self, name: &Name, given: &Attributes) -> Result<(), Fault> {
        let (parent, last) = self.place(name)?;
        let mode = Mode::from_raw_mode(given.mode);
        let make = || rustix::fs::mknodat(&*parent, &last, FileType::Fifo, mode, 0);
        match make() {
            Err(Errno::EXIST) => {
                self.displace(&parent, name, &last)?;
                make()
            }
            other => other,
        }
        .doing("make the pipe")?;
        owner_and_time(&parent, &last, given)?;
        // Follows links, but what lies here was made just now, and nobody else writes here.
        rustix::fs::chmodat(&*parent, &last, mode, AtFlags::empty()).doing("set the mode")
    }

    /// Another name for a file of this layer.
    pub(crate) fn hard_link(&mut self, name: &Name, target: &Name) -> Result<(), Fault> {
        let missing = || Rule::LinkTarget(String::from_utf8_lossy(target.bytes()).into_owned());
        let (directory, last_target) = target.split().ok_or_else(missing)?;
        let from = match open_beneath(&self.root, &directory, OFlags::PATH) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(missing().into()),
            other => beneath(other, "open the directory of the link's target")?,
        };
        match rustix::fs::statat(&from, last_target, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Directory => {}
            Ok(_) | Err(Errno::NOENT) => return Err(missing().into()),
            Err(error) => return Err(error).doing("look at the link's target"),
        }
        if name == target {
            return Ok(());
        }
        let (parent, last) = self.place(name)?;
        let link = || rustix::fs::linkat(&from, last_target, &*parent, &last, AtFlags::empty());
        match link() {
            Err(Errno::EXIST) => {
                self.displace(&parent, name, &last)?;
                link()
            }
            other => other,
        }
        .doing("make the hard link")
    }

    /// The directory in which an object is to be made, and its last part.
    fn place(&mut self, name: &Name) -> Result<(Rc<OwnedFd>, Vec<u8>), Fault> {
        let (parent, last) = name.split().ok_or(Rule::RootNotDirectory)?;
        Ok((self.parent(&parent)?, last.to_vec()))
    }

    /// Opens a directory, making it and those around it if nothing described them.
    pub(super) fn parent(&mut self, name: &Name) -> Result<Rc<OwnedFd>, Fault> {
        if name.is_root() {
            return Ok(Rc::clone(&self.root));
        }
        if let Some((recent, fd)) = &self.recent
            && recent == name
        {
            return Ok(Rc::clone(fd));
        }
        let opened = match open_beneath(&self.root, name, OFlags::PATH) {
            Err(Errno::NOENT | Errno::NOTDIR) => self.imply(name)?,
            other => beneath(other, "open the directory around it")?,
        };
        let fd = Rc::new(opened);
        self.recent = Some((name.clone(), Rc::clone(&fd)));
        Ok(fd)
    }

    fn imply(&mut self, name: &Name) -> Result<OwnedFd, Fault> {
        let (parent, last) = name.split().ok_or(Rule::RootNotDirectory)?;
        let parent = self.parent(&parent)?;
        if self.make_directory(&parent, name, last, true)? {
            self.names += name.bytes().len() as u64;
            self.made.implied.insert(name.clone());
            self.made.directories.insert(name.clone(), (0, 0));
            let fd = self.open_directory(name)?;
            Attributes::default().apply(&fd)?;
        }
        beneath(
            open_beneath(&self.root, name, OFlags::PATH),
            "open the directory around it",
        )
    }

    /// Makes a directory unless there is one; anything else of that name is replaced. Where it is
    /// only on the way to something, a symbolic link is not replaced but an error: it was tried,
    /// and led to no directory of this layer.
    fn make_directory(
        &mut self,
        parent: &Rc<OwnedFd>,
        name: &Name,
        last: &[u8],
        on_the_way: bool,
    ) -> Result<bool, Fault> {
        let make = || rustix::fs::mkdirat(&**parent, last, Mode::RWXU);
        match make() {
            Ok(()) => return Ok(true),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error).doing("make the directory"),
        }
        let stat = rustix::fs::statat(&**parent, last, AtFlags::SYMLINK_NOFOLLOW)
            .doing("look at what is there")?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return Ok(false),
            FileType::Symlink if on_the_way => return Err(Rule::LeavesRoot.into()),
            _ => self.displace(parent, name, last)?,
        }
        make().doing("make the directory")?;
        Ok(true)
    }

    /// Takes away what an earlier entry put under this name.
    fn displace(&mut self, parent: &OwnedFd, name: &Name, last: &[u8]) -> Result<(), Fault> {
        // It may have been the way to the directory that was used last.
        self.recent = None;
        match rustix::fs::unlinkat(parent, last, AtFlags::empty()) {
            Ok(()) => return Ok(()),
            Err(Errno::ISDIR) => {}
            Err(error) => return Err(error).doing("replace an earlier entry"),
        }
        let aside = format!("displaced-{}", self.displaced);
        self.displaced += 1;
        rustix::fs::renameat(parent, last, self.staging, &*aside)
            .doing("replace an earlier directory")?;
        let gone = |kept: &Name| kept == name || kept.is_below(name);
        self.made.implied.retain(|kept| !gone(kept));
        self.made.directories.retain(|kept, _| !gone(kept));
        remove::tree(self.staging, aside.as_ref(), &|| false).doing("remove a replaced directory")
    }

    /// Opens a directory of the layer for reading, which changing it needs.
    pub(super) fn open_directory(&self, name: &Name) -> Result<OwnedFd, Fault> {
        beneath(self.look(name), "open a directory of the layer")
    }

    /// The same, for callers that know what to do without it.
    pub(super) fn look(&self, name: &Name) -> rustix::io::Result<OwnedFd> {
        open_beneath(&self.root, name, OFlags::RDONLY)
    }
}

/// Opens a directory beneath another.
pub(crate) fn open_beneath(
    root: &OwnedFd,
    name: &Name,
    access: OFlags,
) -> rustix::io::Result<OwnedFd> {
    let flags = access | OFlags::DIRECTORY | OFlags::CLOEXEC;
    loop {
        match rustix::fs::openat2(root, name.path(), flags, Mode::empty(), BENEATH) {
            // Something was renamed on the same disk meanwhile: openat2(2) asks to try again.
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
}

fn beneath(opened: rustix::io::Result<OwnedFd>, step: &str) -> Result<OwnedFd, Fault> {
    match opened {
        Err(Errno::XDEV | Errno::LOOP | Errno::NOENT | Errno::NOTDIR) => {
            Err(Rule::LeavesRoot.into())
        }
        other => other.doing(step),
    }
}

fn owner_and_time(parent: &OwnedFd, last: &[u8], given: &Attributes) -> Result<(), Fault> {
    let (uid, gid) = (Uid::from_raw(given.uid), Gid::from_raw(given.gid));
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(parent.as_fd(), last, Some(uid), Some(gid), nofollow)
        .doing("set the owner")?;
    rustix::fs::utimensat(parent.as_fd(), last, &times(given.mtime), nofollow).doing("set the time")
}
