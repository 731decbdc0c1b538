//! Which processes may use which devices (v1 `devices` hierarchy), and which block devices a rate
//! holds for.
//!
//! Called by the groups when parents are made, and by `limit` for rates. The groups that restrict
//! devices are shared by all containers of a kind and written once.

use std::path::Path;

use super::files::put;
use super::{CgroupError, Devices};

/// Nodes that every container may use; `m` everywhere: a node may be made, though not opened.
const COMMON: [&str; 10] = [
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

/// The name of the shared group that restricts devices.
pub(super) fn group(kind: Devices) -> &'static str {
    match kind {
        Devices::Unprivileged => "unprivileged",
        Devices::Privileged => "privileged",
    }
}

/// Writes the rules of a shared group.
pub(super) fn restrict(path: &Path, kind: Devices) -> Result<(), CgroupError> {
    // Written by an earlier server already, and perhaps in use: writing again would open a gap.
    let current = std::fs::read_to_string(path.join("devices.list")).unwrap_or_default();
    if !current.starts_with("a ") {
        return Ok(());
    }
    put(path, "devices.deny", "a")?;
    let fuse = matches!(kind, Devices::Privileged).then_some(FUSE);
    for rule in COMMON.into_iter().chain([TUN]).chain(fuse) {
        put(path, "devices.allow", rule)?;
    }
    Ok(())
}

/// The block devices of the host whose rates can be limited, as `MAJOR:MINOR`: what is a disk by
/// itself, not what is made of others or of memory.
pub(super) fn block() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/sys/block") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(is_disk))
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("dev")).ok())
        .map(|numbers| numbers.trim().to_owned())
        .collect()
}

fn is_disk(name: &str) -> bool {
    !["loop", "ram", "zram", "dm-"]
        .iter()
        .any(|kind| name.starts_with(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_told_from_what_is_made_of_them() {
        assert!(is_disk("sda") && is_disk("vda") && is_disk("nvme0n1"));
        assert!(!is_disk("loop0") && !is_disk("ram3") && !is_disk("dm-1") && !is_disk("zram0"));
    }
}
