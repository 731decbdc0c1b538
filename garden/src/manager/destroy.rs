//! Stopping and destroying a container.
//!
//! Destroying answers when everything that a user can see is over: processes are dead, their
//! clients have been told, the handle is free. What is left is on file for the teardown queue
//! before the handle is given up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::create::INIT;
use super::{Manager, cleaner};
use crate::cgroup::Place;
use crate::container::Container;
use crate::depot::Phase;
use crate::error::Error;
use crate::events::EventKind;
use crate::model::Handle;
use crate::services::{lock, process_state};

/// How long killed processes may take to be gone before the caller is told which does not.
const DEATH_PATIENCE: Duration = Duration::from_secs(10);
/// How long the clients of dead processes may take to be told.
const ANNOUNCE_PATIENCE: Duration = Duration::from_secs(2);
/// Rounds of SIGTERM, one a second, before SIGKILL.
const TERM_ROUNDS: u32 = 10;

impl Manager {
    /// Destroys a container with everything in it.
    ///
    /// # Errors
    /// [`Error::ContainerNotFound`]; [`Error::BeingDestroyed`] while another call is at it; a
    /// process that cannot be killed, with its pid and state: then the container stays and the
    /// call can be repeated.
    pub async fn destroy_container(&self, handle: &Handle) -> Result<(), Error> {
        let container = self.find(handle)?;
        if !container.begin_destroy() {
            return Err(Error::BeingDestroyed(handle.clone()));
        }
        // On a task of its own: a caller that goes away does not stop it half-way.
        let manager = self.clone();
        let task = tokio::spawn(async move {
            container.checks.close();
            let done = manager.destroy_uncancelled(&container).await;
            if done.is_err() {
                container.destroy_failed();
                container.reopen_checks();
            }
            done
        });
        task.await
            .map_err(|error| Error::host("destroying the container failed", error))?
    }

    async fn destroy_uncancelled(&self, container: &Arc<Container>) -> Result<(), Error> {
        let begun = Instant::now();
        let services = self.services();
        container.change(|record| record.phase = Phase::Destroying)?;
        let record = container.record();
        // The init first: with it goes every process in the container, every pea included, and
        // the supervisor reports each.
        let init = container.exits.expect(INIT);
        let _ = container.shim.signal(INIT, 9).await;
        let peas = container.peas().destroy(DEATH_PATIENCE);
        let (stubborn, killed) = tokio::join!(peas, self.kill_group(&record.cgroup));
        killed?;
        if !stubborn.is_empty() {
            return Err(Error::host(
                format!("cannot destroy {}", container.handle),
                format!("peas do not end: {}", stubborn.join(", ")),
            ));
        }
        drop(init);
        self.wait_for_exits(container).await;
        services.depot.retire(&container.handle, &record.instance)?;
        let target = cleaner::container_target(services, &container.handle, &record);
        services.queue().enqueue(target);
        self.remove(&container.handle);
        container.event(EventKind::Destroyed, None);
        let ms = begun.elapsed().as_secs_f64() * 1000.0;
        tracing::info!(handle = %container.handle, duration_ms = ms, "container destroyed");
        Ok(())
    }

    /// Kills everything in the container's group and waits until it is gone.
    async fn kill_group(&self, cgroup: &str) -> Result<(), Error> {
        let services = Arc::clone(self.services());
        let name = cgroup.to_owned();
        let killed = self.services().files.run(move || {
            let place = Place::Container(&name);
            services.cgroups.kill(&place)?;
            let deadline = Instant::now() + DEATH_PATIENCE;
            loop {
                let left = services.cgroups.processes(&place);
                if left.is_empty() || Instant::now() >= deadline {
                    return Ok::<_, crate::cgroup::CgroupError>(left);
                }
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        let left = killed.await??;
        match left.first() {
            None => Ok(()),
            Some(pid) => Err(Error::host(
                format!("process {pid} of the container does not die"),
                format!(
                    "it is in state {}; destroy again when what blocks it is gone",
                    process_state(*pid)
                ),
            )),
        }
    }

    async fn wait_for_exits(&self, container: &Container) {
        for entry in container.processes() {
            let mut exit = entry.exit();
            let told = exit.wait_for(Option::is_some);
            if tokio::time::timeout(ANNOUNCE_PATIENCE, told).await.is_err() {
                tracing::warn!(handle = %container.handle, process = %entry.id, "its exit was not reported in time");
                return;
            }
        }
    }

    /// Ends all processes of a container but its init.
    ///
    /// With `kill` at once, else by SIGTERM, repeated for ten seconds. Stubborn ones are no error.
    ///
    /// # Errors
    /// [`Error::ContainerNotFound`], and when the record cannot be written.
    pub async fn stop_container(&self, handle: &Handle, kill: bool) -> Result<(), Error> {
        let container = self.find(handle)?;
        container.suspend_checks();
        let record = container.record();
        let init = i32::try_from(record.init_pid).unwrap_or(-1);
        for round in 0.. {
            let hard = kill || round >= TERM_ROUNDS;
            let signal = if hard {
                rustix::process::Signal::KILL
            } else {
                rustix::process::Signal::TERM
            };
            if self.signal_all(&record.cgroup, init, signal).await? == 0 || round >= TERM_ROUNDS * 2
            {
                break;
            }
            self.wait_until_alone(&record.cgroup, init, Duration::from_secs(1))
                .await?;
        }
        container.change(|record| record.stopped = true)?;
        container.event(EventKind::Stopped, None);
        Ok(())
    }

    /// Sends a signal to everything in the group but the init; returns how many there were.
    async fn signal_all(
        &self,
        cgroup: &str,
        init: i32,
        signal: rustix::process::Signal,
    ) -> Result<usize, Error> {
        let services = Arc::clone(self.services());
        let name = cgroup.to_owned();
        let sent = self.services().files.run(move || {
            let place = Place::Container(&name);
            let pids = services.cgroups.processes(&place);
            let others: Vec<_> = pids.into_iter().filter(|pid| *pid != init).collect();
            for pid in &others {
                let Some(pid) = rustix::process::Pid::from_raw(*pid) else {
                    continue;
                };
                let flags = rustix::process::PidfdFlags::empty();
                let Ok(pidfd) = rustix::process::pidfd_open(pid, flags) else {
                    continue;
                };
                // Still in the group: then the pidfd is of the process that was meant.
                if services
                    .cgroups
                    .processes(&place)
                    .contains(&pid.as_raw_nonzero().get())
                {
                    let _ = rustix::process::pidfd_send_signal(&pidfd, signal);
                }
            }
            others.len()
        });
        Ok(sent.await?)
    }

    async fn wait_until_alone(
        &self,
        cgroup: &str,
        init: i32,
        patience: Duration,
    ) -> Result<(), Error> {
        let services = Arc::clone(self.services());
        let name = cgroup.to_owned();
        let waited = self.services().files.run(move || {
            let deadline = Instant::now() + patience;
            while Instant::now() < deadline {
                let place = Place::Container(&name);
                if services
                    .cgroups
                    .processes(&place)
                    .iter()
                    .all(|pid| *pid == init)
                {
                    return;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        Ok(waited.await?)
    }

    /// Destroys every container. For a server that exists for one command.
    pub async fn destroy_all(&self) {
        for handle in self.handles() {
            if let Err(error) = self.destroy_container(&handle).await {
                tracing::warn!(%handle, error = error.report(), "a container is left behind");
            }
        }
        lock(&self.0.containers).clear();
    }
}
