//! What the supervisor keeps of one process of its pod.
//!
//! The streams kept here are the ones on the server's side: while they are open a process can
//! write (and read) although the server is gone, and a new server gets them back.

use std::os::fd::OwnedFd;

use garden_wire::{ExitRecord, Kind, ProcessState};

/// One process, from its start until it is forgotten.
#[derive(Debug)]
pub(crate) struct Process {
    /// Its id.
    pub(crate) id: String,
    /// What it is.
    pub(crate) kind: Kind,
    /// Its pid in this namespace.
    pub(crate) pid: i32,
    /// Its pidfd: polled for its end, used for its signals.
    pub(crate) pidfd: OwnedFd,
    /// Kept ends of 0, 1, 2; with a terminal only 0, its master.
    pub(crate) streams: [Option<OwnedFd>; 3],
    /// Whether `streams[0]` is a terminal's master.
    pub(crate) terminal: bool,
    /// The `oom_kill` counter of its cgroup, and its value at the start.
    pub(crate) oom: Option<(OwnedFd, u64)>,
    /// How it ended.
    pub(crate) exit: Option<ExitRecord>,
}

impl Process {
    /// As the wire shows it.
    pub(crate) fn state(&self) -> ProcessState {
        ProcessState {
            id: self.id.clone(),
            kind: self.kind,
            pid: self.pid.unsigned_abs(),
            exit: self.exit.clone(),
        }
    }

    /// Whether the kernel has killed for want of memory in its cgroup since it started.
    pub(crate) fn out_of_memory(&self) -> bool {
        self.oom
            .as_ref()
            .is_some_and(|(file, before)| oom_kills(file) > *before)
    }
}

/// Reads `oom_kill` from an open `memory.oom_control` (v1) or `memory.events` (v2); 0 when the
/// file says nothing.
pub(crate) fn oom_kills(file: &OwnedFd) -> u64 {
    let mut text = [0_u8; 1024];
    let count = rustix::io::pread(file, &mut text, 0).unwrap_or(0);
    let text = String::from_utf8_lossy(text.get(..count).unwrap_or_default());
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
        .unwrap_or(0)
}
