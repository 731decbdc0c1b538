//! What every container of one server uses: depot, store, cgroups, zygote, worker threads.
//!
//! Made once by the manager; held by it, by each container and by the stages of teardown. No
//! lock in here is held across anything but a look into a table.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use garden_peas::TeardownMode;
use garden_peas::histogram::Histogram;
use garden_peas::teardown::Queue;
use garden_rootfs::plugin::Plugins;
use garden_rootfs::{CollectPolicy, Mapping, Store, WithoutQuota};

use crate::bundle::{self, IdRange};
use crate::cgroup::{Cgroups, Devices};
use crate::container::Container;
use crate::depot::{ContainerRecord, Depot};
use crate::devices;
use crate::error::Error;
use crate::events::Events;
use crate::group_names::GroupNames;
use crate::ids::{self, Pool};
use crate::model::ContainerSpec;
use crate::model::{DiskLimit, DiskMetrics, ImageRef};
use crate::network::{self, Networks};
use crate::policy::Policy;
use crate::roots::{Root, Roots, Wanted};
use crate::runtime::zygote::Zygote;
use crate::timeline::Timelines;
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
    /// Who makes root filesystems instead of the server's own store.
    pub plugins: Plugins,
    /// When the store gives up unused images by itself; `None` for never.
    pub collect: Option<CollectPolicy>,
    /// How the store speaks to registries.
    pub registry: garden_rootfs::RegistryPolicy,
    /// When a pea's teardown is done, seen from its client.
    pub teardown: TeardownMode,
    /// What holds for the limits of every container.
    pub cgroups: crate::cgroup::Policy,
    /// Hundredths of a CPU that each share entitles to; `None` divides the host by its memory.
    pub cpu_entitlement_per_share: Option<f64>,
    /// How often containers that used more of the CPU than they are entitled to are looked for, to
    /// put them behind the others; `None` is never.
    pub throttling: Option<Duration>,
    /// Id map of unprivileged containers, for users and groups alike.
    pub ids: Vec<IdRange>,
    /// A range of ids for each unprivileged container instead of the one map.
    pub id_ranges: Option<ids::Plan>,
    /// What the operator decides for all containers.
    pub policy: Policy,
    /// The network of containers.
    pub network: network::Config,
    /// How long the steps of an end may take.
    pub ending: Ending,
    /// Whether a server destroys what an earlier one left, before it serves.
    pub destroy_on_start: bool,
}

/// How long the steps of an end may take before somebody is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// Killed processes may take so long to be gone; then a destroy fails, names one that is not, its
    /// state and where in the kernel it waits, and can be tried again.
    pub death: Duration,
    /// So long the end of a destroy waits until clients of dead processes are told.
    pub announcement: Duration,
    /// A stage of the teardown that takes longer counts as stuck: it is shown as such, and goes on
    /// aside without keeping others.
    pub stage: Duration,
}

impl Default for Ending {
    fn default() -> Self {
        Self {
            death: Duration::from_secs(10),
            announcement: Duration::from_secs(2),
            stage: Duration::from_secs(10),
        }
    }
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
            plugins: Plugins::default(),
            collect: Some(CollectPolicy::default()),
            registry: garden_rootfs::RegistryPolicy::default(),
            teardown: TeardownMode::Queued,
            cgroups: crate::cgroup::Policy::default(),
            cpu_entitlement_per_share: None,
            throttling: None,
            ids: ids::shared(1, None),
            id_ranges: None,
            policy: Policy::default(),
            network: network::Config::default(),
            ending: Ending::default(),
            destroy_on_start: false,
        }
    }
}

/// How long metrics wait for the store.
const USAGE_PATIENCE: Duration = Duration::from_secs(2);

/// Numbers of events that one server has for itself, so that those of a later one are higher. More
/// than it can use up, and leaves room for two million starts below 2^53.
const EVENTS_OF_A_START: u64 = 1 << 32;

