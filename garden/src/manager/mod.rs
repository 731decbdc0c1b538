//! The manager: all containers of one server.
//!
//! - `create`, `destroy`: a container's beginning and end.
//! - `limits`: changing what a container may use.
//! - `network`: connecting a container, and what may change of that while it lives.
//! - `run`: processes and peas in it.
//! - `restore`, `take_up`, `sweep`: finding everything again after a restart.
//! - `table`: who has which handle.
//! - `health`: its health checks, and the events of all.
//! - `cleaner`: the stages of teardown.
//! - `backend`: the manager as the API server sees it.
//!
//! All methods may be called at the same time, also for the same container. A handle is taken by
//! making a directory, so two creates never both succeed, and each undoes only its own.

mod backend;
mod cleaner;
mod create;
mod destroy;
mod files;
mod health;
mod limits;
mod network;
mod restore;
mod run;
mod sweep;
mod table;
mod take_up;

use std::sync::{Arc, Mutex};

use garden_peas::teardown::{Options as QueueOptions, Queue};
use garden_rootfs::{Store, StoreOptions};

use crate::cgroup::Cgroups;
use crate::container::Container;
use crate::depot::Depot;
use crate::error::Error;
use crate::model::Handle;
use crate::network::{NetworkRecord, Networks};
use crate::runtime::zygote::{Zygote, ZygoteOptions};
pub use crate::services::{Ending, Options};
use crate::services::{Services, lock};
use cleaner::Cleaner;
pub(crate) use cleaner::pod_target;
pub use garden_peas::TeardownMode;
pub use garden_peas::teardown::{Snapshot as TeardownSnapshot, StageStats as TeardownStageStats};
pub use garden_rootfs::{Unmount, WithoutQuota};
use restore::Survey;
pub(crate) use run::start_known as start_process;
use table::Table;
use tokio::sync::watch;

/// All containers of one server. Cheap to clone.
#[derive(Clone)]
pub struct Manager(Arc<Inner>);

struct Inner {
    services: Arc<Services>,
    table: Table,
    /// Taken by whoever counts containers to take one more handle.
    reserving: Mutex<()>,
    /// Whether everything that an earlier server left is taken up.
    restored: watch::Sender<bool>,
}

impl Manager {
    /// Opens depot, store and cgroups, starts the zygote, and finds out what an earlier server
    /// left: its containers are known when this returns, and taken up in the background, where a
    /// call for one waits for it; what was left half done is on its way to be undone. Must be called
    /// within a tokio runtime.
    ///
    /// # Errors
    /// When another server has the depot or the store, or the host lacks something: the text
    /// says what.
    pub async fn open(options: Options) -> Result<Self, Error> {
        let opened = options.clone();
        let blocking = tokio::task::spawn_blocking(move || open_blocking(&opened));
        let (depot, cgroups, store, networks) = blocking
            .await
            .map_err(|error| Error::host("cannot open the server's state", error))??;
        let zygote = Zygote::start(ZygoteOptions {
            program: options.shim.clone(),
            tag: options.tag.clone(),
            cgroup2: cgroups
                .hierarchies()
                .unified
                .as_ref()
                .map(|unified| unified.path.clone()),
        });
        let zygote = zygote.await?;
        let services = Arc::new(Services::new(
            options, depot, cgroups, zygote, store, networks,
        )?);
        let surveyed = Arc::clone(&services);
        let survey = services
            .files
            .run(move || Survey::read(&surveyed))
            .await??;
        let cleaner = Cleaner::new(&services);
        let options = QueueOptions {
            deadline: services.options.ending.stage,
            ..QueueOptions::default()
        };
        let queue = Queue::open(services.depot.teardown(), cleaner, options)
            .map_err(|error| Error::host("cannot open the teardown queue", error))?;
        let _ = services.queue.set(queue);
        let manager = Self(Arc::new(Inner {
            services,
            table: Table::default(),
            reserving: Mutex::default(),
            restored: watch::Sender::new(false),
        }));
        manager.restore(survey);
        manager.services().networks.keep_repaired();
        if let Some(interval) = manager.services().options.throttling {
            let services = Arc::downgrade(manager.services());
            tokio::spawn(crate::metrics::throttle::run(services, interval));
        }
        Ok(manager)
    }

