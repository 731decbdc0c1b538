//! The store: opening it, and what is shared by everything in it.
//!
//! ```text
//! STORE/            0700
//!   lock            held by the one server that works here
//!   tmp/NAME/       things while they are made; locked by who makes them
//!   layers/KEY/     tree/  record.json  durable
//!   images/ID.json  which layers a source was, when it was last imported
//!   locks/KEY       held by whoever imports an image or a layer
//!   rootfs/ID/      upper/  work/  record.json
//!   trash/UUID      whatever is to be removed
//! ```
//!
//! Each thing has one record, appears and disappears by one rename, and is found by looking: there
//! is no index that could be wrong. A `Store` is cheap to clone and may be used from any thread;
//! its calls block and must not run on an async runtime.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::capabilities::Capabilities;
use crate::dirs::{self, Dirs, Lock};
use crate::durable::Durable;
use crate::error::{Result, Step};
use crate::flight::Flights;
use crate::image::{Image, Layer};
use crate::import;
use crate::layers::Layers;
use crate::rootfs::Mapping;
use crate::trash::{Trash, TrashStats};
use crate::unpack::Limits;
use crate::unpack::listing::Damage;

/// What the end of a root filesystem costs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Unmount {
    /// Nothing: overlays never sync, and `fsync` inside them does nothing. Where the kernel has
    /// no such mounts, the same as [`Unmount::Sync`].
    #[default]
    Volatile,
    /// A sync of the whole disk, when the last user of the mount goes; `fsync` inside works.
    Sync,
}

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Its directory; made when missing, its last part must not be a symbolic link.
    pub path: PathBuf,
    /// What the end of a root filesystem costs.
    pub unmount: Unmount,
    /// Threads that empty the trash; at least one is started.
    pub trash_workers: usize,
    /// How much one layer may ask for.
    pub limits: Limits,
}

impl StoreOptions {
    /// The defaults: volatile, two trash threads.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            unmount: Unmount::default(),
            trash_workers: 2,
            limits: Limits::default(),
        }
    }
}

/// A store of images and root filesystems.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

/// What the parts of the store share. Its background threads are told to end when it is dropped,
/// and are not waited for: one may be stuck in the kernel.
#[derive(Debug)]
pub(crate) struct Inner {
    _lock: Lock,
    pub(crate) dirs: Arc<Dirs>,
    pub(crate) trash: Arc<Trash>,
    pub(crate) layers: Arc<Layers>,
    pub(crate) durable: Arc<Durable>,
    pub(crate) flights: Flights,
    pub(crate) limits: Limits,
    pub(crate) unmount: Unmount,
    pub(crate) capabilities: Capabilities,
    /// Views of the layers for the mappings that were used.
    pub(crate) views: Mutex<HashMap<Mapping, Arc<OwnedFd>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.trash.stop();
        self.durable.stop();
    }
}

impl Store {
    /// Compares a layer with what was written down when it was made: names, types, owners, modes,
    /// sizes, times, extended attributes, link targets and content. Reads all of it, and changes
    /// nothing. What differs is damage; at most 200 findings are told one by one.
    pub fn verify_layer(&self, layer: &Layer) -> Result<Vec<Damage>> {
        self.inner.layers.verify(&layer.key)
    }

    /// Opens a store, making what is missing. What an earlier run left half done, and what did
    /// not survive a reboot, goes to the trash. One server at a time: [`crate::Error::StoreInUse`].
    pub fn open(options: &StoreOptions) -> Result<Self> {
        let (dirs, lock) = Dirs::open(&options.path)?;
        let dirs = Arc::new(dirs);
        let trash = Trash::open(&dirs)?;
        sweep_staging(&dirs, &trash)?;
        let (layers, pending) = Layers::open(&dirs, &trash)?;
        let layers = Arc::new(layers);
        let durable = Durable::start(&dirs, &layers, pending)?;
        let capabilities = Capabilities::probe(&dirs.tmp);
        tracing::debug!(?capabilities, store = %dirs.path.display(), "opened the store");
        let inner = Inner {
            _lock: lock,
            dirs,
            trash,
            layers,
            durable,
            flights: Flights::new(import::slots()),
            limits: options.limits,
            unmount: options.unmount,
            capabilities,
            views: Mutex::default(),
        };
        let store = Self {
            inner: Arc::new(inner),
        };
        store.sweep_rootfs()?;
        store.sweep_images()?;
        store.inner.trash.start(options.trash_workers)?;
        Ok(store)
    }

    /// What this kernel and this disk can do; probed once.
    pub fn capabilities(&self) -> Capabilities {
        self.inner.capabilities
    }

    /// All images whose layers are in the store, by id.
    pub fn list_images(&self) -> Result<Vec<Image>> {
        let names = dirs::names(&self.inner.dirs.images).step(|| "list images".to_owned())?;
        Ok(names.iter().filter_map(|name| self.image(name)).collect())
    }

    /// All layers, by key.
    pub fn list_layers(&self) -> Vec<Layer> {
        self.inner
            .layers
            .all()
            .iter()
            .map(|record| record.layer())
            .collect()
    }

    /// What is still to be removed.
    pub fn trash(&self) -> TrashStats {
        self.inner.trash.stats()
    }

    /// Waits until everything is removed; `false` when that took longer than `timeout`.
    pub fn wait_trash_empty(&self, timeout: Duration) -> bool {
        self.inner.trash.wait_empty(timeout)
    }

    fn image(&self, name: &str) -> Option<Image> {
        let bytes = dirs::read(&self.inner.dirs.images, name).ok()??;
        let image: Image = serde_json::from_slice(&bytes).ok()?;
        self.has_layers(&image).then_some(image)
    }

    /// No process outlives a boot, and what a volatile mount wrote cannot be trusted after it.
    fn sweep_rootfs(&self) -> Result<()> {
        for id in
            dirs::names(&self.inner.dirs.rootfs).step(|| "list root filesystems".to_owned())?
        {
            if self
                .info(&id)
                .is_none_or(|info| info.boot != self.inner.dirs.boot)
            {
                tracing::info!(id, "discarding a root filesystem of an earlier boot");
                (self
                    .inner
                    .trash
                    .discard(&self.inner.dirs.rootfs, &id, Vec::new()))
                .step(|| format!("discard the root filesystem {id:?}"))?;
            }
        }
        Ok(())
    }

    /// An image without all its layers is only a name; importing makes it again.
    fn sweep_images(&self) -> Result<()> {
        for name in dirs::names(&self.inner.dirs.images).step(|| "list images".to_owned())? {
            if self.image(&name).is_none() {
                (self
                    .inner
                    .trash
                    .discard(&self.inner.dirs.images, &name, Vec::new()))
                .step(|| format!("discard the record {name} of an image"))?;
            }
        }
        Ok(())
    }
}

/// Discards staging directories in which nobody works any more.
fn sweep_staging(dirs: &Dirs, trash: &Trash) -> Result<()> {
    for name in dirs::names(&dirs.tmp).step(|| "list staging directories".to_owned())? {
        let step = || format!("discard the staging directory {name}");
        match dirs::directory(&dirs.tmp, &name) {
            Ok(fd) => match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) => continue,
                other => other.step(step)?,
            },
            Err(Errno::NOTDIR | Errno::LOOP) => {}
            Err(error) => return Err(crate::Error::host(step(), error)),
        }
        trash.discard(&dirs.tmp, &name, Vec::new()).step(step)?;
    }
    Ok(())
}
