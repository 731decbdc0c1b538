//! Stopping and destroying a container.
//!
//! Destroying answers when everything that a user can see is over: processes are dead, their
//! clients have been told, the handle is free. What is left is on file for the teardown queue
//! before the handle is given up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{Manager, cleaner};
use crate::container::groups::Groups;
use crate::container::{Container, INIT, lost};
use crate::depot::Phase;
use crate::error::Error;
use crate::events::EventKind;
use crate::model::Handle;
use crate::services::process_state;

/// Killed processes that are still there after so long may be frozen.
const FROZEN_AFTER: Duration = Duration::from_millis(20);
/// Of how many processes that do not die the state is told.
const TOLD: usize = 3;
/// Rounds of SIGTERM before SIGKILL.
const TERM_ROUNDS: u32 = 10;
/// How long a round of SIGTERM waits for the processes to end.
const TERM_PAUSE: Duration = Duration::from_secs(1);
/// Rounds of SIGKILL: many and short, so that what forks is overtaken.
const KILL_ROUNDS: u32 = 200;
/// How long a round of SIGKILL waits.
const KILL_PAUSE: Duration = Duration::from_millis(50);

impl Manager {
    /// Destroys a container with everything in it.
    ///
    /// # Errors
    /// [`Error::ContainerNotFound`]; [`Error::BeingDestroyed`] while another call is at it; a
    /// process that cannot be killed, with its pid and state: then the container stays and the
    /// call can be repeated.
    pub async fn destroy_container(&self, handle: &Handle) -> Result<(), Error> {
        let container = self.find(handle).await?;
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
                if container.shim.is_dead() {
                    lost::lose(&container, lost::Cause::Supervisor).await;
                } else {
                    container.reopen_checks();
                }
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
        let times = services.options.ending;
        let peas = container.peas().destroy(times.death);
        let (stubborn, killed) = tokio::join!(peas, self.kill_groups(container));
        killed?;
        if !stubborn.is_empty() {
            return Err(Error::host(
                format!("cannot destroy {}", container.handle),
                format!("peas do not end: {}", stubborn.join(", ")),
            ));
        }
        drop(init);
        self.wait_for_exits(container).await;
        container.log.close();
        services.depot.retire(&container.handle, &record.instance)?;
        let target = cleaner::container_target(services, &container.handle, &record);
        services.queue().enqueue(target);
        self.remove(&container.handle);
        container.event(EventKind::Destroyed, None);
        let ms = begun.elapsed().as_secs_f64() * 1000.0;
        tracing::info!(handle = %container.handle, duration_ms = ms, "container destroyed");
        Ok(())
    }

    /// Kills everything in the container's groups and waits until it is gone.
    async fn kill_groups(&self, container: &Arc<Container>) -> Result<(), Error> {
        let services = Arc::clone(self.services());
        let (handle, container) = (&container.handle, Arc::clone(container));
        let killed = self.services().files.run(move || {
            let groups = Groups::of(&container);
            groups.kill(&services.cgroups)?;
            let begun = Instant::now();
            let mut thawed = false;
            loop {
                let left = groups.processes(&services.cgroups);
                let waited = begun.elapsed();
                if left.is_empty() || waited >= services.options.ending.death {
                    return Ok::<_, crate::cgroup::CgroupError>(left);
                }
                if waited > FROZEN_AFTER && !thawed {
                    thawed = true;
                    left.iter().for_each(|pid| services.cgroups.thaw(*pid));
                }
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        let left = killed.await??;
        let Some(first) = left.first() else {
            return Ok(());
        };
        let states: Vec<_> = left
            .iter()
            .take(TOLD)
            .map(|pid| format!("{pid} is in state {}", process_state(*pid)))
            .collect();
        Err(Error::host(
            format!(
                "process {first} of the container {handle} does not die{}",
                match left.len() {
                    1 => String::new(),
                    more => format!(", and {} more", more - 1),
                }
            ),
            format!(
                "{}; destroy again when what blocks it is gone",
                states.join(", ")
            ),
        ))
    }

    async fn wait_for_exits(&self, container: &Container) {
        for entry in container.processes() {
            let Some(mut exit) = entry.exit() else {
                continue;
            };
            let told = exit.wait_for(Option::is_some);
            let patience = self.services().options.ending.announcement;
            if tokio::time::timeout(patience, told).await.is_err() {
                tracing::warn!(handle = %container.handle, process = %entry.id, "its exit was not reported in time");
                return;
            }
        }
    }

    /// Ends all processes of a container but its init, and all its peas.
    ///
    /// With `kill` at once, else by SIGTERM, repeated for ten seconds, and then by SIGKILL. What
    /// survives even that is logged and no error.
    ///
    /// # Errors
    /// [`Error::ContainerNotFound`], [`Error::BeingDestroyed`], and when the record cannot be
    /// written.
    pub async fn stop_container(&self, handle: &Handle, kill: bool) -> Result<(), Error> {
        let container = self.find(handle).await?;
        if container.is_lost() {
            return Ok(());
        }
        container.suspend_checks();
        let polite = if kill { 0 } else { TERM_ROUNDS };
        let mut left = Vec::new();
        for round in 0..polite + KILL_ROUNDS {
            if container.is_destroying() {
                return Err(Error::BeingDestroyed(handle.clone()));
            }
            let (signal, patience) = if round < polite {
                (Signal::TERM, TERM_PAUSE)
            } else {
                (Signal::KILL, KILL_PAUSE)
            };
            left = self.stop_round(&container, signal, patience).await?;
            if left.is_empty() {
                break;
            }
        }
        for pid in left {
            tracing::warn!(%handle, pid, state = process_state(pid), "it outlives a stop");
        }
        container.change(|record| record.stopped = true)?;
        container.event(EventKind::Stopped, None);
        Ok(())
    }

    /// Signals everything but the init, and waits a while until it is gone. Returns what is not.
    async fn stop_round(
        &self,
        container: &Arc<Container>,
        signal: Signal,
        patience: Duration,
    ) -> Result<Vec<i32>, Error> {
        let services = Arc::clone(self.services());
        let container = Arc::clone(container);
        let init = i32::try_from(container.record().init_pid).unwrap_or(-1);
        let round = self.services().files.run(move || {
            // Read anew in each round: a pea may have been started meanwhile.
            let groups = Groups::of(&container);
            groups.signal(&services.cgroups, signal, init);
            let deadline = Instant::now() + patience;
            loop {
                let mut left = groups.processes(&services.cgroups);
                left.retain(|pid| *pid != init);
                if left.is_empty() || Instant::now() >= deadline {
                    return left;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        Ok(round.await?)
    }

    /// Destroys every container. For a server that exists for one command.
    pub async fn destroy_all(&self) {
        for handle in self.handles() {
            if let Err(error) = self.destroy_container(&handle).await {
                tracing::warn!(%handle, error = error.report(), "a container is left behind");
            }
        }
        self.0.table.clear();
    }
}
