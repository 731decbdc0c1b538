//! Where an object of a layer goes: finding and making the directory around it.
//!
//! The part of the tree that deals with ways. A way is opened by the kernel beneath the layer's
//! root (`openat2`) and without following any link; where the layer has put a link on it, the way
//! without links is worked out here, as a process whose root is the layer would go it, and the
//! kernel opens that. So every object has one name, the real one, whatever the archive calls it,
//! and nothing outside can be reached, whoever is wrong.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::attributes::Attributes;
use super::name::Name;
use super::tree::Tree;
use super::{Doing, Fault};
use crate::error::Rule;
use crate::remove;

/// How many links one way may have; the kernel's own number.
const LINKS: usize = 40;
/// How many parts one way may have, with those of all its links.
const PARTS: usize = 1024;

/// No link, no mount, nothing above: the only way in which a layer is walked.
const STRICT: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Where an object is to be made: the directory, open, and its real name.
pub(super) struct Place {
    pub(super) parent: Rc<OwnedFd>,
    pub(super) name: Name,
}

impl Place {
    /// The last part of the name.
    pub(super) fn last(&self) -> &[u8] {
        self.name.parts().map_or(&[], |(_, last)| last)
    }
}

/// The directory that was used last; most objects lie beside the one before.
pub(super) struct Recent {
    /// What the archive called it.
    given: Name,
    /// Its name without links, if that is another one.
    real: Option<Name>,
    fd: Rc<OwnedFd>,
}

/// A way through a layer.
enum Way {
    /// It leads to this directory.
    Here(OwnedFd),
    /// Something on it is missing, or is no directory.
    Ends,
}

