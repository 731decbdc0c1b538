//! The end of a layer: whiteouts, hidden directories, and times.
//!
//! Called once, after the last entry, because what a whiteout means depends on everything else in
//! its layer and not on its place among the entries (OCI image specification, layer.md). A name
//! that this layer has itself hides the lower one anyway; a directory of that name must hide what
//! lower layers have in it. An opaque directory must not contain whiteouts: they would be seen
//! (kernel documentation of overlayfs).

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};

use garden_sys::xattr;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::attributes::{Attributes, times};
use super::listing::What;
use super::name::Name;
use super::tree::{LISTING, Made, Tree, open_beneath};
use super::{Doing, Fault};

/// The attribute of a directory that hides lower ones.
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";

impl Tree<'_> {
    /// Writes down what could not be written before, and gives back what is known of the layer.
    pub(crate) fn finish(mut self) -> Result<Made, Fault> {
        // It could be a way that ends here.
        self.recent = None;
        let mut opaque = self.opaque_directories()?;
        self.hide(&mut opaque)?;
        self.made.opaque_root = opaque.remove(&Name::default());
        for directory in &opaque {
            let fd = self.look(directory).doing("open an opaque directory")?;
            xattr::set(&fd, OPAQUE, b"y").doing("mark a directory as opaque")?;
        }
        self.write_whiteouts(&opaque)?;
        self.list_implied()?;
        self.set_times()?;
        if self.relist {
            let root = self.root.as_fd();
            self.made.listing.rewrite(root).doing(LISTING)?;
            return Ok(self.made);
        }
        for directory in &opaque {
            let fd = self.look(directory).doing("open an opaque directory")?;
            self.made.listing.again(directory, fd).doing(LISTING)?;
        }
        Ok(self.made)
    }

    /// The directories that are to be opaque, by their real names; they are made if need be.
    fn opaque_directories(&mut self) -> Result<BTreeSet<Name>, Fault> {
        let mut opaque = BTreeSet::new();
        for directory in std::mem::take(&mut self.opaque) {
            let directory = self.resolve(&directory)?;
            match self.kind_of(&directory)? {
                // Something else of this layer hides what is below it.
                Some(kind) if kind != FileType::Directory => {}
                _ => {
                    self.parent(&directory)?;
                    opaque.insert(directory);
                }
            }
        }
        Ok(opaque)
    }

    /// Turns whiteouts of directories that this layer has itself into opaque directories, and
    /// drops those of other objects.
    fn hide(&mut self, opaque: &mut BTreeSet<Name>) -> Result<(), Fault> {
        for name in std::mem::take(&mut self.made.whiteouts) {
            let name = self.real(name)?;
            match self.kind_of(&name)? {
                None => {
                    self.made.whiteouts.insert(name);
                }
                Some(FileType::Directory) => {
                    // What lower layers say about it counts no more.
                    self.take_implied(&name)?;
                    opaque.insert(name);
                }
                Some(_) => {}
            }
        }
        for directory in opaque.iter() {
            while let Some(name) = directory.first_below(&self.made.implied) {
                self.take_implied(&name)?;
            }
        }
        Ok(())
    }

    /// Nothing below will ever describe this directory: it stays as it is.
    fn take_implied(&mut self, name: &Name) -> Result<(), Fault> {
        if self.made.implied.remove(name) {
            let given = Attributes::default();
            (self.made.listing)
                .add(true, name, &given, What::Directory)
                .doing(LISTING)?;
        }
        Ok(())
    }

    /// What this layer has under a real name; anything but a directory where the way is blocked.
    fn kind_of(&self, name: &Name) -> Result<Option<FileType>, Fault> {
        let Some((parent, last)) = name.split() else {
            return Ok(Some(FileType::Directory));
        };
        let parent = match self.look(&parent) {
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(Some(FileType::Unknown)),
            other => other.doing("open the directory of a whiteout")?,
        };
        match rustix::fs::statat(&parent, last, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error).doing("look at what a whiteout names"),
        }
    }

    /// Keeps in mind only those that are needed.
    fn write_whiteouts(&mut self, opaque: &BTreeSet<Name>) -> Result<(), Fault> {
        let all = std::mem::take(&mut self.made.whiteouts);
        for name in &all {
            let hidden = self.made.opaque_root
                || (name.ancestors()).any(|way| opaque.contains(&way) || all.contains(&way));
            if hidden || name.is_root() {
                continue;
            }
            let place = self.place(name.clone())?;
            let (kind, mode) = (FileType::CharacterDevice, Mode::empty());
            rustix::fs::mknodat(&*place.parent, place.last(), kind, mode, 0)
                .doing("write a whiteout")?;
            self.made.listing.whiteout(name).doing(LISTING)?;
            self.made.whiteouts.insert(name.clone());
        }
        Ok(())
    }

    /// Directories that nothing described are listed when all was said.
    fn list_implied(&mut self) -> Result<(), Fault> {
        let given = Attributes::default();
        let root = Name::default();
        let undescribed = self.made.root.is_none().then_some(&root);
        for name in undescribed.into_iter().chain(&self.made.implied) {
            (self.made.listing)
                .add(true, name, &given, What::Directory)
                .doing(LISTING)?;
        }
        Ok(())
    }

    /// Times come last, because each object that is made in a directory changes its time. The
    /// listing has them, in the order in which they were given.
    fn set_times(&mut self) -> Result<(), Fault> {
        let mut directories = self.made.listing.directories().doing(LISTING)?;
        while let Some((name, time)) = directories.next().doing(LISTING)? {
            let fd = match open_beneath(&self.root, &name, OFlags::RDONLY) {
                // A later entry replaced it.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                other => other.doing("open a directory of the layer")?,
            };
            rustix::fs::futimens(&fd, &times(time)).doing("set the time of a directory")?;
        }
        Ok(())
    }

    fn look(&self, name: &Name) -> rustix::io::Result<OwnedFd> {
        open_beneath(&self.root, name, OFlags::RDONLY)
    }
}
