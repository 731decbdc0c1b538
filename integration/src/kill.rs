//! Ending processes of a test's own, as a crash would: found by their names and their tag, killed
//! through a pidfd that is known to be theirs.

use std::fs;

use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::proc;
use crate::world::World;

/// Which processes of a world are meant.
#[derive(Debug, Clone, Copy)]
pub enum Whom<'a> {
    /// The process from which supervisors are forked.
    Zygote,
    /// The supervisor of this container.
    Supervisor(&'a str),
    /// What the supervisor of this container has forked for one task or start.
    Worker(&'a str),
}

impl Whom<'_> {
    fn is(self, pid: i32) -> bool {
        let name = name(pid);
        match self {
            Self::Zygote => name == "garden-shim",
            Self::Supervisor(handle) => name == title(handle) && parent(pid) != name,
            Self::Worker(handle) => name == title(handle) && parent(pid) == name,
        }
    }
}

/// A supervisor's name; the kernel cuts it to 15 bytes.
fn title(handle: &str) -> String {
    format!("gn:{handle}").chars().take(15).collect()
}

fn name(pid: i32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_end().to_owned()
}

/// The name of a process's parent.
fn parent(pid: i32) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    line.and_then(|pid| pid.trim().parse().ok())
        .map(name)
        .unwrap_or_default()
}

/// Sends a signal to all of these processes of the world; returns how many there were.
pub fn signal_all(world: &World, signal: Signal, whom: Whom<'_>) -> usize {
    let all = proc::tagged(world.tag()).into_iter();
    let meant = all.filter(|process| whom.is(process.pid));
    // Held first and looked at again: then the descriptor is of the process that was meant.
    let held = meant.filter_map(|process| Some((process.pid, hold(process.pid)?)));
    held.filter(|(pid, pidfd)| {
        let still = whom.is(*pid) && proc::carries(*pid, world.tag());
        still && pidfd_send_signal(pidfd, signal).is_ok()
    })
    .count()
}

/// Kills one process; one that is gone is no fault.
pub fn kill_pid(pid: i32) {
    if let Some(pidfd) = hold(pid) {
        let _ = pidfd_send_signal(&pidfd, Signal::KILL);
    }
}

fn hold(pid: i32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}
