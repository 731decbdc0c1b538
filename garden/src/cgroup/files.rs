//! The files of one group in one hierarchy. Sources: the kernel's cgroup-v1/*.rst, cgroup-v2.rst.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;

use super::host::Hierarchy;
use super::limit::missing_controller;
use super::{CgroupError, failed};

/// Makes a directory and its parents; they may exist.
pub(super) fn make(path: &Path) -> Result<(), CgroupError> {
    std::fs::create_dir_all(path).map_err(failed("make the cgroup", path))
}

/// Makes a directory and takes the lock on it.
pub(super) fn lock(path: &Path) -> Result<OwnedFd, CgroupError> {
    make(path)?;
    let directory = open_directory(path)?;
    match rustix::fs::flock(
        &directory,
        rustix::fs::FlockOperation::NonBlockingLockExclusive,
    ) {
        Ok(()) => Ok(directory),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(failed("lock", path)(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "another garden server has this tag: choose another one with --tag",
        ))),
        Err(errno) => Err(failed("lock", path)(errno.into())),
    }
}

/// Makes a directory that must not exist.
pub(super) fn make_new(path: &Path) -> Result<(), CgroupError> {
    std::fs::create_dir(path).map_err(failed("make the cgroup", path))
}

/// Writes a value into one of a group's files.
pub(super) fn put(path: &Path, file: &str, value: &str) -> Result<(), CgroupError> {
    // Without O_CREAT and O_TRUNC, which these files do not know.
    OpenOptions::new()
        .write(true)
        .open(path.join(file))
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|error| missing_controller(path, file, error))
}

/// Reads one of a group's files; `None` when it is not there.
pub(super) fn read(path: &Path, file: &str) -> Option<String> {
    std::fs::read_to_string(path.join(file)).ok()
}

/// Reads one of a group's files that holds a number; `None` also for `max`.
pub(super) fn read_number(path: &Path, file: &str) -> Option<u64> {
    read(path, file)?.trim().parse().ok()
}

/// What the parent of all groups needs once.
pub(super) fn prepare_parent(hierarchy: &Hierarchy, path: &Path) -> Result<(), CgroupError> {
    if hierarchy.unified {
        if let Some(above) = path.parent() {
            delegate(above);
        }
        delegate(path);
    }
    Ok(())
}

/// What groups are limited and measured by. Each further controller costs every create.
const CONTROLLERS: [&str; 4] = ["cpu", "io", "memory", "pids"];

/// Hands the controllers of a v2 group to its children, as far as the kernel lets it.
pub(super) fn delegate(path: &Path) {
    let available = read(path, "cgroup.controllers").unwrap_or_default();
    let wanted: Vec<String> = available
        .split_whitespace()
        .filter(|controller| CONTROLLERS.contains(controller))
        .map(|controller| format!("+{controller}"))
        .collect();
    if wanted.is_empty() || put(path, "cgroup.subtree_control", &wanted.join(" ")).is_ok() {
        return;
    }
    for controller in wanted {
        // One by one: the kernel refuses a list as a whole for one controller's sake. What is
        // missing in the end is noticed by the limit that needs it.
        let _ = put(path, "cgroup.subtree_control", &controller);
    }
}

/// Opens the file by which a process moves itself into this v1 group, by writing `0`.
///
/// `tasks` instead of `cgroup.procs`: moving only the calling thread, which here is the whole
/// process, skips a lock that every fork on the host takes.
pub(super) fn open_tasks(path: &Path) -> Result<OwnedFd, CgroupError> {
    let file = path.join("tasks");
    OpenOptions::new()
        .write(true)
        .open(&file)
        .map(OwnedFd::from)
        .map_err(failed("open", &file))
}

/// Opens the file by which a process moves itself into this v2 group, by writing `0`.
pub(super) fn open_procs(path: &Path) -> Result<OwnedFd, CgroupError> {
    let file = path.join("cgroup.procs");
    OpenOptions::new()
        .write(true)
        .open(&file)
        .map(OwnedFd::from)
        .map_err(failed("open", &file))
}

/// Opens a v2 group for a process to be born in.
pub(super) fn open_directory(path: &Path) -> Result<OwnedFd, CgroupError> {
    File::open(path)
        .map(OwnedFd::from)
        .map_err(failed("open", path))
}

/// Opens one of a group's files for reading.
pub(super) fn open_file(path: &Path, file: &str) -> Result<File, CgroupError> {
    let path = path.join(file);
    File::open(&path).map_err(failed("open", &path))
}

/// Opens the file with the `oom_kill` counter.
pub(super) fn open_oom_counter(hierarchy: &Hierarchy, path: &Path) -> Option<OwnedFd> {
    let file = if hierarchy.unified {
        "memory.events"
    } else {
        "memory.oom_control"
    };
    File::open(path.join(file)).ok().map(OwnedFd::from)
}

/// Kills a v2 group with everything below it.
pub(super) fn kill_group(path: &Path) -> Result<(), CgroupError> {
    match put(path, "cgroup.kill", "1") {
        Ok(()) => Ok(()),
        Err(_) if !path.exists() => Ok(()),
        // Before Linux 5.14.
        Err(_) if !path.join("cgroup.kill").exists() => kill_each(path),
        Err(error) => Err(error),
    }
}

/// Kills process by process, until a look finds none (a fork may be faster than one look).
pub(super) fn kill_each(path: &Path) -> Result<(), CgroupError> {
    for _ in 0..100 {
        let pids = processes(path);
        if pids.is_empty() {
            return Ok(());
        }
        for pid in pids.into_iter().filter_map(rustix::process::Pid::from_raw) {
            // Between the look and the signal a pid may become another process's: hold it by
            // a pidfd and look again whether it is in the group.
            let flags = rustix::process::PidfdFlags::empty();
            let Ok(pidfd) = rustix::process::pidfd_open(pid, flags) else {
                continue;
            };
            if processes(path).contains(&pid.as_raw_nonzero().get()) {
                let kill = rustix::process::Signal::KILL;
                let _ = rustix::process::pidfd_send_signal(&pidfd, kill);
            }
        }
    }
    Err(failed("empty the cgroup", path)(
        io::ErrorKind::TimedOut.into(),
    ))
}

/// The pids in a group and below it.
pub(super) fn processes(path: &Path) -> Vec<i32> {
    let own = std::fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    let own = own.lines().filter_map(|line| line.parse().ok());
    let below = children(path)
        .into_iter()
        .flat_map(|child| processes(&path.join(child)));
    own.chain(below.collect::<Vec<_>>()).collect()
}

/// Names of the groups directly below.
pub(super) fn children(path: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(path) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// Removes a group after the ones below it.
pub(super) fn remove_tree(path: &Path) -> Result<(), CgroupError> {
    match std::fs::remove_dir(path) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(_) => {}
    }
    for child in children(path) {
        remove_tree(&path.join(child))?;
    }
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("remove the cgroup", path)(error))
        }
        _ => Ok(()),
    }
}
