//! What CNI plugins answer: the result of a chain, and errors.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

use crate::lease::MappedPort;

/// What a container has got.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attachment {
    /// Its addresses, in the order of the plugins.
    pub addresses: Vec<Address>,
    /// Interfaces that were made, on both sides.
    pub interfaces: Vec<Interface>,
    /// For its `resolv.conf`.
    pub dns: Dns,
    /// Host ports that lead to it, as they were asked for.
    pub ports: Vec<MappedPort>,
}

/// An address of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// Bits of its subnet's prefix.
    pub prefix: u8,
    /// The way out.
    pub gateway: Option<IpAddr>,
}

/// An interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address.
    pub mac: String,
    /// The network namespace that it is in; empty for the host's.
    pub sandbox: String,
}

/// Name servers, as plugins know them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Addresses of servers.
    pub nameservers: Vec<IpAddr>,
    /// The local domain.
    pub domain: String,
    /// Domains to search.
    pub search: Vec<String>,
    /// Options of the resolver.
    pub options: Vec<String>,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Wire {
    ips: Vec<WireAddress>,
    interfaces: Vec<Interface>,
    dns: Dns,
}

#[derive(Deserialize)]
struct WireAddress {
    address: String,
    #[serde(default)]
    gateway: Option<IpAddr>,
}

/// Reads a result.
pub(super) fn read(result: &Value, ports: &[MappedPort]) -> Result<Attachment, String> {
    let wire = Wire::deserialize(result).map_err(|error| error.to_string())?;
    let address = |wire: WireAddress| -> Result<Address, String> {
        let wrong = || format!("{:?} is no address with a prefix", wire.address);
        let (address, prefix) = wire.address.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.parse().ok().filter(|prefix| *prefix <= most);
        Ok(Address {
            address,
            prefix: prefix.ok_or_else(wrong)?,
            gateway: wire.gateway,
        })
    };
    let addresses: Result<_, _> = wire.ips.into_iter().map(address).collect();
    Ok(Attachment {
        addresses: addresses?,
        interfaces: wire.interfaces,
        dns: wire.dns,
        ports: ports.to_vec(),
    })
}

/// The error that a plugin writes when it fails.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Refusal {
    pub(super) code: u64,
    pub(super) msg: String,
    pub(super) details: String,
}
