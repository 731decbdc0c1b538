//! Which layers are referred to, by whom.
//!
//! Read from all records of images and root filesystems, each time anew: there is no count that
//! could be wrong. A record that nobody can read still protects the layers whose keys are in it,
//! byte by byte: it may be of another version of this program, or damaged in another place.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;

use super::CollectProblem;
use crate::dirs;
use crate::error::{Result, Step};
use crate::image::Image;
use crate::rootfs::{RootfsInfo, State};
use crate::store::Store;

/// What refers to layers.
#[derive(Debug, Default)]
pub(crate) struct References {
    /// How many images refer to a layer.
    pub(crate) images: HashMap<String, usize>,
    /// The layers that root filesystems refer to.
    pub(crate) rootfs: HashSet<String>,
    /// Records that nobody can read.
    pub(crate) problems: Vec<CollectProblem>,
}

impl References {
    /// Reads all records.
    pub(crate) fn read(store: &Store) -> Result<Self> {
        let mut references = Self::default();
        let dirs = &store.inner.dirs;
        // Images first: what makes a root filesystem holds its image until its record is there, so
        // that an image that goes between the two leaves a record that is seen.
        let mut unreadable = Vec::new();
        for name in dirs::names(&dirs.images).step(|| "list images".to_owned())? {
            match store.image(&name) {
                Some(image) => references.add_image(&image),
                None => unreadable.push((&dirs.images, name)),
            }
        }
        for id in dirs::names(&dirs.rootfs).step(|| "list root filesystems".to_owned())? {
            match store.state(&id) {
                State::Live(info) => references.rootfs.extend(info.layers),
                State::OfAnotherBoot | State::Gone => {}
                State::Unreadable => unreadable.push((&dirs.rootfs, id)),
            }
        }
        if !unreadable.is_empty() {
            let layers = dirs::names(&dirs.layers).step(|| "list layers".to_owned())?;
            for (directory, name) in unreadable {
                references.add_unreadable(store, directory, &name, &layers);
            }
        }
        Ok(references)
    }

    /// Whether anything refers to a layer.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.images.contains_key(key) || self.rootfs.contains(key)
    }

    /// Whether a root filesystem uses all layers of an image.
    pub(super) fn all_used(&self, image: &Image) -> bool {
        let mut keys = image.layers.iter().map(|layer| &layer.key);
        keys.all(|key| self.rootfs.contains(key))
    }

    /// Whether nothing but this image refers to a layer.
    pub(super) fn only_here(&self, key: &str) -> bool {
        self.images.get(key) == Some(&1) && !self.rootfs.contains(key)
    }

    /// An image was given up.
    pub(super) fn without(&mut self, image: &Image) {
        let keys: HashSet<_> = image.layers.iter().map(|layer| &layer.key).collect();
        for key in keys {
            if let Some(count) = self.images.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    self.images.remove(key);
                }
            }
        }
    }

    fn add_image(&mut self, image: &Image) {
        let keys: HashSet<_> = image.layers.iter().map(|layer| &layer.key).collect();
        for key in keys {
            *self.images.entry(key.clone()).or_default() += 1;
        }
    }

    fn add_unreadable(
        &mut self,
        store: &Store,
        directory: &OwnedFd,
        name: &str,
        layers: &[String],
    ) {
        let rootfs = std::ptr::eq(directory, &raw const store.inner.dirs.rootfs);
        let bytes = match rootfs {
            true => dirs::directory(directory, name)
                .map_err(std::io::Error::from)
                .and_then(|directory| dirs::read(directory, "record.json")),
            false => dirs::read(directory, name),
        };
        let bytes = bytes.ok().flatten().unwrap_or_default();
        // An image that cannot be read cannot be used: only what runs is protected.
        let keys: Vec<_> = (layers.iter())
            .filter(|key| rootfs && contains(&bytes, key.as_bytes()))
            .cloned()
            .collect();
        let (what, object) = match rootfs {
            true => ("the root filesystem", format!("rootfs/{name}")),
            false => ("the image", format!("images/{name}")),
        };
        let text = format!(
            "the record of {what} cannot be read; it still names {} layers, which are kept",
            keys.len()
        );
        self.rootfs.extend(keys);
        self.problems.push(CollectProblem { object, text });
    }
}

/// Which root filesystems use each layer, by key.
pub(crate) fn users(all: &[RootfsInfo]) -> HashMap<&str, Vec<&str>> {
    let mut users: HashMap<&str, Vec<&str>> = HashMap::new();
    for rootfs in all {
        for key in &rootfs.layers {
            users.entry(key).or_default().push(&rootfs.id);
        }
    }
    users
}

/// Bytes of all layers, and of the quotas that root filesystems were promised.
pub(super) fn committed(store: &Store) -> Result<u64> {
    let layers = store.list_layers();
    let layers = layers
        .iter()
        .map(|layer| layer.size)
        .fold(0, u64::saturating_add);
    let promised = store
        .list()?
        .iter()
        .map(promised)
        .fold(0, u64::saturating_add);
    Ok(layers.saturating_add(promised))
}

/// Bytes that a root filesystem may write, whatever it has written; nothing for one without a
/// limit, as GrootFS has it.
fn promised(rootfs: &RootfsInfo) -> u64 {
    rootfs.limit.bytes.unwrap_or(0)
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    !text.is_empty() && bytes.windows(text.len()).any(|window| window == text)
}
