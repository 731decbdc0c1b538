//! A store of a fixed size: a sparse file with an XFS in it, mounted where the store is.
//!
//! By the host's own tools (`mkfs.xfs`, `losetup`, `mount`), which are run once in the life of a
//! store. A file that holds something is never formatted, whatever is wrong with it: GrootFS
//! formats a store that it cannot mount, and everything in it is lost.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::mount::{UnmountFlags, unmount as umount};

use super::Failure;
use super::place::Place;

/// What `mkfs.xfs` itself takes for too small.
const SMALLEST: u64 = 300 << 20;

/// Sees to it that a store of a size is mounted; without a size, or when something is mounted there
/// already, there is nothing to do.
pub(super) fn ensure(place: &Place, size: u64, direct_io: bool) -> Result<(), Failure> {
    let file = place.backing_file();
    if is_mount_point(place.path()) || (size == 0 && !file.exists()) {
        return Ok(());
    }
    std::fs::create_dir_all(place.path()).map_err(|error| {
        Failure::new(format!(
            "making store directory {}: {error}",
            place.path().display()
        ))
    })?;
    if needs_format(&file, size)? {
        run(Command::new("mkfs.xfs").arg("-q").arg("-f").arg(&file))?;
        tracing::info!(file = %file.display(), size, "formatted the backing store");
    }
    mount(place, &file, direct_io).map_err(|failure| {
        Failure::new(format!(
            "{}; the store in {} is left as it is: repair it with xfs_repair, or remove the file \
             to begin with an empty one",
            failure.text,
            file.display()
        ))
    })
}

/// Makes the file. Whether it is new, or as empty as a crash in the middle of this leaves it.
fn needs_format(file: &Path, size: u64) -> Result<bool, Failure> {
    let failed = |error: std::io::Error| {
        Failure::new(format!(
            "creating backing store {}: {error}",
            file.display()
        ))
    };
    let opened = OpenOptions::new().read(true).write(true).open(file);
    let opened = match opened {
        Err(error) if error.kind() == ErrorKind::NotFound && size < SMALLEST => {
            return Err(Failure::new(format!(
                "a store of {size} bytes is too small: XFS needs {SMALLEST}"
            )));
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let mut options = OpenOptions::new();
            (options.read(true).write(true).create_new(true).mode(0o600)).open(file)
        }
        other => other,
    };
    let opened = opened.map_err(failed)?;
    let meta = opened.metadata().map_err(failed)?;
    if meta.len() > 0 && (meta.blocks() > 0 || !is_zero(&opened)) {
        return Ok(false);
    }
    if meta.len() < size {
        opened.set_len(size).map_err(failed)?;
    }
    Ok(true)
}

/// Whether there is nothing where a file system has its name.
fn is_zero(file: &File) -> bool {
    let mut start = [0; 4096];
    file.read_exact_at(&mut start, 0).is_ok() && start.iter().all(|byte| *byte == 0)
}

fn mount(place: &Place, file: &Path, direct_io: bool) -> Result<(), Failure> {
    let mut losetup = Command::new("losetup");
    losetup.args(["--find", "--show", "--nooverlap"]);
    if direct_io {
        losetup.arg("--direct-io=on");
    }
    let device = run(losetup.arg(file))?;
    let device = device.trim();
    let attach = |options: &str| {
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "xfs", "-o", options, device])
            .arg(place.path());
        run(&mut mount).map(drop)
    };
    let mounted = attach("pquota,noatime,nosuid,nodev").or_else(|failure| -> Result<_, Failure> {
        // A kernel without project quota still has a store; limits are then only accounted.
        attach("noatime,nosuid,nodev").map_err(|_| failure)?;
        tracing::error!("this kernel has no project quota for XFS: limits are only accounted");
        Ok(())
    });
    // While it is mounted this only says that the device goes with the mount.
    let detached = run(Command::new("losetup").arg("--detach").arg(device));
    mounted?;
    detached.map(drop)
}

/// Unmounts a store that has a backing file. What still uses it keeps it until it ends.
pub(super) fn unmount(place: &Place) -> Result<(), Failure> {
    if !place.backing_file().exists() || !is_mount_point(place.path()) {
        return Ok(());
    }
    let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    umount(place.path(), flags).map_err(|errno| {
        let error = std::io::Error::from(errno);
        Failure::new(format!(
            "unmounting store {}: {error}",
            place.path().display()
        ))
    })
}

fn is_mount_point(path: &Path) -> bool {
    let device = |path: &Path| std::fs::symlink_metadata(path).map(|meta| meta.dev());
    let parent = path.parent().unwrap_or(path);
    matches!((device(path), device(parent)), (Ok(own), Ok(around)) if own != around)
}

/// Runs a tool; its own words are the error.
fn run(command: &mut Command) -> Result<String, Failure> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Failure::new(format!("cannot run {name}: {error}: is it installed?")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let words: Vec<_> = words.split_whitespace().collect();
    Err(Failure::new(format!("{name} failed: {}", words.join(" "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_empty_file_is_formatted() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("store.backing-store");
        assert!(needs_format(&file, SMALLEST - 1).is_err());
        assert!(!file.exists());
        assert!(needs_format(&file, SMALLEST).unwrap());
        assert_eq!(file.metadata().unwrap().len(), SMALLEST);
        assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
        // After a crash before the format: still empty.
        assert!(needs_format(&file, SMALLEST * 2).unwrap());
        assert_eq!(file.metadata().unwrap().len(), SMALLEST * 2);
        std::fs::write(&file, "something").unwrap();
        assert!(!needs_format(&file, SMALLEST).unwrap());
        assert_eq!(std::fs::read(&file).unwrap(), b"something");
    }
}
