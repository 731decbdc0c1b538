//! Counting what the kernel does not count: walks through root filesystems, in the background.
//!
//! One thread of a server, started only where it is needed, with idle disk priority and the lowest
//! processor priority; it works at most a fifth of its time. What it finds is kept beside each root
//! filesystem, in `rootfs/ID/usage.json`, so that short-lived programs and later servers have it,
//! too. A tree that is too large or cannot be read keeps its older numbers.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::fs::AtFlags;
use serde::{Deserialize, Serialize};

use super::walk;
use crate::dirs::{self, Dirs};
use crate::store::server::Signal;

const FILE: &str = "usage.json";
/// The file while it is written. One that was left half-written is overwritten.
const NEW_FILE: &str = "usage.json.new";
/// How long after one round the next begins, at least.
const PAUSE: Duration = Duration::from_secs(30);
/// A walk may take part of the time: it rests this many times as long as it worked.
const REST: u32 = 4;
/// Entries of one root filesystem that are looked at.
const MOST_ENTRIES: u64 = 10_000_000;

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Walked {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
    /// When, in milliseconds since the epoch.
    pub(crate) at_ms: u64,
}

/// Counts again and again, until it is told to stop. Never returns otherwise.
pub(crate) fn watch(dirs: &Dirs, signal: &Signal) {
    be_quiet();
    while !signal.wait(PAUSE) {
        round(dirs, &|| signal.is_stopped(), &|worked| {
            signal.wait(worked * REST);
        });
    }
}

fn be_quiet() {
    if let Err(error) = garden_sys::priority::make_io_idle() {
        tracing::debug!(%error, "counting keeps a normal disk priority");
    }
    // Of this thread: Linux counts niceness by thread.
    if let Err(error) = rustix::process::setpriority_process(None, 19) {
        tracing::debug!(%error, "counting keeps a normal processor priority");
    }
}

/// Counts every root filesystem once. `after` is told how long each took. Gives how many were
/// counted.
pub(crate) fn round(dirs: &Dirs, stop: &dyn Fn() -> bool, after: &dyn Fn(Duration)) -> usize {
    let mut counted = 0;
    for id in dirs::names(&dirs.rootfs).unwrap_or_default() {
        if stop() {
            break;
        }
        let begun = Instant::now();
        match count(dirs, &id, stop) {
            Ok(()) => counted += 1,
            // Destroyed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::debug!(%error, id, "cannot count a root filesystem"),
        }
        after(begun.elapsed());
    }
    counted
}

fn count(dirs: &Dirs, id: &str, stop: &dyn Fn() -> bool) -> io::Result<()> {
    let directory = dirs::directory(&dirs.rootfs, id)?;
    let sum = walk::tree(&directory, MOST_ENTRIES, stop)?;
    let walked = Walked {
        bytes: sum.bytes,
        inodes: sum.inodes,
        at_ms: dirs::now_ms(),
    };
    let text = serde_json::to_vec(&walked)?;
    let _ = rustix::fs::unlinkat(&directory, NEW_FILE, AtFlags::empty());
    dirs::write(&directory, NEW_FILE, &text)?;
    rustix::fs::renameat(&directory, NEW_FILE, &directory, FILE)?;
    Ok(())
}

/// What was last found for a root filesystem.
pub(crate) fn last(directory: &OwnedFd) -> Option<Walked> {
    let bytes = dirs::read(directory, FILE).ok()??;
    serde_json::from_slice(&bytes).ok()
}
