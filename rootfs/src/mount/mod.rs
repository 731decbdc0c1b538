//! Mounting root filesystems, with one result on every kernel from Linux 5.10 on: a detached mount
//! as a descriptor, in no mount table of the host.
//!
//! Used by the creation of root filesystems and by the store when it is opened. Two ways lead
//! there, and the store takes the first that works on its disk:
//!
//! - [`detached`]: everything by descriptors (Linux 6.15);
//! - [`space`]: paths, in a mount namespace that one thread has to itself ([`pool`]).
//!
//! What a way shows never differs: the same options, the same owners, the same attributes. Nothing
//! here changes the process's root, current directory or mount namespace. Every call may wait for
//! a disk.

mod ahead;
mod detached;
mod options;
mod pool;
mod space;
mod stack;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use garden_sys::mount::{Attributes, Change, Propagation, set_attributes};
use garden_sys::userns;
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::capabilities::Volatile;
use crate::dirs::Dirs;
use crate::rootfs::Mapping;
pub(crate) use ahead::Ahead;
use detached::Detached;
use pool::Pool;
pub(crate) use stack::{Stack, Stacks};

/// The most directories that the kernel stacks read-only (`OVL_MAX_STACK`).
pub(crate) const MOST_LAYERS: usize = 500;

/// What an overlay is made of.
#[derive(Clone, Copy)]
pub(crate) struct Overlay<'a> {
    /// The layers, and whose ids their files get.
    pub(crate) stack: &'a Stack,
    /// The name of a staging directory with what follows.
    pub(crate) staged: &'a str,
    /// Its directory `upper`: what is written to, or only looked at.
    pub(crate) upper: BorrowedFd<'a>,
    /// Its directory `work`; without it the mount is read-only.
    pub(crate) work: Option<BorrowedFd<'a>>,
    /// Its directory `base`: stands for the layers of an image that has none.
    pub(crate) base: Option<BorrowedFd<'a>>,
    /// How to ask for no syncing, if it is wanted.
    pub(crate) volatile: Option<Volatile>,
    /// Whether device nodes in it cannot be opened.
    pub(crate) no_devices: bool,
}

/// A step of making a mount that failed.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) step: &'static str,
    /// The kernel's own words; may be empty.
    pub(crate) kernel: String,
    pub(crate) source: io::Error,
}

impl Failed {
    /// For `map_err`: this step, without words of the kernel.
    fn at<E: Into<io::Error>>(step: &'static str) -> impl Fn(E) -> Self {
        move |error| Self {
            step,
            kernel: String::new(),
            source: error.into(),
        }
    }

    pub(crate) fn is(&self, errno: Errno) -> bool {
        self.source.raw_os_error() == Some(errno.raw_os_error())
    }
}

/// Makes mounts for one store.
#[derive(Debug)]
pub(crate) struct Mounter {
    /// The quicker way, where it works.
    detached: Option<Detached>,
    /// The other one; has no threads until it is used.
    pool: Pool,
    namespaces: Mutex<HashMap<Mapping, Arc<OwnedFd>>>,
}

impl Mounter {
    /// One that goes one of the ways.
    pub(crate) fn new(dirs: &Arc<Dirs>, by_descriptors: bool) -> Self {
        Self {
            detached: by_descriptors.then(|| Detached::new(dirs)),
            pool: Pool::new(dirs),
            namespaces: Mutex::default(),
        }
    }

    /// Tries whether overlays can be mounted at all, or with layers whose owners a user namespace
    /// maps. What it mounts has nothing to write to, so that nothing syncs.
    pub(crate) fn probe(&self, namespace: Option<Arc<OwnedFd>>) -> Result<(), Failed> {
        match &self.detached {
            Some(detached) => detached.probe(namespace.as_ref().map(AsFd::as_fd)),
            None => self.pool.run(move |space| space.probe(namespace.as_ref())),
        }
    }

    /// Mounts an overlay. A failed step leaves nothing behind.
    pub(crate) fn overlay(&self, overlay: &Overlay<'_>) -> Result<OwnedFd, Failed> {
        let namespace = || self.namespace(&overlay.stack.mapping);
        match &self.detached {
            Some(detached) => detached.overlay(overlay, namespace),
            None => {
                let plan = space::Plan::new(overlay, namespace()?);
                self.pool.run(move |space| space.overlay(&plan))
            }
        }
    }

    /// Does what can be done now of the next overlay of a stack: see [`ahead`].
    pub(crate) fn prepare(&self, stack: &Stack) -> Result<(), Failed> {
        match &self.detached {
            Some(detached) => detached.prepare(stack),
            None => Ok(()),
        }
    }

    /// Clones the mounts below a directory, with everything that is mounted there. The clone
    /// follows what is unmounted at the original, so that it holds up nobody's unmount, and gives
    /// nothing back. `attributes`: whether detached mounts can be changed.
    pub(crate) fn bind(
        &self,
        directory: &OwnedFd,
        read_only: bool,
        attributes: bool,
    ) -> Result<OwnedFd, Failed> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE
            | OpenTreeFlags::AT_EMPTY_PATH;
        let clone = open_tree(directory, "", flags)
            .map_err(Failed::at("clone the mount of the directory"))?;
        if !attributes {
            // Before Linux 5.12 only attached mounts can be changed.
            return self.pool.run(move |space| space.bind(&clone, read_only));
        }
        let change = Change {
            set: if read_only {
                Attributes::READ_ONLY
            } else {
                Attributes::NONE
            },
            propagation: Some(Propagation::Slave),
            recursive: true,
            ..Change::default()
        };
        set_attributes(&clone, &change).map_err(Failed::at("set the attributes of the mount"))?;
        Ok(clone)
    }

    /// The user namespace of a mapping; made once and kept.
    fn namespace(&self, mapping: &Mapping) -> Result<Option<Arc<OwnedFd>>, Failed> {
        let Mapping::Mapped { uid, gid } = mapping else {
            return Ok(None);
        };
        let known = || lock(&self.namespaces);
        if let Some(namespace) = known().get(mapping) {
            return Ok(Some(Arc::clone(namespace)));
        }
        // Not under the lock: it starts a process.
        let made = userns::create(uid, gid)
            .map_err(|error| Failed::at("make a user namespace")(io::Error::other(error)))?;
        let mut all = known();
        let kept = (all.entry(mapping.clone())).or_insert_with(|| Arc::new(made));
        Ok(Some(Arc::clone(kept)))
    }
}

/// Locks a table whose holder cannot panic half-way through a change.
fn lock<T>(table: &Mutex<T>) -> MutexGuard<'_, T> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}
