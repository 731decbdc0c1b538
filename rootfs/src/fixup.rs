//! What of a layer depends on the layers below it.
//!
//! Two things do. A directory that a layer has only because something lies in it gets its owner,
//! mode and time from the nearest lower layer that has it, as it would if layers were unpacked
//! onto each other. And a whiteout in a directory that no lower layer has is taken out: nothing is
//! merged there, and the kernel would show it as a name that cannot be looked up.
//!
//! Called by the importer, bottom layer first, the only part of an import that looks at other
//! layers; what it decides is part of the layer's key, so that the same layer above others may be
//! another layer in the store. For most layers there is nothing to decide. A layer that is unpacked
//! beneath a base directory gets the directories on the way there like any others.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use garden_sys::xattr;
use rustix::fs::{AtFlags, FileType, OFlags};
use rustix::io::Errno;
use serde::Serialize;

use crate::error::{Result, Step};
use crate::layers::LayerRecord;
use crate::unpack::attributes::{Attributes, times};
use crate::unpack::listing::Writer;
use crate::unpack::name::Name;
use crate::unpack::tree::open_beneath;
use crate::unpack::whiteout::OPAQUE;

/// A lower layer: its tree, and what is known of it.
pub(crate) type Lower = (OwnedFd, Arc<LayerRecord>);

/// What must be changed in a layer for it to lie above certain others.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Fixups {
    /// What directories are to look like.
    directories: Vec<(Name, Attributes)>,
    /// Whiteouts to take out.
    whiteouts: Vec<Name>,
}

impl Fixups {
    /// Looks through the lower layers, given the topmost first.
    pub(crate) fn find(
        implied: &BTreeSet<Name>,
        whiteouts: &BTreeSet<Name>,
        lower: &[Lower],
    ) -> Result<Self> {
        let step = || "look at a lower layer".to_owned();
        let mut fixups = Self::default();
        for name in implied {
            if let Some(attributes) = nearest(name, lower).step(step)? {
                fixups.directories.push((name.clone(), attributes));
            }
        }
        for name in whiteouts {
            // The root is always merged, if only with what a container writes.
            if let Some((directory, _)) = name.split()
                && !directory.is_root()
                && nearest(&directory, lower).step(step)?.is_none()
            {
                fixups.whiteouts.push(name.clone());
            }
        }
        Ok(fixups)
    }

    /// Whether the lower layers together have this directory.
    pub(crate) fn has_directory(name: &Name, lower: &[Lower]) -> Result<bool> {
        let found = nearest(name, lower).step(|| "look at a lower layer".to_owned())?;
        Ok(found.is_some())
    }

    /// Changes a tree that is not published yet, and its listing. `image` is only named in errors.
    pub(crate) fn apply(&self, tree: &OwnedFd, listing: &mut Writer, image: &str) -> Result<()> {
        for name in &self.whiteouts {
            let Some((directory, last)) = name.split() else {
                continue;
            };
            let step = || "take a whiteout out of a layer".to_owned();
            let parent = open_beneath(tree, &directory, OFlags::RDONLY).step(step)?;
            let before = rustix::fs::fstat(&parent).step(step)?;
            rustix::fs::unlinkat(&parent, last, AtFlags::empty()).step(step)?;
            // Nothing in a layer depends on the clock.
            let nanoseconds = before.st_mtime_nsec.try_into().unwrap_or(0);
            let time = times((before.st_mtime, nanoseconds));
            rustix::fs::futimens(&parent, &time).step(step)?;
            listing.gone(name).step(step)?;
        }
        for (name, attributes) in &self.directories {
            let step = || "give a directory of a layer its attributes".to_owned();
            let directory = open_beneath(tree, name, OFlags::RDONLY).step(step)?;
            let applied = attributes.clone().apply(&directory);
            applied.map_err(|fault| fault.of(image, Some(name.path())))?;
            rustix::fs::futimens(&directory, &times(attributes.mtime)).step(step)?;
            listing.again(name, &directory).step(step)?;
        }
        Ok(())
    }
}

/// The attributes of a directory in the topmost lower layer that has it.
fn nearest(name: &Name, lower: &[Lower]) -> io::Result<Option<Attributes>> {
    for (tree, record) in lower {
        match look(tree, name)? {
            Found::Here(attributes) => return Ok(Some(*attributes)),
            Found::Hidden => return Ok(None),
            Found::Below if record.opaque_root => return Ok(None),
            Found::Below => {}
        }
    }
    Ok(None)
}

enum Found {
    Here(Box<Attributes>),
    /// This layer says that lower ones do not count.
    Hidden,
    /// This layer says nothing.
    Below,
}

fn look(tree: &OwnedFd, name: &Name) -> io::Result<Found> {
    let mut opaque = false;
    for way in name.ancestors().chain([name.clone()]) {
        let stat = match rustix::fs::statat(tree, way.path(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) if opaque => return Ok(Found::Hidden),
            Err(Errno::NOENT) => return Ok(Found::Below),
            Err(error) => return Err(error.into()),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Ok(Found::Hidden);
        }
        let directory = open_beneath(tree, &way, OFlags::RDONLY)?;
        if way == *name {
            return Ok(Found::Here(Box::new(Attributes::read(&directory)?)));
        }
        opaque |= xattr::get(&directory, OPAQUE)?.is_some();
    }
    Ok(Found::Below)
}
