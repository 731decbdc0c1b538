//! Named threads for calls that may block for long: mounts, unlinks, cgroup files, quota.
//!
//! The async runtime's own blocking pool is shared by everything; a few calls stuck in the kernel
//! could use it up. Each kind of work has its own pool here instead, so that what hangs takes
//! only its own kind along.

use std::sync::{Arc, Mutex, mpsc};

use tokio::sync::oneshot;

type Task = Box<dyn FnOnce() + Send>;

/// A pool of threads for one kind of work. Cheap to clone; the threads end with the last clone.
#[derive(Clone)]
pub struct Workers {
    name: &'static str,
    queue: mpsc::Sender<Task>,
}

impl Workers {
    /// Starts `count` threads named `name` (at most 15 bytes show in process lists).
    ///
    /// # Errors
    /// When the host has no threads left.
    pub fn start(name: &'static str, count: usize) -> std::io::Result<Self> {
        let (queue, tasks) = mpsc::channel::<Task>();
        let tasks = Arc::new(Mutex::new(tasks));
        for _ in 0..count.max(1) {
            let tasks = Arc::clone(&tasks);
            std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || {
                    loop {
                        // A poisoned lock would mean that `recv` panicked, which it does not.
                        let task = match tasks.lock() {
                            Ok(tasks) => tasks.recv(),
                            Err(_) => return,
                        };
                        match task {
                            Ok(task) => task(),
                            Err(mpsc::RecvError) => return,
                        }
                    }
                })?;
        }
        Ok(Self { name, queue })
    }

    /// Runs `work` on one of the threads. Dropping the future does not stop the work.
    ///
    /// # Errors
    /// When the work panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Panicked> {
        let (sender, receiver) = oneshot::channel();
        let span = tracing::Span::current();
        let task = Box::new(move || {
            let _entered = span.enter();
            let work = std::panic::AssertUnwindSafe(work);
            if let Ok(value) = std::panic::catch_unwind(work) {
                let _ = sender.send(value);
            }
        });
        self.queue.send(task).map_err(|_| Panicked(self.name))?;
        receiver.await.map_err(|_| Panicked(self.name))
    }
}

/// Work on one of the pools ended by a panic: a bug of ours.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("a task of the {0} threads panicked; this is a bug in garden, please report it")]
pub struct Panicked(&'static str);

impl From<Panicked> for crate::error::Error {
    fn from(panicked: Panicked) -> Self {
        Self::host("cannot finish the work", panicked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_and_leaves_the_thread_alive() {
        let workers = Workers::start("test-work", 1).unwrap();
        assert!(workers.run(|| panic!("on purpose")).await.is_err());
        assert_eq!(workers.run(|| 7).await.unwrap(), 7);
    }
}
