//! The manager as the API server sees it.
//!
//! Only translations: what a call does is in the other modules of the manager.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::{Manager, files};
use crate::api::{Backend, CpuScale, Filters, StreamIn, TarStream};
use crate::checks::{CheckSpec, HealthStatus};
use crate::container::Container;
use crate::error::Error;
use crate::events::{EventFilter, EventStream};
use crate::metrics;
use crate::model::{
    Addresses, Capacity, ContainerInfo, ContainerSpec, Handle, ImageRef, Limits, LimitsChange,
    LimitsInForce, Metrics, NetOutRule, PortMapping, ProcessId, ProcessSpec, PullProgress,
    PulledImage, TeardownJob, TeardownStage, TeardownStatus,
};
use crate::process::Attachment;

const STATE: &str = "garden.state";
const GRACE_TIME: &str = "garden.grace-time";

impl Backend for Manager {
    async fn ping(&self) -> Result<(), Error> {
        Ok(())
    }

    async fn capacity(&self) -> Result<Capacity, Error> {
        let store = self.services().options.store_dir.clone();
        let most = self.services().options.max_containers;
        let roots = Arc::clone(&self.services().roots);
        let told = self.services().plugins.run(move || roots.plugin_capacity());
        let by_plugin = told.await?;
        let read = self.services().usage.run(move || {
            let disk = rustix::fs::statvfs(&store)?;
            let memory = rustix::system::sysinfo();
            Ok::<_, rustix::io::Errno>(Capacity {
                memory_bytes: memory.totalram.saturating_mul(u64::from(memory.mem_unit)),
                disk_bytes: by_plugin
                    .unwrap_or_else(|| disk.f_blocks.saturating_mul(disk.f_frsize)),
                schedulable_disk_bytes: disk.f_bavail.saturating_mul(disk.f_frsize),
                max_containers: most.map_or(u64::MAX, |most| most as u64),
            })
        });
        read.await?
            .map_err(|errno| Error::host("cannot measure the host", std::io::Error::from(errno)))
    }

    async fn create(&self, spec: ContainerSpec) -> Result<Handle, Error> {
        self.create_container(spec).await
    }

    async fn destroy(&self, handle: &Handle) -> Result<(), Error> {
        self.destroy_container(handle).await
    }

    async fn list(&self, filters: &Filters) -> Result<Vec<Handle>, Error> {
        let matching = self.all().into_iter().filter(|container| {
            let properties = properties(container);
            filters
                .iter()
                .all(|(key, wanted)| match (key.as_str(), wanted.as_str()) {
                    (STATE, "all") => true,
                    (_, "") => properties.get(key).is_none_or(String::is_empty),
                    (_, wanted) => properties.get(key).is_some_and(|value| value == wanted),
                })
        });
        Ok(matching.map(|container| container.handle.clone()).collect())
    }

    async fn info(&self, handle: &Handle) -> Result<ContainerInfo, Error> {
        let container = self.find(handle)?;
        let record = container.record();
        Ok(ContainerInfo {
            handle: handle.clone(),
            stopped: record.stopped,
            image: record
                .spec
                .image
                .as_ref()
                .map(|image| image.uri.clone())
                .unwrap_or_default(),
            privileged: record.spec.privileged,
            created_ms: record.created_ms,
            events: record.events.clone(),
            path: container.dir.path().to_owned(),
            addresses: Addresses::default(),
            properties: properties(&container),
            processes: container
                .processes()
                .iter()
                .filter_map(|entry| entry.info())
                .collect(),
            mapped_ports: Vec::new(),
            limits: record.spec.limits,
            health: container.checks.state(),
        })
    }

    async fn metrics(&self, handle: &Handle) -> Result<Metrics, Error> {
        match self.find(handle) {
            Ok(container) => Ok(metrics::of_container(&container).await),
            Err(unknown) => self.pea_metrics(handle).await.ok_or(unknown),
        }
    }

    async fn stop(&self, handle: &Handle, kill: bool) -> Result<(), Error> {
        self.stop_container(handle, kill).await
    }

    async fn run(&self, handle: &Handle, spec: ProcessSpec) -> Result<Attachment, Error> {
        self.run_process(handle, spec).await
    }

    async fn attach(&self, handle: &Handle, process: &ProcessId) -> Result<Attachment, Error> {
        self.attach_process(handle, process)
    }

    async fn stream_in(&self, handle: &Handle, files: StreamIn) -> Result<(), Error> {
        files::stream_in(&self.find(handle)?, files).await
    }

    async fn stream_out(
        &self,
        handle: &Handle,
        user: &str,
        source: &str,
    ) -> Result<TarStream, Error> {
        files::stream_out(&self.find(handle)?, user, source).await
    }

    async fn properties(&self, handle: &Handle) -> Result<BTreeMap<String, String>, Error> {
        Ok(properties(&*self.find(handle)?))
    }

    async fn property(&self, handle: &Handle, key: &str) -> Result<Option<String>, Error> {
        Ok(properties(&*self.find(handle)?).remove(key))
    }

