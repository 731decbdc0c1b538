//! The block device of a file system, for kernels whose quota calls want its path.
//!
//! Linux 5.14 takes a descriptor instead. Before that, the path is looked for where the kernel
//! itself says what the device is called; no device node is made.

use std::ffi::CString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

/// The path of the device that an object is stored on; `None` when there is no such node in
/// `/dev`, or the file system is on no device.
pub(super) fn of(fd: impl AsFd) -> Option<CString> {
    let device = rustix::fs::fstat(fd).ok()?.st_dev;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let about = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent"));
    let named = about.unwrap_or_default();
    let named = named.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let by_name = named.map(|name| Path::new("/dev").join(name));
    let by_number = PathBuf::from(format!("/dev/block/{major}:{minor}"));
    let candidates = by_name.into_iter().chain([by_number]);
    let is_it = |path: &PathBuf| {
        rustix::fs::stat(path).is_ok_and(|stat| {
            FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice && stat.st_rdev == device
        })
    };
    let path = candidates.into_iter().find(is_it)?;
    CString::new(path.as_os_str().as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_no_device_has_none() {
        let proc = std::fs::File::open("/proc/self").unwrap();
        assert_eq!(of(proc), None);
    }

    #[test]
    fn a_path_is_that_of_the_device() {
        let file = std::fs::File::open("/").unwrap();
        let Some(path) = of(&file) else {
            println!("SKIPPED a_path_is_that_of_the_device: / is on no device in /dev");
            return;
        };
        let stat = rustix::fs::stat(&*path).unwrap();
        assert_eq!(stat.st_rdev, rustix::fs::fstat(&file).unwrap().st_dev);
    }
}
