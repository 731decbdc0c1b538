//! Checking a store: does everything that is there say the truth?
//!
//! Run by hand (`garden rootfs check`), beside creates, imports and collections: what comes and
//! goes meanwhile is no finding. Layers are compared with their listings, byte by byte, so it reads
//! all of the store. Repairing puts what is wrong into the trash, so that the next use imports it
//! again; what a root filesystem uses is never touched, and that is said.

mod images;
mod layers;
mod leftovers;
mod rootfs;

use std::fmt;

use serde::Serialize;

use crate::error::Result;
use crate::store::Store;

/// Whether a check mends what it finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// It only tells.
    No,
    /// What can be taken away safely is taken away.
    Yes,
}

/// What kind of thing was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FindingKind {
    /// The record of a layer cannot be used, or the layer lacks a part.
    BadLayer,
    /// The files of a layer are not what was unpacked.
    DamagedLayer,
    /// The record of an image cannot be used.
    BadImage,
    /// An image lacks layers.
    IncompleteImage,
    /// The record of a root filesystem cannot be read.
    BadRootfs,
    /// A root filesystem lacks something that it was made of.
    IncompleteRootfs,
    /// Something was left by a process that died, or by an earlier boot.
    Leftover,
    /// Something is mounted below the store that belongs to nothing.
    LeakedMount,
    /// Something in the trash cannot be removed.
    TrashFailure,
}

/// What became of a finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Repaired {
    /// Nothing: it was not asked for.
    NotAsked,
    /// It is mended; how.
    Done(String),
    /// It is left as it is; why, and what to do.
    Left(String),
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What kind of thing it is.
    pub kind: FindingKind,
    /// Where it is, in the store.
    pub object: String,
    /// What is wrong, in words.
    pub text: String,
    /// What became of it.
    pub repaired: Repaired,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.text)?;
        match &self.repaired {
            Repaired::NotAsked => Ok(()),
            Repaired::Done(how) => write!(f, " ({how})"),
            Repaired::Left(why) => write!(f, " (left as it is: {why})"),
        }
    }
}

/// What a check looked at, and found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CheckReport {
    /// Layers that were compared with their listings.
    pub layers: usize,
    /// Bytes in their regular files.
    pub bytes: u64,
    /// Images.
    pub images: usize,
    /// Root filesystems.
    pub rootfs: usize,
    /// All that is wrong.
    pub findings: Vec<Finding>,
}

impl CheckReport {
    /// Whether nothing is wrong, or not any more.
    pub fn is_sound(&self) -> bool {
        let mended = |finding: &Finding| matches!(finding.repaired, Repaired::Done(_));
        self.findings.iter().all(mended)
    }
}

/// A check that is going on.
struct Check<'a> {
    store: &'a Store,
    repair: Repair,
    report: CheckReport,
}

impl Check<'_> {
    /// Adds a finding; `mend` is called if repairing was asked for.
    fn found(
        &mut self,
        kind: FindingKind,
        object: String,
        text: impl Into<String>,
        mend: impl FnOnce() -> Result<Repaired>,
    ) {
        let repaired = match self.repair {
            Repair::No => Repaired::NotAsked,
            Repair::Yes => mend().unwrap_or_else(|error| Repaired::Left(words(&error))),
        };
        let text = text.into();
        tracing::warn!(object, text, ?repaired, "the store is not as it should be");
        self.report.findings.push(Finding {
            kind,
            object,
            text,
            repaired,
        });
    }
}

impl Store {
    /// Checks everything in the store. Takes as long as reading all layers takes.
    ///
    /// # Errors
    /// Only when the store cannot be read at all; what is wrong in it is in the report.
    pub fn check(&self, repair: Repair) -> Result<CheckReport> {
        let mut check = Check {
            store: self,
            repair,
            report: CheckReport::default(),
        };
        // In this order, so that what is taken away because of one part is seen by the next.
        check.leftovers()?;
        check.layers()?;
        check.images()?;
        check.rootfs()?;
        Ok(check.report)
    }
}

/// An error with its causes.
fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}
