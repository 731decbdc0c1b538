//! Directories that a layer has only because something lies in them.
//!
//! Such a directory gets its owner, mode and time from the nearest lower layer that has it, as it
//! would if layers were unpacked onto each other. Called by the importer, bottom layer first, the
//! only part of an import that depends on other layers; the digest of what it decides is part of
//! the layer's key, so that the same layer above another one is another layer in the store.

use std::io;
use std::os::fd::OwnedFd;

use garden_sys::xattr;
use rustix::fs::{AtFlags, FileType, OFlags};
use rustix::io::Errno;
use serde::Serialize;

use crate::digest::Digest;
use crate::error::{Error, Result, Step};
use crate::layers::LayerRecord;
use crate::unpack::attributes::{Attributes, times};
use crate::unpack::name::Name;
use crate::unpack::tree::open_beneath;
use crate::unpack::whiteout::OPAQUE;

/// A lower layer: its tree, and what is known of it.
pub(crate) type Lower = (OwnedFd, std::sync::Arc<LayerRecord>);

/// What a directory is to look like.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Fixup {
    name: Name,
    attributes: Attributes,
}

/// Looks for each name through the lower layers, the topmost first.
pub(crate) fn find<'a>(
    implied: impl IntoIterator<Item = &'a Name>,
    lower: &[Lower],
) -> Result<Vec<Fixup>> {
    let mut fixups = Vec::new();
    for name in implied {
        for (tree, record) in lower {
            let found = look(tree, name).step(|| "look at a lower layer".to_owned())?;
            match found {
                Found::Here(attributes) => {
                    fixups.push(Fixup {
                        name: name.clone(),
                        attributes: *attributes,
                    });
                    break;
                }
                Found::Hidden => break,
                Found::Below if record.opaque_root => break,
                Found::Below => {}
            }
        }
    }
    Ok(fixups)
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

/// The digest of all of them; `None` when there are none.
pub(crate) fn digest(fixups: &[Fixup]) -> Result<Option<Digest>> {
    if fixups.is_empty() {
        return Ok(None);
    }
    let text = serde_json::to_vec(fixups)
        .map_err(|error| Error::host("describe the directories of a layer", error))?;
    Ok(Some(Digest::of(&text)))
}

/// Applies them to a tree that is not published yet.
pub(crate) fn apply(tree: &OwnedFd, fixups: &[Fixup]) -> Result<()> {
    for fixup in fixups {
        let step = || "give a directory of a layer its attributes".to_owned();
        let directory = open_beneath(tree, &fixup.name, OFlags::RDONLY).step(step)?;
        (fixup.attributes.apply(&directory)).map_err(|fault| fault.of("", None))?;
        rustix::fs::futimens(&directory, &times(fixup.attributes.mtime)).step(step)?;
    }
    Ok(())
}
