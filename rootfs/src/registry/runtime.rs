//! The thread on which requests run.
//!
//! Started by the first request, ends with the last user. The rest of the crate blocks and knows
//! nothing of it. It is not waited for when it ends: a name that is being resolved cannot be
//! interrupted.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::{Mutex, PoisonError, mpsc};

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::error::RegistryError;

/// A thread that runs requests, once there is one.
#[derive(Default)]
pub(super) struct Runtime(Mutex<Option<Started>>);

struct Started {
    handle: Handle,
    /// Ends the thread when it is dropped.
    _stop: oneshot::Sender<Infallible>,
}

impl Runtime {
    /// Runs a request and waits for what comes of it.
    pub(super) fn run<T: Send + 'static>(
        &self,
        request: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, RegistryError> {
        let (answer, answered) = mpsc::sync_channel(1);
        self.spawn(async move {
            // Nobody waits any more only if the caller's thread is gone.
            let _ = answer.send(request.await);
        })?;
        answered.recv().map_err(|_| {
            let text = "a request ended without a result";
            RegistryError::Thread(io::Error::other(text))
        })
    }

    /// Runs something beside the caller.
    pub(super) fn spawn(
        &self,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> Result<JoinHandle<()>, RegistryError> {
        let mut started = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let running = match &mut *started {
            Some(running) => running,
            none => none.insert(start().map_err(RegistryError::Thread)?),
        };
        Ok(running.handle.spawn(task))
    }
}

fn start() -> io::Result<Started> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        // Names are resolved on threads of their own.
        .max_blocking_threads(4)
        .thread_name("garden-resolver")
        .build()?;
    let handle = runtime.handle().clone();
    let (stop, stopped) = oneshot::channel::<Infallible>();
    std::thread::Builder::new()
        .name("garden-registry".to_owned())
        .spawn(move || {
            // Ends with an error when the sender is dropped, which is the only way to end.
            let _ = runtime.block_on(stopped);
            runtime.shutdown_background();
        })?;
    Ok(Started {
        handle,
        _stop: stop,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_for_all_and_none_left() {
        let runtime = Runtime::default();
        let name = || std::thread::current().name().map(str::to_owned);
        let first = runtime.run(async move { name() }).unwrap();
        assert_eq!(first.as_deref(), Some("garden-registry"));
        let id = || std::thread::current().id();
        let ids = [
            runtime.run(async move { id() }),
            runtime.run(async move { id() }),
        ];
        let [first, second] = ids.map(|id| id.unwrap());
        assert_eq!(first, second);

        // What runs beside is dropped when the last user goes.
        let (alive, ended) = mpsc::channel::<()>();
        runtime
            .spawn(async move {
                std::future::pending::<()>().await;
                drop(alive);
            })
            .unwrap();
        drop(runtime);
        assert!(ended.recv().is_err());
    }

    #[test]
    fn a_request_that_panics_is_an_error() {
        let runtime = Runtime::default();
        let lost = runtime.run(async { panic!("on purpose") });
        assert!(matches!(lost, Err::<(), _>(RegistryError::Thread(_))));
        assert_eq!(runtime.run(async { 1 }).unwrap(), 1);
    }
}
