//! One overlay mount of the experiment: made, written into, ended in one of several ways.
//!
//! As a container engine without precautions makes it: by paths, with a lower, an upper and a work
//! directory on the disk that is looked at. Only the end differs, and whether it is `volatile`.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::ValueEnum;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};
use serde::Serialize;

/// Bytes of a file that is written: a MB, as disks are sold.
const FILE: usize = 1_000_000;

/// How a mount is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(in crate::commands) enum Way {
    /// umount(2), as most engines do it.
    Plain,
    /// umount(2) of a mount that was made with the option `volatile` (Linux 5.10).
    Volatile,
    /// The data is removed through the mount, then umount(2).
    ClearFirst,
    /// umount(2) with MNT_DETACH while a file is open, then the close of that file.
    Detach,
}

impl Way {
    /// As a flag names it.
    pub(in crate::commands) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Volatile => "volatile",
            Self::ClearFirst => "clear-first",
            Self::Detach => "detach",
        }
    }
}

/// What the end of one mount took, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(in crate::commands) struct Ended {
    /// Removing the data; only of [`Way::ClearFirst`].
    pub(in crate::commands) clear_ms: f64,
    /// The system call umount2.
    pub(in crate::commands) unmount_ms: f64,
    /// Closing the last file of it; only of [`Way::Detach`].
    pub(in crate::commands) close_ms: f64,
}

impl Ended {
    /// All of it.
    pub(in crate::commands) fn total_ms(&self) -> f64 {
        self.clear_ms + self.unmount_ms + self.close_ms
    }
}

/// A mount; lazily unmounted when it is dropped before its end.
pub(in crate::commands) struct Overlay {
    base: PathBuf,
    merged: PathBuf,
    mounted: bool,
}

impl Overlay {
    /// Mounts it in a directory that it makes. `None` where the kernel knows no `volatile`.
    pub(in crate::commands) fn make(base: PathBuf, volatile: bool) -> Result<Option<Self>> {
        let merged = base.join("merged");
        for name in ["lower", "upper", "work", "merged"] {
            fs::create_dir_all(base.join(name))
                .with_context(|| format!("making a directory in {}", base.display()))?;
        }
        let forms: &[Option<(&str, Option<&str>)>] = if volatile {
            &[Some(("volatile", None)), Some(("fsync", Some("volatile")))]
        } else {
            &[None]
        };
        for form in forms {
            match mount(&base, &merged, *form) {
                Ok(()) => {
                    return Ok(Some(Self {
                        base,
                        merged,
                        mounted: true,
                    }));
                }
                Err(Errno::INVAL) if form.is_some() => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("mounting {}", merged.display()));
                }
            }
        }
        Ok(None)
    }

    /// Writes so many MB through the mount, in files of one. Nothing of it is synced.
    pub(in crate::commands) fn fill(&self, megabytes: u32) -> Result<()> {
        let data = vec![0xa5_u8; FILE];
        let directory = self.merged.join("data");
        fs::create_dir(&directory)?;
        for number in 0..megabytes {
            File::create(directory.join(number.to_string()))
                .and_then(|mut file| file.write_all(&data))
                .with_context(|| format!("writing into {}", directory.display()))?;
        }
        Ok(())
    }

    /// Ends it, and tells what that took.
    pub(in crate::commands) fn end(&mut self, way: Way) -> Result<Ended> {
        let mut ended = Ended::default();
        let merged = &self.merged;
        let step = || format!("unmounting {}", merged.display());
        match way {
            Way::Plain | Way::Volatile => {
                ended.unmount_ms =
                    timed(|| unmount(merged, UnmountFlags::empty())).with_context(step)?;
            }
            Way::ClearFirst => {
                ended.clear_ms = timed(|| fs::remove_dir_all(merged.join("data")))?;
                ended.unmount_ms =
                    timed(|| unmount(merged, UnmountFlags::empty())).with_context(step)?;
            }
            Way::Detach => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let held = openat(CWD, merged, flags, Mode::empty())?;
                ended.unmount_ms =
                    timed(|| unmount(merged, UnmountFlags::DETACH)).with_context(step)?;
                ended.close_ms = timed(|| {
                    drop(held);
                    Ok::<_, Errno>(())
                })?;
            }
        }
        self.mounted = false;
        Ok(ended)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        if self.mounted {
            let _ = unmount(&self.merged, UnmountFlags::DETACH);
        }
        let _ = fs::remove_dir_all(&self.base);
    }
}

fn mount(
    base: &Path,
    merged: &Path,
    option: Option<(&str, Option<&str>)>,
) -> rustix::io::Result<()> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "garden-repro")?;
    for (option, name) in [
        ("lowerdir", "lower"),
        ("upperdir", "upper"),
        ("workdir", "work"),
    ] {
        fsconfig_set_string(&context, option, base.join(name))?;
    }
    match option {
        Some((key, Some(value))) => fsconfig_set_string(&context, key, value)?,
        Some((key, None)) => fsconfig_set_flag(&context, key)?,
        None => {}
    }
    fsconfig_create(&context)?;
    let mount = fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?;
    move_mount(
        &mount,
        "",
        CWD,
        merged,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
}

/// Milliseconds of a step.
fn timed<E>(step: impl FnOnce() -> std::result::Result<(), E>) -> std::result::Result<f64, E> {
    let begun = Instant::now();
    step()?;
    Ok(begun.elapsed().as_secs_f64() * 1000.0)
}
