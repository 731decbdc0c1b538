//! The layers of a store: records, publication, durability.
//!
//! Used by the importer and by the creation of root filesystems. A layer is a directory
//! `layers/KEY` with `tree/` (never written again), its listing `contents`, `record.json`, and, once its data reached the
//! disk, `durable`. Layers are used as soon as they are published; until they are durable they
//! count only for the boot in which they were made, so that a crash of the machine costs an import
//! and never leaves a broken file, and no import waits for the disk.
//!
//! Several processes work on one store, so what counts is what is on the disk. The table in memory
//! saves reading records again, nothing more: each look is one `stat`, a layer that another
//! process published is found, and one that it took away is gone.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::dirs::{self, Dirs};
use crate::error::{Error, Result, Step};
use crate::fixup::Fixups;
use crate::image::Layer;
use crate::staging::Staged;
use crate::store::hold::{self, Hold};
use crate::trash::Trash;
use crate::unpack::attributes::Attributes;
use crate::unpack::listing::{self, CONTENTS, Damage, Sum};
use crate::unpack::name::Name;
use crate::unpack::tree::Made;

/// Changes when trees are made differently. Part of every key: programs of different versions may
/// share a store.
const VERSION: u32 = 3;
const RECORD: &str = "record.json";
/// The name of a layer's tree in its directory.
pub(crate) const TREE: &str = "tree";
const DURABLE: &str = "durable";

/// What is known of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    version: u32,
    pub(crate) key: String,
    pub(crate) diff_id: Digest,
    /// The directory beneath which it was unpacked.
    pub(crate) base: Option<Name>,
    /// The digest of the packed bytes it was read from; `None` for a directory.
    pub(crate) blob: Option<Digest>,
    pub(crate) size: u64,
    pub(crate) entries: u64,
    /// The sum of its listing.
    pub(crate) contents: Sum,
    /// The boot in which it was made.
    boot: String,
    /// Attributes of `/`, if the layer has any.
    pub(crate) root: Option<Attributes>,
    /// Whether it hides all lower layers.
    pub(crate) opaque_root: bool,
    /// Directories that only contain something, and names that hide lower ones, as the tar has
    /// them: what these become depends on lower layers.
    pub(crate) implied: BTreeSet<Name>,
    pub(crate) whiteouts: BTreeSet<Name>,
}

impl LayerRecord {
    pub(crate) fn layer(&self) -> Layer {
        Layer {
            key: self.key.clone(),
            diff_id: self.diff_id,
            size: self.size,
        }
    }
}

/// What the records of all versions of this program have.
#[derive(Deserialize)]
struct AnyRecord {
    key: String,
    boot: String,
}

/// A layer that is not collected until this is dropped.
#[derive(Debug)]
pub(crate) struct Used {
    pub(crate) record: Arc<LayerRecord>,
    pub(crate) hold: Hold,
}

/// Where the tree of a layer came from. All of it was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The digest of its tar.
    pub(crate) diff_id: Digest,
    /// The digest of the packed bytes.
    pub(crate) blob: Option<Digest>,
    /// The directory beneath which it was unpacked.
    pub(crate) base: Option<Name>,
}

/// The key of a layer made from this tar, in this directory, with these changes. Two layers have
/// the same key only if their trees are the same, whoever claimed what about them.
pub(crate) fn key(diff_id: Digest, base: Option<&Name>, fixups: &Fixups) -> Result<String> {
    let way = serde_json::to_vec(&(VERSION, base, fixups))
        .map_err(|error| Error::host("describe how a layer is made", error))?;
    Ok(format!(
        "{}-{}",
        diff_id.hex(),
        &Digest::of(&way).hex()[..32]
    ))
}

/// The layers of a store.
#[derive(Debug)]
pub(crate) struct Layers {
    dirs: Arc<Dirs>,
    records: Mutex<HashMap<String, Arc<LayerRecord>>>,
}

