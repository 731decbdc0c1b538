//! Collection: making room by giving up images that nobody used for long.
//!
//! Asked for by the owner of a store, by a create that found no space, and by a server's own thread
//! ([`background`]). It decides from what is really free ([`space`]), gives up the least recently
//! used images first, and layers only when no image and no root filesystem refers to them
//! ([`references`]). Nothing waits for it, and it waits for nothing: what is in use is left alone,
//! by the protocol in [`crate::store::hold`], whose head says why that is safe. A record that
//! cannot be read keeps nothing from being collected but the layers that it still names, and is
//! reported.
//!
//! The order of things: stamps of layers, then references, then layers without any; when that is
//! not enough, images, and the same again. A crash in between leaves layers without an image,
//! which the next collection takes first.

mod background;
mod candidates;
pub(crate) mod references;
mod space;

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::digest::Digest;
use crate::error::Result;
use crate::store::Store;
use candidates::Candidates;
use references::References;
pub use space::{Disk, Space, WaterMarks};

pub(crate) use background::watch;

/// When to collect, and how much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectPolicy {
    /// Collect when less than the low mark is free on the disk of the store, until the high mark
    /// is. `None`: whatever is free.
    pub free: Option<WaterMarks>,
    /// Collect when layers and promised quotas of root filesystems together have as many bytes or
    /// more, until they have less. (The threshold of `grootfs clean`: it counts what is promised,
    /// not what is used.)
    pub threshold_bytes: Option<u64>,
    /// When there is a reason to collect, take all that is unused. With neither marks nor a
    /// threshold there always is.
    pub everything: bool,
    /// What was used more recently stays.
    pub min_age: Duration,
}

impl Default for CollectPolicy {
    /// From 5 % to 10 % free; what was used in the last ten minutes stays.
    fn default() -> Self {
        Self {
            free: Some(WaterMarks::default()),
            threshold_bytes: None,
            everything: false,
            min_age: Duration::from_mins(10),
        }
    }
}

impl CollectPolicy {
    /// All that is unused, now.
    pub fn unused() -> Self {
        Self {
            free: None,
            threshold_bytes: None,
            everything: true,
            min_age: Duration::ZERO,
        }
    }
}

/// Why a collection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// There is enough space.
    NotNeeded,
    /// What is in the trash will be enough.
    TrashIsEnough,
    /// What was wanted, or all that was unused, was taken.
    Collected,
    /// Less than was wanted: everything else is in use, pinned, or too young.
    NothingMore,
}

/// Things that were not collected, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct KeptObjects {
    /// Images whose layers root filesystems use.
    pub used_images: usize,
    /// Pinned images.
    pub pinned_images: usize,
    /// Images and layers that were used too recently, or are being used now.
    pub young: usize,
    /// Images whose layers others need as well, so that nothing would be won.
    pub shared_images: usize,
}

/// A record or an object that a collection could not deal with. It stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CollectProblem {
    /// Where it is, in the store.
    pub object: String,
    /// What is wrong with it.
    pub text: String,
}

/// What a collection did, and why not more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CollectReport {
    /// Why it ended.
    pub outcome: Outcome,
    /// The disk, before.
    pub disk: Disk,
    /// Bytes that the trash was going to set free, as far as they are known.
    pub trash_bytes: u64,
    /// Bytes of layers and promised quotas, before.
    pub committed_bytes: u64,
    /// Bytes that were to be set free.
    pub wanted_bytes: u64,
    /// Bytes that will be free when the trash is empty.
    pub collected_bytes: u64,
    /// The images that were given up.
    pub images: Vec<Digest>,
    /// The keys of the layers that went to the trash.
    pub layers: Vec<String>,
    /// What was kept.
    pub kept: KeptObjects,
    /// What could not be dealt with.
    pub problems: Vec<CollectProblem>,
}

