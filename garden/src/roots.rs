//! Where root filesystems come from: the server's store, or image plugins.
//!
//! Chosen for each container by its kind: a plugin for unprivileged ones, a plugin for privileged
//! ones, and the store for a kind without a plugin. Who made a root filesystem is not kept: its end
//! asks the store first, then the plugins, and none of them minds what it does not know. So records
//! of a server outlive a change of its flags as far as the maker is still there to be asked.
//!
//! Root filesystems are named by instances, which are never used twice, in plugins as in the store:
//! the slow end of one does not keep its handle from the next.
//!
//! Everything here blocks: on disks, and on programs that may never end.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Mutex;

use garden_rootfs::plugin::{self, Order, Plugins};
use garden_rootfs::{
    BindRequest, CreateRequest, Credentials, DiskLimit, Enforced, ImageConfig, ImageSource,
    ImportOptions, Mapping, Progress, Rootfs, Scope, Stage, Store,
};
use tokio::sync::mpsc;

use crate::error::Error;
use crate::model::{
    self, BindMount, DiskMetrics, DiskScope, ImageRef, PullProgress, PullStage, PulledImage,
};
use crate::services::lock;

/// The store and the plugins of one server.
pub(crate) struct Roots {
    store: Store,
    plugins: Plugins,
    /// Where image layouts for plugins are made.
    layouts: PathBuf,
    /// Mounts whose last reference costs a sync, by root filesystem.
    held: Mutex<HashMap<String, OwnedFd>>,
}

/// What is to be made.
pub(crate) struct Wanted<'a> {
    /// Its name.
    pub(crate) id: &'a str,
    pub(crate) image: &'a ImageRef,
    pub(crate) privileged: bool,
    pub(crate) read_only: bool,
    /// Whose ids its files get.
    pub(crate) mapping: Mapping,
    pub(crate) limit: Option<model::DiskLimit>,
}

/// A root filesystem that was made.
pub(crate) struct Root {
    /// Its mount, detached.
    pub(crate) mount: OwnedFd,
    /// Whether the kernel never syncs it.
    pub(crate) volatile: bool,
    /// What its image says about running it.
    pub(crate) config: ImageConfig,
    /// What a plugin wants to be mounted as well, before everything else.
    pub(crate) binds: Vec<BindMount>,
    /// Why a limit that was asked for does not hold, or not whole.
    pub(crate) not_enforced: Option<String>,
}

impl Root {
    fn of(rootfs: Rootfs) -> Self {
        Self {
            mount: rootfs.mount,
            volatile: rootfs.volatile,
            config: rootfs.config,
            binds: Vec::new(),
            not_enforced: match rootfs.limit.enforced {
                Enforced::None | Enforced::Kernel => None,
                Enforced::BytesOnly { why } | Enforced::Accounted { why } => Some(why),
            },
        }
    }
}

impl Roots {
    pub(crate) fn new(store: Store, plugins: Plugins, layouts: PathBuf) -> Self {
        Self {
            store,
            plugins,
            layouts,
            held: Mutex::default(),
        }
    }

    /// The server's own store.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Whether a kind of container gets its root filesystems from a plugin.
    pub(crate) fn by_plugin(&self, privileged: bool) -> bool {
        self.plugins.of(privileged).is_some()
    }

    /// Whether there is any plugin.
    pub(crate) fn has_plugins(&self) -> bool {
        !self.plugins.is_empty()
    }

    /// Makes a root filesystem, importing its image first where that is missing.
    pub(crate) fn make(&self, wanted: &Wanted<'_>) -> Result<Root, Error> {
        let source = ImageSource::parse(&wanted.image.uri);
        if let Ok(ImageSource::Raw(path)) = &source {
            // Never a plugin's: it is used as it is.
            let bound = self.store.bind(&BindRequest {
                id: wanted.id,
                path,
                read_only: wanted.read_only,
            });
            return Ok(Root::of(bound?));
        }
        match self.make_by_plugin(wanted) {
            Some(root) => root,
            None => self.make_here(wanted, &source?),
        }
    }

    fn make_here(&self, wanted: &Wanted<'_>, source: &ImageSource) -> Result<Root, Error> {
        let credentials = credentials(wanted.image);
        let mut options = ImportOptions::default();
        options.credentials = credentials.as_ref();
        let image = self.store.import_with(source, &options)?;
        let created = self.store.create(&CreateRequest {
            id: wanted.id,
            image: &image,
            mapping: wanted.mapping.clone(),
            read_only: wanted.read_only,
            limit: limit(wanted.limit.as_ref()),
        });
        Ok(Root::of(created?))
    }

    fn make_by_plugin(&self, wanted: &Wanted<'_>) -> Option<Result<Root, Error>> {
        self.plugins.of(wanted.privileged)?;
        // The last part of the name of an instance is random; it is gone when this returns.
        let layout = self.layouts.join(wanted.id);
        let uri = match plugin::layout(&wanted.image.uri, &layout) {
            Ok(uri) => uri,
            Err(error) => return Some(Err(error.into())),
        };
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let (username, password) = (text(&wanted.image.username), text(&wanted.image.password));
        let order = Order {
            uri: uri.as_deref().unwrap_or(&wanted.image.uri),
            id: wanted.id,
            limit: plugin_limit(wanted.limit.as_ref()),
            username: &username,
            password: &password,
        };
        let provided = self.plugins.create(&order, wanted.privileged);
        if uri.is_some()
            && let Err(error) = std::fs::remove_dir_all(&layout)
        {
            tracing::warn!(%error, layout = %layout.display(), "an image layout is left behind");
        }
        let provided = match provided? {
            Ok(provided) => provided,
            Err(error) => return Some(Err(error.into())),
        };
        let binds = provided.binds.into_iter().map(|bind| BindMount {
            source: bind.source,
            destination: bind.destination,
            writable: bind.writable,
        });
        Some(Ok(Root {
            mount: provided.mount,
            volatile: provided.volatile,
            config: ImageConfig {
                env: provided.env,
                ..ImageConfig::default()
            },
            binds: binds.collect(),
            not_enforced: None,
        }))
    }

