//! Extended attributes of an object given as a descriptor, also of one that is only a place
//! (`O_PATH`), which the `f*xattr` calls refuse.
//!
//! Called by the root filesystem backend. Such objects are reached through `/proc/self/fd`, whose
//! links lead to the object itself, never through a name that could be swapped; so `/proc` must
//! be mounted. No unsafe code is needed for it.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::XattrFlags;
use rustix::io::Errno;

/// The longest list of names, and the longest value, that Linux knows (`xattr(7)`).
const LIMIT: usize = 64 * 1024;

fn place(fd: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// Sets an attribute, replacing an older value.
pub fn set(fd: impl AsFd, name: &str, value: &[u8]) -> io::Result<()> {
    match rustix::fs::fsetxattr(&fd, name, value, XattrFlags::empty()) {
        Err(Errno::BADF) => rustix::fs::setxattr(place(&fd), name, value, XattrFlags::empty())?,
        other => other?,
    }
    Ok(())
}

/// The value of an attribute; `None` when the object, or its file system, has none of that name.
pub fn get(fd: impl AsFd, name: &str) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0; LIMIT];
    let length = match rustix::fs::fgetxattr(&fd, name, value.as_mut_slice()) {
        Err(Errno::BADF) => rustix::fs::getxattr(place(&fd), name, value.as_mut_slice()),
        other => other,
    };
    match length {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The names of all attributes. Those that are not UTF-8 are left out: no program of ours could
/// name them.
pub fn names(fd: impl AsFd) -> io::Result<Vec<String>> {
    let mut list = vec![0; LIMIT];
    let length = match rustix::fs::flistxattr(&fd, list.as_mut_slice()) {
        Err(Errno::BADF) => rustix::fs::listxattr(place(&fd), list.as_mut_slice()),
        other => other,
    };
    let length = match length {
        Err(Errno::NOTSUP) => 0,
        other => other?,
    };
    Ok(list[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .filter_map(|name| String::from_utf8(name.to_vec()).ok())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};

    #[test]
    fn root_attributes_go_to_the_object_itself() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED root_attributes_go_to_the_object_itself: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::fs::write(dir.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let place = rustix::fs::open(&link, flags, Mode::empty()).unwrap();
        match set(&place, "trusted.garden-test", b"1") {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                println!("SKIPPED root_attributes_go_to_the_object_itself: no attributes here");
                return;
            }
            other => other.unwrap(),
        }
        let seen = get(&place, "trusted.garden-test").unwrap();
        assert_eq!(seen.as_deref(), Some(&b"1"[..]));
        assert_eq!(names(&place).unwrap(), ["trusted.garden-test"]);
        let file = std::fs::File::open(dir.path().join("file")).unwrap();
        assert_eq!(get(&file, "trusted.garden-test").unwrap(), None);
        assert!(names(&file).unwrap().is_empty());
    }

    #[test]
    fn root_a_pipe_is_not_opened_for_its_attributes() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED root_a_pipe_is_not_opened_for_its_attributes: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
        let place = rustix::fs::open(&path, OFlags::PATH, Mode::empty()).unwrap();
        set(&place, "trusted.garden-test", b"pipe").unwrap();
        let seen = get(&place, "trusted.garden-test").unwrap();
        assert_eq!(seen.as_deref(), Some(&b"pipe"[..]));
        let stat = rustix::fs::statat(CWD, &path, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        assert_eq!(FileType::from_raw_mode(stat.st_mode), FileType::Fifo);
    }
}
