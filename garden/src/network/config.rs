//! What an operator decides about the network of containers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

pub use garden_net::cidr::Cidr;
pub use garden_net::{DenyNetwork, Tag};

/// The network of a server's containers.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Who connects them.
    pub kind: Kind,
    /// What they are told about names.
    pub names: Names,
}

/// Who connects containers.
#[derive(Debug, Clone, Default)]
pub enum Kind {
    /// Nobody: each has a loopback.
    #[default]
    Loopback,
    /// The built-in network.
    BuiltIn(Box<BuiltIn>),
}

/// Options of the built-in network.
#[derive(Debug, Clone)]
pub struct BuiltIn {
    /// Tells the servers of one host apart, in names of at most 15 characters.
    pub tag: Tag,
    /// What containers that ask for nothing get a /30 of.
    pub pool: Cidr,
    /// The address whose ports lead to containers; found out if absent.
    pub external: Option<Ipv4Addr>,
    /// The same for IPv6; ports lead to containers from IPv4 only if absent.
    pub external6: Option<Ipv6Addr>,
    /// A prefix of at most 96 bits for addresses of IPv6; containers have none if absent.
    pub ipv6: Option<Ipv6Addr>,
    /// Bytes of the largest packet; found out if 0.
    pub mtu: u32,
    /// Containers may reach the host itself.
    pub allow_host_access: bool,
    /// Rejected, unless a container has a rule that lets it.
    pub deny: Vec<DenyNetwork>,
    /// First port of the pool.
    pub port_start: u32,
    /// Ports in the pool.
    pub port_size: u32,
    /// Where the pool's state is kept; in the server's runtime directory if absent.
    pub port_state: Option<PathBuf>,
}

impl Default for BuiltIn {
    fn default() -> Self {
        let usual = garden_net::Options::new(Ipv4Addr::UNSPECIFIED);
        Self {
            tag: Tag::default(),
            pool: usual.pool,
            external: None,
            external6: None,
            ipv6: None,
            mtu: 0,
            allow_host_access: false,
            deny: Vec::new(),
            port_start: usual.port_start,
            port_size: usual.port_size,
            port_state: None,
        }
    }
}

/// What containers are told about names, whoever connects them.
#[derive(Debug, Clone, Default)]
pub struct Names {
    /// Name servers instead of the host's.
    pub servers: Vec<IpAddr>,
    /// Name servers behind these, or behind the host's.
    pub additional: Vec<IpAddr>,
    /// Lines for `/etc/hosts`.
    pub hosts: Vec<String>,
}
