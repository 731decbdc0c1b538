//! The file systems of a measurement: a disk of a known speed, and a tmpfs for records.
//!
//! The disk is a file system in an image on a loop device whose writes are limited.
//! Both are mounted in the mount namespace of the measuring process, which has no others in it, so
//! that they end with the run however that ends: the image has no name any more, and the loop
//! device lets go by itself after the last unmount (mount(8), "loop").

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use rustix::mount::{UnmountFlags, unmount};
use serde::Serialize;

use super::place::Place;
use super::throttle::Throttle;

/// What a disk is formatted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FileSystem {
    /// With a journal.
    Ext4,
    /// As Guardian's stores have it.
    Xfs,
    /// With subvolumes.
    Btrfs,
}

impl FileSystem {
    /// As mount(8) knows it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// The program that makes it, its options, and those of the mount.
    fn words(self) -> (&'static str, &'static [&'static str], &'static str) {
        match self {
            // Tables of inodes are neither written now nor in the background: both would be measured.
            Self::Ext4 => (
                "mkfs.ext4",
                &["-q", "-F", "-E", "lazy_itable_init=1"],
                "loop,noinit_itable",
            ),
            Self::Xfs => ("mkfs.xfs", &["-q", "-f"], "loop"),
            Self::Btrfs => ("mkfs.btrfs", &["-q", "-f"], "loop"),
        }
    }
}

/// A file system that is mounted for as long as this lives.
pub(crate) struct Mounted {
    path: PathBuf,
}

impl Mounted {
    /// Makes a disk of `size` bytes, mounts it, and limits its writes to so many MB (10^6 bytes) per
    /// second, if any.
    ///
    /// # Errors
    /// When a step fails; nothing stays mounted then. The place lifts the limit.
    pub(crate) fn disk(
        place: &Place,
        kind: FileSystem,
        size: u64,
        megabytes: Option<u64>,
    ) -> Result<Self> {
        let (image, path) = (place.join("disk.img"), place.join("disk"));
        File::create(&image)
            .and_then(|file| file.set_len(size))
            .with_context(|| format!("making {}", image.display()))?;
        fs::create_dir_all(&path)?;
        let (make, options, mount) = kind.words();
        run(Command::new(make).args(options).arg(&image))?;
        run(Command::new("mount")
            .args(["-t", kind.name(), "-o", mount])
            .args([&image, &path]))?;
        let disk = Self { path };
        fs::remove_file(&image)?;
        if let Some(megabytes) = megabytes {
            let throttle = Throttle::plan(device(&disk.path)?, place.tag())?;
            place.note(&throttle)?;
            throttle.set(megabytes)?;
        }
        Ok(disk)
    }

    /// Mounts a tmpfs for the server's records, which a real host has in `/run`.
    pub(crate) fn runtime_directory(place: &Place) -> Result<Self> {
        let path = place.join("run");
        fs::create_dir_all(&path)?;
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", "mode=0700", "tmpfs"])
            .arg(&path))?;
        Ok(Self { path })
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: what is still in use goes with its last user. Its end is the run's own.
        let _ = unmount(&self.path, UnmountFlags::DETACH);
    }
}

/// The number of the device that is mounted, as `major:minor`: by its source (proc_pid_mountinfo(5)),
/// as the number of the mount itself is not the device's on btrfs.
fn device(mount_point: &Path) -> Result<String> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let mount_point = mount_point.to_string_lossy();
    let line = table
        .lines()
        .find(|line| line.split(' ').nth(4) == Some(&mount_point));
    let source = line
        .and_then(|line| line.split_once(" - "))
        .and_then(|(_, rest)| rest.split(' ').nth(1))
        .with_context(|| format!("{mount_point} is not mounted"))?;
    let device = rustix::fs::stat(source)
        .with_context(|| format!("looking at {source}"))?
        .st_rdev;
    Ok(format!(
        "{}:{}",
        rustix::fs::major(device),
        rustix::fs::minor(device)
    ))
}

fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {name}: ci/setup installs it"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("{name}: {}", text.trim().replace('\n', "; "));
    }
    Ok(())
}
