//! A thread for one call that may hang in the kernel.
//!
//! Used by implementors of [`super::Stages`]. A runtime waits for its blocking pool when it goes
//! down, and the pool has an end; a thread of one's own neither holds up the end of the
//! server nor takes a place from anybody.

use std::io;
use std::thread::Builder;

use tokio::sync::oneshot;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum ThreadError {
    /// The thread could not be started.
    #[error("cannot start a thread; is the server's limit of tasks reached?")]
    Start(#[source] io::Error),
    /// The call panicked.
    #[error("the call panicked; see the server's log")]
    Panicked,
}

/// Runs `call` on a thread of its own (`name`, of at most 15 bytes, shows in `ps`) and waits for its
/// result. Dropping the future leaves the thread to itself.
///
/// # Errors
/// When the thread cannot be started, or the call panicked.
pub async fn on_own_thread<T: Send + 'static>(
    name: &str,
    call: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ThreadError> {
    let (sender, result) = oneshot::channel();
    Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            // A panic drops the sender, which is how the waiting end hears of it. That nobody
            // waits any more is no error either.
            let _ = sender.send(call());
        })
        .map_err(ThreadError::Start)?;
    result.await.map_err(|_| ThreadError::Panicked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_call_runs_beside_the_runtime_and_its_panic_stays_there() {
        let here = std::thread::current().id();
        let there = on_own_thread("elsewhere", || std::thread::current().id()).await;
        assert_ne!(there.expect("runs"), here);
        let panicked = on_own_thread::<()>("panics", || panic!("on purpose")).await;
        assert!(matches!(panicked, Err(ThreadError::Panicked)));
    }

    #[test]
    fn a_call_that_hangs_does_not_hold_up_the_end_of_the_runtime() {
        let (release, hang) = std::sync::mpsc::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("runtime");
        runtime.block_on(async {
            let hanging = tokio::spawn(on_own_thread("hangs", move || hang.recv().is_ok()));
            tokio::task::yield_now().await;
            assert!(!hanging.is_finished());
        });
        drop(runtime);
        drop(release);
    }
}
