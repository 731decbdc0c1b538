//! What containers and peas use.
//!
//! Called by the manager for single and bulk requests, which ask for all at the same time. Each
//! part (memory, CPU, processes, disk) is read by itself, on threads of its own kind; one that
//! fails is named in the answer and stands there as zero, and takes no other along. Nothing is
//! started and nothing is kept: every answer is what the kernel says now.

mod peas;
pub(crate) mod throttle;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

pub(crate) use peas::{PeaIndex, Seat};

use garden_peas::histogram::Histogram;

use crate::cgroup::{Place, Usage};
use crate::container::Container;
use crate::container::peas as pod;
use crate::error::Error;
use crate::model::{Metrics, NetworkMetrics, ProcessId};
use crate::network::NetworkRecord;
use crate::services::{Services, now_ms};

/// From the moment a supervisor reaped a process until all its clients were told, of this process's
/// whole life.
static EXIT_TOLD: LazyLock<Histogram> = LazyLock::new(Histogram::default);

/// How long exits take to be told.
pub(crate) fn exit_told() -> &'static Histogram {
    &EXIT_TOLD
}

/// Measures a container with everything in it.
pub(crate) async fn of_container(container: &Container) -> Metrics {
    let services = &container.services;
    let record = container.record();
    let cgroup = record.cgroup;
    let usage = usage(services, move |cgroups| {
        cgroups.usage(&Place::Container(&cgroup))
    });
    let age = Duration::from_millis(now_ms().saturating_sub(record.created_ms));
    let shares = record.spec.limits.cpu_shares.unwrap_or_default();
    let (mut metrics, network) = tokio::join!(
        measured(services, &record.instance, usage),
        network(services, record.network)
    );
    match network {
        Ok(network) => metrics.network = network,
        Err(error) => {
            tracing::warn!(error = error.report(), "no metrics of a network");
            metrics.missing.push("network".to_owned());
        }
    }
    metrics.age = age;
    metrics.cpu_entitlement = services.entitlement(shares, age);
    metrics
}

/// Measures a running pea.
pub(crate) async fn of_pea(seat: &Seat) -> Option<Metrics> {
    let container = seat.container.upgrade()?;
    let services = &container.services;
    let cgroup = container.record().cgroup;
    let (instance, own_limits) = (seat.instance.clone(), seat.own_limits);
    let usage = usage(services, move |cgroups| {
        cgroups.usage(&pod::place(&cgroup, &instance, own_limits))
    });
    let mut metrics = measured(services, &seat.instance, usage).await;
    metrics.age = age_of(&seat.instance).unwrap_or_default();
    Some(metrics)
}

async fn usage(
    services: &Services,
    read: impl FnOnce(&crate::cgroup::Cgroups) -> Usage + Send + 'static,
) -> Usage {
    let cgroups = services.cgroups.clone();
    let read = services.meters.run(move || read(&cgroups));
    read.await.unwrap_or_else(|panicked| {
        tracing::error!(%panicked, "no metrics of a group");
        Usage::default()
    })
}

async fn network(
    services: &Services,
    record: NetworkRecord,
) -> Result<Option<NetworkMetrics>, Error> {
    let networks = services.networks.clone();
    services.meters.run(move || networks.usage(&record)).await?
}

async fn measured(
    services: &Services,
    instance: &str,
    usage: impl Future<Output = Usage>,
) -> Metrics {
    let (usage, disk) = tokio::join!(usage, services.disk_usage(instance));
    let missing = [
        ("memory", usage.memory.is_none()),
        ("cpu", usage.cpu.is_none()),
        ("pids", usage.pids.is_none()),
        ("disk", disk.is_none()),
    ];
    let memory = usage.memory.unwrap_or_default();
    let (pids, max_pids) = usage.pids.unwrap_or_default();
    Metrics {
        memory_stat: memory.stat,
        memory_bytes: memory.towards_limit,
        cpu: usage.cpu.unwrap_or_default(),
        disk: disk.unwrap_or_default(),
        pids,
        max_pids,
        missing: missing
            .into_iter()
            .filter(|(_, missing)| *missing)
            .map(|(part, _)| part.to_owned())
            .collect(),
        ..Metrics::default()
    }
}

/// An instance's name was made when it was.
fn age_of(instance: &str) -> Option<Duration> {
    let began = uuid::Uuid::parse_str(instance).ok()?.get_timestamp()?;
    let (seconds, nanos) = began.to_unix();
    Some(Duration::from_millis(now_ms()).saturating_sub(Duration::new(seconds, nanos)))
}

impl Services {
    /// Processor time that a number of shares entitles to over a time.
    pub(crate) fn entitlement(&self, shares: u64, age: Duration) -> Duration {
        let per_share = self
            .options
            .cpu_entitlement_per_share
            .unwrap_or_else(entitlement_by_memory);
        entitled(shares, per_share, age)
    }
}

/// Hundredths of a CPU for each share when shares are megabytes of memory, as schedulers set them:
/// then all containers that fit into the memory are entitled to all CPUs.
pub(crate) fn entitlement_by_memory() -> f64 {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let megabytes = host_megabytes();
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let per_share = cpus as f64 * 100.0 / megabytes as f64;
    per_share
}

/// The host's memory.
pub(crate) fn host_megabytes() -> u64 {
    let memory = rustix::system::sysinfo();
    let bytes = memory.totalram.saturating_mul(u64::from(memory.mem_unit));
    (bytes >> 20).max(1)
}

fn entitled(shares: u64, per_share: f64, age: Duration) -> Duration {
    #[expect(clippy::cast_precision_loss, reason = "shares fit a double")]
    let cpus = shares as f64 * per_share / 100.0;
    // Not a number and negative ones come from options that make no sense: no entitlement.
    Duration::try_from_secs_f64(age.as_secs_f64() * cpus).unwrap_or_default()
}

/// The running pea that a client means by its id alone. An id is unique in its container only: of
/// several, the one that was started last is meant.
pub(crate) fn find_pea(services: &Arc<Services>, id: &ProcessId) -> Option<Seat> {
    services.pea_index.find(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entitlement_is_shares_times_age() {
        let second = Duration::from_secs(1);
        // 512 shares of 0.1 hundredths each: half a CPU.
        let half = entitled(512, 50.0 / 512.0, second * 10);
        assert_eq!(half.as_millis(), 5000);
        assert_eq!(entitled(0, 1.0, second), Duration::ZERO);
        assert_eq!(entitled(1, -1.0, second), Duration::ZERO);
        assert_eq!(entitled(1, f64::NAN, second), Duration::ZERO);
    }

    #[test]
    fn an_instance_tells_its_age() {
        assert!(age_of(&crate::services::new_instance()).unwrap() < Duration::from_secs(60));
        assert_eq!(age_of("init"), None);
    }
}
