//! A layer while it is made: the only code of unpacking that touches the disk.
//!
//! Driven by the front ends, one object at a time, in a private directory that nobody else
//! writes. Where an object goes is decided in [`super::place`]; the last part of its name is
//! always handled by a call that follows no link, a later object replaces an earlier one of the
//! same name, and each is listed as it is made. Most entries of real layers cost five system
//! calls: open, look, write, time, close.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;

use super::attributes::{self, Attributes, times};
use super::listing::{Sum, Summing, What, Writer};
use super::name::Name;
use super::place::{Made as Directory, Place, Recent, open_directory};
use super::{Doing, Fault, Limits};
use crate::error::Rule;

pub(crate) use super::place::open_beneath;

/// A layer while it is made.
pub(crate) struct Tree<'a> {
    /// The staging directory around it: what is replaced is moved there to be removed.
    pub(super) staging: BorrowedFd<'a>,
    pub(super) root: Rc<OwnedFd>,
    pub(super) limits: &'a Limits,
    pub(super) recent: Option<Recent>,
    pub(super) made: Made,
    /// Whether so much was replaced that the listing must be made anew.
    pub(super) relist: bool,
    pub(super) displaced: u64,
    /// Names that hide whole directories.
    pub(super) opaque: BTreeSet<Name>,
    names: u64,
    remembered: u64,
    /// Whether the file system keeps times to the nanosecond.
    exact: bool,
    buffer: Vec<u8>,
}

/// What is known of a layer besides its tree.
#[derive(Debug)]
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
    /// Names that hide lower ones.
    pub(crate) whiteouts: BTreeSet<Name>,
    /// The listing; who changes the tree adds to it.
    pub(crate) listing: Writer,
}

/// The content of a regular file.
pub(crate) struct Content<'a> {
    /// The bytes that were promised.
    pub(crate) size: u64,
    /// The bytes.
    pub(crate) bytes: &'a mut dyn Read,
    /// Whether long runs of zeros need no place on the disk.
    pub(crate) sparse: bool,
}

/// The names of extended attributes of one object that Linux can list, in bytes (xattr(7)).
const NAMES_OF_XATTRS: usize = 64 * 1024;

pub(super) const LISTING: &str = "write the listing of the layer";

impl<'a> Tree<'a> {
    /// Starts in an empty directory; the listing is written beside it, into `staging`.
    pub(crate) fn new(
        staging: BorrowedFd<'a>,
        root: OwnedFd,
        limits: &'a Limits,
    ) -> Result<Self, Fault> {
        const ODD: (i64, u32) = (1, 123_456_789);
        rustix::fs::futimens(&root, &times(ODD)).doing("set the time of a new directory")?;
        let kept = rustix::fs::fstat(&root).doing("look at a new directory")?;
        let made = Made {
            entries: 0,
            bytes: 0,
            skipped: 0,
            attributes: 0,
            root: None,
            opaque_root: false,
            implied: BTreeSet::new(),
            whiteouts: BTreeSet::new(),
            listing: Writer::new(staging).doing(LISTING)?,
        };
        Ok(Self {
            staging,
            root: Rc::new(root),
            limits,
            recent: None,
            made,
            relist: false,
            displaced: 0,
            opaque: BTreeSet::new(),
            names: 0,
            remembered: 0,
            exact: attributes::time_of(&kept) == ODD,
            buffer: vec![0; 128 * 1024],
        })
    }

    /// Counts an entry.
    pub(crate) fn count(&mut self, name: &Name) -> Result<(), Fault> {
        self.made.entries += 1;
        if self.made.entries > self.limits.entries {
            return Err(Rule::Entries(self.limits.entries).into());
        }
        self.named(name.bytes().len())
    }

    /// Counts the bytes of a name.
    fn named(&mut self, length: usize) -> Result<(), Fault> {
        self.names += length as u64;
        match self.names > self.limits.names {
            true => Err(Rule::Names(self.limits.names).into()),
            false => Ok(()),
        }
    }

    /// Counts a name that is kept in memory until the layer is complete.
    pub(super) fn remember(&mut self, name: &Name) -> Result<(), Fault> {
        self.remembered += name.bytes().len() as u64;
        let most = self.limits.names / 8;
        match self.remembered > most {
            true => Err(Rule::Remembered(most).into()),
            false => Ok(()),
        }
    }

