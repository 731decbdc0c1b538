//! How fast the trash is emptied: so that nobody else notices.
//!
//! A thread that removes has idle disk priority and makes a pause after each batch: for as long as
//! this process does something that somebody waits for, within bounds, so that removing never
//! stops altogether. When space is short, removing is what others wait for: then there are no
//! pauses and the disk serves it as everybody else.

use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::Trash;
use crate::remove::Pace;

/// Objects that are removed between two pauses: about a millisecond of work.
const BATCH: u64 = 64;
/// The longest pause, and how often is looked whether it is to end.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_micros(500));

/// How far the removal of one tree is.
#[derive(Debug, Default)]
pub(super) struct Progress {
    objects: AtomicU64,
    bytes: AtomicU64,
}

impl Progress {
    pub(super) fn objects(&self) -> u64 {
        self.objects.load(Ordering::Relaxed)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Something was done that is no object.
    pub(super) fn moved(&self) {
        self.objects.fetch_add(1, Ordering::Relaxed);
    }
}

/// The pace of one thread on one tree.
pub(super) struct Pacer<'a> {
    trash: &'a Trash,
    progress: &'a Progress,
    /// Which disk priority the thread has.
    idle: Cell<Option<bool>>,
}

impl<'a> Pacer<'a> {
    pub(super) fn new(trash: &'a Trash, progress: &'a Progress) -> Self {
        let pacer = Self {
            trash,
            progress,
            idle: Cell::new(None),
        };
        pacer.pause();
        pacer
    }

    fn boosted(&self) -> bool {
        self.trash.boost.load(Ordering::Relaxed)
    }

    fn prioritise(&self) {
        let idle = !self.boosted();
        if self.idle.replace(Some(idle)) == Some(idle) {
            return;
        }
        let done = match idle {
            true => garden_sys::priority::make_io_idle(),
            false => garden_sys::priority::make_io_normal(),
        };
        if let Err(error) = done {
            tracing::debug!(%error, "the trash keeps its disk priority");
        }
    }

    fn pause(&self) {
        self.prioritise();
        let since = Instant::now();
        let busy = || self.trash.foreground.load(Ordering::Relaxed) > 0;
        while busy() && !self.boosted() && !self.trash.stopped() && since.elapsed() < PAUSE.0 {
            std::thread::sleep(PAUSE.1);
        }
    }
}

impl Pace for Pacer<'_> {
    fn go_on(&self) -> io::Result<()> {
        if self.trash.stopped() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if self.progress.objects.fetch_add(1, Ordering::Relaxed) % BATCH == BATCH - 1 {
            self.pause();
        }
        Ok(())
    }

    fn freed(&self, bytes: u64) {
        self.progress.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn step(&self) -> io::Result<()> {
        self.go_on()?;
        self.pause();
        Ok(())
    }
}