impl Layers {
    /// Reads nothing yet.
    pub(crate) fn new(dirs: &Arc<Dirs>) -> Self {
        Self {
            dirs: Arc::clone(dirs),
            records: Mutex::default(),
        }
    }

    /// Whether what is on the disk under this name may be used, by this program or, if it is of
    /// another version, by that.
    pub(crate) fn is_trusted(&self, name: &str) -> bool {
        let sound = || {
            let directory = dirs::directory(&self.dirs.layers, name).ok()?;
            let bytes = dirs::read(&directory, RECORD).ok()??;
            let record: AnyRecord = serde_json::from_slice(&bytes).ok()?;
            let counts = record.boot == self.dirs.boot || dirs::exists(&directory, DURABLE);
            Some(record.key == name && counts && dirs::exists(&directory, TREE))
        };
        sound() == Some(true)
    }

    /// The keys of the layers that are not durable yet.
    pub(crate) fn pending(&self) -> Result<Vec<String>> {
        let names = dirs::names(&self.dirs.layers).step(|| "read the layers".to_owned())?;
        let pending = |name: &String| {
            dirs::directory(&self.dirs.layers, &**name).is_ok_and(|fd| !dirs::exists(fd, DURABLE))
        };
        Ok(names.into_iter().filter(pending).collect())
    }

    /// The layer of this key, if it is on the disk and can be trusted.
    pub(crate) fn get(&self, key: &str) -> Option<Arc<LayerRecord>> {
        // A key that a caller kept may be any text.
        if key.is_empty() || key.starts_with('.') || key.contains(['/', '\0']) {
            return None;
        }
        let known = self.lock().get(key).cloned();
        let there = dirs::exists(&self.dirs.layers, key);
        match (known, there) {
            (Some(record), true) => Some(record),
            (Some(_), false) => {
                self.lock().remove(key);
                None
            }
            (None, false) => None,
            (None, true) => {
                let record = Arc::new(load(&self.dirs, key)?.0);
                self.lock().insert(key.to_owned(), Arc::clone(&record));
                Some(record)
            }
        }
    }

    /// The same, as it is on the disk now: what is known already is forgotten.
    pub(crate) fn get_anew(&self, key: &str) -> Option<Arc<LayerRecord>> {
        self.lock().remove(key);
        self.get(key)
    }

    /// The same, and keeps it from being collected.
    pub(crate) fn using(&self, key: &str) -> Result<Option<Used>> {
        let step = || format!("use the layer {key:?}");
        // First, so that only a plain name is looked for.
        if self.get(key).is_none() {
            return Ok(None);
        }
        let Some(hold) = hold::hold(&self.dirs.layers, key).step(step)? else {
            return Ok(None);
        };
        Ok(self.get(key).map(|record| Used { record, hold }))
    }

    /// A layer made from this tar in this directory, above whatever it was.
    pub(crate) fn of_tar(&self, diff_id: Digest, base: Option<&Name>) -> Option<Arc<LayerRecord>> {
        self.find(&diff_id.hex(), |record| {
            record.diff_id == diff_id && record.base.as_ref() == base
        })
    }

    /// The same, for who knows the packed bytes only. Reads the records of all layers.
    pub(crate) fn of_blob(&self, blob: Digest, base: Option<&Name>) -> Option<Arc<LayerRecord>> {
        self.find("", |record| {
            record.blob == Some(blob) && record.base.as_ref() == base
        })
    }

    fn find(&self, prefix: &str, is_it: impl Fn(&LayerRecord) -> bool) -> Option<Arc<LayerRecord>> {
        let names = dirs::names(&self.dirs.layers).ok()?;
        let fitting = names.iter().filter(|name| name.starts_with(prefix));
        let mut records = fitting.filter_map(|name| self.get(name));
        records.find(|record| is_it(record))
    }

    pub(crate) fn all(&self) -> Vec<Arc<LayerRecord>> {
        let names = dirs::names(&self.dirs.layers).unwrap_or_default();
        names.iter().filter_map(|name| self.get(name)).collect()
    }

