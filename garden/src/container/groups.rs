//! The cgroups that a container's processes are in: its own, with its nested peas', and those of
//! peas with limits of their own, which lie beside it.
//!
//! For whoever must reach every process of a container: stop, destroy, the death of a supervisor.
//! All calls block on small files: run them on worker threads. Never signals by pid alone.

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{Container, peas};
use crate::cgroup::{CgroupError, Cgroups, Devices, Place};

/// The groups of one container, as its records name them now.
#[derive(Debug)]
pub(crate) struct Groups {
    container: String,
    beside: Vec<String>,
}

impl Groups {
    /// Reads which there are. A pea's record is written before its group is made.
    pub(crate) fn of(container: &Container) -> Self {
        let cgroup = container.record().cgroup;
        let records = container.dir.read_processes();
        let beside = records
            .into_iter()
            .filter(|process| {
                let place = peas::place(&cgroup, &process.instance, process.own_limits);
                process.pea && matches!(place, Place::Beside(_))
            })
            .map(|process| process.instance)
            .collect();
        Self {
            container: cgroup,
            beside,
        }
    }

    fn places(&self) -> impl Iterator<Item = Place<'_>> {
        let beside = self.beside.iter().map(|name| Place::Beside(name));
        std::iter::once(Place::Container(&self.container)).chain(beside)
    }

    /// Kills everything in them, whatever one of them says.
    ///
    /// # Errors
    /// The first refusal of the kernel, after all were tried.
    pub(crate) fn kill(&self, cgroups: &Cgroups) -> Result<(), CgroupError> {
        self.places()
            .map(|place| cgroups.kill(&place))
            .fold(Ok(()), Result::and)
    }

    /// Has their devices restricted as the container's record says.
    ///
    /// # Errors
    /// The first refusal of the kernel, after all were tried.
    pub(crate) fn settle_devices(
        &self,
        cgroups: &Cgroups,
        devices: &Devices,
    ) -> Result<(), CgroupError> {
        self.places()
            .filter(|place| cgroups.exists(place))
            .map(|place| cgroups.settle_devices(&place, devices))
            .fold(Ok(()), Result::and)
    }

    /// The pids in them.
    pub(crate) fn processes(&self, cgroups: &Cgroups) -> Vec<i32> {
        self.places()
            .flat_map(|place| cgroups.processes(&place))
            .collect()
    }

    /// Sends a signal to everything in them but one process; returns how many there were.
    pub(crate) fn signal(&self, cgroups: &Cgroups, signal: Signal, spared: i32) -> usize {
        let mut reached = 0;
        for place in self.places() {
            let held: Vec<_> = cgroups
                .processes(&place)
                .into_iter()
                .filter(|pid| *pid != spared)
                .filter_map(|pid| {
                    let pidfd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
                    Some((pid, pidfd))
                })
                .collect();
            // Still in the group: then each pidfd is of the process that was meant.
            let still = cgroups.processes(&place);
            for (pid, pidfd) in &held {
                if still.contains(pid) && pidfd_send_signal(pidfd, signal).is_ok() {
                    reached += 1;
                }
            }
        }
        reached
    }
}
