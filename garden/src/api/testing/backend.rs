//! A manager whose containers are entries of a map.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::sync::{Semaphore, mpsc};

use super::process::Process;
use crate::api::{Backend, FilesOut, Filters, StreamIn, TarStream};
use crate::checks::health::{HealthState, Verdict};
use crate::checks::{CheckSpec, CheckStatus, HealthStatus};
use crate::error::Error;
use crate::events::{Event, EventFilter, EventKind, EventStream};
use crate::logs::{LogInfo, LogStream};
use crate::model::{
    Capacity, ContainerInfo, ContainerSpec, Handle, ImageRef, Limits, LimitsChange, LimitsInForce,
    Metrics, NetOutRule, PortMapping, ProcessId, ProcessInfo, ProcessSpec, PullProgress, PullStage,
    PulledImage, Signal, TeardownStatus,
};
use crate::process::{Attachment, Control};
use crate::timeline::Timeline;

/// The manager.
#[derive(Debug)]
pub(crate) struct Fake {
    containers: Mutex<BTreeMap<Handle, Container>>,
    /// Destroys wait for a permit.
    pub(crate) destroys: Semaphore,
    pub(crate) destroying: Semaphore,
    /// Stops wait for a permit, and tell when they do.
    pub(crate) stops: Semaphore,
    pub(crate) stopping: Semaphore,
    pub(crate) rules: Mutex<Vec<NetOutRule>>,
    /// What was streamed in.
    pub(crate) files: Mutex<Vec<(String, String, Vec<u8>)>>,
    next_port: AtomicU32,
}

#[derive(Debug, Default)]
struct Container {
    spec: ContainerSpec,
    stopped: bool,
    ports: Vec<PortMapping>,
    processes: BTreeMap<ProcessId, Arc<Process>>,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            containers: Mutex::default(),
            destroys: Semaphore::new(1_000_000),
            destroying: Semaphore::new(0),
            stops: Semaphore::new(1_000_000),
            stopping: Semaphore::new(0),
            rules: Mutex::default(),
            files: Mutex::default(),
            next_port: AtomicU32::new(61_001),
        }
    }
}

impl Fake {
    fn with<T>(
        &self,
        handle: &Handle,
        use_it: impl FnOnce(&mut Container) -> T,
    ) -> Result<T, Error> {
        let mut containers = self.containers.lock().unwrap();
        let container = containers.get_mut(handle);
        let container = container.ok_or_else(|| Error::ContainerNotFound(handle.clone()))?;
        Ok(use_it(container))
    }

    /// A process that was started.
    pub(crate) fn process(&self, handle: &str, id: &str) -> Arc<Process> {
        let find =
            |container: &mut Container| Arc::clone(&container.processes[&id.parse().unwrap()]);
        self.with(&handle.parse().unwrap(), find).unwrap()
    }

    pub(crate) fn exists(&self, handle: &str) -> bool {
        self.with(&handle.parse().unwrap(), |_| ()).is_ok()
    }
}

impl Backend for Fake {
    async fn ping(&self) -> Result<(), Error> {
        Ok(())
    }

    async fn capacity(&self) -> Result<Capacity, Error> {
        Ok(Capacity {
            memory_bytes: 1,
            disk_bytes: 2,
            schedulable_disk_bytes: 3,
            max_containers: u64::MAX,
        })
    }

    async fn create(&self, mut spec: ContainerSpec) -> Result<Handle, Error> {
        let handle = spec.handle.get_or_insert_with(Handle::generate).clone();
        assert_ne!(handle.as_str(), "panic", "told to");
        let mut containers = self.containers.lock().unwrap();
        if containers.contains_key(&handle) {
            return Err(Error::HandleInUse(handle));
        }
        let container = Container {
            spec,
            ..Container::default()
        };
        containers.insert(handle.clone(), container);
        Ok(handle)
    }

    async fn destroy(&self, handle: &Handle) -> Result<(), Error> {
        self.with(handle, |_| ())?;
        self.destroying.add_permits(1);
        self.destroys.acquire().await.unwrap().forget();
        let container = self.containers.lock().unwrap().remove(handle);
        for process in container.unwrap().processes.values() {
            process.wish(Control::Signal(Signal::Kill));
        }
        Ok(())
    }

    async fn list(&self, filters: &Filters) -> Result<Vec<Handle>, Error> {
        let matches = |container: &Container| {
            filters
                .iter()
                .filter(|(key, _)| *key != "garden.state")
                .all(|(key, value)| {
                    container
                        .spec
                        .properties
                        .get(key)
                        .map_or("", String::as_str)
                        == value
                })
        };
        let containers = self.containers.lock().unwrap();
        let matching = containers
            .iter()
            .filter(|(_, container)| matches(container));
        Ok(matching.map(|(handle, _)| handle.clone()).collect())
    }

