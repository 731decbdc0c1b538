//! The manager as the API server sees it.
//!
//! Only translations: what a call does is in the other modules of the manager.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::restore::PATIENCE;
use super::{Manager, files};
use crate::api::{Backend, CpuScale, FilesOut, Filters, StreamIn, TarStream};
use crate::checks::{CheckSpec, HealthStatus};
use crate::depot::ContainerRecord;
use crate::error::Error;
use crate::events::{EventFilter, EventStream};
use crate::logs::{LogInfo, LogStream};
use crate::metrics;
use crate::model::{
    Capacity, ContainerInfo, ContainerSpec, Handle, ImageRef, Limits, LimitsChange, LimitsInForce,
    Metrics, NetOutRule, PortMapping, ProcessId, ProcessSpec, PullProgress, PulledImage,
    TeardownJob, TeardownStage, TeardownStatus,
};
use crate::process::Attachment;
use crate::timeline::Timeline;

const STATE: &str = "garden.state";
const GRACE_TIME: &str = "garden.grace-time";

impl Backend for Manager {
    async fn ping(&self) -> Result<(), Error> {
        Ok(())
    }

    async fn capacity(&self) -> Result<Capacity, Error> {
        let store = self.services().options.store_dir.clone();
        let most = self.services().options.max_containers;
        let connectable = self.services().networks.capacity().unwrap_or(u64::MAX);
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
                max_containers: most.map_or(u64::MAX, |most| most as u64).min(connectable),
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
        if filters.is_empty() {
            // What Garden's look-ups ask for, all the time. All that are known are created.
            return Ok(self.handles());
        }
        let all = self.0.table.all().into_iter();
        let matching = all.filter(|(_, seat)| {
            let properties = properties(seat.record());
            filters
                .iter()
                .all(|(key, wanted)| match (key.as_str(), wanted.as_str()) {
                    (STATE, "all") => true,
                    (_, "") => properties.get(key).is_none_or(String::is_empty),
                    (_, wanted) => properties.get(key).is_some_and(|value| value == wanted),
                })
        });
        Ok(matching.map(|(handle, _)| handle).collect())
    }

    async fn info(&self, handle: &Handle) -> Result<ContainerInfo, Error> {
        let container = self.find(handle).await?;
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
            addresses: record.network.addresses.clone(),
            properties: properties(record.clone()),
            processes: container
                .processes()
                .iter()
                .filter_map(|entry| entry.info())
                .collect(),
            mapped_ports: record.network.mapped_ports,
            limits: record.spec.limits,
            health: container.checks.state(),
        })
    }

    async fn metrics(&self, handle: &Handle) -> Result<Metrics, Error> {
        match self.find(handle).await {
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
        self.attach_process(handle, process).await
    }

    async fn stream_in(&self, handle: &Handle, files: StreamIn) -> Result<(), Error> {
        files::stream_in(&self.find_alive(handle).await?, files).await
    }

    async fn stream_out(&self, handle: &Handle, files: FilesOut) -> Result<TarStream, Error> {
        files::stream_out(&self.find_alive(handle).await?, files).await
    }

    async fn properties(&self, handle: &Handle) -> Result<BTreeMap<String, String>, Error> {
        Ok(properties(self.record_of(handle)?))
    }

    async fn property(&self, handle: &Handle, key: &str) -> Result<Option<String>, Error> {
        Ok(properties(self.record_of(handle)?).remove(key))
    }

    async fn set_property(&self, handle: &Handle, key: String, value: String) -> Result<(), Error> {
        let container = self.find(handle).await?;
        Ok(container
            .change(|record| record.spec.properties.insert(key, value))
            .map(drop)?)
    }

    async fn remove_property(&self, handle: &Handle, key: &str) -> Result<(), Error> {
        let container = self.find(handle).await?;
        Ok(container
            .change(|record| record.spec.properties.remove(key))
            .map(drop)?)
    }

    async fn grace_time(&self, handle: &Handle) -> Result<Option<Duration>, Error> {
        Ok(self.record_of(handle)?.spec.grace_time)
    }

    async fn set_grace_time(
        &self,
        handle: &Handle,
        grace_time: Option<Duration>,
    ) -> Result<(), Error> {
        let container = self.find(handle).await?;
        Ok(container.change(|record| record.spec.grace_time = grace_time)?)
    }

    async fn limits(&self, handle: &Handle) -> Result<Limits, Error> {
        Ok(self.record_of(handle)?.spec.limits)
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

    async fn net_in(&self, handle: &Handle, mapping: PortMapping) -> Result<PortMapping, Error> {
        self.map_port(handle, mapping).await
    }

    async fn net_out(&self, handle: &Handle, rules: Vec<NetOutRule>) -> Result<(), Error> {
        self.open_to(handle, rules).await
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
        Ok(self.find(handle).await?.checks.status())
    }

    async fn set_checks(&self, handle: &Handle, checks: Vec<CheckSpec>) -> Result<(), Error> {
        self.find_alive(handle).await?.set_checks(checks)
    }

    async fn remove_check(&self, handle: &Handle, name: &str) -> Result<(), Error> {
        self.remove_one_check(handle, name).await
    }

    async fn events(&self, filter: EventFilter) -> Result<EventStream, Error> {
        Ok(self.event_stream(filter).await)
    }

    async fn logs(&self, handle: &Handle) -> Result<Vec<LogInfo>, Error> {
        Ok(self.find(handle).await?.logs.list())
    }

    async fn log(
        &self,
        handle: &Handle,
        process: &ProcessId,
        follow: bool,
    ) -> Result<LogStream, Error> {
        let container = self.find(handle).await?;
        let (directory, threads) = (container.dir.fd(), &self.services().files);
        container.logs.read(directory, threads, process, follow)
    }

    async fn timeline(&self, handle: &Handle) -> Result<Timeline, Error> {
        let services = self.services();
        let read = services.timelines.read(&services.files, handle.as_str());
        (read.await).ok_or_else(|| Error::ContainerNotFound(handle.clone()))
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
        let find = || metrics::find_pea(self.services(), &id);
        let seat = match find() {
            Some(seat) => seat,
            // Whose it is may not be taken up yet, and its name does not say.
            None => {
                let _ = tokio::time::timeout(PATIENCE, self.restored()).await;
                find()?
            }
        };
        metrics::of_pea(&seat).await
    }
}

/// The user's properties and those that Garden itself keeps.
fn properties(record: ContainerRecord) -> BTreeMap<String, String> {
    let mut all = record.network.shown();
    all.extend(record.spec.properties);
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