/// What every container of one server uses.
pub(crate) struct Services {
    pub(crate) options: Options,
    pub(crate) depot: Depot,
    pub(crate) cgroups: Cgroups,
    pub(crate) zygote: Zygote,
    pub(crate) roots: Arc<Roots>,
    pub(crate) networks: Networks,
    /// For short calls: cgroup files, user lookups.
    pub(crate) files: Workers,
    /// For calls of the store that may take long.
    pub(crate) images: Workers,
    /// For reading what groups use, so that measuring never waits for starting, nor it for that.
    pub(crate) meters: Workers,
    /// Running peas by id.
    pub(crate) pea_index: crate::metrics::PeaIndex,
    /// For asking what root filesystems use: a store that is stuck must not stop other metrics.
    pub(crate) usage: Workers,
    /// For calls of image plugins, which may take for ever.
    pub(crate) plugins: Workers,
    /// The capabilities of privileged processes, as far as the host has them.
    pub(crate) privileged_capabilities: Vec<String>,
    /// Ids for containers to have of their own, where the operator wants that.
    id_pool: Option<Pool>,
    /// Containers by handle, for the stages of teardown; the manager owns them.
    pub(crate) pods: Mutex<HashMap<String, Weak<Container>>>,
    /// Who has which cgroup.
    pub(crate) group_names: GroupNames,
    /// What takes away what peas and containers leave; set once, right after this is made.
    pub(crate) queue: OnceLock<Queue>,
    /// What happens, for whoever listens.
    pub(crate) events: Events,
    /// How long it takes, for whoever looks.
    pub(crate) timelines: Timelines,
    /// From the end of a health check that changed something to the news of it.
    pub(crate) health_latency: Histogram,
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
        networks: Networks,
    ) -> Result<Self, Error> {
        let threads = |error| Error::host("cannot start worker threads", error);
        let layouts = options.runtime_dir.join("layouts");
        let starts = depot.count_start()?;
        let timelines = Timelines::start(&options.runtime_dir).map_err(threads)?;
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        Ok(Self {
            roots: Arc::new(Roots::new(store, options.plugins.clone(), layouts)),
            id_pool: options.id_ranges.map(Pool::new),
            options,
            depot,
            cgroups,
            zygote,
            networks,
            files: Workers::start("garden-files", 4).map_err(threads)?,
            images: Workers::start("garden-images", 8).map_err(threads)?,
            meters: Workers::start("garden-meters", 2).map_err(threads)?,
            pea_index: crate::metrics::PeaIndex::default(),
            usage: Workers::start("garden-usage", 2).map_err(threads)?,
            privileged_capabilities: bundle::held_by_host(&status),
            timelines,
            pods: Mutex::default(),
            group_names: GroupNames::default(),
            plugins: Workers::start("garden-plugins", 8).map_err(threads)?,
            queue: OnceLock::new(),
            events: Events::after(starts.saturating_mul(EVENTS_OF_A_START)),
            health_latency: Histogram::default(),
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

    /// What a container and its peas may do with devices.
    pub(crate) fn devices(spec: &ContainerSpec) -> Devices {
        Devices {
            privileged: spec.privileged,
            rules: devices::rules(&spec.devices, &spec.device_rules),
        }
    }

    /// Makes a root filesystem, importing its image first where that is missing.
    pub(crate) async fn make_rootfs(
        &self,
        id: &str,
        image: &ImageRef,
        privileged: bool,
        ids: &[IdRange],
        limit: Option<DiskLimit>,
    ) -> Result<Root, Error> {
        let roots = Arc::clone(&self.roots);
        let (name, image) = (id, image.clone());
        let id = id.to_owned();
        let mapping = mapping(privileged, ids);
        // Programs that may never end have threads of their own.
        let workers = if roots.by_plugin(privileged) {
            &self.plugins
        } else {
            &self.images
        };
        let made = workers.run(move || {
            roots.make(&Wanted {
                id: &id,
                image: &image,
                privileged,
                read_only: false,
                mapping,
                limit,
            })
        });
        let root = made.await??;
        if let Some(why) = &root.not_enforced {
            tracing::warn!(rootfs = name, why, "the disk limit does not hold");
        }
        Ok(root)
    }

    /// What a root filesystem uses; `None` when the store does not tell in time, so that other
    /// metrics of the container are known all the same.
    pub(crate) async fn disk_usage(&self, id: &str) -> Option<DiskMetrics> {
        let (roots, id) = (Arc::clone(&self.roots), id.to_owned());
        // A plugin that hangs must not take the metrics of the store along.
        let workers = if roots.has_plugins() {
            &self.plugins
        } else {
            &self.usage
        };
        let asked = workers.run(move || roots.usage(&id));
        match tokio::time::timeout(USAGE_PATIENCE, asked).await {
            Ok(Ok(Ok(usage))) => Some(usage),
            Ok(Ok(Err(error))) => {
                let error = crate::error::report(&error);
                tracing::warn!(error, "no disk metrics");
                None
            }
            Ok(Err(panicked)) => {
                tracing::error!(%panicked, "no disk metrics");
                None
            }
            Err(_) => {
                tracing::warn!("no disk metrics: the store does not answer");
                None
            }
        }
    }

    /// The id map of a new container.
    ///
    /// # Errors
    /// [`Error::Exhausted`] when each has a range of its own and all are taken.
    pub(crate) fn take_ids(&self, privileged: bool) -> Result<Vec<IdRange>, Error> {
        match &self.id_pool {
            _ if privileged => Ok(Vec::new()),
            None => Ok(self.options.ids.clone()),
            Some(pool) => pool.take().ok_or_else(|| {
                Error::Exhausted(
                    "all ranges of ids for containers are taken: make --ids-per-container \
                     smaller, or destroy containers"
                        .to_owned(),
                )
            }),
        }
    }

    /// Notes the ids of a container that an earlier server made.
    pub(crate) fn claim_ids(&self, record: &ContainerRecord) {
        if let Some(pool) = &self.id_pool {
            pool.claim(&record.ids);
        }
    }

    /// Frees the ids of a container that is no more.
    pub(crate) fn free_ids(&self, record: &ContainerRecord) {
        if let Some(pool) = &self.id_pool {
            pool.give_back(&record.ids);
        }
    }

    /// The id map of a container; nothing for a privileged one.
    pub(crate) fn ids(&self, record: &ContainerRecord) -> Vec<IdRange> {
        match (record.spec.privileged, record.ids.as_slice()) {
            (true, _) => Vec::new(),
            // Of a release that did not write it down.
            (false, []) => self.options.ids.clone(),
            (false, ids) => ids.to_vec(),
        }
    }
}

/// Whose ids the files of a root filesystem carry.
fn mapping(privileged: bool, ids: &[IdRange]) -> Mapping {
    if privileged {
        return Mapping::Host;
    }
    let ranges: Vec<_> = ids
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

/// The user and the group that a process's own are on the host.
///
/// # Errors
/// [`Error::Invalid`] when its container does not have them.
pub(crate) fn owner(ids: &[IdRange], user: &crate::users::User) -> Result<(u32, u32), Error> {
    let on_host = |what: &str, inside| {
        ids::on_host(ids, inside).ok_or_else(|| {
            Error::Invalid(format!(
                "{what} {inside} is not one of the ids of this container, which ends before it: \
                 use a smaller one"
            ))
        })
    };
    Ok((on_host("user", user.uid)?, on_host("group", user.gid)?))
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
    let Some(state) = state else {
        return "unknown (it may be gone by now)".to_owned();
    };
    // The function of the kernel that it sleeps in: of a frozen one, the freezer's.
    let place = std::fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
    match place.trim() {
        "" | "0" => state.trim().to_owned(),
        place => format!("{}, waiting in {place}", state.trim()),
    }
}