    async fn info(&self, handle: &Handle) -> Result<ContainerInfo, Error> {
        self.with(handle, |container| ContainerInfo {
            handle: handle.clone(),
            stopped: container.stopped,
            image: "image".into(),
            privileged: container.spec.privileged,
            created_ms: 0,
            events: Vec::new(),
            path: "/depot".into(),
            addresses: crate::model::Addresses {
                container: "10.254.0.2".parse().ok(),
                ..crate::model::Addresses::default()
            },
            properties: container.spec.properties.clone(),
            processes: container
                .processes
                .iter()
                .filter(|(_, process)| !process.ended())
                .map(|(id, process)| ProcessInfo {
                    id: id.clone(),
                    pid: 1,
                    pea: process.spec.is_pea(),
                    path: process.spec.path.clone(),
                })
                .collect(),
            mapped_ports: container.ports.clone(),
            limits: container.spec.limits.clone(),
            health: None,
        })
    }

    async fn metrics(&self, handle: &Handle) -> Result<Metrics, Error> {
        self.with(handle, |_| Metrics {
            memory_stat: BTreeMap::from([("total_rss".into(), 5), ("strange".into(), 6)]),
            memory_bytes: 7,
            age: Duration::from_nanos(8),
            ..Metrics::default()
        })
    }

    async fn stop(&self, handle: &Handle, _kill: bool) -> Result<(), Error> {
        self.with(handle, |_| ())?;
        self.stopping.add_permits(1);
        self.stops.acquire().await.unwrap().forget();
        self.with(handle, |container| container.stopped = true)
    }

    async fn run(&self, handle: &Handle, spec: ProcessSpec) -> Result<Attachment, Error> {
        match spec.path.as_str() {
            "frobnicate" => {
                let text = "exec: \"frobnicate\": executable file not found in $PATH";
                return Err(Error::ExecutableNotFound(text.into()));
            }
            "/etc" => {
                return Err(Error::NotExecutable(
                    "exec: \"/etc\": permission denied".into(),
                ));
            }
            _ => {}
        }
        let id = spec.id.clone().unwrap_or_else(ProcessId::generate);
        self.with(handle, |container| {
            if container
                .processes
                .get(&id)
                .is_some_and(|process| !process.ended())
            {
                return Err(Error::ProcessIdInUse(id));
            }
            let (process, attachment) = Process::start(id.clone(), spec);
            container.processes.insert(id, process);
            Ok(attachment)
        })?
    }

    async fn attach(&self, handle: &Handle, id: &ProcessId) -> Result<Attachment, Error> {
        self.with(handle, |container| {
            let process = container.processes.get(id);
            let process = process.ok_or_else(|| Error::ProcessNotFound(id.clone()))?;
            Ok(process.attach())
        })?
    }

    async fn stream_in(&self, handle: &Handle, mut files: StreamIn) -> Result<(), Error> {
        self.with(handle, |_| ())?;
        if files.user == "nobody" {
            let mut some = [0; 1024];
            let _ = files.tar.read(&mut some).await;
            return Err(Error::Invalid("error streaming in: no such user".into()));
        }
        let mut bytes = Vec::new();
        let read = files.tar.read_to_end(&mut bytes).await;
        read.map_err(|source| Error::host("stream-in", source))?;
        self.files
            .lock()
            .unwrap()
            .push((files.user, files.destination, bytes));
        Ok(())
    }

    async fn stream_out(&self, handle: &Handle, files: FilesOut) -> Result<TarStream, Error> {
        self.with(handle, |_| ())?;
        let failing = || tokio_util::io::StreamReader::new(Failing(false));
        Ok(match files.source.as_str() {
            "/missing" => return Err(Error::Invalid("stream-out: no such file".into())),
            "/unreadable" => Box::pin(failing().chain(failing())),
            "/broken" => Box::pin(io::Cursor::new(vec![b't'; 1 << 20]).chain(failing())),
            "/endless" => Box::pin(tokio::io::repeat(b'e')),
            other => Box::pin(io::Cursor::new(other.as_bytes().to_vec())),
        })
    }

    async fn properties(&self, handle: &Handle) -> Result<BTreeMap<String, String>, Error> {
        self.with(handle, |container| container.spec.properties.clone())
    }

    async fn property(&self, handle: &Handle, key: &str) -> Result<Option<String>, Error> {
        self.with(handle, |container| {
            container.spec.properties.get(key).cloned()
        })
    }

    async fn set_property(&self, handle: &Handle, key: String, value: String) -> Result<(), Error> {
        self.with(handle, |container| {
            container.spec.properties.insert(key, value);
        })
    }

    async fn remove_property(&self, handle: &Handle, key: &str) -> Result<(), Error> {
        self.with(handle, |container| {
            container.spec.properties.remove(key);
        })
    }

