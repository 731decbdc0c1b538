//! Overlay mounts by paths, in a mount namespace that one thread has to itself.
//!
//! For kernels whose overlays take no descriptors of detached mounts (before Linux 6.15). The
//! thread's root is a small tmpfs, so that no path depends on where the store lies or what it is
//! called, and none of the host's mounts is kept busy:
//!
//! ```text
//! /l      all layers, read-only
//! /s      the staging directories
//! /v/N    all layers, read-only, with the owners of one mapping
//! /k/N    short links to the layers of one stack: mount(2) takes a page of options
//! /m      where something is mounted for as long as it takes to clone it
//! ```
//!
//! What is mounted at `/m` is cloned to a detached mount and unmounted again: the clone holds the
//! file system, so that this is never its last reference, and never syncs.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;

use garden_sys::mount::unshare_mounts;
use rustix::fs::{CWD, OFlags, StatVfsMountFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount,
    mount_change, mount_remount, move_mount, open_tree, unmount,
};

use super::detached::view;
use super::{Failed, Overlay, options};
use crate::capabilities::Volatile;
use crate::dirs::Dirs;
use crate::rootfs::Mapping;

/// Where things are mounted for a moment.
const SPOT: &str = "/m";
/// Directories of links that are kept.
const MOST_STACKS: usize = 64;

/// An overlay that is to be mounted: see [`Overlay`]. Has no borrows, as another thread mounts it.
pub(super) struct Plan {
    layers: Vec<String>,
    mapping: Mapping,
    namespace: Option<Arc<OwnedFd>>,
    staged: String,
    writable: bool,
    base: bool,
    volatile: Option<Volatile>,
    no_devices: bool,
}

impl Plan {
    pub(super) fn new(overlay: &Overlay<'_>, namespace: Option<Arc<OwnedFd>>) -> Self {
        Self {
            layers: overlay.stack.layers.clone(),
            mapping: overlay.stack.mapping.clone(),
            namespace,
            staged: overlay.staged.to_owned(),
            writable: overlay.work.is_some(),
            base: overlay.base.is_some(),
            volatile: overlay.volatile,
            no_devices: overlay.no_devices,
        }
    }
}

/// A directory of links, and what it leads to.
struct Links {
    mapping: Mapping,
    layers: Vec<String>,
    path: String,
}

/// The mount namespace of the calling thread, which must not leave the thread.
pub(super) struct Space {
    /// Whose tables say what is mounted here.
    proc: OwnedFd,
    /// Paths of the layers by mapping.
    views: HashMap<Mapping, String>,
    /// The one that was used last comes first.
    stacks: VecDeque<Links>,
    next: u64,
}

impl Space {
    /// Takes the calling thread out of the host's mount namespace, for good.
    pub(super) fn new(dirs: &Dirs) -> Result<Self, Failed> {
        let step = Failed::at::<rustix::io::Errno>("clone the mount of the store");
        // While this thread still sees the mounts that the descriptors belong to.
        let layers = clone(&dirs.layers).map_err(&step)?;
        let staging = clone(&dirs.tmp).map_err(&step)?;
        let proc = rustix::fs::open("/proc", OFlags::PATH | OFlags::CLOEXEC, 0.into())
            .map_err(Failed::at("open /proc"))?;
        unshare_mounts().map_err(Failed::at("make a mount namespace"))?;
        new_root().map_err(Failed::at("make the root of a mount namespace"))?;
        let step = Failed::at::<io::Error>("attach the store in a mount namespace");
        for (mount, path) in [(layers, "/l"), (staging, "/s")] {
            fs::create_dir(path).map_err(&step)?;
            attach(&mount, path).map_err(&step)?;
        }
        for path in ["/v", "/k", SPOT] {
            fs::create_dir(path).map_err(&step)?;
        }
        let closed = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
        remount("/l", closed | MountFlags::RDONLY).map_err(&step)?;
        remount("/s", closed).map_err(&step)?;
        Ok(Self {
            proc,
            views: HashMap::from([(Mapping::Host, "/l".to_owned())]),
            stacks: VecDeque::new(),
            next: 0,
        })
    }

