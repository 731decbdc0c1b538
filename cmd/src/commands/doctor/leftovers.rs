//! Checks of what was left behind, and of the clock that everything is measured with.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use garden::hosting::solo;

use super::Finding;
use super::host::Host;

/// The usual runtime directory of a server.
const RUN: &str = "/run/garden";
/// A day in 2025: whatever says it is earlier does not know the time.
const NOT_BEFORE: u64 = 1_750_000_000;
/// Clocks that are read without asking the kernel, or at least without asking a slow device.
const QUICK: [&str; 5] = [
    "tsc",
    "kvm-clock",
    "arch_sys_counter",
    "hyperv_clocksource_tsc_page",
    "xen",
];

pub(super) fn clock(_: &Host) -> Finding {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    if now.unwrap_or_default().as_secs() < NOT_BEFORE {
        let remedy = "set the clock: certificates of registries are refused, times are wrong";
        return Finding::warn("it is not set", remedy);
    }
    let source = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    match Host::file(source) {
        None => Finding::ok("set"),
        Some(name) if QUICK.contains(&name.as_str()) => Finding::ok(name),
        Some(name) => Finding::warn(
            format!("{name}, which is slow to read"),
            "see in the kernel's log why tsc is not used; each timing costs microseconds",
        ),
    }
}

/// Containers in a runtime directory whose server is gone.
pub(super) fn crashed(_: &Host) -> Finding {
    let mut places = vec![PathBuf::from(RUN)];
    let slots = std::fs::read_dir(solo::Place::default().run);
    places.extend(slots.into_iter().flatten().flatten().map(|e| e.path()));
    let left: Vec<String> = places
        .iter()
        .filter_map(|place| orphans(place).map(|count| (place, count)))
        .map(|(place, count)| format!("{count} containers in {}", place.display()))
        .collect();
    if left.is_empty() {
        return Finding::ok("none");
    }
    Finding::warn(
        format!("{}, without a server", left.join(", ")),
        "start the server again, which takes them up; those of `garden run` the next one removes",
    )
}

/// How many containers there are in a runtime directory that no server has; `None` when there are
/// none, or it has one.
fn orphans(place: &Path) -> Option<usize> {
    let lock = File::open(place.join("lock")).ok()?.metadata().ok()?;
    // Held by a server as long as it lives. Not tried: a server that starts just now would fail.
    let locks = Host::file("/proc/locks")?;
    let inode = format!(":{}", lock.ino());
    let held = |line: &str| line.contains("FLOCK") && line.split(' ').any(|w| w.ends_with(&inode));
    if locks.lines().any(held) {
        return None;
    }
    let count = std::fs::read_dir(place.join("containers")).ok()?.count();
    (count > 0).then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_containers_without_a_server_are_left_over() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(orphans(dir.path()), None);
        let lock = File::create(dir.path().join("lock")).unwrap();
        std::fs::create_dir_all(dir.path().join("containers/web")).unwrap();
        assert_eq!(orphans(dir.path()), Some(1));
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        assert_eq!(orphans(dir.path()), None);
    }
}
