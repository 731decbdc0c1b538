//! What every container of one server uses: depot, store, cgroups, zygote, worker threads.
//!
//! Made once by the manager; held by it, by each container and by the stages of teardown. No
//! lock in here is held across anything but a look into a table.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use garden_peas::TeardownMode;
use garden_peas::teardown::Queue;
use garden_rootfs::{
    CreateRequest, Enforced, Image, ImageSource, Mapping, Rootfs, Scope, Store, WithoutQuota,
};

use crate::bundle::{self, IdRange};
use crate::cgroup::{Cgroups, Devices};
use crate::container::Container;
use crate::depot::Depot;
use crate::error::Error;
use crate::model::{DiskLimit, DiskMetrics, DiskScope, ImageRef};
use crate::runtime::zygote::Zygote;
use crate::workers::Workers;

/// How a server is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// Directory of sockets and records; on a tmpfs.
    pub runtime_dir: PathBuf,
    /// Directory of images and root filesystems.
    pub store_dir: PathBuf,
    /// Told apart from other servers of this host by this, in the names of cgroups.
    pub tag: Option<String>,
    /// The `garden-shim` executable.
    pub shim: PathBuf,
    /// What a container without an image gets.
    pub default_image: Option<String>,
    /// Most containers at a time; `None` is unlimited.
    pub max_containers: Option<usize>,
    /// Whether the end of a root filesystem may cost a sync.
    pub unmount: garden_rootfs::Unmount,
    /// What becomes of disk limits where the store's file system cannot enforce them.
    pub without_quota: WithoutQuota,
    /// When a pea's teardown is done, seen from its client.
    pub teardown: TeardownMode,
    /// Id map of unprivileged containers, for users and groups alike.
    pub ids: Vec<IdRange>,
}

impl Options {
    /// The defaults, around three places.
    pub fn new(runtime_dir: PathBuf, store_dir: PathBuf, shim: PathBuf) -> Self {
        Self {
            runtime_dir,
            store_dir,
            tag: None,
            shim,
            default_image: None,
            max_containers: None,
            unmount: garden_rootfs::Unmount::default(),
            without_quota: WithoutQuota::default(),
            teardown: TeardownMode::Queued,
            ids: default_ids(),
        }
    }
}

/// Container root is the host's highest id, which nobody else has; every other id is itself.
fn default_ids() -> Vec<IdRange> {
    let table = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let highest = table
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace().map(str::parse::<u64>);
            let (Some(Ok(first)), _, Some(Ok(size))) =
                (fields.next(), fields.next(), fields.next())
            else {
                return None;
            };
            u32::try_from(
                (first + size)
                    .saturating_sub(1)
                    .min(u64::from(u32::MAX - 1)),
            )
            .ok()
        })
        .max()
        .unwrap_or(u32::MAX - 1);
    vec![
        IdRange {
            inside: 0,
            outside: highest,
            size: 1,
        },
        IdRange {
            inside: 1,
            outside: 1,
            size: highest - 1,
        },
    ]
}

/// How long metrics wait for the store.
const USAGE_PATIENCE: Duration = Duration::from_secs(2);

/// A disk limit in the store's words.
fn limit_of(disk: Option<DiskLimit>) -> garden_rootfs::DiskLimit {
    let disk = disk.unwrap_or_default();
    garden_rootfs::DiskLimit {
        bytes: disk.bytes,
        inodes: disk.inodes,
        scope: match disk.scope {
            DiskScope::Total => Scope::Total,
            DiskScope::Exclusive => Scope::Exclusive,
        },
    }
}

/// Why a limit that was asked for does not hold, or not whole.
pub(crate) fn not_enforced(rootfs: &Rootfs) -> Option<&str> {
    match &rootfs.limit.enforced {
        Enforced::None | Enforced::Kernel => None,
        Enforced::BytesOnly { why } | Enforced::Accounted { why } => Some(why),
    }
}

/// What every container of one server uses.
pub(crate) struct Services {
    pub(crate) options: Options,
    pub(crate) depot: Depot,
    pub(crate) cgroups: Cgroups,
    pub(crate) zygote: Zygote,
    pub(crate) store: Store,
    /// For short calls: cgroup files, user lookups.
    pub(crate) files: Workers,
    /// For calls of the store that may take long.
    pub(crate) images: Workers,
    /// For asking what root filesystems use: a store that is stuck must not stop other metrics.
    usage: Workers,
    /// The capabilities of privileged processes, as far as the host has them.
    pub(crate) privileged_capabilities: Vec<String>,
    /// Containers by handle, for the stages of teardown; the manager owns them.
    pub(crate) pods: Mutex<HashMap<String, Weak<Container>>>,
    /// What takes away what peas and containers leave; set once, right after this is made.
    pub(crate) queue: OnceLock<Queue>,
    /// Mounts whose last reference costs a sync, by root filesystem.
    held_mounts: Mutex<HashMap<String, OwnedFd>>,
}

