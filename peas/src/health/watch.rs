//! Repeats one check and hands its ends on.
//!
//! Called once per check, in a task of its own, so that no check waits for another. Runs of one
//! check never overlap, and nothing is waited for but the run itself: in particular not for the
//! teardown of what it ran.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{Ended, Next};

/// Repeats a check for as long as `plan` says, or until `stop` is cancelled.
///
/// `run` gets the number of the run, counted from 1; its future is dropped when it takes longer
/// than `limit` (zero is no bound) and when the watch ends: what it started must be ended by the
/// drop. `tell` gets the end of each run. `gate` changes whenever a check that had to wait may have
/// to wait no longer.
pub async fn watch_check<F>(
    limit: Duration,
    plan: impl Fn() -> Next,
    mut run: impl FnMut(u64) -> F,
    tell: impl Fn(Ended),
    mut gate: watch::Receiver<u64>,
    stop: CancellationToken,
) where
    F: Future<Output = Ended>,
{
    let watching = async {
        let mut runs = 0;
        loop {
            gate.mark_unchanged();
            match plan() {
                Next::Over => return,
                // A sender that is gone will never open it.
                Next::Gated if gate.changed().await.is_err() => return,
                Next::Gated => {}
                Next::After(delay) => {
                    sleep(delay).await;
                    runs += 1;
                    tell(one_run(limit, run(runs)).await);
                }
            }
        }
    };
    tokio::select! {
        () = watching => {}
        () = stop.cancelled() => {}
    }
}

async fn one_run(limit: Duration, run: impl Future<Output = Ended>) -> Ended {
    if limit.is_zero() {
        return run.await;
    }
    let late = || Ended::failed(format!("it did not end within {} ms", limit.as_millis()));
    timeout(limit, run).await.unwrap_or_else(|_| late())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Arc, Mutex};

    use tokio::time::Instant;

    use super::*;

    fn passed() -> Ended {
        Ended {
            passed: true,
            output: String::new(),
            at_ns: 0,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_that_hangs_is_dropped_and_has_failed() {
        struct Ends(Arc<AtomicU64>);
        impl Drop for Ends {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let dropped = Arc::new(AtomicU64::new(0));
        let told = Mutex::new(Vec::new());
        let plan = || match told.lock().unwrap().len() {
            3 => Next::Over,
            _ => Next::After(Duration::from_secs(1)),
        };
        let run = |_| {
            let guard = Ends(Arc::clone(&dropped));
            async move {
                let _guard = guard;
                std::future::pending().await
            }
        };
        let begun = Instant::now();
        let (_keep, gate) = watch::channel(0);
        let limit = Duration::from_secs(2);
        let tell = |ended: Ended| told.lock().unwrap().push(ended.passed);
        watch_check(limit, plan, run, tell, gate, CancellationToken::new()).await;
        assert_eq!(*told.lock().unwrap(), [false; 3]);
        assert_eq!(dropped.load(Ordering::Relaxed), 3);
        assert_eq!(begun.elapsed().as_secs(), 9);
    }

    #[tokio::test(start_paused = true)]
    async fn a_gate_is_waited_for_and_a_stop_ends_everything() {
        let (opens, gate) = watch::channel(0);
        let open = Arc::new(AtomicU64::new(0));
        let runs = Arc::new(AtomicU64::new(0));
        let stop = CancellationToken::new();
        let (may, counted, ended) = (Arc::clone(&open), Arc::clone(&runs), stop.clone());
        let watching = tokio::spawn(async move {
            let plan = || match may.load(Ordering::Relaxed) {
                0 => Next::Gated,
                _ => Next::After(Duration::from_secs(10)),
            };
            let run = |number| {
                counted.store(number, Ordering::Relaxed);
                std::future::ready(passed())
            };
            watch_check(Duration::from_secs(1), plan, run, |_| {}, gate, ended).await;
        });
        sleep(Duration::from_secs(100)).await;
        assert_eq!(runs.load(Ordering::Relaxed), 0);
        open.store(1, Ordering::Relaxed);
        opens.send_replace(1);
        sleep(Duration::from_secs(35)).await;
        assert_eq!(runs.load(Ordering::Relaxed), 3);
        stop.cancel();
        watching.await.unwrap();
    }
}
