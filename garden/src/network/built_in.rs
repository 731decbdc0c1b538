//! The built-in network (`garden-net`) as a [`Provider`].
//!
//! Only translations, and two small duties: at most one server has a tag ([`Claim`]), and the place
//! in the pool of ports is written down whenever it moves, so that a killed server's ports are not
//! handed out again at once.

use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use garden_net::{Lease, Network, PortRequest, Spec, detect};
use serde::{Deserialize, Serialize};

use super::claim::Claim;
use super::config;
use super::names::Resolution;
use super::provider::{Connected, Provider, Wanted, not_ours};
use super::record::{NetworkRecord, Own};
use crate::error::Error;
use crate::model::{Addresses, ContainerSpec, Handle, NetOutRule, NetworkMetrics, PortMapping};
use crate::services::lock;

/// Where the pool's place is kept, below the runtime directory.
const PORT_STATE: &str = "network-ports.json";

/// The built-in network of one server.
#[derive(Debug)]
pub(super) struct BuiltIn {
    network: Network,
    port_state: PathBuf,
    /// What was written there last.
    written: Mutex<u32>,
    _claim: Claim,
}

/// Guardian's format, so that its file can be taken over.
#[derive(Debug, Default, Serialize, Deserialize)]
struct PortState {
    #[serde(default)]
    offset: u32,
}

impl BuiltIn {
    /// Takes over what records say, and makes the kernel agree with it.
    pub(super) fn start(
        options: &config::BuiltIn,
        names: &config::Names,
        runtime_dir: &Path,
        known: Vec<NetworkRecord>,
    ) -> Result<Self, Error> {
        let claim = Claim::take(options.tag.as_str())?;
        let port_state = options
            .port_state
            .clone()
            .unwrap_or_else(|| runtime_dir.join(PORT_STATE));
        let offset = read_offset(&port_state)?;
        let leases = known.into_iter().filter_map(|record| match record.own {
            Own::BuiltIn(lease) => Some(*lease),
            Own::None => None,
        });
        let started = Network::start(translate(options, names, offset)?, leases.collect())?;
        for rejected in &started.rejected {
            let error = crate::error::report(&rejected.reason);
            let (handle, address) = (&rejected.lease.handle, rejected.lease.address);
            tracing::error!(handle, %address, error, "its network is not restored");
        }
        let mended = describe(&started.repair);
        tracing::info!(
            removed = ?started.removed_links,
            repaired = ?mended,
            capacity = started.network.capacity(),
            "the network is ready"
        );
        Ok(Self {
            network: started.network,
            port_state,
            written: Mutex::new(offset),
            _claim: claim,
        })
    }

    /// Writes the pool's place down if it has moved. A failure costs no more than that ports may
    /// come back early.
    fn keep_offset(&self) {
        let mut written = lock(&self.written);
        let offset = self.network.port_offset();
        if *written == offset {
            return;
        }
        match write_offset(&self.port_state, offset) {
            Ok(()) => *written = offset,
            Err(error) => {
                let file = self.port_state.display();
                tracing::warn!(%file, %error, "the place in the pool of ports is not on file");
            }
        }
    }

    fn record(&self, lease: Lease, before: NetworkRecord) -> NetworkRecord {
        let options = self.network.options();
        NetworkRecord {
            addresses: Addresses {
                host: Some(lease.gateway().into()),
                container: Some(lease.address.into()),
                container_v6: lease.ipv6.map(|ipv6| ipv6.address.into()),
                external: Some(options.external.into()),
            },
            mapped_ports: lease.ports.iter().copied().map(mapping).collect(),
            own: Own::BuiltIn(Box::new(lease)),
            ..before
        }
    }
}

impl Provider for BuiltIn {
    fn check(&self, spec: &ContainerSpec) -> Result<(), Error> {
        Ok(self.network.check(&wanted(spec))?)
    }

    fn connect(&self, container: &Wanted<'_>) -> Result<Connected, Error> {
        let (handle, namespace) = (container.handle.as_str(), container.namespace.as_fd());
        let lease = self
            .network
            .add(handle, namespace, &wanted(container.spec))?;
        self.keep_offset();
        let gateway = IpAddr::V4(lease.gateway());
        Ok(Connected {
            record: self.record(lease, NetworkRecord::default()),
            names: Resolution {
                instead_of_loopback: Some(gateway),
                operator_hosts: true,
                ..Resolution::default()
            },
        })
    }