    /// Counts an entry that is left out.
    pub(crate) fn skip(&mut self) {
        self.made.skipped += 1;
    }

    /// Drops the extended attributes that are not on the allow-list. Of several values of one
    /// name, the last counts.
    pub(crate) fn allow(&mut self, mut given: Attributes) -> Result<Attributes, Fault> {
        if given.xattrs.is_empty() {
            return Ok(given);
        }
        let before = given.xattrs.len();
        let mut kept: Vec<(String, Vec<u8>)> = (given.xattrs.into_iter())
            .filter_map(|(name, value)| {
                attributes::allowed(&name, &value).map(|value| (name, value))
            })
            .collect();
        self.made.attributes += (before - kept.len()) as u64;
        kept.reverse();
        kept.sort_by(|one, other| one.0.cmp(&other.0));
        kept.dedup_by(|later, first| later.0 == first.0);
        let names = kept.iter().map(|(name, _)| name.len() + 1).sum();
        if names > NAMES_OF_XATTRS {
            return Err(Rule::Attributes(NAMES_OF_XATTRS).into());
        }
        self.named(names)?;
        given.xattrs = kept;
        Ok(given)
    }

    /// A name that lower layers may have and this image has not.
    pub(crate) fn whiteout(&mut self, name: Name) -> Result<(), Fault> {
        self.remember(&name)?;
        self.made.whiteouts.insert(name);
        Ok(())
    }

    /// A directory that hides what lower layers have in it.
    pub(crate) fn opaque(&mut self, directory: Name) -> Result<(), Fault> {
        self.remember(&directory)?;
        self.opaque.insert(directory);
        Ok(())
    }

    /// A directory; merges with one that is there.
    pub(crate) fn directory(&mut self, name: Name, mut given: Attributes) -> Result<(), Fault> {
        if name.is_root() {
            let root = Rc::clone(&self.root);
            self.describe(&root, &mut given, true)?;
            self.list(true, &name, &given, What::Directory)?;
            self.made.root = Some(given);
            return Ok(());
        }
        let place = self.place(name.clone())?;
        let mode = Mode::from_raw_mode(given.mode & 0o777);
        let made = self.make_directory(&place.parent, &place.name, place.last(), mode)?;
        let was_implied = self.made.implied.remove(&place.name);
        let again = made == Directory::Instead || made == Directory::Kept && !was_implied;
        let fd = open_directory(&place.parent, place.last())?;
        self.describe(&fd, &mut given, made == Directory::Kept)?;
        self.list(again, &place.name, &given, What::Directory)?;
        self.came_to(name, place.name, fd);
        Ok(())
    }

    /// Gives a directory its attributes. Its time comes last of all, but is written down now.
    fn describe(&mut self, fd: &OwnedFd, given: &mut Attributes, old: bool) -> Result<(), Fault> {
        if old {
            given.remove_others(fd)?;
        }
        self.made.attributes += given.apply(fd)?;
        if !self.keeps(given.mtime) {
            self.set_time(fd, given)?;
        }
        Ok(())
    }

    /// A regular file.
    pub(crate) fn file(
        &mut self,
        name: Name,
        mut given: Attributes,
        content: Content<'_>,
    ) -> Result<(), Fault> {
        self.room(content.size)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(given.mode & 0o777);
        let (place, fd, again) = self.make(name, "create the file", |parent, last| {
            rustix::fs::openat(parent, last, flags, mode)
        })?;
        let file = File::from(fd);
        let (size, sum) = self.fill(&file, content)?;
        self.made.bytes += size;
        self.made.attributes += given.apply(&file)?;
        self.set_time(&file, &mut given)?;
        self.list(again, &place.name, &given, What::File { size, sum })
    }

    /// Whether so many bytes more are allowed.
    fn room(&self, bytes: u64) -> Result<(), Fault> {
        match self.made.bytes.checked_add(bytes) {
            Some(all) if all <= self.limits.bytes => Ok(()),
            _ => Err(Rule::Bytes(self.limits.bytes).into()),
        }
    }

