//! Overlay mounts built from descriptors alone.
//!
//! The quicker of the two ways. No path, no option string and no mount point: layers are
//! directories in a read-only view of all layers (id-mapped where owners are mapped), and what
//! comes out is a detached mount. Needs layers as descriptors (Linux 6.13) and overlays that take
//! layers from detached mounts (6.15). One view serves every root filesystem with the same
//! mapping: a clone for each layer of each of them would cost twice its time again when it is
//! closed. With an upper directory and without `volatile`, closing the last reference to a mount
//! syncs the whole disk.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use garden_sys::mount::{Attributes, Change, Propagation, context_log, set_attributes};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_fd,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, open_tree,
};

use super::options::OPTIONS;
use super::{Failed, Overlay, Stack, lock};
use crate::capabilities::Volatile;
use crate::dirs::{self, Dirs};
use crate::rootfs::Mapping;

/// Makes mounts by descriptors.
#[derive(Debug)]
pub(super) struct Detached {
    dirs: Arc<Dirs>,
    /// The layers as each mapping that was used shows them.
    views: Mutex<HashMap<Mapping, Arc<OwnedFd>>>,
}

/// What is written to: the upper directory, the work directory, and how not to sync.
type Upper<'a> = (BorrowedFd<'a>, BorrowedFd<'a>, Option<Volatile>);

impl Detached {
    pub(super) fn new(dirs: &Arc<Dirs>) -> Self {
        Self {
            dirs: Arc::clone(dirs),
            views: Mutex::default(),
        }
    }

    /// Mounts an overlay. `namespace` is asked for a mapping that was not used before.
    pub(super) fn overlay(
        &self,
        overlay: &Overlay<'_>,
        namespace: impl Fn() -> Result<Option<Arc<OwnedFd>>, Failed>,
    ) -> Result<OwnedFd, Failed> {
        let stack = overlay.stack;
        let trees = match stack.trees.get() {
            Some(trees) => trees,
            None => {
                let view = self.view(&stack.mapping, namespace)?;
                let trees = open_all(&view, &stack.layers)?;
                stack.trees.get_or_init(|| trees)
            }
        };
        let trees = trees.iter().map(AsFd::as_fd);
        let (context, upper) = match overlay.work {
            None => {
                let lower = std::iter::once(overlay.upper).chain(trees);
                (context(lower.chain(overlay.base))?, None)
            }
            Some(work) => {
                let context = match lock(&stack.ahead).take() {
                    Some(context) => context,
                    None => context(trees.chain(overlay.base))?,
                };
                (context, Some((overlay.upper, work, overlay.volatile)))
            }
        };
        mount(&context, upper, overlay.no_devices)
    }

    /// Prepares the next overlay of a stack that is worth it: see [`super::ahead`].
    pub(super) fn prepare(&self, stack: &Stack) -> Result<(), Failed> {
        let Some(trees) = stack.trees.get().filter(|_| lock(&stack.ahead).is_none()) else {
            return Ok(());
        };
        let context = context(trees.iter().map(AsFd::as_fd))?;
        *lock(&stack.ahead) = Some(context);
        Ok(())
    }

    /// Mounts, once, what a root filesystem would be mounted from.
    pub(super) fn probe(&self, namespace: Option<BorrowedFd<'_>>) -> Result<(), Failed> {
        let step = Failed::at("look at a directory of the store");
        // The views live until the overlay is there: see `view`.
        let look = |directory: &OwnedFd| {
            let view = view(directory, namespace).map_err(&step)?;
            let root = dirs::directory(&view, ".").map_err(|error| step(error.into()))?;
            Ok((view, root))
        };
        let (one, two) = (look(&self.dirs.tmp)?, look(&self.dirs.images)?);
        let context = context([one.1.as_fd(), two.1.as_fd()].into_iter())?;
        mount(&context, None, true).map(drop)
    }

