//! A container's network: connecting it, and what may change of that while it lives.
//!
//! How it is done is `crate::network`'s. Here is the order of things: the kernel has it before it is
//! on file, and it is on file before anybody is told. A server that is killed between the two
//! leaves what its next start finds, because no record names it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::Manager;
use crate::container::{Container, names};
use crate::depot::{ContainerDir, ContainerRecord};
use crate::error::Error;
use crate::model::{Handle, NetOutRule, PortMapping};
use crate::network::{self, Member};

impl Manager {
    /// Connects a container whose init runs, and tells it who it is.
    pub(super) async fn connect(
        &self,
        handle: &Handle,
        dir: &ContainerDir,
        record: &mut ContainerRecord,
        init_pid: u32,
    ) -> Result<(), Error> {
        let services = self.services();
        let member = Member {
            handle: handle.clone(),
            instance: record.instance.clone(),
        };
        let namespace = open_namespace(init_pid)?;
        let connected = services
            .networks
            .connect(member, record.spec.clone(), (init_pid, namespace))
            .await?;
        record.network = connected.record;
        dir.write(record)?;
        let directory = dir.fd().try_clone_to_owned();
        let directory =
            directory.map_err(|error| Error::host("cannot duplicate a descriptor", error))?;
        let (names, handle) = (services.networks.names(), handle.clone());
        let network = record.network.clone();
        let written = services.files.run(move || {
            let contents = network::names::contents(&names, &handle, &network, &connected.names);
            contents.map_or(Ok(()), |contents| names::write(&directory, &contents))
        });
        written.await?
    }

    /// Leads a port of the host into a container.
    ///
    /// # Errors
    /// [`Error::ContainerNotFound`], and what the network refuses; nothing is changed then.
    pub async fn map_port(&self, handle: &Handle, wish: PortMapping) -> Result<PortMapping, Error> {
        let container = self.find_alive(handle).await?;
        let networks = self.services().networks.clone();
        // On a task of its own: what the kernel has must reach the record, whoever waits.
        let task = tokio::spawn(async move {
            let _turn = container.network_turn.acquire().await;
            let (member, record) = member(&container)?;
            let (mapping, record) = networks.net_in(member, record, wish).await?;
            container.change(|all| all.network = record)?;
            Ok(mapping)
        });
        task.await
            .map_err(|error| Error::host("mapping a port failed", error))?
    }

    /// Lets a container reach more: all rules or none.
    ///
    /// # Errors
    /// [`Error::ContainerNotFound`], and what the network refuses; nothing is changed then.
    pub async fn open_to(&self, handle: &Handle, rules: Vec<NetOutRule>) -> Result<(), Error> {
        let container = self.find_alive(handle).await?;
        let networks = self.services().networks.clone();
        let task = tokio::spawn(async move {
            if rules.is_empty() {
                return Ok(());
            }
            let _turn = container.network_turn.acquire().await;
            let (member, record) = member(&container)?;
            let record = networks.net_out(member, record, rules).await?;
            Ok(container.change(|all| all.network = record)?)
        });
        task.await
            .map_err(|error| Error::host("opening the network failed", error))?
    }
}

fn member(container: &Arc<Container>) -> Result<(Member, network::NetworkRecord), Error> {
    if container.is_destroying() {
        return Err(Error::BeingDestroyed(container.handle.clone()));
    }
    let record = container.record();
    let member = Member {
        handle: container.handle.clone(),
        instance: record.instance,
    };
    Ok((member, record.network))
}

/// The network namespace of a container, by its init. The pid cannot be another's: its supervisor
/// has not reaped it, or the open fails and with it the create.
fn open_namespace(init_pid: u32) -> Result<OwnedFd, Error> {
    let path = format!("/proc/{init_pid}/ns/net");
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open(&*path, flags, rustix::fs::Mode::empty()).map_err(|errno| {
        let error = std::io::Error::from(errno);
        Error::host("cannot open the container's network namespace", error)
    })
}
