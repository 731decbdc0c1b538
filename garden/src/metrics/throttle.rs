//! Putting containers that used more of the CPU than they are entitled to behind the others.
//!
//! A task of the server, if the option is on. At each look every container is *good* or *bad*: bad
//! is one that has used more processor time since it was created than its shares entitle it to.
//! Guardian moves the bad ones' processes into a group of their own with few shares, and loses their
//! memory limit on the way. Here nothing is moved, so that every limit and every count stays: the
//! shares of the bad ones are lowered to what they would come to in such a group. Nothing is kept
//! either: after a restart the counters say the same. How much is lowered:
//!
//! all bad ones together get as much as their shares entitle them to, the good ones that use the
//! CPU at all share what is left of the host by their shares.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::cgroup::{Place, weight_of_shares};
use crate::container::Container;
use crate::model::Handle;
use crate::services::{Services, lock, now_ms};

use super::{entitlement_by_memory, host_megabytes};

/// What one look knows of a container.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    shares: u64,
    used: Duration,
    entitled: Duration,
    /// Whether it used the CPU since the last look.
    active: bool,
}

impl Seen {
    fn bad(&self) -> bool {
        self.used > self.entitled
    }
}

/// What is remembered of a container from one look to the next.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct Last {
    used: Duration,
    written: Option<u64>,
}

/// Looks after all containers until the services are gone.
pub(crate) async fn run(services: Weak<Services>, interval: Duration) {
    let mut last = HashMap::new();
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(services) = services.upgrade() else {
            return;
        };
        look(&services, &mut last).await;
    }
}

async fn look(services: &Arc<Services>, last: &mut HashMap<Handle, Last>) {
    let pods: Vec<Arc<Container>> = {
        let pods = lock(&services.pods);
        pods.values().filter_map(Weak::upgrade).collect()
    };
    last.retain(|handle, _| pods.iter().any(|pod| pod.handle == *handle));
    let before = last.clone();
    let owned = Arc::clone(services);
    let looked = services.meters.run(move || round(&owned, &pods, &before));
    match looked.await {
        Ok(after) => last.extend(after),
        Err(panicked) => tracing::error!(%panicked, "CPU use is not looked after"),
    }
}

/// One look at all containers. Blocks.
fn round(
    services: &Services,
    pods: &[Arc<Container>],
    last: &HashMap<Handle, Last>,
) -> Vec<(Handle, Last)> {
    let seen: Vec<(&Arc<Container>, Seen)> = pods
        .iter()
        .filter_map(|pod| Some((pod, see(services, pod, last.get(&pod.handle).copied())?)))
        .collect();
    let per_share = services.options.cpu_entitlement_per_share;
    let ratio = per_share.map_or(1.0, |per_share| per_share / entitlement_by_memory());
    let factor = factor(seen.iter().map(|(_, seen)| seen), ratio, host_megabytes());
    let weights = services.cgroups.has_weights();
    seen.into_iter()
        .map(|(pod, seen)| {
            let wanted = seen.bad().then(|| lowered(seen.shares, factor, weights));
            let written = last.get(&pod.handle).and_then(|last| last.written);
            let written = if wanted == written {
                written
            } else {
                write(services, pod, wanted, written)
            };
            let used = seen.used;
            (pod.handle.clone(), Last { used, written })
        })
        .collect()
}

fn see(services: &Services, pod: &Container, last: Option<Last>) -> Option<Seen> {
    let record = pod.record();
    // Without shares there is no entitlement, as in Guardian: such a container is left alone.
    let shares = record.spec.limits.cpu_shares?;
    let used = services
        .cgroups
        .usage(&Place::Container(&record.cgroup))
        .cpu?
        .usage;
    let age = Duration::from_millis(now_ms().saturating_sub(record.created_ms));
    let idle = Duration::from_millis(1);
    Some(Seen {
        shares,
        used,
        entitled: services.entitlement(shares, age),
        active: last.is_none_or(|last| used.saturating_sub(last.used) > idle),
    })
}

