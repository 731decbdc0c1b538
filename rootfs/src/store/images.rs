//! The records of images: finding, writing, listing and pinning them.
//!
//! Used by the importer, by creates and by whoever looks at a store. A record says that all layers
//! of an image are there, and keeps them: layers are only collected when no record refers to them.
//! So holding the record (see [`super::hold`]) is holding the image. A record is never written
//! again and only replaced when nobody holds it; what is on disk counts, nothing is cached.

use std::collections::{HashMap, VecDeque};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::Store;
use super::hold::{self, Hold};
use crate::digest::Digest;
use crate::dirs;
use crate::error::{Error, Result, Step};
use crate::image::{Image, Layer};
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

/// Records whose layers were compared with those of an image, as they were read. A create of the
/// same image compares bytes, and parses nothing.
#[derive(Debug, Default)]
pub(crate) struct Compared(Mutex<VecDeque<(Vec<u8>, Vec<Layer>)>>);

impl Compared {
    /// How many are remembered.
    const MOST: usize = 16;

    /// Whether a record has the layers of this image.
    fn same(&self, record: &[u8], image: &Image) -> bool {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = lock();
        if (known.iter()).any(|(bytes, layers)| bytes == record && *layers == image.layers) {
            return true;
        }
        drop(known);
        let same = serde_json::from_slice::<Keys>(record).is_ok_and(|keys| {
            let ours = image.layers.iter().map(|layer| &layer.key);
            keys.layers.iter().map(|layer| &layer.key).eq(ours)
        });
        if same {
            known = lock();
            known.push_front((record.to_vec(), image.layers.clone()));
            known.truncate(Self::MOST);
        }
        same
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
    pub(crate) fn hold_image(&self, image: &Image) -> Result<Vec<Hold>> {
        let step = || format!("use the image {:?}: import it again", image.source);
        let dirs = &self.inner.dirs;
        if let Some(held) = hold::hold(&dirs.images, &record_name(image.id)).step(step)?
            && self.inner.compared.same(&read(held.fd()), image)
        {
            return Ok(vec![held]);
        }
        let held = |key: &str| {
            // A known key is a plain name; an image that a caller kept may have any.
            if key.is_empty() || key.starts_with('.') || key.contains(['/', '\0']) {
                return Err(Errno::NOENT.into());
            }
            let held = hold::hold(&dirs.layers, key);
            held.and_then(|held| held.ok_or_else(|| Errno::NOENT.into()))
        };
        (image.layers.iter())
            .map(|layer| held(&layer.key).step(|| format!("{}: no layer {}", step(), layer.key)))
            .collect()
    }
}

/// Reads an open record; nothing of one that cannot be read.
fn read(record: &OwnedFd) -> Vec<u8> {
    let mut bytes = Vec::new();
    let read = record
        .try_clone()
        .and_then(|copy| std::fs::File::from(copy).read_to_end(&mut bytes));
    read.map_or_else(|_| Vec::new(), |_| bytes)
}

pub(crate) fn record_name(id: Digest) -> String {
    format!("{}.json", id.hex())
}