    fn view(
        &self,
        mapping: &Mapping,
        namespace: impl Fn() -> Result<Option<Arc<OwnedFd>>, Failed>,
    ) -> Result<Arc<OwnedFd>, Failed> {
        if let Some(view) = lock(&self.views).get(mapping) {
            return Ok(Arc::clone(view));
        }
        let namespace = namespace()?;
        let view = view(&self.dirs.layers, namespace.as_ref().map(AsFd::as_fd))
            .map_err(Failed::at("map the owners of the layers"))?;
        let mut all = lock(&self.views);
        let kept = (all.entry(mapping.clone())).or_insert_with(|| Arc::new(view));
        Ok(Arc::clone(kept))
    }
}

fn open_all(view: &OwnedFd, layers: &[String]) -> Result<Vec<OwnedFd>, Failed> {
    let open = |path| rustix::fs::openat(view, path, dirs::DIRECTORY, Mode::empty());
    let opened: Result<_, _> = layers.iter().map(open).collect();
    opened.map_err(Failed::at("open a layer (import its image again)"))
}

/// Begins an overlay, with all of its lower directories, the topmost first. Nothing is mounted.
fn context<'fd>(lower: impl Iterator<Item = BorrowedFd<'fd>>) -> Result<OwnedFd, Failed> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(Failed::at("open an overlay context"))?;
    fsconfig_set_string(&context, "source", "garden")
        .map_err(explained(&context, "name the overlay"))?;
    for (key, value) in OPTIONS {
        fsconfig_set_string(&context, key, value)
            .map_err(explained(&context, "set the options of the overlay"))?;
    }
    for layer in lower {
        fsconfig_set_fd(&context, "lowerdir+", layer)
            .map_err(explained(&context, "give the overlay a layer"))?;
    }
    Ok(context)
}

/// Mounts what was begun, once. A failed step leaves nothing behind.
fn mount(context: &OwnedFd, upper: Option<Upper<'_>>, no_devices: bool) -> Result<OwnedFd, Failed> {
    if let Some((upper, work, volatile)) = upper {
        fsconfig_set_fd(context, "upperdir", upper)
            .map_err(explained(context, "give the overlay its upper directory"))?;
        fsconfig_set_fd(context, "workdir", work)
            .map_err(explained(context, "give the overlay its work directory"))?;
        match volatile {
            Some(Volatile::Flag) => fsconfig_set_flag(context, "volatile"),
            Some(Volatile::Fsync) => fsconfig_set_string(context, "fsync", "volatile"),
            None => Ok(()),
        }
        .map_err(explained(context, "make the overlay volatile"))?;
    } else {
        fsconfig_set_flag(context, "ro")
            .map_err(explained(context, "make the overlay read-only"))?;
    }
    fsconfig_create(context).map_err(explained(context, "create the overlay"))?;
    let mut attributes = MountAttrFlags::empty();
    attributes.set(MountAttrFlags::MOUNT_ATTR_NODEV, no_devices);
    attributes.set(MountAttrFlags::MOUNT_ATTR_RDONLY, upper.is_none());
    fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(explained(context, "mount the overlay"))
}

/// For `map_err`: a step, with what the kernel logged in the context.
fn explained(context: &OwnedFd, step: &'static str) -> impl Fn(Errno) -> Failed {
    move |errno| Failed {
        step,
        kernel: context_log(context),
        source: io::Error::from(errno),
    }
}

/// A view of a directory, with the owners that a user namespace gives them: a detached clone of
/// its mount through which nothing can be written, gained or opened as a device. What is opened in
/// it may be given to overlays as long as the view itself is open.
///
/// The clone's own descriptor is an `O_PATH` one, which the kernel does not take as a layer; those
/// of the directories in it are.
pub(super) fn view(
    directory: impl AsFd,
    mapping: Option<BorrowedFd<'_>>,
) -> Result<OwnedFd, io::Error> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let clone = open_tree(directory, "", flags)?;
    let change = Change {
        set: (Attributes::READ_ONLY)
            .and(Attributes::NO_SETUID)
            .and(Attributes::NO_DEVICES)
            .and(Attributes::NO_ACCESS_TIMES),
        clear: Attributes::ACCESS_TIMES,
        propagation: Some(Propagation::Private),
        idmap: mapping,
        ..Change::default()
    };
    set_attributes(&clone, &change)?;
    Ok(clone)
}
