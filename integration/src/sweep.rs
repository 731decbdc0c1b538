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
        let owner = fs::read_to_string(entry.path().join(OWNER)).unwrap_or_default();
        let pid = owner.split(' ').next().and_then(|pid| pid.parse().ok());
        // One without an owner's name is between the two steps of `claim`, or was cut off there;
        // it is empty, so it may stay.
        if pid.is_some_and(|pid| identity(pid) != owner)
            && let Some(tag) = entry.file_name().to_str()
        {
            tagged(tag);
        }
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
