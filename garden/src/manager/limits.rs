//! The limits of a container: as they were asked for, as the kernel has them, and changing them.

use std::sync::Arc;

use super::Manager;
use crate::cgroup::Place;
use crate::container::Container;
use crate::error::Error;
use crate::model::{Handle, Limits, LimitsChange, LimitsInForce};

impl Manager {
    /// Changes limits of a container that runs; returns those that hold then. Changes of one
    /// container are done one after another. What is refused leaves the old limits.
    ///
    /// # Errors
    /// [`Error::ContainerNotFound`], [`Error::BeingDestroyed`]; [`Error::Invalid`] for a value that
    /// cannot be, and for a memory limit below what is in use and cannot be dropped.
    pub async fn change_limits(
        &self,
        handle: &Handle,
        change: LimitsChange,
    ) -> Result<Limits, Error> {
        let container = self.find_alive(handle).await?;
        // On a task of its own: a caller that goes away must not leave kernel and record apart.
        let task = tokio::spawn(async move { change_one(&container, change).await });
        task.await
            .map_err(|error| Error::host("changing the limits failed", error))?
    }

    /// The limits of a container with the kernel's own files of them.
    ///
    /// # Errors
    /// [`Error::ContainerNotFound`].
    pub async fn limits_in_force(&self, handle: &Handle) -> Result<LimitsInForce, Error> {
        let container = self.find_alive(handle).await?;
        let record = container.record();
        let cgroups = self.services().cgroups.clone();
        let read = self
            .services()
            .meters
            .run(move || cgroups.read_back(&Place::Container(&record.cgroup)));
        Ok(LimitsInForce {
            limits: record.spec.limits,
            kernel: read.await?.into_iter().collect(),
            throttled: container.is_throttled(),
        })
    }
}

async fn change_one(container: &Arc<Container>, change: LimitsChange) -> Result<Limits, Error> {
    let _turn = container
        .limits_turn
        .acquire()
        .await
        .map_err(|error| Error::host("cannot change the limits", error))?;
    if container.is_destroying() {
        return Err(Error::BeingDestroyed(container.handle.clone()));
    }
    let before = container.record().spec.limits;
    let after = change.apply(&before);
    // First on file: a server that dies in between has the next one write what was promised.
    container.change(|record| {
        record.spec.limits = after.clone();
        record.limits_pending = true;
    })?;
    let written = write(container, before.clone(), after.clone()).await;
    container.change(|record| {
        record.limits_pending = false;
        if written.is_err() {
            record.spec.limits = before;
        }
    })?;
    written?;
    tracing::info!(handle = %container.handle, ?after, "limits changed");
    Ok(after)
}

async fn write(container: &Container, before: Limits, after: Limits) -> Result<(), Error> {
    let services = &container.services;
    let (cgroups, cgroup) = (services.cgroups.clone(), container.record().cgroup);
    let written = services
        .files
        .run(move || cgroups.change(&Place::Container(&cgroup), &before, &after));
    Ok(written.await??)
}

/// Writes again what a server that died may have left half written: a change of limits, a lowered
/// share of the CPU. For a container that was found after a restart.
pub(super) async fn settle(container: &Arc<Container>) {
    let record = container.record();
    let limits = record.spec.limits;
    let (cgroups, cgroup) = (container.services.cgroups.clone(), record.cgroup);
    let files = &container.services.files;
    let done = if record.limits_pending {
        let written = files.run(move || cgroups.rewrite(&Place::Container(&cgroup), &limits));
        let written = written
            .await
            .map_err(Error::from)
            .and_then(|done| Ok(done?));
        written.and_then(|()| Ok(container.change(|record| record.limits_pending = false)?))
    } else if limits.cpu_shares.is_some() {
        let shares = limits.cpu_shares;
        let written = files.run(move || cgroups.set_shares(&Place::Container(&cgroup), shares));
        written
            .await
            .map_err(Error::from)
            .and_then(|done| Ok(done?))
    } else {
        Ok(())
    };
    if let Err(error) = done {
        tracing::warn!(handle = %container.handle, error = error.report(), "its limits may be old ones");
    }
}