    /// Writes the content of a file, and sums it up.
    fn fill(&mut self, file: &File, content: Content<'_>) -> Result<(u64, Sum), Fault> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = self.fill_from(&mut buffer, file, content);
        self.buffer = buffer;
        result
    }

    fn fill_from(
        &self,
        buffer: &mut [u8],
        file: &File,
        content: Content<'_>,
    ) -> Result<(u64, Sum), Fault> {
        let mut size = 0;
        let mut summing: Option<Summing> = None;
        loop {
            let length = read_full(content.bytes, buffer).map_err(Fault::reading)?;
            let piece = &buffer[..length];
            self.room(size + length as u64)?;
            let hole = content.sparse && piece.iter().all(|byte| *byte == 0);
            if !hole {
                file.write_all_at(piece, size).doing("write the file")?;
            }
            size += length as u64;
            let last = length < buffer.len();
            // Small files are one piece, and cheaper to sum up at once.
            if last && summing.is_none() {
                let sum = Sum::of(piece);
                self.length(file, size, content.sparse)?;
                return Ok((size, sum));
            }
            let summing = summing.get_or_insert_with(Summing::new);
            summing.add(piece);
            if last {
                self.length(file, size, content.sparse)?;
                return Ok((size, summing.sum()));
            }
        }
    }

    /// A hole at the end is not written.
    fn length(&self, file: &File, size: u64, sparse: bool) -> Result<(), Fault> {
        match sparse {
            true => rustix::fs::ftruncate(file, size).doing("set the length of the file"),
            false => Ok(()),
        }
    }

    /// A symbolic link. Where it leads is the business of whoever will follow it inside.
    pub(crate) fn symlink(
        &mut self,
        name: Name,
        mut given: Attributes,
        target: &[u8],
    ) -> Result<(), Fault> {
        if target.is_empty() || target.contains(&0) {
            return Err(Rule::Target.into());
        }
        if target.len() > self.limits.name {
            return Err(Rule::Length(self.limits.name).into());
        }
        self.named(target.len())?;
        let made = self.make(name, "make the symbolic link", |parent, last| {
            rustix::fs::symlinkat(target, parent, last)
        });
        let (place, (), again) = match made {
            Err(Fault::Host(_, error))
                if error.raw_os_error() == Some(Errno::NAMETOOLONG.raw_os_error()) =>
            {
                return Err(self.too_long(target.len()));
            }
            other => other?,
        };
        // Attributes that a link may have are none that an image may set.
        self.made.attributes += given.xattrs.len() as u64;
        self.owner_and_time(&place, &mut given)?;
        self.list(again, &place.name, &given, What::Symlink(target))
    }

    /// XFS keeps shorter targets than Linux allows.
    fn too_long(&self, length: usize) -> Fault {
        const XFS: i64 = 0x5846_5342;
        let found = rustix::fs::fstatfs(&*self.root).ok();
        let xfs = found.is_some_and(|found| found.f_type == XFS);
        let limit = if xfs { 1023 } else { 4095 };
        let file_system = if xfs { "XFS" } else { "the file system" };
        let rule = Rule::TargetLength {
            length,
            limit,
            file_system,
        };
        rule.into()
    }

    /// A named pipe.
    pub(crate) fn pipe(&mut self, name: Name, mut given: Attributes) -> Result<(), Fault> {
        let mode = Mode::from_raw_mode(given.mode);
        let (place, (), again) = self.make(name, "make the pipe", |parent, last| {
            rustix::fs::mknodat(parent, last, FileType::Fifo, mode, 0)
        })?;
        self.made.attributes += given.xattrs.len() as u64;
        let stat = self.owner_and_time(&place, &mut given)?;
        if stat.st_mode & 0o7777 != given.mode || given.mode & 0o6000 != 0 {
            // Follows links, but what lies here was made just now, and nobody else writes here.
            rustix::fs::chmodat(&*place.parent, place.last(), mode, AtFlags::empty())
                .doing("set the mode")?;
        }
        self.list(again, &place.name, &given, What::Pipe)
    }

