//! What an operator decides about an instance's network.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::cidr::{Cidr, CidrError};
use crate::error::NetworkError;
use crate::names::Tag;
use crate::nft::{External, Policy};

/// The options of one instance.
#[derive(Debug, Clone)]
pub struct Options {
    /// Tells instances on one host apart.
    pub tag: Tag,
    /// What containers that ask for nothing get a /30 of.
    pub pool: Cidr,
    /// The address whose ports lead to containers; see [`crate::detect::external_address`].
    pub external: Ipv4Addr,
    /// The same for IPv6; without it ports lead to containers from IPv4 only.
    pub external6: Option<Ipv6Addr>,
    /// A prefix of at most 96 bits (fd00::/8 is for this); none: containers have no IPv6.
    pub ipv6: Option<Ipv6Addr>,
    /// Bytes; see [`crate::detect::mtu`].
    pub mtu: u32,
    /// Containers may reach the host itself.
    pub allow_host_access: bool,
    /// Rejected, unless a container has a rule that lets it.
    pub deny: Vec<DenyNetwork>,
    /// Name servers that containers may ask even if they are on the host.
    pub name_servers: Vec<std::net::IpAddr>,
    /// First port of the pool.
    pub port_start: u32,
    /// Ports in the pool.
    pub port_size: u32,
    /// Where the pool stood at the last stop: [`crate::Network::port_offset`].
    pub port_offset: u32,
}

impl Options {
    /// The defaults, for a host with this address.
    #[must_use]
    pub fn new(external: Ipv4Addr) -> Self {
        Self {
            tag: Tag::default(),
            pool: Cidr::around(Ipv4Addr::new(10, 254, 0, 0), 22),
            external,
            external6: None,
            ipv6: None,
            mtu: crate::detect::LARGEST_MTU,
            allow_host_access: false,
            deny: Vec::new(),
            name_servers: Vec::new(),
            port_start: 61001,
            port_size: 4534,
            port_offset: 0,
        }
    }

    pub(crate) fn check(&self) -> Result<(), NetworkError> {
        let refuse = |option, reason: String| Err(NetworkError::Option { option, reason });
        if let Some(prefix) = self.ipv6 {
            if u128::from(prefix) & u128::from(u32::MAX) != 0 {
                return refuse(
                    "ipv6",
                    format!("{prefix} has bits behind the 96th, where the IPv4 address goes"),
                );
            }
            if prefix.is_multicast() || prefix.is_unspecified() || prefix.is_unicast_link_local() {
                return refuse(
                    "ipv6",
                    format!("{prefix} is no prefix for hosts: take one of fd00::/8"),
                );
            }
        }
        if self.pool.contains(self.external) {
            let reason = format!(
                "{} contains the host's own address {}",
                self.pool, self.external
            );
            return refuse("network-pool", reason);
        }
        Ok(())
    }

    pub(crate) fn external(&self) -> External {
        External {
            v4: self.external,
            v6: self.external6.filter(|_| self.ipv6.is_some()),
        }
    }

    pub(crate) fn policy(&self) -> Policy {
        let mut policy = Policy {
            host_access: self.allow_host_access,
            ..Policy::default()
        };
        for network in &self.deny {
            match network {
                DenyNetwork::V4(cidr) => policy.denied.push(*cidr),
                DenyNetwork::V6(start, end) => policy.denied6.push((*start, *end)),
            }
        }
        for server in &self.name_servers {
            match server {
                std::net::IpAddr::V4(server) => policy.servers.push(*server),
                std::net::IpAddr::V6(server) => policy.servers6.push(*server),
            }
        }
        // An element cannot be twice in a message.
        policy.servers.sort_unstable();
        policy.servers.dedup();
        policy.servers6.sort_unstable();
        policy.servers6.dedup();
        policy
    }
}

/// A network that containers may not reach by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DenyNetwork {
    /// IPv4.
    V4(Cidr),
    /// IPv6: the first and the last address.
    V6(Ipv6Addr, Ipv6Addr),
}

impl FromStr for DenyNetwork {
    type Err = CidrError;

    /// Reads `address/prefix` of either family.
    fn from_str(text: &str) -> Result<Self, CidrError> {
        match text.parse() {
            Ok(cidr) => Ok(Self::V4(cidr)),
            Err(CidrError::NotIpv4(text)) => {
                let parts = text.split_once('/').and_then(|(address, prefix)| {
                    let address: Ipv6Addr = address.parse().ok()?;
                    Some((u128::from(address), prefix.parse::<u32>().ok()?))
                });
                let (address, prefix) = parts.ok_or(CidrError::Invalid(text))?;
                let host = u128::MAX.checked_shr(prefix).unwrap_or(0);
                Ok(Self::V6((address & !host).into(), (address | host).into()))
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denied_networks_are_of_either_family() {
        assert_eq!(
            "10.0.0.5/8".parse(),
            Ok(DenyNetwork::V4("10.0.0.0/8".parse().unwrap()))
        );
        let v6 = DenyNetwork::V6("fd00::".parse().unwrap(), "fd00::ffff".parse().unwrap());
        assert_eq!("fd00::1/112".parse(), Ok(v6));
        assert_eq!(
            "::/0".parse(),
            Ok(DenyNetwork::V6(Ipv6Addr::UNSPECIFIED, u128::MAX.into()))
        );
        assert!(
            "banana"
                .parse::<DenyNetwork>()
                .unwrap_err()
                .to_string()
                .contains("invalid CIDR address")
        );
    }

    #[test]
    fn options_that_cannot_work_are_refused() {
        let options = Options::new(Ipv4Addr::new(10, 254, 1, 1));
        assert!(
            options
                .check()
                .unwrap_err()
                .to_string()
                .contains("network-pool")
        );
        let mut options = Options::new(Ipv4Addr::new(192, 0, 2, 1));
        options.check().unwrap();
        for prefix in ["fd00::1", "fe80::", "ff00::", "::"] {
            options.ipv6 = Some(prefix.parse().unwrap());
            assert!(
                options.check().unwrap_err().to_string().contains("ipv6"),
                "{prefix}"
            );
        }
    }
}
