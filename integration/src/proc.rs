//! Which processes of the host carry a test's tag.
//!
//! A process belongs to a test when its environment, its command line or one of its cgroups names
//! the tag: the environment finds servers and clients, the cgroup what runs in containers. The
//! supervisors of containers have none of these; they have files open in the test's directory.
//! Processes come and go while they are looked at, so whatever cannot be read is not there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// A process that was there when it was looked at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    /// `comm` and state, for a report.
    pub(crate) name: String,
}

/// All processes that carry the tag, except this one. Zombies have neither environment nor command
/// line; they are found by their cgroup, which the kernel keeps until they are reaped.
pub(crate) fn tagged(tag: &str) -> Vec<Process> {
    let own = std::process::id().cast_signed();
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| *pid != own && carries(*pid, tag))
        .map(|pid| Process {
            pid,
            name: name(pid),
        })
        .collect()
}

/// Whether a process carries the tag.
pub(crate) fn carries(pid: i32, tag: &str) -> bool {
    ["environ", "cmdline", "cgroup"].iter().any(|file| {
        fs::read(format!("/proc/{pid}/{file}"))
            .is_ok_and(|content| contains(&content, tag.as_bytes()))
    }) || has_open(pid, tag)
}

/// Whether it is one of Garden's own (other programs may look into a test's directory, too) and has
/// a file open below a directory of this name, there or gone.
fn has_open(pid: i32, tag: &str) -> bool {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if !comm.starts_with("garden") && !comm.starts_with("gn:") {
        return false;
    }
    let files = fs::read_dir(format!("/proc/{pid}/fd"));
    files.into_iter().flatten().flatten().any(|file| {
        fs::read_link(file.path()).is_ok_and(|target| target.to_string_lossy().contains(tag))
    })
}

fn contains(content: &[u8], part: &[u8]) -> bool {
    content.windows(part.len()).any(|window| window == part)
}

fn name(pid: i32) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or("?").trim().to_owned()
    };
    let state = field("State:");
    let zombie = if state.starts_with('Z') {
        " (zombie)"
    } else {
        ""
    };
    format!("{}{zombie}", field("Name:"))
}

/// The network namespaces that these processes are in, by the kernel's name for them.
pub(crate) fn network_namespaces(processes: &[Process]) -> Vec<String> {
    let own = fs::read_link("/proc/self/ns/net").ok();
    let links = processes
        .iter()
        .filter_map(|process| fs::read_link(format!("/proc/{}/ns/net", process.pid)).ok());
    let mut names: Vec<_> = links
        .filter(|link| Some(link) != own.as_ref())
        .map(|link| link.display().to_string())
        .collect();
    names.sort();
    names.dedup();
    names
}

/// When a process started, in clock ticks since boot: with the pid, it names one process for ever.
pub(crate) fn start_time(pid: i32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Past the name, which may hold blanks and parentheses; then field 22 of proc(5) is the 20th.
    let rest = &stat[stat.rfind(')')? + 1..];
    rest.split_whitespace().nth(19).map(str::to_owned)
}

/// The number of open files of a process, without the trees of layers that a server remembers: one
/// descriptor of each, from whenever it first found the layers unchanged for a while.
pub(crate) fn open_files(pid: i32) -> usize {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return 0;
    };
    let mut trees = BTreeSet::new();
    let counts = files.flatten().filter(|file| {
        let target = fs::read_link(file.path()).unwrap_or_default();
        // In a view of the layers, which is a mount of its own: `/KEY/tree`.
        !(target.ends_with("tree") && target.components().count() == 3 && trees.insert(target))
    });
    counts.count()
}

/// The mount points of this process's mount namespace that name the text.
pub(crate) fn mounts_naming(text: &str) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let lines = table.lines().filter(|line| line.contains(text));
    lines
        .filter_map(|line| line.split(' ').nth(4).map(str::to_owned))
        .collect()
}

/// The files behind loop devices that name the text.
pub(crate) fn loops_naming(text: &str) -> Vec<String> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let files = devices
        .filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
    files
        .map(|file| file.trim_end().to_owned())
        .filter(|file| file.contains(text))
        .collect()
}

/// Whether this is a directory, not a link to one.
pub(crate) fn is_real_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_of_the_same_pid() {
        let own = std::process::id().cast_signed();
        assert_eq!(start_time(own), start_time(own));
        assert_ne!(start_time(own), start_time(1));
    }
}
