//! The mounts of root filesystems: which layers, whose owners, how they end, and whether the disk
//! still keeps its word.
//!
//! The work behind `Store::bind` and the mounting part of `Store::create`; how a mount is made is
//! [`crate::mount`]'s. Owners come from a mount that maps them or, where the host has none, from a
//! copy of each layer; nobody above sees which. A volatile mount never syncs, so the only sign
//! that its disk lost something is an error of `fsync` inside: the [`Sentinel`] asks for it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use garden_sys::userns;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use serde::Serialize;

use crate::dirs;
use crate::error::{Error, Result, Step};
use crate::image::{Image, ImageConfig};
use crate::layers::TREE;
use crate::mount::{Failed, MOST_LAYERS, Mounter, Overlay, Stack};
use crate::quota::AppliedLimit;
use crate::remove;
use crate::rootfs::{Mapping, Rootfs, check_id};
use crate::shifted;
use crate::staging::Staged;
use crate::store::{Store, Unmount};

/// A root filesystem that is a directory of the host, as it is.
#[derive(Debug, Clone, Copy)]
pub struct BindRequest<'a> {
    /// Its name: 1 to 255 bytes, a usable file name that does not start with a dot.
    pub id: &'a str,
    /// The directory; absolute. Symbolic links on the way are followed.
    pub path: &'a Path,
    /// Whether nothing can be written through it, and through what is mounted in it.
    pub read_only: bool,
}

/// What is wrong with the disk of a store, since the store was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Health {
    /// How often the disk failed to write something. After each, every `fsync` in the volatile
    /// root filesystems of that time fails until they are made anew, whoever's data it was.
    pub write_errors: u64,
    /// Root filesystems that were made without `volatile` because the disk had an error: their
    /// end waits for the disk.
    pub not_volatile: u64,
}

/// Knows of errors of the disk. Its own volatile mount is never written to: `fsync` in it syncs
/// nothing, and fails once the disk had an error (Linux 5.10.16).
#[derive(Debug, Default)]
pub(crate) struct Sentinel(Mutex<Watch>);

#[derive(Debug, Default)]
struct Watch {
    mount: Option<OwnedFd>,
    /// Whether it was tried to make one.
    tried: bool,
    health: Health,
}

