//! What one container holds of the network: the record of it.
//!
//! Whoever owns containers keeps a [`Lease`] with theirs, as it is after each call, and gives all
//! of them to [`crate::Network::start`] when it starts again. The names in it are never used
//! twice, so that the end of one container cannot touch the next of the same handle.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::cidr::Cidr;
use crate::names::Names;
use crate::rules::NetOutRule;
use crate::subnets::Assignment;

/// A container's part in the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The user's name for the container: for people and logs only.
    pub handle: String,
    /// Names of what belongs to it in the kernel.
    #[serde(flatten)]
    pub names: Names,
    /// The subnet; its bridge may have other containers.
    pub subnet: Cidr,
    /// The container's address.
    pub address: Ipv4Addr,
    /// IPv6, where the instance has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Lease6>,
    /// Largest packet of its interface, in bytes.
    pub mtu: u32,
    /// Host ports that lead to it.
    #[serde(default)]
    pub ports: Vec<MappedPort>,
    /// What it may reach, in the order it was said.
    #[serde(default)]
    pub rules: Vec<NetOutRule>,
}

/// The IPv6 part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease6 {
    /// The container's address.
    pub address: Ipv6Addr,
    /// The bridge's address.
    pub gateway: Ipv6Addr,
    /// Bits of the subnet's prefix.
    pub prefix: u8,
}

/// A host port that leads to a container's port. TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MappedPort {
    /// On the host's external address.
    pub host: u16,
    /// On the container's address.
    pub container: u16,
}

impl Lease {
    /// The bridge's address, the container's way out.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        self.subnet.gateway()
    }

    pub(crate) fn assignment(&self) -> Assignment {
        Assignment {
            subnet: self.subnet,
            address: self.address,
        }
    }
}

impl Lease6 {
    /// The IPv6 addresses that follow from an assignment: the instance's prefix of at most 96
    /// bits, with the IPv4 address in the last 32. So there is nothing to hand out, and nothing
    /// that could be handed out twice.
    pub(crate) fn derive(prefix: Ipv6Addr, assignment: Assignment) -> Self {
        let within = |address: Ipv4Addr| {
            let prefix = u128::from(prefix) & !u128::from(u32::MAX);
            Ipv6Addr::from(prefix | u128::from(u32::from(address)))
        };
        Self {
            address: within(assignment.address),
            gateway: within(assignment.subnet.gateway()),
            prefix: 96 + assignment.subnet.prefix(),
        }
    }

    /// The first and the last address of the subnet.
    pub(crate) fn subnet(&self) -> (u128, u128) {
        let host = u128::MAX.checked_shr(u32::from(self.prefix)).unwrap_or(0);
        let address = u128::from(self.address);
        (address & !host, address | host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_follows_from_ipv4() {
        let assignment = Assignment {
            subnet: "10.254.0.4/30".parse().unwrap(),
            address: Ipv4Addr::new(10, 254, 0, 6),
        };
        let derived = Lease6::derive("fd12:3456:789a::".parse().unwrap(), assignment);
        assert_eq!(derived.address.to_string(), "fd12:3456:789a::afe:6");
        assert_eq!(derived.gateway.to_string(), "fd12:3456:789a::afe:5");
        assert_eq!(derived.prefix, 126);
    }

    #[test]
    fn a_record_without_later_fields_can_be_read() {
        let text = r#"{"handle":"h","id":"0000000001","bridge":"wbrdg-0afe0004","host_interface":"w0000000001-0",
            "container_interface":"w0000000001-1","subnet":"10.254.0.4/30","address":"10.254.0.6","mtu":1500}"#;
        let lease: Lease = serde_json::from_str(text).unwrap();
        assert_eq!(lease.gateway(), Ipv4Addr::new(10, 254, 0, 5));
        assert!(lease.ipv6.is_none() && lease.ports.is_empty() && lease.rules.is_empty());
        let again: Lease = serde_json::from_str(&serde_json::to_string(&lease).unwrap()).unwrap();
        assert_eq!(again, lease);
    }
}