/// Writes lowered shares, or the container's own for `None`. Returns what holds now.
fn write(
    services: &Services,
    pod: &Container,
    wanted: Option<u64>,
    before: Option<u64>,
) -> Option<u64> {
    let record = pod.record();
    let shares = wanted.or(record.spec.limits.cpu_shares);
    let place = Place::Container(&record.cgroup);
    if let Err(error) = services.cgroups.set_shares(&place, shares) {
        if !pod.is_destroying() {
            let error = crate::error::report(&error);
            tracing::warn!(handle = %pod.handle, error, "its CPU share is not adapted");
        }
        return before;
    }
    pod.set_throttled(wanted.is_some());
    if wanted.is_some() != before.is_some() {
        let throttled = wanted.is_some();
        tracing::info!(handle = %pod.handle, throttled, shares, "CPU entitlement");
    }
    wanted
}

/// What a bad container's shares are multiplied by, so that the active good ones divide among them
/// what the bad ones are not entitled to.
fn factor<'a>(all: impl Iterator<Item = &'a Seen>, ratio: f64, host: u64) -> f64 {
    let (mut bad, mut good) = (0_u64, 0_u64);
    for seen in all {
        if seen.bad() {
            bad = bad.saturating_add(seen.shares);
        } else if seen.active {
            good = good.saturating_add(seen.shares);
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "shares fit a double")]
    let (bad, good, host) = (bad as f64, good as f64, host as f64);
    let entitled = bad * ratio;
    let left = host - entitled;
    if left <= 0.0 || good == 0.0 {
        // Everybody is bad, or nobody is there to suffer: they stay as they are to each other.
        return 1.0;
    }
    (ratio * good / left).clamp(0.0, 1.0)
}

/// Shares whose effect is lowered by a factor. Weights of v2 are not in proportion to shares: the
/// shares are found whose weight is.
fn lowered(shares: u64, factor: f64, weights: bool) -> u64 {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "shares fit a double, and the factor is 0 to 1"
    )]
    let scale = |value: u64| (value as f64 * factor) as u64;
    if !weights {
        return scale(shares).max(2);
    }
    let wanted = scale(weight_of_shares(shares)).max(1);
    let (mut low, mut high) = (2, shares.max(2));
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if weight_of_shares(middle) <= wanted {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(shares: u64, bad: bool, active: bool) -> Seen {
        Seen {
            shares,
            used: Duration::from_secs(if bad { 2 } else { 0 }),
            entitled: Duration::from_secs(1),
            active,
        }
    }

    #[test]
    fn a_full_host_leaves_bad_ones_their_shares() {
        let all = [seen(512, true, true), seen(512, false, true)];
        let factor = factor(all.iter(), 1.0, 1024);
        assert!((factor - 1.0).abs() < 1e-9, "{factor}");
    }

    #[test]
    fn spare_time_goes_to_the_good_ones_that_want_it() {
        let all = [
            seen(640, true, true),
            seen(64, false, true),
            seen(6400, false, false),
        ];
        let factor = factor(all.iter(), 1.0, 8192);
        let bad = 640.0 * factor;
        // As in Guardian's groups: the one good one gets what 7552 of 8192 shares are.
        let part = 64.0 / (64.0 + bad);
        assert!((part - 7552.0 / 8192.0).abs() < 1e-6, "{part}");
    }

    #[test]
    fn without_good_ones_nothing_is_lowered() {
        let all = [seen(640, true, true), seen(64, false, false)];
        assert!((factor(all.iter(), 1.0, 8192) - 1.0).abs() < 1e-9);
        let crowd = [seen(9000, true, true), seen(64, false, true)];
        assert!((factor(crowd.iter(), 1.0, 8192) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn weights_are_lowered_in_proportion() {
        assert_eq!(lowered(1000, 0.1, false), 100);
        assert_eq!(lowered(10, 0.001, false), 2);
        let half = lowered(1024, 0.5, true);
        assert_eq!(weight_of_shares(half), 50);
        assert_eq!(lowered(1024, 1.0, true), 1024);
        assert_eq!(lowered(2, 0.1, true), 2);
    }
}