    /// Mounts an overlay.
    pub(super) fn overlay(&mut self, plan: &Plan) -> Result<OwnedFd, Failed> {
        let stack = self.stack(plan)?;
        let above = format!("/s/{}", plan.staged);
        let (top, base) = (format!("{above}/upper"), format!("{above}/base"));
        let names: Vec<_> = (0..plan.layers.len()).map(options::short_name).collect();
        let top = (!plan.writable).then_some(&*top);
        let lower = (top.into_iter())
            .chain(names.iter().map(String::as_str))
            .chain(plan.base.then_some(&*base));
        let above = plan.writable.then_some(&*above);
        let mut flags = MountFlags::empty();
        flags.set(MountFlags::NODEV, plan.no_devices);
        flags.set(MountFlags::RDONLY, !plan.writable);
        // The names of layers are short because they are looked up from here.
        rustix::process::chdir(&*stack).map_err(Failed::at("go to the links of the layers"))?;
        let mounted = self.mount(options::text(lower, above, plan.volatile), flags);
        rustix::process::chdir("/").map_err(Failed::at("leave the links of the layers"))?;
        mounted
    }

    /// Mounts, once, what a root filesystem would be mounted from.
    pub(super) fn probe(&mut self, namespace: Option<&Arc<OwnedFd>>) -> Result<(), Failed> {
        let step = Failed::at::<io::Error>("attach a directory of the store");
        let mut attached = Vec::new();
        for directory in ["/l", "/s"] {
            let path = format!("/v/probe{}", attached.len());
            fs::create_dir_all(&path).map_err(&step)?;
            let seen = match namespace {
                Some(namespace) => place(directory)
                    .and_then(|there| view(&there, Some(namespace.as_fd())))
                    .map_err(Failed::at("map the owners of a directory")),
                None => clone_at(directory).map_err(|error| step(error.into())),
            };
            match seen.and_then(|fd| attach(&fd, &path).map_err(&step)) {
                Ok(()) => attached.push(path),
                Err(failed) => {
                    detach(&attached);
                    return Err(failed);
                }
            }
        }
        let lower = attached.iter().map(String::as_str);
        let mounted = self.mount(options::text(lower, None, None), MountFlags::RDONLY);
        detach(&attached);
        mounted.map(drop)
    }

    /// Gives a detached clone of mounts its attributes; the result is another clone.
    pub(super) fn bind(&mut self, given: &OwnedFd, read_only: bool) -> Result<OwnedFd, Failed> {
        attach(given, SPOT).map_err(Failed::at("attach the directory"))?;
        let changed = self.change_bound(read_only);
        self.take(changed, true)
    }

    fn change_bound(&self, read_only: bool) -> io::Result<()> {
        mount_change(
            SPOT,
            MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
        )?;
        if !read_only {
            return Ok(());
        }
        for path in self.mounted_at_spot()? {
            // Everything else about it stays.
            let kept = rustix::fs::statvfs(&path)?.f_flag;
            let mut flags = MountFlags::RDONLY;
            flags.set(MountFlags::NOSUID, kept.contains(StatVfsMountFlags::NOSUID));
            flags.set(MountFlags::NODEV, kept.contains(StatVfsMountFlags::NODEV));
            flags.set(MountFlags::NOEXEC, kept.contains(StatVfsMountFlags::NOEXEC));
            remount(&path, flags)?;
        }
        Ok(())
    }

