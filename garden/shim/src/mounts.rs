//! The mounts of a container that libcontainer does not make: those that need no look at the host.
//!
//! libcontainer walks to each place with some eighty system calls, which for a container with a
//! view of its cgroups is half of its making. Here it is five: the worker makes what is to be
//! mounted ready ([`split`]), and the executor, which is root in the container by then, puts it in
//! its place ([`Mounts::make`]). The root is the container's already, so that no path leads out of
//! it but the links of procfs, and these are never followed.
//!
//! What stays with libcontainer: `/proc` and `/sys`, for the kernel gives them only to who still
//! sees another; `/dev`, because of the nodes in it; `/dev/pts` where a terminal is to be opened;
//! and what is to lie on or below one of these or is the root itself, which it checks.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::path::{Component, Path, PathBuf};

use garden_wire::{Role, bind_source};
use libcontainer::oci_spec::runtime::Mount;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string,
};

use crate::failure::{Result, Step as _, other};
use crate::sys;

/// From linux/magic.h.
const PROC_SUPER_MAGIC: u64 = 0x9fa0;

/// What the executor mounts, in this order, and what it hides afterwards.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mounts {
    placed: Vec<Placed>,
    /// Paths that are covered, where they exist.
    pub(crate) masked: Vec<String>,
    /// Whether the root is made read-only, when all places are made in it.
    pub(crate) read_only: bool,
}

#[derive(Debug, Clone)]
struct Placed {
    at: PathBuf,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    /// A file system of the container's own.
    New {
        kind: String,
        options: Vec<String>,
        attributes: MountAttrFlags,
    },
    /// A detached mount, by a descriptor that the worker holds.
    Ready { mount: RawFd, directory: bool },
}

