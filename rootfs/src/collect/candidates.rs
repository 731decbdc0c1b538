//! What may be collected: images and layers that nobody uses, with their stamps.
//!
//! The stamps are read first of all, see [`crate::store::hold`]: what is used after that is seen
//! to be used when it is about to be taken.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::references::References;
use super::{Amount, CollectProblem, CollectReport};
use crate::dirs;
use crate::error::{Result, Step};
use crate::image::Image;
use crate::store::Store;
use crate::store::hold::{self, Kept, Stamp};
use crate::trash::With;

/// Images and layers that nobody uses, when they were looked at.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    /// The least recently used first.
    images: Vec<Unused<Image>>,
    layers: Vec<Unused<Amount>>,
    young: usize,
    pinned: usize,
    problems: Vec<CollectProblem>,
}

#[derive(Debug)]
struct Unused<T> {
    name: String,
    stamp: Stamp,
    what: T,
}

impl Candidates {
    /// Looks at all images and layers.
    pub(super) fn read(store: &Store, min_age: Duration) -> Result<Self> {
        let mut all = Self::default();
        let dirs = &store.inner.dirs;
        for name in dirs::names(&dirs.images).step(|| "list images".to_owned())? {
            // One that cannot be read is told with the references.
            if let Some(stamp) = all.stamp(&dirs.images, "images", &name, min_age)
                && let Some(image) = store.image(&name)
            {
                if store.is_pinned(image.id) {
                    all.pinned += 1;
                    continue;
                }
                let what = image;
                all.images.push(Unused { name, stamp, what });
            }
        }
        all.images.sort_by_key(|image| image.stamp.time());
        for name in dirs::names(&dirs.layers).step(|| "list layers".to_owned())? {
            if let Some(stamp) = all.stamp(&dirs.layers, "layers", &name, min_age) {
                let record = store.inner.layers.get(&name);
                let what = record.map_or_else(Amount::default, |record| Amount {
                    bytes: record.size,
                    inodes: record.entries,
                });
                all.layers.push(Unused { name, stamp, what });
            }
        }
        Ok(all)
    }

    fn stamp(
        &mut self,
        parent: &OwnedFd,
        directory: &str,
        name: &str,
        min_age: Duration,
    ) -> Option<Stamp> {
        match hold::stamp(parent, name) {
            Ok(Ok(stamp)) if stamp.age() >= min_age => Some(stamp),
            Ok(Err(Kept::Gone)) => None,
            Ok(_) => {
                self.young += 1;
                None
            }
            Err(error) => {
                self.problem(directory, name, &error);
                None
            }
        }
    }

    /// Discards the layers that nothing refers to; gives how much that will set free.
    pub(super) fn take_layers(
        &mut self,
        store: &Store,
        references: &References,
        report: &mut CollectReport,
    ) -> Amount {
        let mut taken = Amount::default();
        let parent = &store.inner.dirs.layers;
        for layer in std::mem::take(&mut self.layers) {
            if references.has(&layer.name) {
                self.layers.push(layer);
                continue;
            }
            match discard(store, parent, &layer, Some(layer.what.bytes), || true) {
                Ok(None) => {
                    taken.add(layer.what);
                    report.layers.push(layer.name);
                }
                Ok(Some(Kept::Gone)) => {}
                Ok(Some(_)) => self.young += 1,
                Err(error) => self.problem("layers", &layer.name, &error),
            }
        }
        self.tell(report);
        taken
    }

    /// Gives up images, the least recently used first, until their layers make up `more`, or all;
    /// `false` when there is no use in trying again.
    pub(super) fn take_images(
        &mut self,
        store: &Store,
        references: &mut References,
        more: Option<Amount>,
        report: &mut CollectReport,
    ) -> bool {
        let sizes: HashMap<_, _> = (self.layers.iter())
            .map(|layer| (&*layer.name, layer.what))
            .collect();
        // Several images may share a layer, which only goes when the last of them does: so first
        // it is found out how many must go, and then which of those would go for nothing.
        let (mut chosen, mut others, mut won) = (Vec::new(), Vec::new(), Amount::default());
        let mut freed: HashSet<String> = HashSet::new();
        report.kept.used_images = 0;
        for image in std::mem::take(&mut self.images) {
            if references.all_used(&image.what) {
                report.kept.used_images += 1;
                others.push(image);
            } else if more.is_some_and(|more| more.minus(won).is_zero()) {
                others.push(image);
            } else {
                for layer in &image.what.layers {
                    if references.only_here(&layer.key) && freed.insert(layer.key.clone()) {
                        won.add(sizes.get(&*layer.key).copied().unwrap_or_default());
                    }
                }
                references.without(&image.what);
                chosen.push(image);
            }
        }
        let (before, mut failed) = (report.images.len(), false);
        report.kept.shared_images = 0;
        for image in chosen {
            let mut keys = image.what.layers.iter().map(|layer| &layer.key);
            if more.is_some() && !keys.any(|key| freed.contains(key)) {
                report.kept.shared_images += 1;
                others.push(image);
                continue;
            }
            let free = || !store.is_pinned(image.what.id);
            match discard(store, &store.inner.dirs.images, &image, Some(0), free) {
                Ok(None) => report.images.push(image.what.id),
                Ok(Some(Kept::Gone)) => {}
                Ok(Some(_)) => (self.young, failed) = (self.young + 1, true),
                Err(error) => {
                    self.problem("images", &image.name, &error);
                    failed = true;
                }
            }
        }
        others.sort_by_key(|image| image.stamp.time());
        self.images = others;
        self.tell(report);
        report.images.len() > before || (failed && !self.images.is_empty())
    }

    fn tell(&mut self, report: &mut CollectReport) {
        report.kept.young = self.young;
        report.kept.pinned_images = self.pinned;
        report.problems.append(&mut self.problems);
    }

    fn problem(&mut self, directory: &str, name: &str, error: &io::Error) {
        tracing::warn!(directory, name, %error, "cannot be collected");
        self.problems.push(CollectProblem {
            object: format!("{directory}/{name}"),
            text: error.to_string(),
        });
    }
}

/// Discards what nobody uses and nobody used since it was looked at; tells if it was not.
fn discard<T>(
    store: &Store,
    parent: &OwnedFd,
    unused: &Unused<T>,
    bytes: Option<u64>,
    still: impl Fn() -> bool,
) -> io::Result<Option<Kept>> {
    let _condemned = match hold::condemn(parent, &unused.name, unused.stamp)? {
        Ok(condemned) => condemned,
        Err(kept) => return Ok(Some(kept)),
    };
    if !still() {
        return Ok(Some(Kept::InUse));
    }
    let with = With {
        held: Vec::new(),
        bytes,
    };
    let discarded = (store.inner.trash).discard_with(parent, &unused.name, with)?;
    Ok((!discarded).then_some(Kept::Gone))
}
