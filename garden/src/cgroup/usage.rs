//! What a group uses, read from the kernel's files.
//!
//! Called for metrics. Each part is read by itself and fails by itself. Names are the kernel's own
//! for the version that the host has. Sources: cgroup-v1/memory.rst, cgroup-v1/cpuacct.rst,
//! cgroup-v2.rst.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::files::{read, read_number};
use super::host::Hierarchy;
use crate::model::CpuMetrics;

/// Clock ticks a second in `cpuacct.stat`: fixed in the kernel's interface to programs.
const TICKS: u64 = 100;

/// What a group uses; `None` where the kernel does not tell.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Usage {
    /// Its memory.
    pub memory: Option<MemoryUsage>,
    /// Its processor time.
    pub cpu: Option<CpuMetrics>,
    /// Processes and threads: now, and allowed at most.
    pub pids: Option<(u64, Option<u64>)>,
}

/// Memory that a group uses.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct MemoryUsage {
    /// All of `memory.stat`.
    pub stat: BTreeMap<String, u64>,
    /// Bytes that count towards its limit, without what the kernel could drop at once.
    pub towards_limit: u64,
}

/// Adds what one hierarchy knows of a group.
pub(super) fn add(usage: &mut Usage, hierarchy: &Hierarchy, path: &Path) {
    if hierarchy.has("memory") {
        usage.memory = memory(hierarchy, path);
    }
    if hierarchy.has("cpuacct") {
        usage.cpu = cpu_v1(path);
    } else if hierarchy.unified && usage.cpu.is_none() {
        // Each group counts time, also where the controller is not enabled.
        usage.cpu = cpu_v2(path);
    }
    if hierarchy.has("pids") {
        usage.pids = read_number(path, "pids.current")
            .map(|current| (current, read_number(path, "pids.max")));
    }
}

fn memory(hierarchy: &Hierarchy, path: &Path) -> Option<MemoryUsage> {
    let stat = pairs(&read(path, "memory.stat")?);
    let sum = |names: &[&str]| -> u64 {
        names
            .iter()
            .filter_map(|name| stat.get(*name))
            .fold(0, |sum, value| sum.saturating_add(*value))
    };
    let (counted, droppable) = if hierarchy.unified {
        (&["file", "anon", "swapcached"], "inactive_file")
    } else {
        (
            &["total_rss", "total_cache", "total_swap"],
            "total_inactive_file",
        )
    };
    let towards_limit = sum(counted).saturating_sub(sum(&[droppable]));
    Some(MemoryUsage {
        stat,
        towards_limit,
    })
}

fn cpu_v1(path: &Path) -> Option<CpuMetrics> {
    let usage = read_number(path, "cpuacct.usage")?;
    let ticks = pairs(&read(path, "cpuacct.stat").unwrap_or_default());
    let nanos = |file: &str, name: &str| {
        // The finer ones are there since Linux 4.7.
        let ticks = ticks.get(name).copied().unwrap_or_default();
        read_number(path, file).unwrap_or(ticks.saturating_mul(1_000_000_000 / TICKS))
    };
    Some(CpuMetrics {
        usage: Duration::from_nanos(usage),
        user: Duration::from_nanos(nanos("cpuacct.usage_user", "user")),
        system: Duration::from_nanos(nanos("cpuacct.usage_sys", "system")),
    })
}

fn cpu_v2(path: &Path) -> Option<CpuMetrics> {
    let stat = pairs(&read(path, "cpu.stat")?);
    let micros = |name: &str| Duration::from_micros(stat.get(name).copied().unwrap_or_default());
    stat.get("usage_usec")?;
    Some(CpuMetrics {
        usage: micros("usage_usec"),
        user: micros("user_usec"),
        system: micros("system_usec"),
    })
}

/// A file of `name number` lines.
fn pairs(text: &str) -> BTreeMap<String, u64> {
    text.lines()
        .filter_map(|line| {
            let (name, number) = line.split_once(' ')?;
            Some((name.to_owned(), number.trim().parse().ok()?))
        })
        .collect()
}

/// How often the kernel has killed in a group for want of memory. On v2 with those below it.
pub(super) fn oom_kills(hierarchy: &Hierarchy, path: &Path) -> Option<u64> {
    let file = if hierarchy.unified {
        "memory.events"
    } else {
        "memory.oom_control"
    };
    pairs(&read(path, file)?).get("oom_kill").copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hierarchy(unified: bool) -> Hierarchy {
        Hierarchy {
            path: "/".into(),
            unified,
            controllers: ["memory", "cpuacct", "pids"].map(str::to_owned).to_vec(),
        }
    }

    fn group(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(directory.path().join(name), content).unwrap();
        }
        directory
    }

    #[test]
    fn v1_counts_with_what_is_below_and_without_what_can_be_dropped() {
        let group = group(&[
            (
                "memory.stat",
                "cache 1\ntotal_rss 100\ntotal_cache 50\ntotal_swap 7\ntotal_inactive_file 30\n",
            ),
            (
                "memory.oom_control",
                "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
            ),
            ("cpuacct.usage", "5000\n"),
            ("cpuacct.stat", "user 1\nsystem 2\n"),
            ("pids.current", "4\n"),
            ("pids.max", "max\n"),
        ]);
        let v1 = hierarchy(false);
        let mut usage = Usage::default();
        add(&mut usage, &v1, group.path());
        let memory = usage.memory.unwrap();
        assert_eq!(memory.towards_limit, 127);
        assert_eq!(memory.stat["cache"], 1);
        let cpu = usage.cpu.unwrap();
        assert_eq!(cpu.usage, Duration::from_nanos(5000));
        assert_eq!(cpu.system, Duration::from_millis(20));
        assert_eq!(usage.pids, Some((4, None)));
        assert_eq!(oom_kills(&v1, group.path()), Some(3));
    }

    #[test]
    fn on_v2_what_is_droppable_may_exceed_what_counts() {
        let group = group(&[
            (
                "memory.stat",
                "anon 10\nfile 5\nswapcached 1\ninactive_file 100\n",
            ),
            ("cpu.stat", "usage_usec 9\nuser_usec 4\nsystem_usec 5\n"),
            ("pids.current", "2\n"),
            ("pids.max", "64\n"),
        ]);
        let mut v2 = hierarchy(true);
        v2.controllers.retain(|controller| controller != "cpuacct");
        let mut usage = Usage::default();
        add(&mut usage, &v2, group.path());
        assert_eq!(usage.memory.unwrap().towards_limit, 0);
        assert_eq!(usage.cpu.unwrap().system, Duration::from_micros(5));
        assert_eq!(usage.pids, Some((2, Some(64))));
    }

    #[test]
    fn a_part_that_cannot_be_read_does_not_take_the_others_along() {
        let group = group(&[("pids.current", "1\n"), ("pids.max", "5\n")]);
        let mut usage = Usage::default();
        add(&mut usage, &hierarchy(false), group.path());
        assert_eq!(usage.memory, None);
        assert_eq!(usage.cpu, None);
        assert_eq!(usage.pids, Some((1, Some(5))));
    }
}