impl Store {
    /// Makes a root filesystem of a directory of the host: a mount of it and of all that is mounted
    /// in it. Nothing of it is copied, changed or ever removed.
    pub fn bind(&self, request: &BindRequest<'_>) -> Result<Rootfs> {
        let id = check_id(request.id)?;
        let missing = |source: io::Error| Error::ImageNotFound {
            image: format!("raw://{}", request.path.display()),
            source,
        };
        if !request.path.is_absolute() {
            let text = "the path must be absolute";
            return Err(missing(io::Error::new(io::ErrorKind::InvalidInput, text)));
        }
        if dirs::exists(&self.inner.dirs.rootfs, id) {
            return Err(Error::IdInUse(id.to_owned()));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(CWD, request.path, flags, Mode::empty())
            .map_err(|error| missing(error.into()))?;
        let staged = Staged::new(&self.inner.dirs, &self.inner.trash)?;
        self.record_bound(&staged, request)?;
        let attributes = self.capabilities().mount_attributes;
        let mount = (self.mounter())
            .bind(&directory, request.read_only, attributes)
            .map_err(|failed| failed.of(id))?;
        self.publish_rootfs(staged, id)?;
        Ok(Rootfs {
            id: id.to_owned(),
            mount,
            config: ImageConfig::default(),
            // The directory's own file system is synced by whoever unmounts it.
            volatile: true,
            limit: AppliedLimit::default(),
        })
    }

    /// What is wrong with the disk, as far as a server knows: nothing is known to a tool. Costs one
    /// system call that syncs nothing.
    pub fn health(&self) -> Health {
        self.watch_disk();
        let mut watch = self.inner.sentinel.lock();
        let failed = (watch.mount.as_ref()).is_some_and(|mount| rustix::fs::fsync(mount).is_err());
        if !failed {
            return watch.health;
        }
        watch.health.write_errors += 1;
        // It never recovers: the next one sees only later errors.
        (watch.mount, watch.tried) = (None, false);
        let health = watch.health;
        drop(watch);
        tracing::warn!(store = %self.inner.dirs.path.display(),
            "the disk of the store failed to write: fsync fails in every root filesystem made before");
        self.watch_disk();
        health
    }

    /// Mounts the layers of an image, with `upper` of a staging directory above them. Gives the
    /// mount, and whether it never syncs.
    pub(crate) fn mount_image(
        &self,
        id: &str,
        image: &Image,
        mapping: &Mapping,
        staged: &Staged,
        upper: &OwnedFd,
        read_only: bool,
    ) -> Result<(OwnedFd, bool)> {
        let stack = self
            .inner
            .stacks
            .get(&self.inner.dirs.layers, image, mapping, || {
                self.layers_shown(image, mapping)
            })?;
        let work = match read_only {
            true => None,
            false => Some(staged.subdirectory("work", Mode::RWXU)?),
        };
        let base = match stack.layers.is_empty() {
            true => Some(staged.subdirectory("base", Mode::RWXU)?),
            false => None,
        };
        let overlay = Overlay {
            stack: &stack,
            staged: staged.name(),
            upper: AsFd::as_fd(upper),
            work: work.as_ref().map(AsFd::as_fd),
            base: base.as_ref().map(AsFd::as_fd),
            volatile: None,
            no_devices: *mapping != Mapping::Host,
        };
        if read_only {
            let mount = self.mounter().overlay(&overlay);
            return Ok((mount.map_err(|failed| failed.of(id))?, true));
        }
        self.watch_disk();
        let made = self.mount_writable(id, overlay)?;
        self.inner.ahead.used(&stack);
        Ok(made)
    }

    /// Whether this host can make root filesystems of an image, before anything is made.
    pub(crate) fn check_mount(&self, id: &str, image: &Image, read_only: bool) -> Result<()> {
        if !self.capabilities().overlay {
            return Err(Error::HostLacks {
                what: "overlay file system (load the module overlay)",
                since: "5.10",
            });
        }
        let layers = image.layers.len() + usize::from(read_only);
        if layers > MOST_LAYERS {
            return Err(Error::TooManyLayers {
                id: id.to_owned(),
                layers,
            });
        }
        Ok(())
    }

    pub(crate) fn mounter(&self) -> &Mounter {
        let detached = self.capabilities().detached_layers;
        (self.inner.mounter).get_or_init(|| Mounter::new(&self.inner.dirs, detached))
    }

    /// The trees of an image's layers, and the mapping of the mount that shows them.
    fn layers_shown(&self, image: &Image, mapping: &Mapping) -> Result<Stack> {
        let from_top = image.layers.iter().rev().map(|layer| &*layer.key);
        match mapping {
            Mapping::Mapped { uid, gid } if !self.capabilities().mapped_owners => {
                let shifted = from_top.map(|key| shifted::tree(self, key, (uid, gid)));
                Ok(Stack::new(shifted.collect::<Result<_>>()?, Mapping::Host))
            }
            _ => {
                let tree = |key: &str| {
                    if self.inner.layers.get(key).is_some() {
                        return Ok(format!("{key}/{TREE}"));
                    }
                    Err(Errno::NOENT)
                        .step(|| format!("open the layer {key:?}: import its image again"))
                };
                let layers = from_top.map(tree).collect::<Result<_>>()?;
                Ok(Stack::new(layers, mapping.clone()))
            }
        }
    }

    /// Mounts with an upper directory. A volatile mount is refused when the disk has had an error
    /// that nobody has seen, with that error: `EIO`, or `ENOSPC` from a disk that promised more
    /// than it has. Seeing it by one sync is the cure; where even that does not help, syncing at
    /// the end is better than no container.
    fn mount_writable(&self, id: &str, mut overlay: Overlay<'_>) -> Result<(OwnedFd, bool)> {
        overlay.volatile = match self.inner.unmount {
            Unmount::Volatile => self.capabilities().volatile,
            Unmount::Sync => None,
        };
        let mounter = self.mounter();
        let lost = |failed: &Failed| failed.is(Errno::IO) || failed.is(Errno::NOSPC);
        let refused = match mounter.overlay(&overlay) {
            Ok(mount) => return Ok((mount, overlay.volatile.is_some())),
            Err(failed) if overlay.volatile.is_some() && lost(&failed) => failed,
            Err(failed) => return Err(failed.of(id)),
        };
        tracing::warn!(
            id,
            kernel = refused.kernel,
            "the disk of the store has had an error"
        );
        // Its result is the error that is to be seen.
        let _ = rustix::fs::syncfs(&self.inner.dirs.rootfs);
        match mounter.overlay(&overlay) {
            Ok(mount) => return Ok((mount, true)),
            Err(failed) if lost(&failed) => {}
            Err(failed) => return Err(failed.of(id)),
        }
        tracing::warn!(
            id,
            "cannot mount without syncing: its end will wait for the disk"
        );
        overlay.volatile = None;
        let mount = mounter.overlay(&overlay).map_err(|failed| failed.of(id))?;
        self.inner.sentinel.lock().health.not_volatile += 1;
        Ok((mount, false))
    }

    /// Makes the sentinel's mount, once. Its directories are removed at once: the mount does not
    /// need their names.
    fn watch_disk(&self) {
        // A tool is gone before the disk could fail, and the end of this mount would be a good part
        // of its life.
        let watched = self.serves() && self.inner.unmount == Unmount::Volatile;
        if !watched || self.capabilities().volatile.is_none() {
            return;
        }
        let mut watch = self.inner.sentinel.lock();
        if std::mem::replace(&mut watch.tried, true) {
            return;
        }
        drop(watch);
        match self.sentinel_mount() {
            Ok(mount) => self.inner.sentinel.lock().mount = Some(mount),
            Err(error) => tracing::debug!(%error, "errors of the disk will go unseen"),
        }
    }

    fn sentinel_mount(&self) -> Result<OwnedFd> {
        let step = || "watch the disk of the store".to_owned();
        let staged = Staged::new(&self.inner.dirs, &self.inner.trash)?;
        let [upper, work, base] =
            ["upper", "work", "base"].map(|name| staged.subdirectory(name, Mode::RWXU));
        let (upper, work, base) = (upper?, work?, base?);
        let overlay = Overlay {
            stack: &Stack::new(Vec::new(), Mapping::Host),
            staged: staged.name(),
            upper: AsFd::as_fd(&upper),
            work: Some(AsFd::as_fd(&work)),
            base: Some(AsFd::as_fd(&base)),
            volatile: None,
            no_devices: true,
        };
        let (mount, volatile) = self.mount_writable("(none)", overlay)?;
        if !volatile {
            return Err(Errno::IO).step(step);
        }
        let root = dirs::directory(&mount, ".").step(step)?;
        remove::tree(&self.inner.dirs.tmp, staged.name().as_ref(), &|| false).step(step)?;
        Ok(root)
    }
}

impl Sentinel {
    fn lock(&self) -> std::sync::MutexGuard<'_, Watch> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Failed {
    /// As the error of a root filesystem.
    pub(crate) fn of(self, id: &str) -> Error {
        let namespace = self.source.get_ref().and_then(|error| error.downcast_ref());
        if let Some(error @ userns::Error::Map { .. }) = namespace {
            return Error::InvalidMapping(error.to_string());
        }
        Error::Host {
            step: format!("{} for the root filesystem {id:?}", self.step),
            kernel: Some(self.kernel).filter(|text| !text.is_empty()),
            source: self.source,
        }
    }
}