impl Tree<'_> {
    /// The place of an object; makes the directories around it if nothing described them.
    pub(super) fn place(&mut self, name: Name) -> Result<Place, Fault> {
        let (directory, last) = name.parts().ok_or(Rule::RootNotDirectory)?;
        if directory.is_empty() {
            let parent = Rc::clone(&self.root);
            return Ok(Place { parent, name });
        }
        let recent = match self.recent.take() {
            Some(recent) if recent.given.bytes() == directory => recent,
            _ => self.reach(name.parent())?,
        };
        let parent = Rc::clone(&recent.fd);
        let real = recent.real.as_ref().map(|real| real.join(last));
        self.recent = Some(recent);
        let name = match real {
            Some(real) => self.checked(real)?,
            None => name,
        };
        Ok(Place { parent, name })
    }

    /// Opens a directory, making what is missing.
    pub(super) fn parent(&mut self, name: &Name) -> Result<Rc<OwnedFd>, Fault> {
        match name.is_root() {
            true => Ok(Rc::clone(&self.root)),
            false => self.reach(name.clone()).map(|reached| reached.fd),
        }
    }

    /// Keeps the directory that was just described: what comes next lies in it, most likely.
    pub(super) fn came_to(&mut self, given: Name, place: Name, fd: OwnedFd) {
        let real = (place != given).then_some(place);
        let fd = Rc::new(fd);
        self.recent = Some(Recent { given, real, fd });
    }

    /// The real name of an object, whether it is there or not.
    pub(super) fn real(&self, name: Name) -> Result<Name, Fault> {
        let Some((directory, last)) = name.split() else {
            return Ok(name);
        };
        let real = self.resolve(&directory)?;
        match real == directory {
            true => Ok(name),
            false => self.checked(real.join(last)),
        }
    }

    /// The name of a directory without the layer's own links: an absolute one starts at the root
    /// of the layer, and nothing is above that.
    pub(super) fn resolve(&self, name: &Name) -> Result<Name, Fault> {
        if !matches!(
            open_beneath(&self.root, name, OFlags::PATH),
            Err(Errno::LOOP)
        ) {
            return Ok(name.clone());
        }
        let mut real = Name::default();
        let mut left: Vec<Vec<u8>> = Vec::new();
        let push = |left: &mut Vec<Vec<u8>>, way: &[u8]| {
            let parts = way.split(|byte| *byte == b'/').rev();
            left.extend(parts.map(<[u8]>::to_vec));
        };
        push(&mut left, name.bytes());
        let (mut links, mut parts) = (0, 0);
        while let Some(part) = left.pop() {
            match &*part {
                b"" | b"." => continue,
                b".." => {
                    real = real.parent();
                    continue;
                }
                _ => {}
            }
            parts += 1;
            let next = real.join(&part);
            match self.link(&next)? {
                None => real = next,
                Some(target) => {
                    links += 1;
                    if target.first() == Some(&b'/') {
                        real = Name::default();
                    }
                    push(&mut left, &target);
                }
            }
            if links > LINKS || parts > PARTS {
                return Err(Rule::Loop.into());
            }
        }
        self.checked(real)
    }

    /// Where a link of the layer leads; `None` when there is none of that name.
    fn link(&self, name: &Name) -> Result<Option<Vec<u8>>, Fault> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let step = "look for a link on the way to it";
        let fd = match open_how(&self.root, name, flags) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(Errno::NAMETOOLONG) => return Err(Rule::Length(self.limits.name).into()),
            other => other.doing(step)?,
        };
        match rustix::fs::readlinkat(&fd, "", Vec::new()) {
            // It is something else.
            Err(Errno::NOENT | Errno::INVAL) => Ok(None),
            other => Ok(Some(other.doing(step)?.into_bytes())),
        }
    }

    /// A name that was put together here keeps the limits, too.
    fn checked(&self, name: Name) -> Result<Name, Fault> {
        match name.is_root() {
            true => Ok(name),
            false => Ok(Name::parse(name.bytes(), self.limits)?),
        }
    }

    /// Opens the directory that an object of this layer lies in; `None` when there is none.
    pub(super) fn existing(&self, directory: &Name) -> Result<Option<(Name, OwnedFd)>, Fault> {
        let real = self.resolve(directory)?;
        Ok(match way(open_beneath(&self.root, &real, OFlags::PATH))? {
            Way::Here(fd) => Some((real, fd)),
            Way::Ends => None,
        })
    }

    fn reach(&mut self, given: Name) -> Result<Recent, Fault> {
        let (fd, real) = match open_beneath(&self.root, &given, OFlags::PATH) {
            Err(Errno::LOOP) => {
                let real = self.resolve(&given)?;
                let fd = match way(open_beneath(&self.root, &real, OFlags::PATH))? {
                    Way::Here(fd) => fd,
                    Way::Ends => self.imply(&real)?,
                };
                (fd, Some(real))
            }
            other => match way(other)? {
                Way::Here(fd) => (fd, None),
                Way::Ends => (self.imply(&given)?, None),
            },
        };
        let fd = Rc::new(fd);
        Ok(Recent { given, real, fd })
    }

    /// Makes a directory that nothing described, and those around it.
    fn imply(&mut self, name: &Name) -> Result<OwnedFd, Fault> {
        let mut at = self.root.try_clone().doing("open the root of the layer")?;
        for way in name.ancestors().chain([name.clone()]) {
            let (_, last) = way.parts().ok_or(Rule::RootNotDirectory)?;
            if self.make_directory(&at, &way, last, Mode::RWXU)? != Made::Kept {
                let fd = open_directory(&at, last)?;
                Attributes::default().apply(&fd)?;
                self.remember(&way)?;
                self.made.implied.insert(way);
                at = fd;
            } else {
                at = open_directory(&at, last)?;
            }
        }
        Ok(at)
    }

    /// Makes a directory unless there is one; anything else of that name is replaced.
    pub(super) fn make_directory(
        &mut self,
        parent: &OwnedFd,
        name: &Name,
        last: &[u8],
        mode: Mode,
    ) -> Result<Made, Fault> {
        let make = || rustix::fs::mkdirat(parent, last, mode);
        match make() {
            Ok(()) => return Ok(Made::New),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error).doing("make the directory"),
        }
        let stat = rustix::fs::statat(parent, last, AtFlags::SYMLINK_NOFOLLOW)
            .doing("look at what is there")?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Ok(Made::Kept);
        }
        self.displace(parent, name, last)?;
        // What it replaces has hidden all lower ones of the name, with what is in them.
        self.whiteout(name.clone())?;
        make().doing("make the directory")?;
        Ok(Made::Instead)
    }

    /// Takes away what an earlier entry put under this name.
    pub(super) fn displace(
        &mut self,
        parent: &OwnedFd,
        name: &Name,
        last: &[u8],
    ) -> Result<(), Fault> {
        // It may have been the way to the directory that was used last.
        self.recent = None;
        let step = "replace an earlier entry";
        let stat = rustix::fs::statat(parent, last, AtFlags::SYMLINK_NOFOLLOW).doing(step)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            // Its other names are listed as names of this one.
            self.relist |= stat.st_nlink > 1;
            return rustix::fs::unlinkat(parent, last, AtFlags::empty()).doing(step);
        }
        match rustix::fs::unlinkat(parent, last, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            other => {
                other.doing(step)?;
                self.made.implied.remove(name);
                return Ok(());
            }
        }
        // All that is listed in it goes, too.
        self.relist = true;
        let aside = format!("displaced-{}", self.displaced);
        self.displaced += 1;
        rustix::fs::renameat(parent, last, self.staging, &*aside)
            .doing("replace an earlier directory")?;
        self.made.implied.remove(name);
        name.remove_below(&mut self.made.implied);
        remove::tree(self.staging, aside.as_ref(), &|| false).doing("remove a replaced directory")
    }
}

/// What became of a directory that should be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Made {
    /// It was made.
    New,
    /// It was made in the place of something else.
    Instead,
    /// It was there.
    Kept,
}

/// Opens a directory beneath another, on a way without links.
pub(crate) fn open_beneath(
    root: &OwnedFd,
    name: &Name,
    access: OFlags,
) -> rustix::io::Result<OwnedFd> {
    open_how(root, name, access | OFlags::DIRECTORY | OFlags::CLOEXEC)
}

fn open_how(root: &OwnedFd, name: &Name, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    loop {
        match rustix::fs::openat2(root, name.path(), flags, Mode::empty(), STRICT) {
            // Something was renamed on the same disk meanwhile: openat2(2) asks to try again.
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
}

/// Opens a directory that is there, for reading, which changing it needs.
pub(super) fn open_directory(parent: &OwnedFd, last: &[u8]) -> Result<OwnedFd, Fault> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, last, flags, Mode::empty()).doing("open a directory of the layer")
}

fn way(opened: rustix::io::Result<OwnedFd>) -> Result<Way, Fault> {
    match opened {
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(Way::Ends),
        other => Ok(Way::Here(other.doing("open the directory around it")?)),
    }
}
