//! The layers of a store: records, publication, durability.
//!
//! Used by the importer and by the creation of root filesystems. A layer is a directory
//! `layers/KEY` with `tree/` (never written again), `record.json`, and, once its data reached the
//! disk, `durable`. Layers are used as soon as they are published; until they are durable they
//! count only for the boot in which they were made, so that a crash of the machine costs an import
//! and never leaves a broken file, and no import waits for the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::Mode;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::dirs::{self, Dirs};
use crate::error::{Error, Result, Step};
use crate::image::Layer;
use crate::staging::Staged;
use crate::trash::Trash;
use crate::unpack::attributes::Attributes;
use crate::unpack::name::Name;
use crate::unpack::tree::Made;

/// Changes when trees are made differently; layers of another version are not used.
const VERSION: u32 = 1;
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
    pub(crate) size: u64,
    entries: u64,
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

/// The key of a layer whose directories were changed like this.
pub(crate) fn key(diff_id: Digest, fixups: Option<Digest>) -> String {
    match fixups {
        None => diff_id.hex(),
        Some(fixups) => format!("{}-{}", diff_id.hex(), &fixups.hex()[..16]),
    }
}

/// The layers of a store.
#[derive(Debug)]
pub(crate) struct Layers {
    dirs: Arc<Dirs>,
    records: Mutex<BTreeMap<String, Arc<LayerRecord>>>,
}

impl Layers {
    /// Reads the records, and discards what cannot be trusted. Also gives the keys of the layers
    /// that are not durable yet.
    pub(crate) fn open(dirs: &Arc<Dirs>, trash: &Trash) -> Result<(Self, Vec<String>)> {
        let mut records = BTreeMap::new();
        let mut pending = Vec::new();
        for name in dirs::names(&dirs.layers).step(|| "read the layers".to_owned())? {
            let Some((record, durable)) = load(dirs, &name) else {
                tracing::info!(layer = name, "discarding a layer that cannot be trusted");
                trash
                    .discard(&dirs.layers, &name, Vec::new())
                    .step(|| format!("discard the layer {name}"))?;
                continue;
            };
            if !durable {
                pending.push(name.clone());
            }
            records.insert(name, Arc::new(record));
        }
        let layers = Self {
            dirs: Arc::clone(dirs),
            records: Mutex::new(records),
        };
        Ok((layers, pending))
    }

    /// The keys of the layers that are not durable yet.
    pub(crate) fn pending(&self) -> Result<Vec<String>> {
        let names = dirs::names(&self.dirs.layers).step(|| "read the layers".to_owned())?;
        let pending = |name: &String| {
            dirs::directory(&self.dirs.layers, &**name).is_ok_and(|fd| !dirs::exists(fd, DURABLE))
        };
        Ok(names.into_iter().filter(pending).collect())
    }

    /// The layer of this key.
    pub(crate) fn get(&self, key: &str) -> Option<Arc<LayerRecord>> {
        self.lock().get(key).cloned()
    }

    /// A layer made from this tar, above whatever it was.
    pub(crate) fn with_diff_id(&self, diff_id: Digest) -> Option<Arc<LayerRecord>> {
        let records = self.lock();
        let from = records.range(diff_id.hex()..);
        let mut of_it = from.take_while(|(_, record)| record.diff_id == diff_id);
        of_it.next().map(|(_, record)| Arc::clone(record))
    }

    pub(crate) fn all(&self) -> Vec<Arc<LayerRecord>> {
        self.lock().values().cloned().collect()
    }

    /// Opens the tree of a layer.
    pub(crate) fn tree(&self, key: &str) -> Result<OwnedFd> {
        self.tree_in(&self.dirs.layers, key)
    }

    /// The same, in another mount of the directory of all layers.
    pub(crate) fn tree_in(&self, layers: &OwnedFd, key: &str) -> Result<OwnedFd> {
        let step = || format!("open the layer {key:?}: import its image again");
        // A known key is a plain name; an image that a caller kept may have any.
        if self.get(key).is_none() {
            return Err(Errno::NOENT).step(step);
        }
        let path = format!("{key}/{TREE}");
        rustix::fs::openat(layers, path, dirs::DIRECTORY, Mode::empty()).step(step)
    }

    /// Gives a finished tree its key. If another import was quicker, its layer is used.
    pub(crate) fn publish(
        &self,
        staged: Staged,
        made: Made,
        diff_id: Digest,
        fixups: Option<Digest>,
    ) -> Result<Arc<LayerRecord>> {
        let key = key(diff_id, fixups);
        if made.skipped > 0 || made.attributes > 0 {
            tracing::debug!(
                layer = key,
                objects = made.skipped,
                attributes = made.attributes,
                "left out what a layer may not have"
            );
        }
        let record = LayerRecord {
            version: VERSION,
            key: key.clone(),
            diff_id,
            size: made.bytes,
            entries: made.entries,
            boot: self.dirs.boot.clone(),
            root: made.root,
            opaque_root: made.opaque_root,
            implied: made.implied,
            whiteouts: made.whiteouts,
        };
        let step = || format!("publish the layer {key}");
        let text = serde_json::to_vec(&record).map_err(|error| Error::host(step(), error))?;
        dirs::write(&staged, RECORD, &text).step(step)?;
        match staged.publish(self.dirs.layers.as_fd(), &key) {
            Ok(_) | Err(Errno::EXIST) => {}
            Err(error) => return Err(Error::host(step(), error)),
        }
        let mut records = self.lock();
        Ok(Arc::clone(
            records.entry(key).or_insert_with(|| Arc::new(record)),
        ))
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

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<LayerRecord>>> {
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