    /// Opens the tree of a layer.
    pub(crate) fn tree(&self, key: &str) -> Result<OwnedFd> {
        let step = || format!("open the layer {key:?}: import its image again");
        if self.get(key).is_none() {
            return Err(Errno::NOENT).step(step);
        }
        let path = format!("{key}/{TREE}");
        rustix::fs::openat(&self.dirs.layers, path, dirs::DIRECTORY, Mode::empty()).step(step)
    }

    /// Compares a layer with its listing. Reads all of it.
    pub(crate) fn verify(&self, key: &str) -> Result<Vec<Damage>> {
        let step = || format!("verify the layer {key:?}");
        let record = self.get(key).ok_or(Errno::NOENT).step(step)?;
        let layer = dirs::directory(&self.dirs.layers, key).step(step)?;
        let tree = dirs::directory(&layer, TREE).step(step)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let contents = match rustix::fs::openat(&layer, CONTENTS, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(vec![Damage::of_listing()]),
            other => File::from(other.step(step)?),
        };
        listing::verify(&tree, &contents, record.contents).step(step)
    }

    /// Gives a finished tree its key, and keeps it from being collected. Whoever calls it has the
    /// right to make this layer: see the flights.
    pub(crate) fn publish(
        &self,
        staged: Staged,
        mut made: Made,
        origin: Origin,
        fixups: &Fixups,
        trash: &Trash,
    ) -> Result<Used> {
        let key = key(origin.diff_id, origin.base.as_ref(), fixups)?;
        if made.skipped > 0 || made.attributes > 0 {
            tracing::debug!(
                layer = key,
                objects = made.skipped,
                attributes = made.attributes,
                "left out what a layer may not have"
            );
        }
        let step = || format!("publish the layer {key}");
        let record = LayerRecord {
            version: VERSION,
            key: key.clone(),
            diff_id: origin.diff_id,
            base: origin.base,
            blob: origin.blob,
            size: made.bytes,
            entries: made.entries,
            contents: made.listing.finish().step(step)?,
            boot: self.dirs.boot.clone(),
            root: made.root,
            opaque_root: made.opaque_root,
            implied: made.implied,
            whiteouts: made.whiteouts,
        };
        let text = serde_json::to_vec(&record).map_err(|error| Error::host(step(), error))?;
        dirs::write(&staged, RECORD, &text).step(step)?;
        if dirs::exists(&self.dirs.layers, &key) {
            if let Some(known) = self.using(&key)? {
                return Ok(known);
            }
            // What an earlier boot did not finish, and no server has taken away yet.
            let discarded = trash.discard(&self.dirs.layers, &key, Vec::new());
            discarded.step(step)?;
        }
        let hold = (staged.publish(self.dirs.layers.as_fd(), &key)).step(step)?;
        let record = Arc::new(record);
        self.lock().insert(key, Arc::clone(&record));
        Ok(Used { record, hold })
    }

    /// Marks layers as durable: their data must have reached the disk.
    pub(crate) fn mark_durable(&self, keys: &[String]) -> std::io::Result<()> {
        for key in keys {
            let marked = dirs::directory(&self.dirs.layers, key)
                .map_err(std::io::Error::from)
                .and_then(|directory| dirs::write(&directory, DURABLE, b""));
            match marked {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                // It was collected meanwhile.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<LayerRecord>>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a layer; `None` when it cannot be trusted.
fn load(dirs: &Dirs, name: &str) -> Option<(LayerRecord, bool)> {
    let directory = dirs::directory(&dirs.layers, name).ok()?;
    let bytes = dirs::read(&directory, RECORD).ok()??;
    let record: LayerRecord = serde_json::from_slice(&bytes).ok()?;
    let durable = dirs::exists(&directory, DURABLE);
    let usable = record.version == VERSION
        && record.key == name
        && (durable || record.boot == dirs.boot)
        && dirs::exists(&directory, TREE);
    usable.then_some((record, durable))
}
