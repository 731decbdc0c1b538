//! One look at everything, for whatever form it is then shown in.
//!
//! Cheap, and never waits for what may hang: no container is measured, only what the server knows
//! of it. The disk is asked on a thread of its own kind.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use garden_peas::histogram::Durations;
use garden_peas::teardown::Snapshot;
use serde::Serialize;

use crate::api::Meters;
use crate::api::meters::RouteMeter;
use crate::events::{Event, EventKind};
use crate::manager::Manager;
use crate::metrics;
use crate::services::now_ms;

/// How long the disk is waited for.
const DISK_PATIENCE: Duration = Duration::from_millis(500);

/// The time that rates are told for.
const MINUTE_MS: u64 = 60_000;

/// Events that the page shows.
const EVENTS: usize = 100;

/// Teardown jobs that are told one by one.
const JOBS: usize = 50;

/// Everything that is known at a moment.
#[derive(Debug, Serialize)]
pub struct Look {
    /// The release.
    pub version: &'static str,
    /// How long the server has been running, in seconds.
    pub uptime_seconds: f64,
    /// Containers, by handle.
    pub containers: Vec<ContainerLook>,
    /// What happened in the last minute.
    pub last_minute: Rates,
    /// Requests by the name of their route.
    pub requests: BTreeMap<&'static str, RouteMeter>,
    /// Connections to the API that are open.
    pub connections: usize,
    /// From the moment a supervisor reaped a process until its clients were told.
    pub exit_told: Durations,
    /// From the end of a check that changed something until that was told.
    pub check_told: Durations,
    /// Upper bounds of the buckets of all durations, in seconds.
    pub bucket_bounds: Vec<f64>,
    /// What is torn down.
    pub teardown: TeardownLook,
    /// The store and the disk below it.
    pub store: StoreLook,
    /// This process.
    pub process: ProcessLook,
    /// The last events, newest first.
    pub events: Vec<Event>,
    /// Events since the server started, by kind.
    pub event_counts: BTreeMap<&'static str, u64>,
}

/// A container, as far as it is known without measuring.
#[derive(Debug, Serialize)]
pub struct ContainerLook {
    /// Its name.
    pub handle: String,
    /// `active` or `stopped`.
    pub state: &'static str,
    /// How long ago it was created, in milliseconds.
    pub age_ms: u64,
    /// The image, without credentials.
    pub image: String,
    /// Whether it is root on the host.
    pub privileged: bool,
    /// What its checks say.
    pub health: Option<String>,
    /// Processes and peas that run.
    pub processes: Vec<ProcessLine>,
}

/// A process or a pea that runs.
#[derive(Debug, Serialize)]
pub struct ProcessLine {
    /// Its name.
    pub id: String,
    /// Whether it is a pea.
    pub pea: bool,
    /// The executable.
    pub path: String,
}

/// What happened in a minute.
#[derive(Debug, Default, Serialize)]
pub struct Rates {
    /// Containers that were created.
    pub creates: usize,
    /// Processes and peas that ended.
    pub exits: usize,
    /// Things that were torn down.
    pub teardowns: usize,
    /// The events of the minute were more than are remembered: the numbers are too low.
    pub incomplete: bool,
}

/// The teardown queue.
#[derive(Debug, Serialize)]
pub struct TeardownLook {
    /// Jobs that are not done.
    pub depth: usize,
    /// The age of the oldest, in seconds.
    pub oldest_seconds: Option<f64>,
    /// Jobs of which a stage does not end.
    pub stuck: usize,
    /// Jobs that failed and wait.
    pub retrying: usize,
    /// The oldest jobs.
    pub jobs: Vec<garden_peas::teardown::JobView>,
    /// Each stage, since the server started.
    pub stages: Vec<garden_peas::teardown::StageStats>,
}

/// The store.
#[derive(Debug, Default, Serialize)]
pub struct StoreLook {
    /// The size of its file system, in bytes; zero when that could not be read in time.
    pub disk_bytes: u64,
    /// What is free there.
    pub free_bytes: u64,
    /// Trees that are still to be removed.
    pub trash_items: usize,
    /// Bytes that their removal sets free, as far as known.
    pub trash_bytes: u64,
    /// The age of the oldest, in seconds.
    pub trash_oldest_seconds: Option<f64>,
    /// How many could not be removed so far.
    pub trash_failing: usize,
    /// How many a thread does not get on with.
    pub trash_stuck: usize,
}

/// This process and its host.
#[derive(Debug, Default, Serialize)]
pub struct ProcessLook {
    /// Memory that it holds, in bytes.
    pub resident_bytes: u64,
    /// Open files.
    pub open_files: usize,
    /// Threads.
    pub threads: usize,
    /// Tasks of the runtime.
    pub tasks: usize,
    /// Processors.
    pub cpus: usize,
    /// Memory of the host that is available, in bytes.
    pub host_available_bytes: u64,
    /// Memory of the host, in bytes.
    pub host_bytes: u64,
}