    /// Another name for a file of this layer.
    pub(crate) fn hard_link(&mut self, name: Name, to: &Name) -> Result<(), Fault> {
        let missing = || Rule::LinkTarget(String::from_utf8_lossy(to.bytes()).into_owned());
        let (directory, last) = to.split().ok_or_else(missing)?;
        // First, because making the directories around it may replace the target.
        let place = self.place(name)?;
        let (directory, from) = self.existing(&directory)?.ok_or_else(missing)?;
        let target = directory.join(last);
        if target.is_below(&place.name) {
            return Err(missing().into());
        }
        let look =
            |fd: &OwnedFd, last: &[u8]| rustix::fs::statat(fd, last, AtFlags::SYMLINK_NOFOLLOW);
        let stat = match look(&from, last) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Directory => stat,
            Ok(_) | Err(Errno::NOENT) => return Err(missing().into()),
            Err(error) => return Err(error).doing("look at the link's target"),
        };
        match look(&place.parent, place.last()) {
            // The name is one of the file already, or the file itself.
            Ok(there) if there.st_ino == stat.st_ino => return Ok(()),
            _ => {}
        }
        let (place, (), again) = self.make_at(place, "make the hard link", |parent, name| {
            rustix::fs::linkat(&from, last, parent, name, AtFlags::empty())
        })?;
        (self.made.listing)
            .hard_link(again, &place.name, &target)
            .doing(LISTING)
    }

    /// Makes an object, in place of an earlier one if need be. Tells whether there was one.
    fn make<T>(
        &mut self,
        name: Name,
        step: &str,
        make: impl Fn(&OwnedFd, &[u8]) -> rustix::io::Result<T>,
    ) -> Result<(Place, T, bool), Fault> {
        let place = self.place(name)?;
        self.make_at(place, step, make)
    }

    fn make_at<T>(
        &mut self,
        place: Place,
        step: &str,
        make: impl Fn(&OwnedFd, &[u8]) -> rustix::io::Result<T>,
    ) -> Result<(Place, T, bool), Fault> {
        match make(&place.parent, place.last()) {
            Err(Errno::EXIST) => {
                self.displace(&place.parent, &place.name, place.last())?;
                let made = make(&place.parent, place.last()).doing(step)?;
                Ok((place, made, true))
            }
            other => Ok((place, other.doing(step)?, false)),
        }
    }

    fn list(
        &mut self,
        again: bool,
        name: &Name,
        given: &Attributes,
        what: What<'_>,
    ) -> Result<(), Fault> {
        (self.made.listing)
            .add(again, name, given, what)
            .doing(LISTING)
    }

    /// Whether every file system keeps such a time as it is.
    fn keeps(&self, (seconds, _): (i64, u32)) -> bool {
        self.exact && (0..=i64::from(i32::MAX)).contains(&seconds)
    }

    /// Sets the time of an open object, and tells which one the file system made of it.
    fn set_time(&self, fd: impl AsFd, given: &mut Attributes) -> Result<(), Fault> {
        rustix::fs::futimens(&fd, &times(given.mtime)).doing("set the time")?;
        if !self.keeps(given.mtime) {
            let stat = rustix::fs::fstat(&fd).doing("look at the time")?;
            given.mtime = attributes::time_of(&stat);
        }
        Ok(())
    }

    /// The same, and the owner, for what cannot be opened. Gives what it was before.
    fn owner_and_time(&self, place: &Place, given: &mut Attributes) -> Result<Stat, Fault> {
        let (parent, last, nofollow) = (
            place.parent.as_fd(),
            place.last(),
            AtFlags::SYMLINK_NOFOLLOW,
        );
        let stat = rustix::fs::statat(parent, last, nofollow).doing("look at it")?;
        if (stat.st_uid, stat.st_gid) != (given.uid, given.gid) {
            let (uid, gid) = (Uid::from_raw(given.uid), Gid::from_raw(given.gid));
            rustix::fs::chownat(parent, last, Some(uid), Some(gid), nofollow)
                .doing("set the owner")?;
        }
        rustix::fs::utimensat(parent, last, &times(given.mtime), nofollow).doing("set the time")?;
        if !self.keeps(given.mtime) {
            let now = rustix::fs::statat(parent, last, nofollow).doing("look at the time")?;
            given.mtime = attributes::time_of(&now);
        }
        Ok(stat)
    }
}

/// Reads until the buffer is full or the input ends.
fn read_full(input: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
