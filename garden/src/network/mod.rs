//! The one home of containers' networks: whatever connects them, the manager speaks to this.
//!
//! ```text
//! manager ── Networks ── dyn Provider ── built_in   the network of `garden-net`
//!              │                         loopback   none but its own loopback
//!              └─ names                  (others)   a program that is told what to do
//! ```
//!
//! [`Networks`] is made once by the manager, before the first job of the teardown queue can run.
//! Which [`Provider`] it has is the operator's choice ([`Config`]). Providers block; everything
//! here moves their calls to threads of their own, which never leave the network namespace of the
//! host, so that a program that hangs takes nothing else along.
//!
//! What a container has is its [`NetworkRecord`]. It is kept in the container's record, written
//! after each call that changed it; there is no second place that could disagree.

mod built_in;
pub(crate) mod claim;
pub mod config;
mod error;
mod loopback;
pub(crate) mod names;
mod provider;
mod record;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

pub use config::Config;
pub use garden_net::detect::other_filters;
pub(crate) use provider::{Connected, Provider, Wanted};
pub use record::{NetworkRecord, Own};

use crate::error::Error;
use crate::model::{ContainerSpec, Handle, NetOutRule, NetworkMetrics, PortMapping};
use crate::workers::Workers;

/// As many calls of providers run at a time: those of the built-in network are short, programs
/// mostly wait.
const THREADS: usize = 8;

/// How often the kernel is compared with the records: somebody may have emptied the packet filter.
const REPAIR_EVERY: Duration = Duration::from_secs(60);

/// The networks of one server's containers. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Networks {
    provider: Arc<dyn Provider>,
    names: Arc<config::Names>,
    workers: Workers,
}

/// Who is connected.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) handle: Handle,
    pub(crate) instance: String,
}

impl Networks {
    /// Starts what the operator has chosen. Blocks. `known` is all that earlier servers recorded, also
    /// of containers that wait to be taken away.
    ///
    /// # Errors
    /// When an option has no meaning on this host, or the host lacks something: the text says what.
    pub(crate) fn start(
        config: &Config,
        runtime_dir: &std::path::Path,
        known: Vec<NetworkRecord>,
    ) -> Result<Self, Error> {
        let provider: Arc<dyn Provider> = match &config.kind {
            config::Kind::Loopback => Arc::new(loopback::Loopback),
            config::Kind::BuiltIn(options) => Arc::new(built_in::BuiltIn::start(
                options,
                &config.names,
                runtime_dir,
                known,
            )?),
        };
        let workers = Workers::start("garden-network", THREADS)
            .map_err(|error| Error::host("cannot start worker threads", error))?;
        Ok(Self {
            provider,
            names: Arc::new(config.names.clone()),
            workers,
        })
    }

    /// Refuses what could never be connected, before anything is made. Does not block.
    pub(crate) fn check(&self, spec: &ContainerSpec) -> Result<(), Error> {
        self.provider.check(spec)
    }

    /// How many containers there is room for; `None` is without a limit.
    pub(crate) fn capacity(&self) -> Option<u64> {
        self.provider.capacity()
    }

    /// What containers are told about names; see [`config::Names`].
    pub(crate) fn names(&self) -> Arc<config::Names> {
        Arc::clone(&self.names)
    }

    /// Connects a container, whose init runs and whose pid cannot be another's yet.
    pub(crate) async fn connect(
        &self,
        member: Member,
        spec: ContainerSpec,
        (init_pid, namespace): (u32, OwnedFd),
    ) -> Result<Connected, Error> {
        let provider = Arc::clone(&self.provider);
        let connected = self.workers.run(move || {
            provider.connect(&Wanted {
                handle: &member.handle,
                instance: &member.instance,
                spec: &spec,
                init_pid,
                namespace: &namespace,
            })
        });
        connected.await?
    }

    /// Takes everything away that a container has, or may have if there is no record. Blocks; for
    /// the stage of teardown, on a thread of its own.
    pub(crate) fn disconnect(
        &self,
        handle: &str,
        instance: &str,
        record: Option<&NetworkRecord>,
    ) -> Result<(), Error> {
        self.provider.disconnect(handle, instance, record)
    }

    /// Leads a port of the host into a container. Returns it with the record as it is now.
    pub(crate) async fn net_in(
        &self,
        member: Member,
        record: NetworkRecord,
        wish: PortMapping,
    ) -> Result<(PortMapping, NetworkRecord), Error> {
        let provider = Arc::clone(&self.provider);
        let mapped = self
            .workers
            .run(move || provider.net_in(&member.handle, &record, wish));
        mapped.await?
    }

    /// Lets a container reach more: all rules or none. Returns the record as it is now.
    pub(crate) async fn net_out(
        &self,
        member: Member,
        record: NetworkRecord,
        rules: Vec<NetOutRule>,
    ) -> Result<NetworkRecord, Error> {
        let provider = Arc::clone(&self.provider);
        let changed = self
            .workers
            .run(move || provider.net_out(&member.handle, &record, &rules));
        changed.await?
    }

    /// What went through a container's network so far. Blocks for a moment, for the threads that
    /// measure.
    pub(crate) fn usage(&self, record: &NetworkRecord) -> Result<Option<NetworkMetrics>, Error> {
        self.provider.usage(record)
    }

    /// Waits until what was disconnected is gone altogether, at most so long; returns whether that
    /// came true.
    pub(crate) async fn settle(&self, patience: Duration) -> bool {
        let provider = Arc::clone(&self.provider);
        let settled = self.workers.run(move || provider.settle(patience));
        settled.await.unwrap_or(false)
    }

    /// Mends now and then what others did to the host's part, for as long as somebody has the
    /// networks.
    pub(crate) fn keep_repaired(&self) {
        let provider = Arc::downgrade(&self.provider);
        let workers = self.workers.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(REPAIR_EVERY).await;
                let Some(provider) = provider.upgrade() else {
                    return;
                };
                match workers.run(move || provider.repair()).await {
                    Ok(Ok(mended)) if mended.is_empty() => {}
                    Ok(Ok(mended)) => tracing::warn!(?mended, "others changed the network"),
                    Ok(Err(error)) => {
                        tracing::error!(
                            error = error.report(),
                            "the network is not as it should be"
                        );
                    }
                    Err(panicked) => tracing::error!(%panicked, "the network is not looked after"),
                }
            }
        });
    }
}
