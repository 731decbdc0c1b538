//! What rustix lacks of the mount calls: changing the attributes of a mount, and the text in
//! which the kernel explains why a file system context was refused.
//!
//! Called by the root filesystem backend, on its own threads: changing attributes can wait for
//! writers of the mount. Nothing here looks up a path; every object is a descriptor.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Attributes of a mount (`MOUNT_ATTR_*`), to be set or cleared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes(u64);

impl Attributes {
    /// None.
    pub const NONE: Self = Self(0);
    /// Writing through this mount fails with `EROFS`.
    pub const READ_ONLY: Self = Self(libc::MOUNT_ATTR_RDONLY);
    /// Set-user-id bits and file capabilities have no effect.
    pub const NO_SETUID: Self = Self(libc::MOUNT_ATTR_NOSUID);
    /// Device nodes cannot be opened.
    pub const NO_DEVICES: Self = Self(libc::MOUNT_ATTR_NODEV);
    /// Nothing can be executed.
    pub const NO_EXEC: Self = Self(libc::MOUNT_ATTR_NOEXEC);
    /// Access times are not kept. They are one of several choices: to set this one, clear
    /// [`Attributes::ACCESS_TIMES`].
    pub const NO_ACCESS_TIMES: Self = Self(libc::MOUNT_ATTR_NOATIME);
    /// Every choice of access times.
    pub const ACCESS_TIMES: Self = Self(libc::MOUNT_ATTR__ATIME);

    /// Both sets.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Where new mounts below a mount are copied to (mount_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Nowhere, and nothing comes in.
    Private,
    /// To and from its peers.
    Shared,
    /// Only in.
    Slave,
}

/// What [`set_attributes`] does to a mount.
#[derive(Debug, Clone, Copy, Default)]
pub struct Change<'fd> {
    /// Attributes to set.
    pub set: Attributes,
    /// Attributes to clear.
    pub clear: Attributes,
    /// A new propagation type.
    pub propagation: Option<Propagation>,
    /// The user namespace whose maps translate owners on this mount. Only a mount that was never
    /// attached can be given one, and only once.
    pub idmap: Option<BorrowedFd<'fd>>,
    /// Whether the mounts below it are changed, too: all of them or none.
    pub recursive: bool,
}

