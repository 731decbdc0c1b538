//! What an import tells while it runs.
//!
//! Used by the pipeline: one report per import, one part of it per layer. Changes of the stage are
//! always told, bytes a few times per second; when nobody listens, all of it costs a branch.

use std::cell::Cell;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::options::{Progress, Stage};
use crate::digest::Digest;
use crate::stream::Watch;

/// How often the bytes of a layer are told.
const OFTEN: Duration = Duration::from_millis(100);

/// Whoever wants to know.
pub(super) type Sink<'a> = Option<&'a (dyn Fn(Progress) + Sync)>;

/// One layer, as it is told.
pub(super) struct LayerReport<'a> {
    pub(super) sink: Sink<'a>,
    pub(super) index: usize,
    pub(super) digest: Digest,
    pub(super) of: u64,
    pub(super) watch: Watch,
    last: Cell<Option<Instant>>,
}

impl<'a> LayerReport<'a> {
    pub(super) fn new(sink: Sink<'a>, index: usize, digest: Digest, of: u64, watch: Watch) -> Self {
        Self {
            sink,
            index,
            digest,
            of,
            watch,
            last: Cell::new(None),
        }
    }

    /// Tells a change.
    pub(super) fn stage(&self, stage: Stage) {
        let Some(sink) = self.sink else { return };
        self.last.set(Some(Instant::now()));
        sink(Progress::Layer {
            index: self.index,
            digest: self.digest,
            stage,
            bytes: self.watch.read.load(Ordering::Relaxed),
            of: self.of,
        });
    }

    /// Tells how far it is, unless that was told just now.
    pub(super) fn tick(&self) {
        if self.sink.is_none() || self.last.get().is_some_and(|last| last.elapsed() < OFTEN) {
            return;
        }
        self.stage(match self.watch.ended.load(Ordering::Relaxed) {
            true => Stage::Unpacking,
            false => Stage::Downloading,
        });
    }
}
