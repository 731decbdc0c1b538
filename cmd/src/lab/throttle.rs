//! A limit on how fast a block device is written, by the block controller of cgroups.
//!
//! On cgroup v1 the limit belongs to the root group: the kernel's writeback, which carries nearly
//! everything that containers write, is accounted there (cgroup-v1/blkio-controller.rst), whoever
//! made the pages dirty. What a process in another group writes by `O_DIRECT` or its own fsync is
//! not limited. On cgroup v2 writeback is accounted to the group that dirtied the pages
//! (cgroup-v2.rst, "Writeback"), so the limit is set on the groups of the run.
//!
//! Used by [`super::disk`]; lifted by [`super::place`], which also knows limits of killed runs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use garden::cgroup::Hierarchies;
use serde::{Deserialize, Serialize};

/// Bytes of a MB: as disks are sold.
const MEGABYTE: u64 = 1_000_000;

/// The files that hold the limit of one device, and how the limit is taken back.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Throttle {
    /// `major:minor`.
    device: String,
    files: Vec<PathBuf>,
    unified: bool,
}

impl Throttle {
    /// Finds out how the writes of `device` can be limited for the run with this tag; sets nothing.
    /// On cgroup v2 it makes the groups of the run and moves this process into one of them.
    pub(crate) fn plan(device: String, tag: &str) -> Result<Self> {
        let hierarchies = Hierarchies::find().context("looking for cgroups")?;
        let v1 = hierarchies.v1.iter().find(|one| one.has("blkio"));
        if let Some(blkio) = v1 {
            return Ok(Self {
                device,
                files: vec![blkio.path.join("blkio.throttle.write_bps_device")],
                unified: false,
            });
        }
        let Some(unified) = hierarchies.unified.filter(|one| one.has("io")) else {
            bail!("this host has no block controller (blkio or io): run without --disk-mbps");
        };
        // Writeback is told apart only where memory is, too.
        let subtree = unified.path.join("cgroup.subtree_control");
        write(&subtree, "+io +memory")?;
        // The server of the run makes the first of them, if it is not there, and its containers in it.
        let containers = unified.path.join(format!("garden-{tag}"));
        let own = unified.path.join(format!("garden-lab-{tag}"));
        for group in [&containers, &own] {
            fs::create_dir_all(group).with_context(|| format!("making {}", group.display()))?;
        }
        write(&own.join("cgroup.procs"), "0")?;
        Ok(Self {
            device,
            files: vec![containers.join("io.max"), own.join("io.max")],
            unified: true,
        })
    }

    /// Sets the limit, in MB (10^6 bytes) per second.
    pub(crate) fn set(&self, megabytes: u64) -> Result<()> {
        let bytes = megabytes * MEGABYTE;
        let line = if self.unified {
            format!("{} wbps={bytes}", self.device)
        } else {
            format!("{} {bytes}", self.device)
        };
        self.files.iter().try_for_each(|file| write(file, &line))
    }

    /// Takes the limit back. What is gone already is no fault.
    pub(crate) fn lift(&self) {
        let line = if self.unified {
            format!("{} wbps=max", self.device)
        } else {
            format!("{} 0", self.device)
        };
        for file in &self.files {
            let _ = fs::write(file, &line);
        }
    }
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("writing {text:?} into {}", file.display()))
}