    /// Makes what a manager needs on the host, as [`Manager::open`] would, and leaves it there.
    ///
    /// # Errors
    /// As [`Manager::open`].
    pub async fn prepare(options: Options) -> Result<(), Error> {
        let made = tokio::task::spawn_blocking(move || {
            let failed = |error| Error::host("cannot make the runtime directory", error);
            std::fs::create_dir_all(&options.runtime_dir).map_err(failed)?;
            open_blocking(&options).map(drop)
        });
        made.await
            .map_err(|error| Error::host("cannot open the server's state", error))?
    }

    /// How much is waiting to be torn down, or is being.
    pub fn teardown_depth(&self) -> usize {
        self.services().queue().depth()
    }

    /// Everything it uses.
    pub(crate) fn services(&self) -> &Arc<Services> {
        &self.0.services
    }

    /// Makes a container known.
    fn insert(&self, container: Arc<Container>) {
        let name = container.handle.to_string();
        lock(&self.services().pods).insert(name, Arc::downgrade(&container));
        self.0.table.insert(container);
    }

    /// Forgets a container.
    fn remove(&self, handle: &Handle) {
        if let Some(container) = self.0.table.remove(handle) {
            self.services().free_ids(&container.record());
        }
        lock(&self.services().pods).remove(handle.as_str());
    }

    /// Handles of all containers.
    pub fn handles(&self) -> Vec<Handle> {
        let all = self.0.table.all().into_iter();
        all.map(|(handle, _)| handle).collect()
    }

    /// All containers that are taken up, in no order.
    pub(crate) fn all(&self) -> Vec<Arc<Container>> {
        let all = self.0.table.all().into_iter();
        all.filter_map(|(_, seat)| seat.ready()).collect()
    }

    /// Waits until nothing is left to take away; returns whether that came true in time.
    pub async fn settle(&self, patience: std::time::Duration) -> bool {
        let queue = self.services().queue().clone();
        let idle = async {
            // What is swept at a start is on its way from then on.
            self.restored().await;
            queue.wait_idle().await;
        };
        let idle = tokio::time::timeout(patience, idle).await.is_ok();
        let store = self.services().roots.store().clone();
        let emptied = self
            .services()
            .images
            .run(move || store.wait_trash_empty(patience));
        let disconnected = self.services().networks.settle(patience);
        let (emptied, disconnected) = tokio::join!(emptied, disconnected);
        idle && disconnected && emptied.unwrap_or(false)
    }

    /// The teardown queue at this moment, and what its stages did since the start: for metrics.
    /// Reads memory only.
    pub fn teardown_snapshot(&self) -> TeardownSnapshot {
        self.services().queue().snapshot()
    }

    /// Ends the teardown workers, leaving what is not done on file. Containers run on.
    pub async fn close(&self, grace: std::time::Duration) {
        self.services().queue().shutdown(grace).await;
        self.services().networks.settle(grace).await;
        self.services().timelines.close().await;
        self.services().zygote.close().await;
    }

    /// Removes what only an unused server leaves: the parents of its cgroups and its runtime
    /// directory. For servers that exist for one command; containers must be gone.
    pub fn remove_traces(&self) {
        let services = self.services();
        services.cgroups.remove_parents();
        if self.handles().is_empty() && services.queue().depth() == 0 {
            let _ = std::fs::remove_dir_all(services.depot.root());
        }
    }
}

type Opened = (Depot, Cgroups, Store, Networks);

fn open_blocking(options: &Options) -> Result<Opened, Error> {
    options.policy.check()?;
    let depot = Depot::open(&options.runtime_dir)?;
    let cgroups = Cgroups::open(options.tag.as_deref(), options.cgroups.clone())?;
    let mut store = StoreOptions::new(&options.store_dir);
    store.unmount = options.unmount;
    store.without_quota = options.without_quota;
    store.registry = options.registry.clone();
    store.collect.clone_from(&options.collect);
    let store = Store::open(&store)?;
    // Before the first job of teardown can run: it may be about a container's network.
    let networks = Networks::start(&options.network, depot.root(), known_networks(&depot)?)?;
    Ok((depot, cgroups, store, networks))
}

/// What earlier servers recorded of networks, also of containers that are to be taken away.
fn known_networks(depot: &Depot) -> Result<Vec<NetworkRecord>, Error> {
    let living = depot.names()?.into_iter().filter_map(|name| {
        let handle: Handle = name.parse().ok()?;
        depot.container(&handle).ok()?.read()
    });
    let gone = depot
        .gone_names()?
        .into_iter()
        .filter_map(|name| Some(depot.gone_record(&name)?.1));
    Ok(living.chain(gone).map(|record| record.network).collect())
}