/// Takes out of a specification's mounts what the executor will make, and makes it ready.
pub(crate) fn split(
    mounts: Vec<Mount>,
    passed: &[(&Role, BorrowedFd<'_>)],
    terminal: bool,
) -> Result<(Vec<Mount>, Mounts)> {
    let mut left = Vec::new();
    let mut ours = Mounts::default();
    for mount in mounts {
        match what(&mount, passed, terminal)? {
            None => left.push(mount),
            Some(what) => ours.placed.push(Placed {
                at: mount.destination().clone(),
                what,
            }),
        }
    }
    Ok((left, ours))
}

/// What of a mount is ours; `None` when it is libcontainer's.
fn what(mount: &Mount, passed: &[(&Role, BorrowedFd<'_>)], terminal: bool) -> Result<Option<What>> {
    let at = mount.destination();
    let fixed = ["/", "/dev", "/sys"]
        .iter()
        .any(|path| at == Path::new(path));
    if fixed || at.starts_with("/proc") || !at.is_absolute() {
        return Ok(None);
    }
    let options = mount.options().clone().unwrap_or_default();
    let (attributes, options) = attributes(options);
    match mount.typ().as_deref() {
        Some("devpts") if terminal => Ok(None),
        Some(kind @ ("tmpfs" | "mqueue" | "devpts")) => Ok(Some(What::New {
            kind: kind.to_owned(),
            options,
            attributes,
        })),
        Some("bind") => {
            let source = mount.source().as_ref().and_then(|path| path.to_str());
            let found = passed.iter().find_map(|(role, fd)| match role {
                Role::Bind { index, directory }
                    if source == Some(bind_source(*index, *directory).as_str()) =>
                {
                    Some((fd, *directory))
                }
                _ => None,
            });
            let Some((fd, directory)) = found else {
                return Ok(None);
            };
            // A slave: what the host mounts in it appears inside, and never the other way.
            sys::set_mount_attributes(*fd, attributes).step(&format!(
                "cannot set the flags of the mount for {}",
                at.display()
            ))?;
            let mount = fd.as_raw_fd();
            Ok(Some(What::Ready { mount, directory }))
        }
        _ => Ok(None),
    }
}

/// Tells the flags of a mount from the options of its file system.
fn attributes(options: Vec<String>) -> (MountAttrFlags, Vec<String>) {
    let mut attributes = MountAttrFlags::empty();
    let mut others = Vec::new();
    for option in options {
        attributes |= match option.as_str() {
            "bind" | "rw" => MountAttrFlags::empty(),
            "ro" => MountAttrFlags::MOUNT_ATTR_RDONLY,
            "nosuid" => MountAttrFlags::MOUNT_ATTR_NOSUID,
            "nodev" => MountAttrFlags::MOUNT_ATTR_NODEV,
            "noexec" => MountAttrFlags::MOUNT_ATTR_NOEXEC,
            "noatime" => MountAttrFlags::MOUNT_ATTR_NOATIME,
            "nodiratime" => MountAttrFlags::MOUNT_ATTR_NODIRATIME,
            // The kernel's default, and in its numbers nothing.
            "relatime" => MountAttrFlags::empty(),
            "strictatime" => MountAttrFlags::MOUNT_ATTR_STRICTATIME,
            _ => {
                others.push(option);
                continue;
            }
        };
    }
    (attributes, others)
}

impl Mounts {
    /// Makes them. For the root of the container, in the container.
    pub(crate) fn make(&self) -> Result<()> {
        let root = rustix::fs::open(
            "/",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .step("cannot open the container's root")?;
        for placed in &self.placed {
            placed.mount(root.as_fd())?;
        }
        self.mask(root.as_fd())?;
        if self.read_only {
            let flags = MountAttrFlags::MOUNT_ATTR_RDONLY;
            sys::set_mount_attributes(root.as_fd(), flags)
                .step("cannot make the root read-only")?;
        }
        Ok(())
    }

    /// Covers files with the null device, and directories with nothing.
    fn mask(&self, root: BorrowedFd<'_>) -> Result<()> {
        if self.masked.is_empty() {
            return Ok(());
        }
        let null = resolve(root, Path::new("/dev/null")).step("cannot open /dev/null")?;
        let stat = rustix::fs::fstat(&null).step("cannot look at /dev/null")?;
        let device = (
            rustix::fs::major(stat.st_rdev),
            rustix::fs::minor(stat.st_rdev),
        );
        if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice || device != (1, 3) {
            return Err(other("/dev/null in the container is not the null device"));
        }
        for path in &self.masked {
            let doing = format!("cannot mask {path}");
            let place = match resolve(root, Path::new(path)) {
                Ok(place) => place,
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(errno).step(&doing),
            };
            let cover = if is_directory(place.as_fd()).step(&doing)? {
                let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
                new_mount("tmpfs", &["ro".to_owned()], attributes)
            } else {
                let flags = OpenTreeFlags::OPEN_TREE_CLONE
                    | OpenTreeFlags::OPEN_TREE_CLOEXEC
                    | OpenTreeFlags::AT_EMPTY_PATH;
                rustix::mount::open_tree(&null, "", flags)
            };
            cover
                .and_then(|cover| attach(cover.as_fd(), place.as_fd()))
                .step(&doing)?;
        }
        Ok(())
    }
}

impl Placed {
    fn mount(&self, root: BorrowedFd<'_>) -> Result<()> {
        let doing = format!("cannot mount on {}", self.at.display());
        match &self.what {
            What::New {
                kind,
                options,
                attributes,
            } => {
                let place = place(root, &self.at, true).step(&doing)?;
                refuse_proc(place.as_fd(), &self.at)?;
                let mount = new_mount(kind, options, *attributes).step(&doing)?;
                attach(mount.as_fd(), place.as_fd()).step(&doing)
            }
            What::Ready { mount, directory } => {
                let place = place(root, &self.at, *directory).step(&doing)?;
                refuse_proc(place.as_fd(), &self.at)?;
                attach(sys::borrow(*mount), place.as_fd()).step(&doing)
            }
        }
    }
}

/// The image may have a link into procfs where something is to be mounted, and a procfs that is
/// covered in parts deceives whoever relies on it (CVE-2019-16884).
fn refuse_proc(place: BorrowedFd<'_>, at: &Path) -> Result<()> {
    let kind = rustix::fs::fstatfs(place)
        .step(&format!("cannot look at {}", at.display()))?
        .f_type;
    if u64::try_from(kind) == Ok(PROC_SUPER_MAGIC) {
        return Err(other(format!(
            "cannot mount on {}: in this image it leads into /proc",
            at.display()
        )));
    }
    Ok(())
}

/// Follows a path as the container sees it, but for links of procfs, which lead anywhere.
fn resolve(root: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, flags, Mode::empty(), how)
}

/// Opens the place of a mount; makes what of it is missing.
fn place(root: BorrowedFd<'_>, path: &Path, directory: bool) -> rustix::io::Result<OwnedFd> {
    match resolve(root, path) {
        Err(Errno::NOENT) => {}
        found => return found,
    }
    if directory {
        return directories(root, path);
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::INVAL);
    };
    let parent = directories(root, parent)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644))
}

/// Opens a directory; makes it, and those above it, where they are missing.
fn directories(root: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    let mut missing = Vec::new();
    let mut above = path;
    let mut directory = loop {
        match resolve(root, above) {
            Ok(found) => break found,
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
        match above.components().next_back() {
            Some(Component::Normal(name)) => missing.push(name),
            // What is missing cannot be gone up from.
            _ => return Err(Errno::NOENT),
        }
        above = above.parent().ok_or(Errno::NOENT)?;
    };
    for name in missing.into_iter().rev() {
        match rustix::fs::mkdirat(&directory, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        directory = rustix::fs::openat(&directory, name, flags, Mode::empty())?;
    }
    Ok(directory)
}

fn is_directory(file: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    let stat = rustix::fs::fstat(file)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// A new file system, mounted nowhere yet. An option is a word, or `name=value`.
pub(crate) fn new_mount(
    kind: &str,
    options: &[String],
    attributes: MountAttrFlags,
) -> rustix::io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", kind)?;
    for option in options {
        match option.split_once('=') {
            Some((name, value)) => fsconfig_set_string(context.as_fd(), name, value)?,
            None => fsconfig_set_flag(context.as_fd(), option.as_str())?,
        }
    }
    fsconfig_create(context.as_fd())?;
    rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

fn attach(mount: BorrowedFd<'_>, place: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", place, "", flags)
}

#[cfg(test)]
mod tests {
    use libcontainer::oci_spec::runtime::MountBuilder;

    use super::*;

    fn mount(at: &str, kind: &str) -> Mount {
        MountBuilder::default()
            .destination(at)
            .typ(kind)
            .source(kind)
            .options(vec!["nosuid".to_owned(), "mode=1777".to_owned()])
            .build()
            .unwrap()
    }

    fn left(mounts: &[(&str, &str)], terminal: bool) -> Vec<String> {
        let mounts = mounts.iter().map(|(at, kind)| mount(at, kind)).collect();
        let (left, ours) = split(mounts, &[], terminal).unwrap();
        let placed = ours.placed.iter().map(|placed| &placed.at);
        assert!(placed.clone().all(|at| at != Path::new("/proc")));
        left.iter()
            .map(|mount| mount.destination().display().to_string())
            .collect()
    }

    #[test]
    fn what_shows_the_host_and_what_lies_on_it_is_left_to_libcontainer() {
        let all = [
            ("/sys", "sysfs"),
            ("/dev", "tmpfs"),
            ("/dev/pts", "devpts"),
            ("/dev/shm", "tmpfs"),
            ("/proc", "proc"),
            ("/proc/stat", "tmpfs"),
        ];
        assert_eq!(left(&all, false), ["/sys", "/dev", "/proc", "/proc/stat"]);
        assert!(left(&all, true).contains(&"/dev/pts".to_owned()));
    }

    #[test]
    fn flags_of_a_mount_are_told_from_options_of_its_file_system() {
        let options = ["ro", "noexec", "strictatime", "size=64k", "newinstance"];
        let (flags, rest) = attributes(options.map(str::to_owned).to_vec());
        assert_eq!(
            flags,
            MountAttrFlags::MOUNT_ATTR_RDONLY
                | MountAttrFlags::MOUNT_ATTR_NOEXEC
                | MountAttrFlags::MOUNT_ATTR_STRICTATIME
        );
        assert_eq!(rest, ["size=64k", "newinstance"]);
    }

    /// A root whose links an image could have made, and a directory beside it.
    fn hostile() -> (std::path::PathBuf, OwnedFd) {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("garden-shim-mounts-{}-{number}", std::process::id());
        let base = std::env::temp_dir().join(name);
        std::fs::create_dir_all(base.join("root/real")).unwrap();
        std::fs::create_dir_all(base.join("beside")).unwrap();
        std::os::unix::fs::symlink("../../beside", base.join("root/up")).unwrap();
        std::os::unix::fs::symlink("/real", base.join("root/absolute")).unwrap();
        std::os::unix::fs::symlink("/nowhere", base.join("root/dangling")).unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(base.join("root"), flags, Mode::empty()).unwrap();
        (base, root)
    }

    #[test]
    fn no_link_of_the_image_leads_out_of_it() {
        let (base, root) = hostile();
        let root = root.as_fd();
        place(root, Path::new("/absolute/a/file"), false).unwrap();
        assert!(base.join("root/real/a/file").is_file());
        // Within the root there is no `beside`, and what is missing behind a link is not made.
        assert_eq!(
            place(root, Path::new("/up/x"), true).err(),
            Some(Errno::NOTDIR)
        );
        assert!(
            std::fs::read_dir(base.join("beside"))
                .unwrap()
                .next()
                .is_none()
        );
        let dangling = place(root, Path::new("/dangling"), false).err();
        assert_eq!(dangling, Some(Errno::EXIST));
        std::fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn links_of_procfs_are_not_followed_and_its_files_are_no_place() {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open("/", flags, Mode::empty()).unwrap();
        let link = Path::new("/proc/self/root/etc");
        assert_eq!(resolve(root.as_fd(), link).err(), Some(Errno::LOOP));
        let file = resolve(root.as_fd(), Path::new("/proc/version")).unwrap();
        assert!(refuse_proc(file.as_fd(), Path::new("/x")).is_err());
    }
}