/// Changes a mount, given as a descriptor of its root (`mount_setattr(2)`, Linux 5.12).
///
/// Owner translation needs a file system that supports it (`EINVAL` otherwise) and
/// `CAP_SYS_ADMIN` over the file system.
pub fn set_attributes(mount: impl AsFd, change: &Change<'_>) -> io::Result<()> {
    let mut attributes = libc::mount_attr {
        attr_set: change.set.0,
        attr_clr: change.clear.0,
        propagation: match change.propagation {
            None => 0,
            Some(Propagation::Private) => libc::MS_PRIVATE,
            Some(Propagation::Shared) => libc::MS_SHARED,
            Some(Propagation::Slave) => libc::MS_SLAVE,
        },
        userns_fd: 0,
    };
    if let Some(namespace) = change.idmap {
        attributes.attr_set |= libc::MOUNT_ATTR_IDMAP;
        // A valid descriptor is never negative.
        attributes.userns_fd = namespace.as_raw_fd().unsigned_abs().into();
    }
    let mut flags = libc::AT_EMPTY_PATH;
    if change.recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: mount_setattr(2) reads a NUL-terminated path, which the literal is, and
    // `size_of::<mount_attr>()` bytes at the fourth argument, which outlives the call. It keeps
    // neither. Both descriptors stay open for as long as their borrows live.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Gives the calling thread a copy of its mount namespace, of its own, and with it a root and a
/// current directory of its own (`unshare(2)`, Linux 2.4.19). The process's other threads are not
/// touched. Needs `CAP_SYS_ADMIN`.
pub fn unshare_mounts() -> io::Result<()> {
    // SAFETY: `NEWNS` changes where this thread looks paths up, and nothing that memory safety
    // depends on: descriptors and memory stay shared.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }?;
    Ok(())
}

/// The messages that the kernel left in a file system context (`fsopen(2)`, Linux 5.2), oldest
/// first, joined by `; `. Empty when it left none. Reading takes them out of the context.
pub fn context_log(context: impl AsFd) -> String {
    let mut messages: Vec<String> = Vec::new();
    let mut buffer = [0_u8; 1024];
    // The kernel keeps eight messages; the bound only guards against one that never ends.
    while messages.len() < 32 {
        let Ok(length) = rustix::io::read(&context, &mut buffer) else {
            break;
        };
        let text = String::from_utf8_lossy(&buffer[..length]);
        // Each starts with its level: `e `, `w ` or `i `.
        let text = text.trim_end();
        messages.push(text.get(2..).unwrap_or(text).to_owned());
    }
    messages.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::userns::{self, IdRange};
    use rustix::fs::{CWD, Mode, OFlags};
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags};
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    fn root_is_missing(test: &str) -> bool {
        let missing = !rustix::process::geteuid().is_root();
        if missing {
            println!("SKIPPED {test}: needs root");
        }
        missing
    }

    fn call_is_missing(test: &str) -> bool {
        if root_is_missing(test) {
            return true;
        }
        let clone = clone_of(std::path::Path::new("/"));
        let missing = set_attributes(&clone, &Change::default())
            .is_err_and(|error| error.raw_os_error() == Some(libc::ENOSYS));
        if missing {
            println!("SKIPPED {test}: this kernel has no mount_setattr (Linux 5.12)");
        }
        missing
    }

    fn clone_of(path: &std::path::Path) -> OwnedFd {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        rustix::mount::open_tree(CWD, path, flags).unwrap()
    }

    #[test]
    fn root_a_read_only_clone_refuses_writing() {
        if call_is_missing("root_a_read_only_clone_refuses_writing") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let clone = clone_of(dir.path());
        let change = Change {
            set: Attributes::READ_ONLY.and(Attributes::NO_DEVICES),
            propagation: Some(Propagation::Private),
            ..Change::default()
        };
        set_attributes(&clone, &change).unwrap();
        let made = rustix::fs::mkdirat(&clone, "x", Mode::RWXU);
        assert_eq!(made, Err(rustix::io::Errno::ROFS));
        std::fs::create_dir(dir.path().join("x")).unwrap();

        let change = Change {
            clear: Attributes::READ_ONLY,
            ..Change::default()
        };
        set_attributes(&clone, &change).unwrap();
        rustix::fs::mkdirat(&clone, "y", Mode::RWXU).unwrap();
    }

    #[test]
    fn root_owners_are_translated_by_a_clone() {
        if call_is_missing("root_owners_are_translated_by_a_clone") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), "x").unwrap();
        std::os::unix::fs::chown(dir.path().join("f"), Some(5), Some(6)).unwrap();
        let map = [IdRange {
            inside: 0,
            host: 100_000,
            size: 1000,
        }];
        let namespace = userns::create(&map, &map).unwrap();
        let clone = clone_of(dir.path());
        let change = Change {
            idmap: Some(namespace.as_fd()),
            ..Change::default()
        };
        set_attributes(&clone, &change).unwrap();
        drop(namespace);
        let file = rustix::fs::openat(&clone, "f", OFlags::RDONLY, Mode::empty()).unwrap();
        let seen = std::fs::File::from(file).metadata().unwrap();
        assert_eq!((seen.uid(), seen.gid()), (100_005, 100_006));
        let kept = dir.path().join("f").metadata().unwrap();
        assert_eq!((kept.uid(), kept.gid()), (5, 6));
    }

    #[test]
    fn root_a_failed_change_says_so() {
        if call_is_missing("root_a_failed_change_says_so") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        // A plain descriptor whose path is not the root of a mount.
        let fd = rustix::fs::open(dir.path(), OFlags::PATH, Mode::empty()).unwrap();
        let change = Change {
            set: Attributes::NO_EXEC,
            ..Change::default()
        };
        let error = set_attributes(&fd, &change).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn root_the_kernel_explains_a_refused_option() {
        if root_is_missing("root_the_kernel_explains_a_refused_option") {
            return;
        }
        let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        assert_eq!(context_log(&context), "");
        rustix::mount::fsconfig_set_string(&context, "no-such-option", "x").unwrap_err();
        let log = context_log(&context);
        assert!(log.contains("no-such-option"), "{log:?}");
        assert!(!log.starts_with("e "), "{log:?}");
        // The context is still good for something.
        rustix::mount::fsconfig_create(&context).unwrap();
        let mount = rustix::mount::fsmount(
            &context,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::empty(),
        )
        .unwrap();
        let root = rustix::fs::openat(&mount, ".", OFlags::RDONLY, Mode::empty()).unwrap();
        let mode = std::fs::File::from(root).metadata().unwrap().permissions();
        assert_eq!(mode.mode() & 0o7777, 0o1777);
    }
}
