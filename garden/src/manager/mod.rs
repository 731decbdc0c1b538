//! The manager: all containers of one server.
//!
//! - `create`, `destroy`: a container's beginning and end.
//! - `limits`: changing what a container may use.
//! - `run`: processes and peas in it.
//! - `restore`: finding everything again after a restart.
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
mod restore;
mod run;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use garden_peas::teardown::{Options as QueueOptions, Queue};
use garden_rootfs::{Store, StoreOptions};

use crate::cgroup::Cgroups;
use crate::container::Container;
use crate::depot::Depot;
use crate::error::Error;
use crate::model::Handle;
use crate::runtime::zygote::{Zygote, ZygoteOptions};
pub use crate::services::Options;
use crate::services::{Services, lock};
use cleaner::Cleaner;
pub use garden_peas::TeardownMode;
pub use garden_rootfs::{Unmount, WithoutQuota};
pub(crate) use run::start_known as start_process;

/// All containers of one server. Cheap to clone.
#[derive(Clone)]
pub struct Manager(Arc<Inner>);

struct Inner {
    services: Arc<Services>,
    containers: Mutex<HashMap<Handle, Arc<Container>>>,
}

impl Manager {
    /// Opens depot, store and cgroups, starts the zygote, and finds again what an earlier server
    /// left: its containers are usable when this returns, what it left half done is on its way to
    /// be undone in the background. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When another server has the depot or the store, or the host lacks something: the text
    /// says what.
    pub async fn open(options: Options) -> Result<Self, Error> {
        let opened = options.clone();
        let blocking = tokio::task::spawn_blocking(move || open_blocking(&opened));
        let (depot, cgroups, store) = blocking
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
        let services = Arc::new(Services::new(options, depot, cgroups, zygote, store)?);
        let cleaner = Cleaner::new(&services);
        let queue = Queue::open(services.depot.teardown(), cleaner, QueueOptions::default())
            .map_err(|error| Error::host("cannot open the teardown queue", error))?;
        let _ = services.queue.set(queue);
        let manager = Self(Arc::new(Inner {
            services,
            containers: Mutex::default(),
        }));
        manager.restore().await?;
        if let Some(interval) = manager.services().options.throttling {
            let services = Arc::downgrade(manager.services());
            tokio::spawn(crate::metrics::throttle::run(services, interval));
        }
        Ok(manager)
    }

    /// Everything it uses.
    pub(crate) fn services(&self) -> &Arc<Services> {
        &self.0.services
    }

    /// A container that can be used.
    pub(crate) fn find(&self, handle: &Handle) -> Result<Arc<Container>, Error> {
        lock(&self.0.containers)
            .get(handle)
            .cloned()
            .ok_or_else(|| Error::ContainerNotFound(handle.clone()))
    }

    pub(crate) fn all(&self) -> Vec<Arc<Container>> {
        lock(&self.0.containers).values().cloned().collect()
    }

    /// Makes a container known.
    fn insert(&self, container: Arc<Container>) {
        let handle = container.handle.clone();
        let name = handle.as_str().to_owned();
        lock(&self.services().pods).insert(name, Arc::downgrade(&container));
        lock(&self.0.containers).insert(handle, container);
    }

    /// Forgets a container.
    fn remove(&self, handle: &Handle) {
        if let Some(container) = lock(&self.0.containers).remove(handle) {
            self.services().free_ids(&container.record());
        }
        lock(&self.services().pods).remove(handle.as_str());
    }

    /// Handles of all containers.
    pub fn handles(&self) -> Vec<Handle> {
        lock(&self.0.containers).keys().cloned().collect()
    }

    /// Waits until nothing is left to take away; returns whether that came true in time.
    pub async fn settle(&self, patience: std::time::Duration) -> bool {
        let queue = self.services().queue().clone();
        let idle = tokio::time::timeout(patience, queue.wait_idle())
            .await
            .is_ok();
        let store = self.services().roots.store().clone();
        let emptied = self
            .services()
            .images
            .run(move || store.wait_trash_empty(patience));
        idle && emptied.await.unwrap_or(false)
    }

    /// Ends the teardown workers, leaving what is not done on file. Containers run on.
    pub async fn close(&self, grace: std::time::Duration) {
        self.services().queue().shutdown(grace).await;
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

fn open_blocking(options: &Options) -> Result<(Depot, Cgroups, Store), Error> {
    options.policy.check()?;
    let depot = Depot::open(&options.runtime_dir)?;
    let cgroups = Cgroups::open(options.tag.as_deref(), options.cgroups.clone())?;
    let mut store = StoreOptions::new(&options.store_dir);
    store.unmount = options.unmount;
    store.without_quota = options.without_quota;
    store.registry = options.registry.clone();
    store.collect.clone_from(&options.collect);
    let store = Store::open(&store)?;
    Ok((depot, cgroups, store))
}