    /// Brings an image into the store. What happens on the way is told as long as somebody listens.
    pub(crate) fn pull(
        &self,
        image: &ImageRef,
        progress: &mpsc::Sender<PullProgress>,
    ) -> Result<PulledImage, Error> {
        if self.by_plugin(false) {
            return Err(Error::Invalid(
                "this server's images are with an image plugin, which fetches them when they are \
                 used"
                    .to_owned(),
            ));
        }
        let credentials = credentials(image);
        let tell = |event| {
            if let Some(event) = PullProgress::of(event) {
                // Who does not listen misses it: others may wait for this import.
                let _ = progress.try_send(event);
            }
        };
        let mut options = ImportOptions::default();
        options.credentials = credentials.as_ref();
        options.progress = Some(&tell);
        let source = ImageSource::parse(&image.uri)?;
        let image = self.store.import_with(&source, &options)?;
        Ok(PulledImage {
            id: image.id.to_string(),
            source: image.source.clone(),
            layers: image.layers.len(),
            bytes: image.size(),
        })
    }

    /// Keeps a mount whose last close would sync, until its end.
    pub(crate) fn hold(&self, id: &str, volatile: bool, mount: OwnedFd) {
        if !volatile {
            lock(&self.held).insert(id.to_owned(), mount);
        }
    }

    /// Gives up a kept mount.
    pub(crate) fn release(&self, id: &str) -> Option<OwnedFd> {
        lock(&self.held).remove(id)
    }

    /// Takes a root filesystem away, whoever made it. A mount that would sync is closed when its
    /// data is gone. Runs programs: for a thread that may be stuck.
    pub(crate) fn destroy(&self, id: &str) -> Result<(), Error> {
        let held = self.release(id);
        if self.plugins.is_empty() {
            self.store.destroy_holding(id, held.into_iter().collect())?;
            return Ok(());
        }
        if self.store.contains(id) {
            self.store.destroy_holding(id, held.into_iter().collect())?;
            return Ok(());
        }
        match self.plugins.delete(id) {
            // What is left of the mount is in nobody's way, and has nothing to write.
            Ok(()) => drop(held),
            Err(error) => {
                if let Some(held) = held {
                    self.hold(id, false, held);
                }
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// What a root filesystem takes. Runs programs where it is a plugin's.
    pub(crate) fn usage(&self, id: &str) -> Result<DiskMetrics, Error> {
        if !self.store.contains(id)
            && let Some(stats) = self.plugins.stats(id)
        {
            let usage = stats?;
            return Ok(DiskMetrics {
                total_bytes: usage.total_bytes_used,
                exclusive_bytes: usage.exclusive_bytes_used,
                ..DiskMetrics::default()
            });
        }
        match self.store.usage(id) {
            Ok(usage) => Ok(DiskMetrics {
                total_bytes: usage.total_bytes(),
                total_inodes: usage.total_inodes(),
                exclusive_bytes: usage.exclusive_bytes,
                exclusive_inodes: usage.exclusive_inodes,
            }),
            // Destroyed meanwhile.
            Err(garden_rootfs::Error::NoSuchRootfs(_)) => Ok(DiskMetrics::default()),
            Err(error) => Err(error.into()),
        }
    }

    /// How many bytes a plugin's store holds; `None` where the disk of the store counts.
    pub(crate) fn plugin_capacity(&self) -> Option<u64> {
        self.plugins.capacity()
    }
}

fn credentials(image: &ImageRef) -> Option<Credentials> {
    let given = image.username.is_some() || image.password.is_some();
    given.then(|| Credentials {
        username: image.username.clone().unwrap_or_default(),
        password: image.password.clone().unwrap_or_default(),
    })
}

fn limit(limit: Option<&model::DiskLimit>) -> DiskLimit {
    limit.map_or_else(DiskLimit::default, |limit| DiskLimit {
        bytes: limit.bytes,
        inodes: limit.inodes,
        scope: match limit.scope {
            DiskScope::Total => Scope::Total,
            DiskScope::Exclusive => Scope::Exclusive,
        },
    })
}

fn plugin_limit(limit: Option<&model::DiskLimit>) -> Option<plugin::Limit> {
    let limit = limit?;
    let bytes = limit.bytes.filter(|bytes| *bytes > 0)?;
    Some(plugin::Limit {
        bytes,
        with_image: limit.scope == DiskScope::Total,
    })
}

impl PullProgress {
    /// What the store tells, in the words of the API; nothing for what these have no word for.
    pub fn of(event: Progress) -> Option<Self> {
        Some(match event {
            Progress::Layers { total } => PullProgress::Layers { total },
            Progress::Layer {
                index,
                digest,
                stage,
                bytes,
                of,
            } => PullProgress::Layer {
                index,
                digest: digest.to_string(),
                stage: match stage {
                    Stage::Waiting => PullStage::Waiting,
                    Stage::Downloading => PullStage::Downloading,
                    Stage::Unpacking => PullStage::Unpacking,
                    Stage::Done => PullStage::Done,
                    Stage::Cached => PullStage::Cached,
                    _ => return None,
                },
                bytes,
                of,
            },
            _ => return None,
        })
    }
}
