//! The file systems of a run: a disk of a known speed for the store, and a tmpfs for the records.
//!
//! The disk is an ext4 image on a loop device whose writes are limited.
//! Both are mounted in the mount namespace of the measuring process, which has no others in it, so
//! that they end with the run however that ends: the image has no name any more, and the loop
//! device lets go by itself after the last unmount (mount(8), "loop").

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::mount::{UnmountFlags, unmount};

use super::place::Place;
use super::throttle::Throttle;

/// A file system that is mounted for as long as this lives.
pub(super) struct Mounted {
    path: PathBuf,
}

impl Mounted {
    /// Makes a disk of `size` bytes, mounts it, and limits its writes.
    ///
    /// # Errors
    /// When a step fails; nothing stays mounted then. The place lifts the limit.
    pub(super) fn disk(place: &Place, size: u64, megabytes: u64) -> Result<Self> {
        let (image, path) = (place.join("disk.img"), place.join("disk"));
        File::create(&image)
            .and_then(|file| file.set_len(size))
            .with_context(|| format!("making {}", image.display()))?;
        fs::create_dir_all(&path)?;
        // Tables of inodes are neither written now nor in the background: both would be measured.
        run(Command::new("mkfs.ext4")
            .args(["-q", "-F", "-E", "lazy_itable_init=1"])
            .arg(&image))?;
        run(Command::new("mount")
            .args(["-t", "ext4", "-o", "loop,noinit_itable"])
            .args([&image, &path]))?;
        let disk = Self { path };
        fs::remove_file(&image)?;
        let device = device(&disk.path)?;
        let throttle = Throttle::plan(device, place.tag())?;
        place.note(&throttle)?;
        throttle.set(megabytes)?;
        Ok(disk)
    }

    /// Mounts a tmpfs for the server's records, which a real host has in `/run`.
    pub(super) fn runtime_directory(place: &Place) -> Result<Self> {
        let path = place.join("run");
        fs::create_dir_all(&path)?;
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", "mode=0700", "tmpfs"])
            .arg(&path))?;
        Ok(Self { path })
    }

    /// Where it is mounted.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: what is still in use goes with its last user. Its end is the run's own.
        let _ = unmount(&self.path, UnmountFlags::DETACH);
    }
}

/// The device number of a mount, as `major:minor` (proc_pid_mountinfo(5), third field).
fn device(mount_point: &Path) -> Result<String> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let mount_point = mount_point.to_string_lossy();
    let line = table
        .lines()
        .find(|line| line.split(' ').nth(4) == Some(&mount_point));
    line.and_then(|line| line.split(' ').nth(2))
        .map(str::to_owned)
        .with_context(|| format!("{mount_point} is not mounted"))
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
