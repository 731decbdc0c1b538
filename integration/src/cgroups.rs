//! The cgroups of the host that carry a test's tag, in every mounted hierarchy, v1 and v2.
//!
//! Used by the leak check and by the sweep. Only directories named by the tag, and what is below
//! them, are ever looked into or removed.

use std::fs;
use std::path::{Path, PathBuf};

use crate::proc::is_real_directory;

/// Every directory of a cgroup hierarchy with the tag in its path, parents before children.
pub(crate) fn tagged(tag: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for root in hierarchies() {
        collect(&root, tag, false, &mut found);
    }
    found
}

/// Removes them all, children first; what still has processes stays.
pub(crate) fn remove(tag: &str) {
    for path in tagged(tag).iter().rev() {
        let _ = fs::remove_dir(path);
    }
}

fn hierarchies() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let lines = table.lines().filter(|line| {
        line.split_once(" - ")
            .is_some_and(|(_, rest)| rest.starts_with("cgroup ") || rest.starts_with("cgroup2 "))
    });
    lines
        .filter_map(|line| line.split(' ').nth(4).map(PathBuf::from))
        .collect()
}

fn collect(directory: &Path, tag: &str, inside: bool, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        // A hierarchy may be mounted below another; links name the same ones again.
        if !is_real_directory(&path) {
            continue;
        }
        let tagged = inside || entry.file_name().to_string_lossy().contains(tag);
        if tagged {
            found.push(path.clone());
        }
        collect(&path, tag, tagged, found);
    }
}