/// Locks a table whose holder cannot panic half-way through a change.
pub(crate) fn lock<T>(table: &Mutex<T>) -> MutexGuard<'_, T> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Services {
    /// Opens everything. Blocks; what is started stays with the value.
    pub(crate) fn new(
        options: Options,
        depot: Depot,
        cgroups: Cgroups,
        zygote: Zygote,
        store: Store,
    ) -> Result<Self, Error> {
        let threads = |error| Error::host("cannot start worker threads", error);
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        Ok(Self {
            options,
            depot,
            cgroups,
            zygote,
            store,
            files: Workers::start("garden-files", 4).map_err(threads)?,
            images: Workers::start("garden-images", 8).map_err(threads)?,
            usage: Workers::start("garden-usage", 2).map_err(threads)?,
            privileged_capabilities: bundle::held_by_host(&status),
            pods: Mutex::default(),
            queue: OnceLock::new(),
            held_mounts: Mutex::default(),
        })
    }

    /// The teardown queue.
    pub(crate) fn queue(&self) -> &Queue {
        // The manager sets it before it makes or finds the first container.
        self.queue
            .get()
            .expect("the queue is set before any container exists")
    }

    /// Capabilities of processes.
    pub(crate) fn capabilities(&self, privileged: bool) -> Vec<String> {
        if privileged {
            self.privileged_capabilities.clone()
        } else {
            bundle::UNPRIVILEGED
                .iter()
                .map(|name| (*name).to_owned())
                .collect()
        }
    }

    /// Which shared group restricts the devices.
    pub(crate) fn devices(privileged: bool) -> Devices {
        if privileged {
            Devices::Privileged
        } else {
            Devices::Unprivileged
        }
    }

    /// Makes a root filesystem, importing its image first where that is missing.
    pub(crate) async fn make_rootfs(
        &self,
        id: &str,
        image: &ImageRef,
        privileged: bool,
        read_only: bool,
        disk: Option<DiskLimit>,
    ) -> Result<Rootfs, Error> {
        let source = ImageSource::parse(&image.uri)?;
        let store = self.store.clone();
        let id = id.to_owned();
        let mapping = self.mapping(privileged);
        let made = self.images.run(move || {
            let image: Image = store.import(&source)?;
            store.create(&CreateRequest {
                id: &id,
                image: &image,
                mapping,
                read_only,
                limit: limit_of(disk),
            })
        });
        let rootfs = made.await??;
        if let Some(why) = not_enforced(&rootfs) {
            tracing::warn!(rootfs = rootfs.id, why, "the disk limit does not hold");
        }
        Ok(rootfs)
    }

    /// What a root filesystem uses; nothing when the store does not tell in time, so that other
    /// metrics of the container are known all the same.
    pub(crate) async fn disk_usage(&self, id: &str) -> DiskMetrics {
        let (store, id) = (self.store.clone(), id.to_owned());
        let asked = self.usage.run(move || store.usage(&id));
        match tokio::time::timeout(USAGE_PATIENCE, asked).await {
            Ok(Ok(Ok(usage))) => DiskMetrics {
                total_bytes: usage.total_bytes(),
                total_inodes: usage.total_inodes(),
                exclusive_bytes: usage.exclusive_bytes,
                exclusive_inodes: usage.exclusive_inodes,
            },
            Ok(Ok(Err(garden_rootfs::Error::NoSuchRootfs(_)))) => DiskMetrics::default(),
            Ok(Ok(Err(error))) => {
                let error = crate::error::report(&error);
                tracing::warn!(error, "no disk metrics");
                DiskMetrics::default()
            }
            Ok(Err(panicked)) => {
                tracing::error!(%panicked, "no disk metrics");
                DiskMetrics::default()
            }
            Err(_) => {
                tracing::warn!("no disk metrics: the store does not answer");
                DiskMetrics::default()
            }
        }
    }

    fn mapping(&self, privileged: bool) -> Mapping {
        if privileged {
            return Mapping::Host;
        }
        let ranges: Vec<_> = self
            .options
            .ids
            .iter()
            .map(|range| garden_sys::userns::IdRange {
                inside: range.inside,
                host: range.outside,
                size: range.size,
            })
            .collect();
        Mapping::Mapped {
            uid: ranges.clone(),
            gid: ranges,
        }
    }

    /// Keeps a mount whose last close would sync, until its teardown.
    pub(crate) fn hold_mount(&self, id: &str, volatile: bool, mount: OwnedFd) {
        if !volatile {
            lock(&self.held_mounts).insert(id.to_owned(), mount);
        }
    }

    /// Gives a kept mount to its teardown.
    pub(crate) fn release_mount(&self, id: &str) -> Option<OwnedFd> {
        lock(&self.held_mounts).remove(id)
    }
}

/// A name that was never used before: for instances, root filesystems, cgroups of peas.
pub(crate) fn new_instance() -> String {
    uuid::Uuid::now_v7().simple().to_string()
}

/// Milliseconds since the epoch.
pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// The state of a process in the kernel's words (`D (disk sleep)`), for a person who wants to know
/// why it does not end.
pub(crate) fn process_state(pid: i32) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let state = status.lines().find_map(|line| line.strip_prefix("State:"));
    state.map_or_else(
        || "unknown (it may be gone by now)".to_owned(),
        |text| text.trim().to_owned(),
    )
}