    /// The mount points at `/m` and below.
    fn mounted_at_spot(&self) -> io::Result<Vec<PathBuf>> {
        let path = "thread-self/mountinfo";
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let table = rustix::fs::openat(&self.proc, path, flags, 0.into())?;
        let table = io::read_to_string(fs::File::from(table))?;
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        Ok(points
            .filter(|point| {
                point
                    .strip_prefix(SPOT)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
            .map(|point| PathBuf::from(std::ffi::OsString::from_vec(unescape(point.as_bytes()))))
            .collect())
    }

    fn mount(
        &mut self,
        text: Option<std::ffi::CString>,
        flags: MountFlags,
    ) -> Result<OwnedFd, Failed> {
        let Some(text) = text else {
            let error = io::Error::from(rustix::io::Errno::TOOBIG);
            return Err(Failed::at("fit the layers into a page of options")(error));
        };
        mount("garden", SPOT, "overlay", flags, text.as_c_str()).map_err(Failed::at(
            "mount the overlay (dmesg may say why it is refused)",
        ))?;
        self.take(Ok(()), false)
    }

    /// Clones what is mounted at `/m` and unmounts it there.
    fn take(&self, done: io::Result<()>, recursive: bool) -> Result<OwnedFd, Failed> {
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
        let taken = done.and_then(|()| Ok(open_tree(CWD, SPOT, flags)?));
        // What stays there is covered by the next mount, and goes with the thread.
        if let Err(error) = unmount(SPOT, UnmountFlags::DETACH) {
            tracing::warn!(%error, "cannot unmount in the namespace of a mount thread");
        }
        taken.map_err(Failed::at("take the mount out of its namespace"))
    }

    /// The directory of links to the layers of a plan; made once, and kept for a while.
    fn stack(&mut self, plan: &Plan) -> Result<String, Failed> {
        let same = |stack: &Links| stack.layers == plan.layers && stack.mapping == plan.mapping;
        if let Some(at) = self.stacks.iter().position(same)
            && let Some(stack) = self.stacks.remove(at)
        {
            let path = stack.path.clone();
            self.stacks.push_front(stack);
            return Ok(path);
        }
        let view = self.view(plan)?;
        let path = format!("/k/{}", self.number());
        let step = Failed::at::<io::Error>("link the layers");
        fs::create_dir(&path).map_err(&step)?;
        for (number, layer) in plan.layers.iter().enumerate() {
            let link = format!("{path}/{}", options::short_name(number));
            std::os::unix::fs::symlink(format!("{view}/{layer}"), link).map_err(&step)?;
        }
        self.stacks.push_front(Links {
            mapping: plan.mapping.clone(),
            layers: plan.layers.clone(),
            path: path.clone(),
        });
        for old in self.stacks.drain(MOST_STACKS.min(self.stacks.len())..) {
            // A few links in memory that nobody uses again.
            let _ = fs::remove_dir_all(old.path);
        }
        Ok(path)
    }

    /// Where the layers are seen with the owners of a plan; attached once.
    fn view(&mut self, plan: &Plan) -> Result<String, Failed> {
        if let Some(path) = self.views.get(&plan.mapping) {
            return Ok(path.clone());
        }
        let step = Failed::at::<io::Error>("map the owners of the layers");
        let path = format!("/v/{}", self.number());
        fs::create_dir(&path).map_err(&step)?;
        let layers = place("/l").map_err(&step)?;
        let seen = view(&layers, plan.namespace.as_ref().map(AsFd::as_fd)).map_err(&step)?;
        attach(&seen, &path).map_err(&step)?;
        self.views.insert(plan.mapping.clone(), path.clone());
        Ok(path)
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// Makes a small tmpfs the root and lets go of everything else.
fn new_root() -> io::Result<()> {
    // Nothing that is mounted here may reach the host.
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )?;
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "mode", "0700")?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let root = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let old = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, 0.into())?;
    attach(&root, "/")?;
    rustix::process::fchdir(&root)?;
    match rustix::process::pivot_root(".", ".") {
        Ok(()) => {
            rustix::process::fchdir(&old)?;
            unmount(".", UnmountFlags::DETACH)?;
        }
        // The first root of a system cannot be left. What is mounted on it stays visible to the
        // kernel only, and follows what the host unmounts.
        Err(rustix::io::Errno::INVAL) => rustix::process::chroot(".")?,
        Err(error) => return Err(error.into()),
    }
    Ok(rustix::process::chdir("/")?)
}

fn clone(directory: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(directory, "", flags)
}

fn clone_at(path: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, path, flags)
}

/// Something attached, to be cloned: of a clone there is no other before Linux 6.15.
fn place(path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, 0.into())?)
}

fn attach(mount: &OwnedFd, path: &str) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(move_mount(mount, "", CWD, path, flags)?)
}

fn detach(paths: &[String]) {
    for path in paths {
        if let Err(error) = unmount(&**path, UnmountFlags::DETACH) {
            tracing::warn!(%error, "cannot unmount in the namespace of a mount thread");
        }
    }
}

fn remount(path: impl rustix::path::Arg, flags: MountFlags) -> io::Result<()> {
    Ok(mount_remount(path, MountFlags::BIND | flags, "")?)
}

/// Undoes the octal escapes of a mount table (proc_pid_mountinfo(5)).
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        let code = after.first_chunk::<3>().filter(|_| byte == b'\\');
        let value =
            code.and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 8).ok());
        match value {
            Some(value) => {
                plain.push(value);
                rest = &after[3..];
            }
            None => {
                plain.push(byte);
                rest = after;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_mount_tables_are_unescaped() {
        assert_eq!(unescape(br"/m/a\040b\134\011c"), b"/m/a b\\\tc");
        assert_eq!(unescape(br"/m/\4"), br"/m/\4");
    }
}
