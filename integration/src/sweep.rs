//! Removing what a test put on the host: at its end, and for runs that were killed.
//!
//! All that a test makes carries its tag and stands below `BASE/<tag>`, which names the owner's pid
//! and start time. [`stale`] goes over the tags whose owner is gone. Nothing without a tag is touched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait::wait_until;
use crate::{cgroups, proc};

/// Below it, one directory for each test that runs. On a disk: not every tmpfs can carry an overlay.
pub(crate) const BASE: &str = "/var/tmp/garden-it";

const OWNER: &str = "owner";

/// The tag of this process's test number `count`. Short, since it becomes part of names with little
/// room; closed by a letter, so that no tag is the beginning of another.
pub(crate) fn tag(count: usize) -> String {
    format!("g{:x}x{count:x}y", std::process::id())
}

/// The pid in a tag.
fn owner(tag: &str) -> Option<i32> {
    let (pid, _) = tag.strip_prefix('g')?.split_once('x')?;
    i32::from_str_radix(pid, 16).ok()
}

/// Makes a test's directory and marks it as this process's.
pub(crate) fn claim(tag: &str) -> anyhow::Result<PathBuf> {
    let directory = Path::new(BASE).join(tag);
    fs::create_dir_all(&directory)?;
    fs::write(
        directory.join(OWNER),
        identity(std::process::id().cast_signed()),
    )?;
    Ok(directory)
}

fn identity(pid: i32) -> String {
    format!("{pid} {}", proc::start_time(pid).unwrap_or_default())
}

/// Removes what tests left whose process is gone.
pub(crate) fn stale() {
    let Ok(entries) = fs::read_dir(BASE) else {
        return;
    };
    for entry in entries.flatten() {
        if let Some(tag) = entry.file_name().to_str()
            && !is_owned(tag)
        {
            tagged(tag);
        }
    }
}

/// Whether the process that made this tag is there.
fn is_owned(tag: &str) -> bool {
    let Some(pid) = owner(tag) else {
        // Not a name that this harness gives.
        return true;
    };
    match fs::read_to_string(Path::new(BASE).join(tag).join(OWNER)) {
        Ok(owner) => owner == identity(pid),
        // It is about to be written, or was removed already by who could not remove the rest.
        Err(_) => Path::new("/proc").join(pid.to_string()).exists(),
    }
}

/// Removes all that carries the tag: processes, mounts, cgroups, loop devices, files.
pub(crate) fn tagged(tag: &str) {
    // More than once: a process that is killed last may have started another before.
    let _ = wait_until("tagged processes are gone", Duration::from_secs(20), || {
        let processes = proc::tagged(tag);
        for process in &processes {
            if let Some(pid) = Pid::from_raw(process.pid) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        Ok(processes.is_empty())
    });
    for mount in proc::mounts_naming(tag).iter().rev() {
        let _ = unmount(mount.as_str(), UnmountFlags::DETACH);
    }
    cgroups::remove(tag);
    detach_loops(tag);
    let _ = fs::remove_dir_all(Path::new(BASE).join(tag));
    // The last one out; refused while others have theirs.
    let _ = fs::remove_dir(BASE);
}

fn detach_loops(tag: &str) {
    let Ok(entries) = fs::read_dir("/sys/block") else {
        return;
    };
    for entry in entries.flatten() {
        let backing = fs::read_to_string(entry.path().join("loop/backing_file"));
        if backing.is_ok_and(|file| file.contains(tag)) {
            let device = Path::new("/dev").join(entry.file_name());
            let _ = Command::new("losetup").arg("-d").arg(device).status();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_names_its_owner() {
        assert_eq!(owner(&tag(17)), Some(std::process::id().cast_signed()));
        assert_eq!(owner("somebody"), None);
    }
}
