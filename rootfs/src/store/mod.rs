//! The store: opening it, and what is shared by everything in it.
//!
//! ```text
//! STORE/              0700
//!   lock              held by the one server that works here
//!   maintenance.lock  held by whoever clears up
//!   capabilities      what this kernel can do, for the tools
//!   tmp/NAME/         things while they are made; locked by who makes them
//!   layers/KEY/       tree/  record.json  durable
//!   images/ID.json    which layers a source was, when it was last imported
//!   locks/KEY         held by whoever imports an image or a layer
//!   pins/ID           an image that is never collected
//!   rootfs/ID/        upper/  work/  record.json  (usage.json)
//!   trash/UUID        whatever is to be removed
//! ```
//!
//! Each thing has one record, appears and disappears by one rename, and is found by looking: there
//! is no index that could be wrong. Any number of processes work in a store side by side, at most
//! one of them as its server; what one of them sees in memory is a copy of what is on the disk.
//! A `Store` is cheap to clone and may be used from any thread; its calls block and must not run
//! on an async runtime.

mod capabilities;
pub(crate) mod hold;
pub(crate) mod images;
mod maintain;
pub(crate) mod server;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::capabilities::{Capabilities, Pretend};
use crate::collect::CollectPolicy;
use crate::dirs::Dirs;
use crate::error::{Error, Result};
use crate::flight::Flights;
use crate::image::Layer;
use crate::import;
use crate::layers::Layers;
use crate::mount::{Ahead, Mounter, Stacks};
use crate::mounting::Sentinel;
use crate::quota::{self, Quota, WithoutQuota};
use crate::registry::{Client, RegistryPolicy};
use crate::trash::{Trash, TrashStats};
use crate::unpack::Limits;
use crate::unpack::listing::Damage;

pub(crate) use images::Described;
use images::{Compared, Recent};
use server::Server;
pub(crate) use server::Signal;

pub use images::ImageInfo;
pub use maintain::Maintenance;

/// What a process is to a store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Role {
    /// The one that serves it: opening fails while another does. Clears up in the background what
    /// it and the tools beside it leave, and what an earlier run left.
    #[default]
    Server,
    /// One of many, beside each other and beside a server. Opening costs a few system calls
    /// whatever the store holds, and starts no thread: what is left for the background is done by
    /// the server if there is one, and else by [`Store::maintain`].
    Tool,
}

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
    /// What this process is to it.
    pub role: Role,
    /// What the end of a root filesystem costs.
    pub unmount: Unmount,
    /// Threads of a server that empty the trash; at least one is started.
    pub trash_workers: usize,
    /// When a server collects by itself; `None` for never.
    pub collect: Option<CollectPolicy>,
    /// How much one layer may ask for.
    pub limits: Limits,
    /// What to do with limits of root filesystems where nothing can enforce them.
    pub without_quota: WithoutQuota,
    /// The project ids that root filesystems may get (XFS, ext4); not empty, without 0. Stores on
    /// one file system may share them.
    pub project_ids: Range<u32>,
    /// Whether to switch the quota of btrfs on, for its whole file system, if it is off.
    pub switch_quota_on: bool,
    /// How registries are spoken to.
    pub registry: RegistryPolicy,
    /// What is not to be used although this host has it: for tests of what older hosts do.
    #[doc(hidden)]
    pub pretend: Pretend,
}

impl StoreOptions {
    /// The defaults: a server, volatile, two trash threads.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            role: Role::default(),
            unmount: Unmount::default(),
            trash_workers: 2,
            collect: Some(CollectPolicy::default()),
            limits: Limits::default(),
            without_quota: WithoutQuota::default(),
            project_ids: quota::PROJECT_IDS,
            switch_quota_on: false,
            registry: RegistryPolicy::default(),
            pretend: Pretend::default(),
        }
    }
}

/// A store of images and root filesystems.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
    /// Ends with the last handle that a caller has; background threads have none.
    server: Option<Arc<Server>>,
}

/// What the parts of the store share.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) dirs: Arc<Dirs>,
    pub(crate) trash: Arc<Trash>,
    pub(crate) layers: Arc<Layers>,
    pub(crate) flights: Flights,
    pub(crate) limits: Limits,
    pub(crate) quota: Arc<Quota>,
    pub(crate) registry: Client,
    pub(crate) unmount: Unmount,
    pub(crate) capabilities: OnceLock<Capabilities>,
    /// Images that were imported just now.
    pub(crate) recent: Recent,
    pub(crate) compared: Compared,
    pub(crate) pretend: Pretend,
    /// Made when the first mount is.
    pub(crate) mounter: OnceLock<Mounter>,
    /// Layers that were mounted lately.
    pub(crate) stacks: Stacks,
    pub(crate) ahead: Ahead,
    pub(crate) sentinel: Sentinel,
}

impl Store {
    /// Compares a layer with what was written down when it was made: names, types, owners, modes,
    /// sizes, times, extended attributes, link targets and content. Reads all of it, and changes
    /// nothing. What differs is damage; at most 200 findings are told one by one.
    pub fn verify_layer(&self, layer: &Layer) -> Result<Vec<Damage>> {
        self.inner.layers.verify(&layer.key)
    }

    /// Opens a store, making what is missing.
    ///
    /// # Errors
    /// [`Error::StoreInUse`] when it is to be served and another process does.
    pub fn open(options: &StoreOptions) -> Result<Self> {
        let dirs = Arc::new(Dirs::open(&options.path)?);
        let lock = match options.role {
            Role::Tool => None,
            Role::Server => {
                let lock = server::lock(&dirs)?;
                Some(lock.ok_or_else(|| Error::StoreInUse(options.path.clone()))?)
            }
        };
        let quota = Arc::new(Quota::new(&dirs, options)?);
        let trash = Trash::new(&dirs);
        trash.when_gone(Box::new(Arc::clone(&quota)));
        let inner = Arc::new(Inner {
            trash,
            layers: Arc::new(Layers::new(&dirs)),
            dirs,
            flights: Flights::new(import::slots()),
            limits: options.limits,
            quota,
            registry: Client::new(options.registry.clone()),
            unmount: options.unmount,
            capabilities: OnceLock::new(),
            recent: Recent::default(),
            compared: Compared::default(),
            pretend: options.pretend,
            mounter: OnceLock::new(),
            stacks: Stacks::default(),
            ahead: Ahead::default(),
            sentinel: Sentinel::default(),
        });
        let mut store = Self {
            inner,
            server: None,
        };
        if let Some(lock) = lock {
            store.probe();
            let server = Server::start(lock, &store.inner, options)?;
            store.server = Some(Arc::new(server));
        }
        Ok(store)
    }

    /// Whether this is the handle of a server.
    pub(crate) fn serves(&self) -> bool {
        self.server.is_some()
    }

    /// When this server collects by itself.
    pub(crate) fn policy(&self) -> Option<&CollectPolicy> {
        self.server.as_ref()?.policy.as_ref()
    }

    /// Remembers layers that were just published, if this is the server; if not, it will notice.
    pub(crate) fn published(&self, keys: Vec<String>) {
        if let Some(server) = &self.server {
            server.published(keys);
        }
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
}
