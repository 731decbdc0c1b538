//! The records of images: finding, writing, listing and pinning them.
//!
//! Used by the importer, by creates and by whoever looks at a store. A record says that all layers
//! of an image are there, and keeps them: layers are only collected when no record refers to them.
//! So holding the record (see [`super::hold`]) is holding the image. A record is never written
//! again and only replaced when nobody holds it; what is on disk counts, and what is remembered of it
//! is only used for the very file it was read from.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Store;
use super::hold::{self, Hold};
use crate::digest::Digest;
use crate::dirs;
use crate::error::{Error, Result, Step};
use crate::image::{Image, Layer};
use crate::layers::Layers;
use crate::staging::Staged;

/// How long an image stays held after it was imported, so that a create of it that follows finds
/// it, however eagerly somebody collects.
const KEEP: Duration = Duration::from_mins(1);
/// How much is held like that at most: each costs a descriptor.
const MOST_KEPT: usize = 512;

/// An image in the store, and how it is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// The image.
    pub image: Image,
    /// When it was imported or a root filesystem was made from it last, to the second.
    pub last_used: SystemTime,
    /// Whether it is never collected.
    pub pinned: bool,
}

/// The images that this process imported just now.
#[derive(Debug, Default)]
pub(crate) struct Recent(Mutex<HashMap<Digest, (Instant, Vec<Hold>)>>);

impl Recent {
    fn keep(&self, id: Digest, holds: Vec<Hold>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        all.retain(|_, (since, _)| now.duration_since(*since) < KEEP);
        let kept: usize = all.values().map(|(_, holds)| holds.len()).sum();
        if kept + holds.len() <= MOST_KEPT || all.contains_key(&id) {
            all.insert(id, (now, holds));
        }
    }

    /// Lets go of everything.
    pub(crate) fn clear(&self) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    /// Lets go of what was kept long enough.
    pub(crate) fn expire(&self) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, (since, _)| since.elapsed() < KEEP);
    }
}

/// The keys of the layers of an image: all that a create needs to compare.
#[derive(Deserialize)]
struct Keys {
    layers: Vec<Key>,
}

#[derive(Deserialize)]
struct Key {
    key: String,
}

/// What the record of every root filesystem of an image says of its layers.
#[derive(Debug)]
pub(crate) struct Described {
    /// Their keys, as a list in JSON.
    pub(crate) keys: Box<RawValue>,
    /// Bytes in their regular files.
    pub(crate) bytes: u64,
    /// Their entries.
    pub(crate) entries: u64,
}

impl Described {
    fn new(image: &Image, layers: &Layers) -> serde_json::Result<Arc<Self>> {
        let keys: Vec<_> = image.layers.iter().map(|layer| &layer.key).collect();
        Ok(Arc::new(Self {
            keys: serde_json::value::to_raw_value(&keys)?,
            bytes: image.size(),
            entries: layers.entries(&image.layers),
        }))
    }
}

/// An image that is not collected until this is dropped.
#[derive(Debug)]
pub(crate) struct InUse {
    _holds: Vec<Hold>,
    pub(crate) described: Arc<Described>,
}

/// Records that were found to have the layers of an image. A create of the same image reads no
/// record again: none is ever written again, and as the file is kept open here, another one cannot
/// have its inode.
#[derive(Debug, Default)]
pub(crate) struct Compared(Mutex<VecDeque<Same>>);

#[derive(Debug)]
struct Same {
    inode: (u64, u64),
    _record: OwnedFd,
    layers: Vec<Layer>,
    described: Arc<Described>,
}

impl Compared {
    /// How many are remembered.
    const MOST: usize = 16;

    fn get(&self, inode: (u64, u64), image: &Image) -> Option<Arc<Described>> {
        let known = self.lock();
        let mut known = known.iter().filter(|known| known.inode == inode);
        let same = known.find(|known| known.layers == image.layers)?;
        Some(Arc::clone(&same.described))
    }

