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
use crate::layers::{LayerRecord, Layers};
use crate::unpack::attributes::{Attributes, times};
use crate::unpack::listing::Writer;
use crate::unpack::name::Name;
use crate::unpack::tree::open_beneath;
use crate::unpack::whiteout::OPAQUE;

/// The layers below one that is being made. They are opened one at a time, when they are looked
/// at: there may be hundreds.
#[derive(Clone, Copy)]
pub(crate) struct Lower<'a> {
    pub(crate) layers: &'a Layers,
    /// The topmost last.
    pub(crate) records: &'a [Arc<LayerRecord>],
}

/// What must be changed in a layer for it to lie above certain others.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Fixups {
    /// What directories are to look like.
    directories: Vec<(Name, Attributes)>,
    /// Whiteouts to take out.
    whiteouts: Vec<Name>,
}

impl Fixups {
    /// Looks through the lower layers.
    pub(crate) fn find(
        implied: &BTreeSet<Name>,
        whiteouts: &BTreeSet<Name>,
        lower: Lower<'_>,
    ) -> Result<Self> {
        let mut fixups = Self::default();
        for name in implied {
            if let Some(attributes) = lower.nearest(name)? {
                fixups.directories.push((name.clone(), attributes));
            }
        }
        // Whiteouts come in order, so those of one directory together.
        let mut last: Option<(Name, bool)> = None;
        for name in whiteouts {
            let Some((directory, _)) = name.split() else {
                continue;
            };
            let merged = match &last {
                // The root is always merged, if only with what a container writes.
                _ if directory.is_root() => true,
                Some((known, merged)) if *known == directory => *merged,
                _ => lower.nearest(&directory)?.is_some(),
            };
            if !merged {
                fixups.whiteouts.push(name.clone());
            }
            last = Some((directory, merged));
        }
        Ok(fixups)
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

impl Lower<'_> {
    /// The attributes of a directory in the topmost layer that has it.
    pub(crate) fn nearest(self, name: &Name) -> Result<Option<Attributes>> {
        for record in self.records.iter().rev() {
            let tree = self.layers.tree(&record.key)?;
            match look(&tree, name).step(|| "look at a lower layer".to_owned())? {
                Found::Here(attributes) => return Ok(Some(*attributes)),
                Found::Hidden => return Ok(None),
                Found::Below if record.opaque_root => return Ok(None),
                Found::Below => {}
            }
        }
        Ok(None)
    }
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
