//! A tar stream as a layer.
//!
//! Called by the importer with a stream that is already decompressed, counted and hashed. Says
//! what each entry means and leaves the doing to the tree. Reads up to the end marker; the caller
//! reads on to the real end, so that the digest covers everything.

use std::io::Read;

use garden_tar::{Described, Entries, Entry, Kind};

use super::attributes::{self, Attributes};
use super::name::{Meaning, Name};
use super::tree::{Content, Tree};
use super::{Fault, Limits};
use crate::error::{Error, Rule};

/// Unpacks a stream into a tree, all of it beneath a base directory if there is one. `image` is
/// only named in errors.
pub(crate) fn unpack(
    input: &mut dyn Read,
    tree: &mut Tree<'_>,
    limits: &Limits,
    base: Option<&Name>,
    image: &str,
) -> Result<(), Error> {
    let mut entries = Entries::new(input);
    let mut last: Option<Vec<u8>> = None;
    loop {
        let entry = match entries.next() {
            Ok(Some(entry)) => entry,
            Ok(None) => return Ok(()),
            // A broken header has no name: the entry before it shows the place.
            Err(error) => return Err(Fault::from(error).of(image, last.as_deref())),
        };
        if let Err(fault) = one(&entry, &mut entries, tree, limits, base) {
            return Err(fault.of(image, Some(&entry.name)));
        }
        last = Some(entry.name);
    }
}

fn one(
    entry: &Entry,
    entries: &mut Entries<'_>,
    tree: &mut Tree<'_>,
    limits: &Limits,
    base: Option<&Name>,
) -> Result<(), Fault> {
    let name = Name::parse(&entry.name, limits)?;
    tree.count(&name)?;
    let name = match Meaning::of(name)? {
        // The root of the archive is a directory, wherever it is unpacked.
        Meaning::Object(name) if name.is_root() && entry.kind != Kind::Directory => {
            return Err(Rule::RootNotDirectory.into());
        }
        Meaning::Object(name) => name.beneath(base, limits)?,
        Meaning::Whiteout(name) => {
            return tree.whiteout(name.beneath(base, limits)?);
        }
        Meaning::Opaque(directory) => {
            return tree.opaque(directory.beneath(base, limits)?);
        }
        Meaning::Nothing => return Ok(()),
    };
    if entry.kind == Kind::Unusable {
        tree.skip();
        return Ok(());
    }
    if entry.kind == Kind::HardLink {
        let target = Name::parse(&entry.link, limits)?.beneath(base, limits)?;
        return tree.hard_link(name, &target);
    }
    let attributes = match &entry.attributes {
        Ok(described) => tree.allow(attributes_of(described)?)?,
        Err(error) => return Err(Rule::Header(error.to_string()).into()),
    };
    match entry.kind {
        Kind::Directory => tree.directory(name, attributes),
        Kind::Symlink => tree.symlink(name, attributes, &entry.link),
        Kind::Pipe => tree.pipe(name, attributes),
        _ => {
            let content = Content {
                size: entry.size,
                bytes: &mut entries.content(entry),
                sparse: entry.is_sparse(),
            };
            tree.file(name, attributes, content)
        }
    }
}

fn attributes_of(described: &Described) -> Result<Attributes, Rule> {
    Ok(Attributes {
        mode: described.mode,
        uid: attributes::owner(described.uid)?,
        gid: attributes::owner(described.gid)?,
        mtime: described.mtime,
        xattrs: described.xattrs.clone(),
    })
}