    async fn set_property(&self, handle: &Handle, key: String, value: String) -> Result<(), Error> {
        let container = self.find(handle)?;
        Ok(container
            .change(|record| record.spec.properties.insert(key, value))
            .map(drop)?)
    }

    async fn remove_property(&self, handle: &Handle, key: &str) -> Result<(), Error> {
        let container = self.find(handle)?;
        Ok(container
            .change(|record| record.spec.properties.remove(key))
            .map(drop)?)
    }

    async fn grace_time(&self, handle: &Handle) -> Result<Option<Duration>, Error> {
        Ok(self.find(handle)?.record().spec.grace_time)
    }

    async fn set_grace_time(
        &self,
        handle: &Handle,
        grace_time: Option<Duration>,
    ) -> Result<(), Error> {
        let container = self.find(handle)?;
        Ok(container.change(|record| record.spec.grace_time = grace_time)?)
    }

    async fn limits(&self, handle: &Handle) -> Result<Limits, Error> {
        Ok(self.find(handle)?.record().spec.limits)
    }

    async fn limits_in_force(&self, handle: &Handle) -> Result<LimitsInForce, Error> {
        Manager::limits_in_force(self, handle).await
    }

    async fn change_limits(&self, handle: &Handle, change: LimitsChange) -> Result<Limits, Error> {
        Manager::change_limits(self, handle, change).await
    }

    fn cpu_scale(&self) -> CpuScale {
        if self.services().cgroups.has_weights() {
            CpuScale::Weight
        } else {
            CpuScale::Shares
        }
    }

    async fn net_in(&self, handle: &Handle, _: PortMapping) -> Result<PortMapping, Error> {
        self.find(handle)?;
        Err(no_network())
    }

    async fn net_out(&self, handle: &Handle, _: Vec<NetOutRule>) -> Result<(), Error> {
        self.find(handle)?;
        Err(no_network())
    }

    async fn pull(
        &self,
        image: ImageRef,
        progress: mpsc::Sender<PullProgress>,
    ) -> Result<PulledImage, Error> {
        let roots = Arc::clone(&self.services().roots);
        let pulled = self
            .services()
            .images
            .run(move || roots.pull(&image, &progress));
        pulled.await?
    }

    async fn health(&self, handle: &Handle) -> Result<HealthStatus, Error> {
        Ok(self.find(handle)?.checks.status())
    }

    async fn set_checks(&self, handle: &Handle, checks: Vec<CheckSpec>) -> Result<(), Error> {
        self.find(handle)?.set_checks(checks)
    }

    async fn remove_check(&self, handle: &Handle, name: &str) -> Result<(), Error> {
        self.remove_one_check(handle, name)
    }

    async fn events(&self, filter: EventFilter) -> Result<EventStream, Error> {
        Ok(self.event_stream(filter))
    }

    async fn teardown(&self) -> Result<TeardownStatus, Error> {
        Ok(teardown_status(self))
    }

    async fn teardown_wait(&self, patience: Duration) -> Result<TeardownStatus, Error> {
        self.settle(patience).await;
        Ok(teardown_status(self))
    }
}

impl Manager {
    /// The metrics of a running pea, by its id: Garden's clients ask for both kinds by one name.
    async fn pea_metrics(&self, id: &Handle) -> Option<Metrics> {
        let id: ProcessId = id.as_str().parse().ok()?;
        let seat = metrics::find_pea(self.services(), &id)?;
        metrics::of_pea(&seat).await
    }
}

fn no_network() -> Error {
    Error::Invalid(
        "this server has no network to configure: its containers have a loopback only".to_owned(),
    )
}

/// The user's properties and those that Garden itself keeps.
fn properties(container: &Container) -> BTreeMap<String, String> {
    let record = container.record();
    let mut all = record.spec.properties;
    all.entry(STATE.to_owned())
        .or_insert_with(|| "created".to_owned());
    if let Some(grace_time) = record.spec.grace_time {
        all.insert(GRACE_TIME.to_owned(), grace_time.as_nanos().to_string());
    }
    all
}

fn teardown_status(manager: &Manager) -> TeardownStatus {
    let snapshot = manager.services().queue().snapshot();
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    TeardownStatus {
        depth: snapshot.depth,
        oldest_ms: snapshot.oldest.map(ms),
        failures: snapshot.stages.iter().map(|stage| stage.failures).sum(),
        jobs: snapshot
            .jobs
            .iter()
            .map(|job| TeardownJob {
                container: job.container.clone(),
                pea: job.process.clone(),
                stage: job.stage.to_string(),
                attempts: job.attempts,
                last_error: job.last_error.clone(),
                stuck: job.stuck(),
                age_ms: ms(job.age),
            })
            .collect(),
        stages: snapshot
            .stages
            .iter()
            .map(|stage| TeardownStage {
                stage: stage.stage.to_string(),
                runs: stage.count(),
                total_us: to_us(stage.sum_seconds),
                longest_us: to_us(stage.max_seconds),
            })
            .collect(),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a duration"
)]
fn to_us(seconds: f64) -> u64 {
    (seconds * 1e6) as u64
}