    fn disconnect(&self, _: &str, _: &str, record: Option<&NetworkRecord>) -> Result<(), Error> {
        // Without a record: what a killed server had made was found at the start, and is gone.
        match record.map(|record| &record.own) {
            Some(Own::BuiltIn(lease)) => Ok(self.network.remove(lease)?),
            _ => Ok(()),
        }
    }

    fn net_in(
        &self,
        handle: &Handle,
        record: &NetworkRecord,
        wish: PortMapping,
    ) -> Result<(PortMapping, NetworkRecord), Error> {
        let lease = lease_of(handle, record)?;
        let (port, lease) = self.network.net_in(lease, request(wish))?;
        self.keep_offset();
        Ok((mapping(port), self.record(lease, record.clone())))
    }

    fn net_out(
        &self,
        handle: &Handle,
        record: &NetworkRecord,
        rules: &[NetOutRule],
    ) -> Result<NetworkRecord, Error> {
        let lease = self.network.net_out(lease_of(handle, record)?, rules)?;
        Ok(self.record(lease, record.clone()))
    }

    fn usage(&self, record: &NetworkRecord) -> Result<Option<NetworkMetrics>, Error> {
        let Own::BuiltIn(lease) = &record.own else {
            return Ok(None);
        };
        let usage = self.network.usage(lease)?;
        Ok(usage.map(|usage| NetworkMetrics {
            rx_bytes: usage.received,
            tx_bytes: usage.sent,
        }))
    }

    fn capacity(&self) -> Option<u64> {
        Some(self.network.capacity())
    }

    fn settle(&self, patience: Duration) -> bool {
        self.network.settle(patience)
    }

    fn repair(&self) -> Result<Vec<String>, Error> {
        Ok(describe(&self.network.repair()?))
    }
}

fn lease_of<'a>(handle: &Handle, record: &'a NetworkRecord) -> Result<&'a Lease, Error> {
    match &record.own {
        Own::BuiltIn(lease) => Ok(lease),
        own => Err(not_ours(handle, own)),
    }
}

fn wanted(spec: &ContainerSpec) -> Spec {
    Spec {
        network: spec.network.clone().unwrap_or_default(),
        ports: spec.net_in.iter().copied().map(request).collect(),
        rules: spec.net_out.clone(),
    }
}

fn request(wish: PortMapping) -> PortRequest {
    PortRequest {
        host: wish.host_port,
        container: wish.container_port,
    }
}

fn mapping(port: garden_net::MappedPort) -> PortMapping {
    PortMapping {
        host_port: port.host.into(),
        container_port: port.container.into(),
    }
}

/// The operator's options in the network's words, with what the host says where they say nothing.
fn translate(
    options: &config::BuiltIn,
    names: &config::Names,
    port_offset: u32,
) -> Result<garden_net::Options, Error> {
    let external = match options.external {
        Some(address) => address,
        None => detect::external_address()?,
    };
    Ok(garden_net::Options {
        tag: options.tag.clone(),
        pool: options.pool,
        external,
        external6: options.external6,
        ipv6: options.ipv6,
        mtu: detect::mtu(options.mtu, external.into())?,
        allow_host_access: options.allow_host_access,
        deny: options.deny.clone(),
        name_servers: names
            .servers
            .iter()
            .chain(&names.additional)
            .copied()
            .collect(),
        port_start: options.port_start,
        port_size: options.port_size,
        port_offset,
    })
}

fn describe(repair: &garden_net::Repair) -> Vec<String> {
    let foreign = (repair.foreign > 0).then(|| {
        format!(
            "{} chains and elements that no record knows are gone",
            repair.foreign
        )
    });
    let rebuilt = repair.rebuilt.iter();
    let rebuilt = rebuilt.map(|handle| format!("the rules of {handle} are there again"));
    foreign.into_iter().chain(rebuilt).collect()
}

fn read_offset(file: &Path) -> Result<u32, Error> {
    match std::fs::read(file) {
        // A file that cannot be read as one is replaced: it says nothing that must be kept.
        Ok(bytes) => Ok(serde_json::from_slice::<PortState>(&bytes)
            .unwrap_or_default()
            .offset),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(Error::host(
            format!(
                "cannot read the state of the pool of ports in {}",
                file.display()
            ),
            error,
        )),
    }
}

fn write_offset(file: &Path, offset: u32) -> std::io::Result<()> {
    let text = serde_json::to_vec(&PortState { offset })?;
    let mut temporary = file.as_os_str().to_owned();
    temporary.push(".new");
    std::fs::write(&temporary, text)?;
    std::fs::rename(&temporary, file)
}