impl fmt::Display for CollectReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { disk, kept, .. } = self;
        match self.outcome {
            Outcome::NotNeeded => write!(
                f,
                "nothing was collected: {} of {} bytes are free, {} are committed",
                disk.free_bytes, disk.total_bytes, self.committed_bytes
            )?,
            Outcome::TrashIsEnough => write!(
                f,
                "nothing was collected: the trash will set {} bytes free",
                self.trash_bytes
            )?,
            Outcome::Collected | Outcome::NothingMore => write!(
                f,
                "collected {} images and {} layers of {} bytes",
                self.images.len(),
                self.layers.len(),
                self.collected_bytes
            )?,
        }
        if self.outcome == Outcome::NothingMore {
            write!(
                f,
                ", though {} were wanted: {} images are used by root filesystems, {} are pinned, {} \
                 images and layers were used too recently, {} images share all their layers",
                self.wanted_bytes,
                kept.used_images,
                kept.pinned_images,
                kept.young,
                kept.shared_images
            )?;
        }
        match self.problems.len() {
            0 => Ok(()),
            problems => write!(f, "; {problems} objects are wrong: check the store"),
        }
    }
}

/// Bytes and inodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

impl Amount {
    fn add(&mut self, other: Self) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.inodes = self.inodes.saturating_add(other.inodes);
    }

    fn minus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(other.bytes),
            inodes: self.inodes.saturating_sub(other.inodes),
        }
    }

    fn max(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.max(other.bytes),
            inodes: self.inodes.max(other.inodes),
        }
    }

    fn is_zero(self) -> bool {
        self == Self::default()
    }
}

impl Store {
    /// Makes room, if the policy says that it is needed: see [`CollectPolicy`]. Gives up images and
    /// layers that nobody uses; what it takes goes to the trash, so that the space is free a little
    /// later. May run beside everything else, in any number of processes.
    ///
    /// # Errors
    /// Only when the store cannot be read at all; what is wrong with single objects is reported.
    pub fn collect(&self, policy: &CollectPolicy) -> Result<CollectReport> {
        let disk = Disk::look(&self.inner.dirs)?;
        let trash_bytes = self.trash().bytes;
        let mut candidates = Candidates::read(self, policy.min_age)?;
        let committed_bytes = references::committed(self)?;
        let mut report = CollectReport {
            outcome: Outcome::NotNeeded,
            disk,
            trash_bytes,
            committed_bytes,
            wanted_bytes: 0,
            collected_bytes: 0,
            images: Vec::new(),
            layers: Vec::new(),
            kept: KeptObjects::default(),
            problems: Vec::new(),
        };
        let Some(wanted) = wanted(policy, &report) else {
            return Ok(report);
        };
        report.wanted_bytes = wanted.bytes;
        if wanted.is_zero() && !policy.everything {
            report.outcome = Outcome::TrashIsEnough;
            return Ok(report);
        }
        let mut collected = Amount::default();
        loop {
            // After the stamps, which the candidates have: see the head of the holds.
            let mut references = References::read(self)?;
            collected.add(candidates.take_layers(self, &references, &mut report));
            let missing = wanted.minus(collected);
            if missing.is_zero() && !policy.everything {
                report.outcome = Outcome::Collected;
                report.problems.append(&mut references.problems);
                break;
            }
            let more = (!policy.everything).then_some(missing);
            if !candidates.take_images(self, &mut references, more, &mut report) {
                report.outcome = match missing.is_zero() {
                    true => Outcome::Collected,
                    false => Outcome::NothingMore,
                };
                report.problems.append(&mut references.problems);
                break;
            }
        }
        report.collected_bytes = collected.bytes;
        Ok(report)
    }
}

/// How much a policy wants to be set free; `None` when there is no reason to collect.
fn wanted(policy: &CollectPolicy, report: &CollectReport) -> Option<Amount> {
    let short = (policy.free).and_then(|marks| report.disk.missing(marks, report.trash_bytes));
    let above = policy.threshold_bytes.and_then(|threshold| {
        let committed = report.committed_bytes;
        (committed >= threshold).then(|| Amount {
            bytes: committed - threshold + 1,
            inodes: 0,
        })
    });
    match (short, above) {
        (Some(short), Some(above)) => Some(short.max(above)),
        (None, None) if policy.free.is_none() && policy.threshold_bytes.is_none() => {
            policy.everything.then(Amount::default)
        }
        (short, above) => short.or(above),
    }
}