    async fn grace_time(&self, handle: &Handle) -> Result<Option<Duration>, Error> {
        self.with(handle, |container| container.spec.grace_time)
    }

    async fn set_grace_time(
        &self,
        handle: &Handle,
        grace_time: Option<Duration>,
    ) -> Result<(), Error> {
        self.with(handle, |container| container.spec.grace_time = grace_time)
    }

    async fn limits(&self, handle: &Handle) -> Result<Limits, Error> {
        self.with(handle, |container| container.spec.limits.clone())
    }

    async fn limits_in_force(&self, handle: &Handle) -> Result<LimitsInForce, Error> {
        self.with(handle, |container| LimitsInForce {
            limits: container.spec.limits.clone(),
            ..LimitsInForce::default()
        })
    }

    async fn change_limits(&self, handle: &Handle, change: LimitsChange) -> Result<Limits, Error> {
        self.with(handle, |container| {
            container.spec.limits = change.apply(&container.spec.limits);
            container.spec.limits.clone()
        })
    }

    async fn net_in(&self, handle: &Handle, mut wish: PortMapping) -> Result<PortMapping, Error> {
        if wish.host_port == 0 {
            wish.host_port = self.next_port.fetch_add(1, Ordering::Relaxed);
        }
        if wish.container_port == 0 {
            wish.container_port = wish.host_port;
        }
        self.with(handle, |container| container.ports.push(wish))?;
        Ok(wish)
    }

    async fn net_out(&self, handle: &Handle, rules: Vec<NetOutRule>) -> Result<(), Error> {
        self.with(handle, |_| ())?;
        self.rules.lock().unwrap().extend(rules);
        Ok(())
    }

    async fn pull(
        &self,
        image: ImageRef,
        progress: mpsc::Sender<PullProgress>,
    ) -> Result<PulledImage, Error> {
        if image.uri == "nothing" {
            return Err(Error::Invalid("no such image".to_owned()));
        }
        let _ = progress.send(PullProgress::Layers { total: 2 }).await;
        if image.uri == "broken" {
            return Err(Error::Exhausted("the disk is full".to_owned()));
        }
        let event = |index, stage| PullProgress::Layer {
            index,
            digest: "sha256:00".to_owned(),
            stage,
            bytes: 7,
            of: 7,
        };
        let _ = progress.send(event(1, PullStage::Cached)).await;
        let _ = progress.send(event(0, PullStage::Done)).await;
        Ok(PulledImage {
            id: image.username.unwrap_or_default(),
            source: image.uri,
            layers: 2,
            bytes: 14,
        })
    }

    async fn health(&self, handle: &Handle) -> Result<HealthStatus, Error> {
        self.with(handle, |container| HealthStatus {
            state: (!container.spec.checks.is_empty()).then_some(HealthState::Starting),
            checks: container
                .spec
                .checks
                .iter()
                .map(|spec| CheckStatus {
                    spec: spec.clone(),
                    verdict: Verdict::Unknown,
                    runs: 0,
                    failures: 0,
                    last: None,
                })
                .collect(),
            ..HealthStatus::default()
        })
    }

    async fn set_checks(&self, handle: &Handle, checks: Vec<CheckSpec>) -> Result<(), Error> {
        self.with(handle, |container| container.spec.checks = checks)
    }

    async fn remove_check(&self, handle: &Handle, name: &str) -> Result<(), Error> {
        self.with(handle, |container| {
            container.spec.checks.retain(|check| check.name != name);
        })
    }

    async fn events(&self, filter: EventFilter) -> Result<EventStream, Error> {
        let events = [EventKind::Created, EventKind::Started].map(|kind| Event {
            sequence: 1,
            time_ms: 5,
            handle: "h".into(),
            process: None,
            kind,
        });
        Ok(EventStream::of(filter, events))
    }

    async fn logs(&self, _: &Handle) -> Result<Vec<LogInfo>, Error> {
        Ok(Vec::new())
    }

    async fn log(&self, _: &Handle, process: &ProcessId, _: bool) -> Result<LogStream, Error> {
        Err(Error::ProcessNotFound(process.clone()))
    }

    async fn timeline(&self, _: &Handle) -> Result<Timeline, Error> {
        Ok(Timeline::default())
    }

    async fn teardown(&self) -> Result<TeardownStatus, Error> {
        Ok(TeardownStatus {
            depth: 3,
            ..TeardownStatus::default()
        })
    }

    async fn teardown_wait(&self, _patience: Duration) -> Result<TeardownStatus, Error> {
        Ok(TeardownStatus::default())
    }
}

/// A stream that fails at once.
struct Failing(bool);

impl futures_core::Stream for Failing {
    type Item = io::Result<bytes::Bytes>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        let done = std::mem::replace(&mut self.0, true);
        std::task::Poll::Ready((!done).then(|| Err(io::Error::other("the disk is gone"))))
    }
}
