//! The files of one group in one hierarchy. Sources: the kernel's cgroup-v1/*.rst, cgroup-v2.rst.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;

use super::host::Hierarchy;
use super::{CgroupError, Devices, failed};
use crate::model::Limits;

/// Nodes that every container may use; `m` everywhere: a node may be made, though not opened.
const COMMON_DEVICES: [&str; 10] = [
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:8 rwm",
    "c 1:7 rwm",
    "c 5:0 rwm",
    "c 1:5 rwm",
    "c 1:9 rwm",
    "c 136:* rwm",
    "c 5:2 rwm",
];
const TUN: &str = "c 10:200 rwm";
const FUSE: &str = "c 10:229 rwm";

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

fn put(path: &Path, file: &str, value: &str) -> Result<(), CgroupError> {
    let path = path.join(file);
    // Without O_CREAT and O_TRUNC, which these files do not know.
    OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(failed("write to", &path))
}

/// What the parent of all groups needs once.
pub(super) fn prepare_parent(hierarchy: &Hierarchy, path: &Path) -> Result<(), CgroupError> {
    if hierarchy.unified {
        if let Some(above) = path.parent() {
            delegate(above);
        }
        delegate(path);
    }
    if hierarchy.has("devices") && !hierarchy.unified {
        for kind in [Devices::Unprivileged, Devices::Privileged] {
            let group = path.join(devices_group(kind));
            make(&group)?;
            restrict_devices(&group, kind)?;
        }
    }
    Ok(())
}

/// The name of the shared group that restricts devices.
pub(super) fn devices_group(kind: Devices) -> &'static str {
    match kind {
        Devices::Unprivileged => "unprivileged",
        Devices::Privileged => "privileged",
    }
}

fn restrict_devices(path: &Path, kind: Devices) -> Result<(), CgroupError> {
    // Written by an earlier server already, and perhaps in use: writing again would open a gap.
    let current = std::fs::read_to_string(path.join("devices.list")).unwrap_or_default();
    if !current.starts_with("a ") {
        return Ok(());
    }
    put(path, "devices.deny", "a")?;
    let fuse = matches!(kind, Devices::Privileged).then_some(FUSE);
    for rule in COMMON_DEVICES.into_iter().chain([TUN]).chain(fuse) {
        put(path, "devices.allow", rule)?;
    }
    Ok(())
}

/// Hands every controller of a v2 group to its children, as far as the kernel lets it.
pub(super) fn delegate(path: &Path) {
    let available = std::fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default();
    for controller in available.split_whitespace() {
        // One by one: the kernel refuses a list as a whole for one controller's sake. What is
        // missing in the end is noticed by the limit that needs it.
        let _ = put(path, "cgroup.subtree_control", &format!("+{controller}"));
    }
}

/// Sets the limits that do not slow the set-up.
pub(super) fn limit(
    hierarchy: &Hierarchy,
    path: &Path,
    limits: &Limits,
) -> Result<(), CgroupError> {
    if let Some(bytes) = limits.memory_bytes.filter(|_| hierarchy.has("memory")) {
        let bytes = bytes.min(i64::MAX.unsigned_abs()).to_string();
        if hierarchy.unified {
            put(path, "memory.max", &bytes)?;
            if path.join("memory.swap.max").exists() {
                put(path, "memory.swap.max", "0")?;
            }
        } else {
            put(path, "memory.limit_in_bytes", &bytes)?;
            if path.join("memory.memsw.limit_in_bytes").exists() {
                put(path, "memory.memsw.limit_in_bytes", &bytes)?;
            }
        }
    }
    if let Some(pids) = limits.pids.filter(|_| hierarchy.has("pids")) {
        put(path, "pids.max", &pids.to_string())?;
    }
    Ok(())
}

/// Sets the CPU share.
pub(super) fn limit_cpu(
    hierarchy: &Hierarchy,
    path: &Path,
    limits: &Limits,
) -> Result<(), CgroupError> {
    match limits.cpu_shares {
        None => Ok(()),
        Some(shares) if hierarchy.unified => {
            put(path, "cpu.weight", &weight_of_shares(shares).to_string())
        }
        Some(shares) => put(path, "cpu.shares", &shares.to_string()),
    }
}

/// v1 shares (2 to 262144) as a v2 weight (1 to 10000) so that 1024 becomes 100 and the ends
/// meet the ends: a quadratic in the logarithm of the shares.
pub(super) fn weight_of_shares(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    #[expect(clippy::cast_precision_loss, reason = "18 bits fit a double exactly")]
    let log = (shares as f64).log2();
    let exponent = log.mul_add(log, 125.0 * log) / 612.0 - 7.0 / 34.0;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "1 to 10000"
    )]
    let weight = 10_f64.powf(exponent).ceil() as u64;
    weight.clamp(1, 10_000)
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

/// Opens a v2 group for a process to be born in.
pub(super) fn open_directory(path: &Path) -> Result<OwnedFd, CgroupError> {
    File::open(path)
        .map(OwnedFd::from)
        .map_err(failed("open", path))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights_as_the_field_converts_them() {
        let expected = [
            (2, 1),
            (10, 4),
            (100, 17),
            (128, 21),
            (256, 35),
            (512, 59),
            (1000, 99),
            (1024, 100),
            (2048, 174),
            (8192, 532),
            (262_144, 10_000),
        ];
        for (shares, weight) in expected {
            assert_eq!(weight_of_shares(shares), weight, "{shares} shares");
        }
    }
}