impl Look {
    /// Looks. `started` is when the server was.
    pub(super) async fn take(manager: &Manager, meters: &Meters, started: Instant) -> Self {
        let services = manager.services();
        let now = now_ms();
        let (store, process) = tokio::join!(store(manager), process(manager));
        let recent = services.events.recent();
        let mut containers: Vec<_> = manager
            .all()
            .iter()
            .map(|container| {
                let record = container.record();
                let image = record.spec.image.as_ref();
                ContainerLook {
                    handle: container.handle.to_string(),
                    state: if record.stopped { "stopped" } else { "active" },
                    age_ms: now.saturating_sub(record.created_ms),
                    image: image.map(|image| image.uri.clone()).unwrap_or_default(),
                    privileged: record.spec.privileged,
                    health: container.checks.state().map(|state| state.to_string()),
                    processes: container
                        .processes()
                        .iter()
                        .filter_map(|entry| entry.info())
                        .map(|info| ProcessLine {
                            id: info.id.to_string(),
                            pea: info.pea,
                            path: info.path,
                        })
                        .collect(),
                }
            })
            .collect();
        containers.sort_by(|one, other| one.handle.cmp(&other.handle));
        Self {
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: started.elapsed().as_secs_f64(),
            containers,
            last_minute: Rates::of(&recent, now),
            requests: meters.read(),
            connections: meters.connections(),
            exit_told: metrics::exit_told().read(),
            check_told: services.health_latency.read(),
            bucket_bounds: garden_peas::histogram::BUCKETS_SECONDS.to_vec(),
            teardown: teardown(services.queue().snapshot()),
            store,
            process,
            event_counts: services.events.counts(),
            events: recent
                .iter()
                .rev()
                .take(EVENTS)
                .map(|event| Event::clone(event))
                .collect(),
        }
    }
}

impl Rates {
    fn of(recent: &[Arc<Event>], now_ms: u64) -> Self {
        let since = now_ms.saturating_sub(MINUTE_MS);
        let mut rates = Self {
            // The oldest that is remembered is younger: there may have been more.
            incomplete: recent.len() >= crate::events::RECENT
                && recent.first().is_some_and(|event| event.time_ms > since),
            ..Self::default()
        };
        for event in recent.iter().filter(|event| event.time_ms >= since) {
            match event.kind {
                EventKind::Created => rates.creates += 1,
                EventKind::Exited { .. } | EventKind::PeaExited { .. } => rates.exits += 1,
                EventKind::TeardownDone => rates.teardowns += 1,
                _ => {}
            }
        }
        rates
    }
}

fn teardown(snapshot: Snapshot) -> TeardownLook {
    TeardownLook {
        depth: snapshot.depth,
        oldest_seconds: snapshot.oldest.map(|age| age.as_secs_f64()),
        stuck: snapshot.stuck,
        retrying: snapshot.retrying,
        jobs: snapshot.jobs.into_iter().take(JOBS).collect(),
        stages: snapshot.stages,
    }
}

async fn store(manager: &Manager) -> StoreLook {
    let services = manager.services();
    let store = services.roots.store().clone();
    let directory = services.options.store_dir.clone();
    let read = services.meters.run(move || {
        let trash = store.trash();
        let disk = rustix::fs::statvfs(&directory).ok();
        StoreLook {
            disk_bytes: disk
                .as_ref()
                .map_or(0, |disk| disk.f_blocks.saturating_mul(disk.f_frsize)),
            free_bytes: disk
                .as_ref()
                .map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize)),
            trash_items: trash.items,
            trash_bytes: trash.bytes,
            trash_oldest_seconds: trash.oldest_age.map(|age| age.as_secs_f64()),
            trash_failing: trash.failing,
            trash_stuck: trash.stuck,
        }
    });
    let read = tokio::time::timeout(DISK_PATIENCE, read).await;
    read.ok().and_then(Result::ok).unwrap_or_default()
}

async fn process(manager: &Manager) -> ProcessLook {
    let tasks = tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks();
    let read = manager.services().meters.run(move || {
        let memory = rustix::system::sysinfo();
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let kib = |text: &str, name: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
            number.unwrap_or(0)
        };
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        ProcessLook {
            resident_bytes: kib(&status, "VmRSS:") << 10,
            open_files: std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
            threads: usize::try_from(kib(&status, "Threads:")).unwrap_or(0),
            tasks,
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            host_available_bytes: kib(&meminfo, "MemAvailable:") << 10,
            host_bytes: memory.totalram.saturating_mul(u64::from(memory.mem_unit)),
        }
    });
    let read = tokio::time::timeout(DISK_PATIENCE, read).await;
    read.ok().and_then(Result::ok).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(time_ms: u64, kind: EventKind) -> Arc<Event> {
        Arc::new(Event {
            sequence: time_ms,
            time_ms,
            handle: "h".to_owned(),
            process: None,
            kind,
        })
    }

    #[test]
    fn a_minute_is_a_minute() {
        let exited = || EventKind::PeaExited {
            code: 0,
            oom: false,
        };
        let recent = [
            event(1_000, EventKind::Created),
            event(50_000, EventKind::Created),
            event(60_500, exited()),
            event(100_000, EventKind::TeardownDone),
            event(100_001, EventKind::Stopped),
        ];
        let rates = Rates::of(&recent, 110_000);
        assert_eq!((rates.creates, rates.exits, rates.teardowns), (1, 1, 1));
        assert!(!rates.incomplete);
        let many: Vec<_> = (0..crate::events::RECENT as u64)
            .map(|n| event(100_000 + n, exited()))
            .collect();
        assert!(Rates::of(&many, 110_000).incomplete);
        assert!(!Rates::of(&many, 10_000_000).incomplete);
    }
}
