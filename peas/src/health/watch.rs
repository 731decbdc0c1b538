//! Repeats a check and publishes what it says.
//!
//! Called once per health check, in a task of its own. Checks never overlap, and it never waits for
//! anything but the check itself: in particular not for the teardown of what the check ran.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{Check, Health, HealthPolicy, HealthState};

/// Repeats `check` until it is unhealthy or `stop` is cancelled, and publishes each change of state.
/// Returns the last state.
///
/// `check` gets the number of the try, counted from 1, and runs one check. Its future is dropped
/// when it takes longer than the policy's timeout, and when the watch ends: then whatever it started
/// must be ended by the drop (for a pea: a guard that destroys it).
pub async fn watch_health<F>(
    policy: HealthPolicy,
    mut check: impl FnMut(u64) -> F,
    publish: watch::Sender<HealthState>,
    stop: CancellationToken,
) -> HealthState
where
    F: Future<Output = Check>,
{
    let mut health = Health::new(policy.clone());
    publish.send_replace(health.state());
    let begun = Instant::now();
    let watching = async {
        let mut tries = 0;
        while let Some(delay) = health.next_check() {
            tries += 1;
            let end = one_check(&policy, &health, begun, delay, || check(tries)).await;
            let change = match end {
                Some(end) => health.observe(end, begun.elapsed()),
                None => health.start_time_over(),
            };
            if let Some(state) = change {
                tracing::info!(?state, tries, "health changed");
                publish.send_replace(state);
            }
        }
    };
    tokio::select! {
        () = watching => {}
        () = stop.cancelled() => {}
    }
    *publish.borrow()
}

/// Waits, then checks once. `None` when the start time ends first.
async fn one_check<F>(
    policy: &HealthPolicy,
    health: &Health,
    begun: Instant,
    delay: Duration,
    check: impl FnOnce() -> F,
) -> Option<Check>
where
    F: Future<Output = Check>,
{
    let checked = async {
        sleep(delay).await;
        timeout(policy.timeout, check())
            .await
            .unwrap_or(Check::Failed)
    };
    let limit = match (health.state(), policy.start_time) {
        (HealthState::Starting, Some(limit)) => limit,
        _ => return Some(checked.await),
    };
    tokio::select! {
        // A success that is there counts, even at the last moment.
        biased;
        end = checked => Some(end),
        () = sleep_until(begun + limit) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn policy() -> HealthPolicy {
        HealthPolicy {
            retry_interval: Duration::from_secs(1),
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(2),
            successes: 1,
            failures: 1,
            give_up_failures: None,
            start_time: Some(Duration::from_secs(60)),
            ..HealthPolicy::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_is_repeated_until_it_passes() {
        let (publish, mut state) = watch::channel(HealthState::Starting);
        let stop = CancellationToken::new();
        let begun = Instant::now();
        let check = |tries| async move {
            if tries < 4 {
                Check::Failed
            } else {
                Check::Passed
            }
        };
        let watching = tokio::spawn(watch_health(policy(), check, publish, stop.clone()));
        state
            .wait_for(|now| *now == HealthState::Ready)
            .await
            .expect("ready");
        assert_eq!(begun.elapsed().as_secs(), 3);
        stop.cancel();
        assert_eq!(watching.await.expect("ends"), HealthState::Ready);
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_that_hangs_is_dropped_and_has_failed() {
        struct Ends(Arc<AtomicU64>);
        impl Drop for Ends {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let ended = Arc::new(AtomicU64::new(0));
        let ends = Arc::clone(&ended);
        let check = move |_| {
            let guard = Ends(Arc::clone(&ends));
            async move {
                let _guard = guard;
                std::future::pending().await
            }
        };
        let begun = Instant::now();
        let (publish, _) = watch::channel(HealthState::Starting);
        let policy = HealthPolicy {
            start_time: Some(Duration::from_secs(58)),
            ..policy()
        };
        let last = watch_health(policy, check, publish, CancellationToken::new()).await;
        assert_eq!(last, HealthState::Unhealthy);
        assert_eq!(begun.elapsed().as_secs(), 58, "the start time is a bound");
        assert_eq!(ended.load(Ordering::Relaxed), 20, "one each 2 s + 1 s");
    }

    #[tokio::test(start_paused = true)]
    async fn a_ready_one_that_fails_is_found_and_followed_up() {
        let (publish, mut state) = watch::channel(HealthState::Starting);
        let check = |tries| async move {
            if tries == 1 {
                Check::Passed
            } else {
                Check::Failed
            }
        };
        let policy = HealthPolicy {
            give_up_failures: Some(3),
            ..policy()
        };
        let begun = Instant::now();
        let watching = tokio::spawn(watch_health(
            policy,
            check,
            publish,
            CancellationToken::new(),
        ));
        state
            .wait_for(|now| *now == HealthState::Unready)
            .await
            .expect("unready");
        assert_eq!(begun.elapsed().as_secs(), 10);
        assert_eq!(watching.await.expect("ends"), HealthState::Unhealthy);
        assert_eq!(begun.elapsed().as_secs(), 12);
    }
}
