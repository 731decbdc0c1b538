//! Taking away what is on the host and no record names: what a crash left between two steps.
//!
//! Lists before the server serves, decides when everything is taken up, and only hands over to the
//! teardown queue. Creates, runs and destroys go on all the while. Why nothing of theirs is taken:
//!
//! - *Root filesystems and retired directories* are named by instances, which are never used twice,
//!   and only names that were there before the server served are looked at. So what a create or a
//!   run made since is not among them. What an earlier server made was recorded before it was made,
//!   and all records are read after the listing. A record that is gone by then was removed by a
//!   teardown, which removes it last.
//! - *Cgroups* of containers are named by handles, so a name on the list may be a new container's
//!   by now. Therefore each name is claimed ([`crate::group_names`]) before it is handed over, as a
//!   create does before it makes the group: one of the two gets it, and the other sees that.
//! - What the queue has a job for is the queue's.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use garden_peas::teardown::{Kind as JobKind, Resources, Target};

use super::{Manager, cleaner};
use crate::depot::{ContainerRecord, ProcessRecord};
use crate::error::Error;
use crate::services::{Services, lock};

/// Names of what is on the host and may be nobody's.
pub(super) struct Leftovers {
    rootfs: Vec<String>,
    cgroups: Vec<String>,
    gone: Vec<String>,
}

impl Leftovers {
    /// Lists it: names of directories only. Blocks.
    pub(super) fn list(services: &Services) -> Result<Self, Error> {
        Ok(Self {
            rootfs: services.roots.store().ids()?,
            cgroups: services.cgroups.names(),
            gone: services.depot.gone_names()?,
        })
    }
}

/// What records name.
#[derive(Default)]
pub(super) struct Known(Mutex<Names>);

#[derive(Default)]
struct Names {
    instances: HashSet<String>,
    /// Also those of what is being torn down.
    cgroups: HashSet<String>,
}

impl Known {
    /// Notes what the record of a container names.
    pub(super) fn add_container(&self, record: &ContainerRecord) {
        let mut names = lock(&self.0);
        names.instances.insert(record.instance.clone());
        names.cgroups.insert(record.cgroup.clone());
    }

    /// Notes what the records of its processes name.
    pub(super) fn add_processes(&self, processes: &[ProcessRecord]) {
        let mut names = lock(&self.0);
        for process in processes {
            names.instances.insert(process.instance.clone());
            names.cgroups.insert(process.instance.clone());
        }
    }
}

impl Manager {
    /// Hands over what no record names.
    pub(super) async fn sweep(&self, leftovers: Leftovers, known: Arc<Known>) {
        let services = Arc::clone(self.services());
        let swept = self.services().images.run(move || {
            let known = lock(&known.0);
            sweep(&services, &leftovers, &known)
        });
        match swept.await.map_err(Error::from) {
            Ok(Ok(())) => {}
            Ok(Err(error)) | Err(error) => {
                let error = error.report();
                tracing::error!(
                    error,
                    "cannot sweep what nobody has; the next start tries again"
                );
            }
        }
    }
}

fn sweep(services: &Services, leftovers: &Leftovers, known: &Names) -> Result<(), Error> {
    let queue = services.queue();
    let store = services.roots.store();
    // Those of `garden rootfs` are others'.
    let owned = |id: &str| known.instances.contains(id) || queue.has(id) || store.is_for_host(id);
    for id in store.retain(&leftovers.rootfs, owned)? {
        tracing::info!(rootfs = id, "root filesystem without an owner");
    }
    for name in &leftovers.gone {
        if !queue.has(name) {
            // Retired, but its job was not on file yet. Its supervisor may still live.
            let target = match services.depot.gone_record(name) {
                Some((handle, record)) => cleaner::container_target(services, &handle, &record),
                None => orphan(services, name),
            };
            queue.enqueue(target);
        }
    }
    let jobs = queue.snapshot().jobs;
    let busy: HashSet<&str> = jobs.iter().map(|job| job.container.as_str()).collect();
    for group in &leftovers.cgroups {
        let shared = matches!(group.as_str(), "privileged" | "unprivileged");
        let in_use = shared
            || known.cgroups.contains(group)
            || queue.has(group)
            || busy.iter().any(|handle| belongs(group, handle))
            || !services.group_names.claim(group, group);
        if !in_use {
            tracing::info!(group, "cgroup without an owner");
            // What lives in it may take its time to die; nobody waits for that.
            queue.enqueue(orphan(services, group));
        }
    }
    Ok(())
}

/// What a name without a record may stand for: a retired directory, a cgroup, a root filesystem.
/// Whatever of these there is goes.
fn orphan(services: &Services, name: &str) -> Target {
    Target {
        kind: JobKind::Container,
        container: name.to_owned(),
        process: None,
        resources: Resources {
            cgroups: vec![PathBuf::from(name)],
            rootfs: Some(name.to_owned()),
            records: vec![services.depot.gone(name)],
            ..Resources::default()
        },
        instance: name.to_owned(),
    }
}

/// Whether a cgroup is one that a container of this handle may have: see `Manager::cgroup_name`.
fn belongs(group: &str, handle: &str) -> bool {
    group
        .strip_prefix(handle)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}