    fn add(&self, inode: (u64, u64), record: OwnedFd, image: &Image, described: &Arc<Described>) {
        let mut known = self.lock();
        known.push_front(Same {
            inode,
            _record: record,
            layers: image.layers.clone(),
            described: Arc::clone(described),
        });
        known.truncate(Self::MOST);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Same>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// All images whose layers are in the store, by id, with their last use.
    pub fn list_images(&self) -> Result<Vec<ImageInfo>> {
        let names = dirs::names(&self.inner.dirs.images).step(|| "list images".to_owned())?;
        let info = |name: &String| {
            let image = self.image(name).filter(|image| self.has_layers(image))?;
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            let stat = rustix::fs::statat(&self.inner.dirs.images, name, flags).ok()?;
            Some(ImageInfo {
                last_used: hold::Stamp::of(&stat).time(),
                pinned: self.is_pinned(image.id),
                image,
            })
        };
        Ok(names.iter().filter_map(info).collect())
    }

    /// Keeps an image from being collected, until it is unpinned: also across restarts.
    ///
    /// # Errors
    /// [`Error::ImageNotFound`] when it is not in the store.
    pub fn pin(&self, image: Digest) -> Result<()> {
        let step = || format!("pin the image {image}");
        // Held, so that it is not collected between the look at its pins and the pin.
        let held = hold::hold(&self.inner.dirs.images, &record_name(image)).step(step)?;
        let Some(_held) = held else {
            return Err(Error::ImageNotFound {
                image: image.to_string(),
                source: Errno::NOENT.into(),
            });
        };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::openat(&self.inner.dirs.pins, image.hex(), flags, mode).step(step)?;
        Ok(())
    }

    /// Allows an image to be collected again; `false` when it was not pinned.
    pub fn unpin(&self, image: Digest) -> Result<bool> {
        match rustix::fs::unlinkat(&self.inner.dirs.pins, image.hex(), AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(Error::host(format!("unpin the image {image}"), error)),
        }
    }

    pub(crate) fn is_pinned(&self, image: Digest) -> bool {
        dirs::exists(&self.inner.dirs.pins, &image.hex())
    }

    /// What a record says, whatever its layers.
    pub(crate) fn image(&self, name: &str) -> Option<Image> {
        let bytes = dirs::read(&self.inner.dirs.images, name).ok()??;
        let image: Image = serde_json::from_slice(&bytes).ok()?;
        (record_name(image.id) == name).then_some(image)
    }

    /// The image of this identity, if all of it is in the store. It stays held for a minute, so
    /// that a root filesystem can be made from it.
    pub(crate) fn known_image(&self, id: Digest, source: &str) -> Option<Image> {
        let name = record_name(id);
        let held = hold::hold(&self.inner.dirs.images, &name).ok()??;
        let mut image = self.image(&name)?;
        let whole = self.has_layers(&image);
        source.clone_into(&mut image.source);
        if whole {
            self.inner.recent.keep(id, vec![held]);
        }
        whole.then_some(image)
    }

    pub(crate) fn has_layers(&self, image: &Image) -> bool {
        let mut keys = image.layers.iter().map(|layer| &layer.key);
        keys.all(|key| self.inner.layers.get(key).is_some())
    }

    /// Writes the record of an image whose layers the caller holds, or that were published just
    /// now. It stays held for a minute.
    pub(crate) fn remember(&self, image: &Image) -> Result<()> {
        let name = record_name(image.id);
        let step = || format!("write the record of the image {:?}", image.source);
        let images = &self.inner.dirs.images;
        let text = serde_json::to_vec(image).map_err(|error| Error::host(step(), error))?;
        let staged = Staged::new(&self.inner.dirs, &self.inner.trash)?;
        dirs::write(&staged, &name, &text).step(step)?;
        for _ in 0..8 {
            match dirs::rename(&staged, &name, images, &name) {
                Ok(()) => {}
                Err(Errno::EXIST) if self.discard_other(&name, image).step(step)? => continue,
                // As good as ours, or in use: it is only a record, and the image works without.
                Err(Errno::EXIST) => {}
                Err(error) => return Err(Error::host(step(), error)),
            }
            break;
        }
        if let Some(held) = hold::hold(images, &name).step(step)? {
            self.inner.recent.keep(image.id, vec![held]);
        }
        Ok(())
    }

    /// Keeps the layers of an image without a record held for a minute.
    pub(crate) fn keep_held(&self, image: &Image, holds: Vec<Hold>) {
        self.inner.recent.keep(image.id, holds);
    }

    /// Discards a record that says something else than this image; `false` when it does not, or
    /// when somebody holds it.
    fn discard_other(&self, name: &str, image: &Image) -> std::io::Result<bool> {
        if (self.image(name)).is_some_and(|known| known.layers == image.layers) {
            return Ok(false);
        }
        let images = &self.inner.dirs.images;
        let Ok(since) = hold::stamp(images, name)? else {
            return Ok(false);
        };
        let Ok(_condemned) = hold::condemn(images, name, since)? else {
            return Ok(false);
        };
        Ok(self.inner.trash.discard(images, name, Vec::new())?)
    }

    /// Holds an image for as long as it takes to refer to its layers: its record, or where there
    /// is none (a source that changed while it was read), each layer.
    pub(crate) fn hold_image(&self, image: &Image) -> Result<InUse> {
        let step = || format!("use the image {:?}: import it again", image.source);
        let dirs = &self.inner.dirs;
        let record = hold::hold(&dirs.images, &record_name(image.id)).step(step)?;
        if let Some(held) = record
            && let Some(described) = self.described_by(&held, image).step(step)?
        {
            return Ok(InUse {
                _holds: vec![held],
                described,
            });
        }
        let held = |key: &str| {
            // A known key is a plain name; an image that a caller kept may have any.
            if key.is_empty() || key.starts_with('.') || key.contains(['/', '\0']) {
                return Err(Errno::NOENT.into());
            }
            let held = hold::hold(&dirs.layers, key);
            held.and_then(|held| held.ok_or_else(|| Errno::NOENT.into()))
        };
        let holds = (image.layers.iter())
            .map(|layer| held(&layer.key).step(|| format!("{}: no layer {}", step(), layer.key)));
        Ok(InUse {
            _holds: holds.collect::<Result<_>>()?,
            described: Described::new(image, &self.inner.layers)
                .map_err(|error| Error::host(step(), error))?,
        })
    }

    /// What a held record says of the layers of this image; `None` when it has others.
    fn described_by(&self, held: &Hold, image: &Image) -> io::Result<Option<Arc<Described>>> {
        let compared = &self.inner.compared;
        if let Some(described) = compared.get(held.inode(), image) {
            return Ok(Some(described));
        }
        let mut text = Vec::new();
        let record = held.fd().try_clone()?;
        File::from(record.try_clone()?).read_to_end(&mut text)?;
        let same = serde_json::from_slice::<Keys>(&text).is_ok_and(|keys| {
            let ours = image.layers.iter().map(|layer| &layer.key);
            keys.layers.iter().map(|layer| &layer.key).eq(ours)
        });
        if !same {
            return Ok(None);
        }
        let described = Described::new(image, &self.inner.layers)?;
        compared.add(held.inode(), record, image, &described);
        Ok(Some(described))
    }
}

pub(crate) fn record_name(id: Digest) -> String {
    format!("{}.json", id.hex())
}
