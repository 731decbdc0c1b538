//! The end of a layer: whiteouts, hidden directories, and times.
//!
//! Called once, after the last entry, because what a whiteout means depends on everything else in
//! its layer and not on its place among the entries (OCI image specification, layer.md). A name
//! that this layer has itself hides the lower one anyway; a directory of that name must hide what
//! lower layers have in it. An opaque directory must not contain whiteouts: they would be seen
//! (kernel documentation of overlayfs).

use std::collections::BTreeSet;

use garden_sys::xattr;
use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;

use super::attributes::times;
use super::name::Name;
use super::tree::{Made, Tree};
use super::{Doing, Fault};

/// The attribute of a directory that hides lower ones.
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";

impl Tree<'_> {
    /// Writes down what could not be written before, and gives back what is known of the layer.
    pub(crate) fn finish(mut self) -> Result<Made, Fault> {
        let mut opaque = std::mem::take(&mut self.made.opaque);
        for directory in &opaque {
            self.parent(directory)?;
        }
        self.hide(&mut opaque)?;
        self.made.opaque_root = opaque.remove(&Name::default());
        for directory in &opaque {
            let fd = self.open_directory(directory)?;
            xattr::set(&fd, OPAQUE, b"y").doing("mark a directory as opaque")?;
        }
        self.write_whiteouts(&opaque)?;
        self.set_times()?;
        Ok(self.made)
    }

    /// Turns whiteouts of directories that this layer has itself into opaque directories, and
    /// drops those of other objects.
    fn hide(&mut self, opaque: &mut BTreeSet<Name>) -> Result<(), Fault> {
        for name in std::mem::take(&mut self.made.whiteouts) {
            match self.kind_of(&name)? {
                None => {
                    self.made.whiteouts.insert(name);
                }
                Some(FileType::Directory) => {
                    // What lower layers say about it, and about all in it, counts no more.
                    let gone = |implied: &Name| *implied == name || implied.is_below(&name);
                    self.made.implied.retain(|implied| !gone(implied));
                    opaque.insert(name);
                }
                Some(_) => {}
            }
        }
        for directory in opaque.iter() {
            self.made.implied.retain(|name| !name.is_below(directory));
        }
        Ok(())
    }

    /// What this layer has under a name; anything but a directory where the way is blocked.
    fn kind_of(&self, name: &Name) -> Result<Option<FileType>, Fault> {
        let Some((parent, last)) = name.split() else {
            return Ok(Some(FileType::Directory));
        };
        let parent = match self.look(&parent) {
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::NOTDIR | Errno::XDEV | Errno::LOOP) => return Ok(Some(FileType::Unknown)),
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
            let Some((parent, last)) = name.split() else {
                continue;
            };
            if hidden {
                continue;
            }
            let parent = self.parent(&parent)?;
            rustix::fs::mknodat(&*parent, last, FileType::CharacterDevice, Mode::empty(), 0)
                .doing("write a whiteout")?;
            self.made.whiteouts.insert(name.clone());
        }
        Ok(())
    }

    /// Times come last, because each object that is made in a directory changes its time.
    fn set_times(&mut self) -> Result<(), Fault> {
        let mut directories = std::mem::take(&mut self.made.directories);
        directories.entry(Name::default()).or_insert((0, 0));
        for (name, time) in &directories {
            let fd = match self.look(name) {
                // It was reached through a link that a later entry replaced.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::XDEV | Errno::LOOP) => continue,
                other => other.doing("open a directory of the layer")?,
            };
            rustix::fs::futimens(&fd, &times(*time)).doing("set the time of a directory")?;
        }
        Ok(())
    }
}
