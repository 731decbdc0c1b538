//! Where a measurement keeps everything, and how it is all removed again.
//!
//! A run has a tag, which its cgroups, processes and directories carry, and a directory below
//! [`BASE`] that names the owner. [`remove`] takes away whatever carries a tag; it is called at the
//! end of a run by both of its processes, and by the next run for those that were killed outright.
//! It must never touch what carries no tag of a run.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use garden::cgroup::Hierarchies;
use rustix::process::{Pid, Signal, kill_process};

use super::throttle::Throttle;

/// On a disk: what is stored there is what is measured.
const BASE: &str = "/var/tmp/garden-lab";
const OWNER: &str = "owner";
/// Around the pid of the owner, in hexadecimal: no tag is the beginning of another.
const PREFIX: &str = "lab";
const SUFFIX: &str = "z";
const ELSEWHERE: &str = "elsewhere";
const THROTTLE: &str = "throttle.json";

/// The variable that marks every process of a run.
pub(crate) const TAG_VARIABLE: &str = "GARDEN_LAB_TAG";

/// The place of one run.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    tag: String,
    directory: PathBuf,
}

impl Place {
    /// Makes the place of a new run, owned by this process.
    pub(crate) fn claim() -> Result<Self> {
        let pid = std::process::id();
        let place = Self::of(&format!("{PREFIX}{pid:x}{SUFFIX}"));
        fs::create_dir_all(&place.directory)
            .and_then(|()| fs::write(place.directory.join(OWNER), identity(pid)))
            .with_context(|| format!("making {}", place.directory.display()))?;
        Ok(place)
    }

    /// The place of this tag, which another process has claimed.
    pub(crate) fn of(tag: &str) -> Self {
        Self {
            tag: tag.to_owned(),
            directory: Path::new(BASE).join(tag),
        }
    }

    /// The text that all names of the run contain.
    pub(crate) fn tag(&self) -> &str {
        &self.tag
    }

    /// A path in it.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Makes a directory of the run's own in another one, which is removed as the place is.
    pub(crate) fn directory_in(&self, other: &Path) -> Result<PathBuf> {
        let other = std::path::absolute(other)?;
        let path = other.join(format!("garden-{}", self.tag));
        let note = path.to_str().context("its name is no UTF-8")?;
        fs::write(self.join(ELSEWHERE), note)
            .and_then(|()| fs::create_dir(&path))
            .with_context(|| format!("making {}", path.display()))?;
        Ok(path)
    }

    /// Notes a limit before it is set, so that it is lifted even when this process is killed.
    pub(crate) fn note(&self, throttle: &Throttle) -> Result<()> {
        let path = self.join(THROTTLE);
        fs::write(&path, serde_json::to_vec(throttle)?)
            .with_context(|| format!("writing {}", path.display()))
    }

    /// Removes what carries the tag: processes other than this one, the bandwidth limit, cgroups
    /// and files. (Mounts end with the namespace that only processes of the run are in, and the
    /// loop device with its last mount.) Safe to repeat.
    pub(crate) fn remove(&self) {
        end_processes(&self.tag);
        if let Ok(content) = fs::read(self.join(THROTTLE))
            && let Ok(throttle) = serde_json::from_slice::<Throttle>(&content)
        {
            throttle.lift();
        }
        remove_cgroups(&self.tag);
        if let Ok(elsewhere) = fs::read_to_string(self.join(ELSEWHERE))
            && elsewhere.ends_with(&format!("/garden-{}", self.tag))
        {
            let _ = fs::remove_dir_all(elsewhere);
        }
        let _ = fs::remove_dir_all(&self.directory);
        // Refused while another run has its own there.
        let _ = fs::remove_dir(BASE);
    }
}

/// Removes what runs have left whose owner is gone.
pub(crate) fn remove_stale() {
    for entry in fs::read_dir(BASE).into_iter().flatten().flatten() {
        if let Some(tag) = entry.file_name().to_str()
            && !is_owned(tag)
        {
            Place::of(tag).remove();
        }
    }
}

/// Whether the process that made the place of this tag is there.
fn is_owned(tag: &str) -> bool {
    let pid = tag
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.strip_suffix(SUFFIX));
    let Some(pid) = pid.and_then(|pid| u32::from_str_radix(pid, 16).ok()) else {
        // Not a name that this program gives.
        return true;
    };
    match fs::read_to_string(Path::new(BASE).join(tag).join(OWNER)) {
        Ok(owner) => owner == identity(pid),
        // It is about to be written, or was removed already by who could not remove the rest.
        Err(_) => Path::new("/proc").join(pid.to_string()).exists(),
    }
}

/// A process for ever: its pid, and when it started (field 22 of proc_pid_stat(5)).
fn identity(pid: u32) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Past the name, which may hold anything.
    let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let started = rest.split(' ').nth(19).unwrap_or_default();
    format!("{pid} {started}")
}

fn end_processes(tag: &str) {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let pids = processes(tag);
        for pid in &pids {
            let _ = kill_process(*pid, Signal::KILL);
        }
        if pids.is_empty() || Instant::now() > end {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The processes that carry the tag in their environment, command line or cgroup. Those of
/// containers have an environment of their own; the ones that hold them have a cgroup of no tag.
fn processes(tag: &str) -> Vec<Pid> {
    let own = std::process::id();
    let carries = |pid: u32| {
        ["environ", "cmdline", "cgroup"].iter().any(|file| {
            fs::read(format!("/proc/{pid}/{file}"))
                .is_ok_and(|content| String::from_utf8_lossy(&content).contains(tag))
        })
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != own && carries(*pid))
        .filter_map(|pid| Pid::from_raw(pid.cast_signed()))
        .collect()
}

fn remove_cgroups(tag: &str) {
    let Ok(hierarchies) = Hierarchies::find() else {
        return;
    };
    for hierarchy in hierarchies.v1.iter().chain(&hierarchies.unified) {
        for entry in fs::read_dir(&hierarchy.path)
            .into_iter()
            .flatten()
            .flatten()
        {
            if entry.file_name().to_string_lossy().contains(tag) {
                let _ = remove_tree(&entry.path());
            }
        }
    }
}

/// Removes a cgroup and those below it; their files go with them.
fn remove_tree(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(directory)
}
