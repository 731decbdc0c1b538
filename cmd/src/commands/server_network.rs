//! Flags of `garden server` for the network of containers. Names are Guardian's, but for those that
//! Guardian has nothing like.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use garden::manager::Options;
use garden::network::config::{BuiltIn, Cidr, DenyNetwork, Kind, Names, Tag};

/// Who connects containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Network {
    /// The server itself: a bridge for each subnet, addresses, a packet filter.
    BuiltIn,
    /// Nobody: containers have a loopback only.
    None,
}

/// The network of containers.
#[derive(Debug, Args)]
pub(crate) struct ServerNetwork {
    /// What connects containers
    #[arg(
        long,
        env = "GARDEN_NETWORK",
        value_name = "HOW",
        value_enum,
        default_value = "built-in"
    )]
    network: Network,
    /// Marks this server's bridges, links and table: two letters or digits [default: --tag]
    #[arg(long, env = "GARDEN_NETWORK_TAG", value_name = "TAG")]
    network_tag: Option<String>,
    /// Addresses of containers that ask for none; each gets four of them
    #[arg(
        long,
        env = "GARDEN_NETWORK_POOL",
        value_name = "CIDR",
        default_value = "10.254.0.0/22"
    )]
    network_pool: Cidr,
    /// Give containers IPv6 too, with addresses behind this prefix of 96 bits, like fd00:1::
    #[arg(long, value_name = "PREFIX")]
    network_ipv6: Option<Ipv6Addr>,
    /// Let containers reach this host
    #[arg(long)]
    allow_host_access: bool,
    /// Keep containers from this network, unless a rule of theirs lets them; repeatable
    #[arg(long, value_name = "CIDR")]
    deny_network: Vec<DenyNetwork>,
    /// Name server of containers, instead of the host's; repeatable
    #[arg(long, value_name = "IP")]
    dns_server: Vec<IpAddr>,
    /// Name server behind the others; repeatable
    #[arg(long, value_name = "IP")]
    additional_dns_server: Vec<IpAddr>,
    /// Line for the /etc/hosts of containers; repeatable
    #[arg(long, value_name = "LINE")]
    additional_host_entry: Vec<String>,
    /// Address of this host whose ports lead to containers [default: the one that leads outside]
    #[arg(long, value_name = "IP")]
    external_ip: Option<Ipv4Addr>,
    /// The same for IPv6 [default: ports lead to containers from IPv4 only]
    #[arg(long, value_name = "IP")]
    external_ipv6: Option<Ipv6Addr>,
    /// First port of the host for containers that ask for any
    #[arg(long, value_name = "PORT", default_value_t = 61001)]
    port_pool_start: u32,
    /// How many such ports there are
    #[arg(long, value_name = "N", default_value_t = 4534)]
    port_pool_size: u32,
    /// Where the next such port is written down [default: in --runtime-dir]
    #[arg(long, value_name = "FILE")]
    port_pool_properties_path: Option<PathBuf>,
    /// Largest packet of containers' interfaces, in bytes; 0 for that of the host's, 1500 at most
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    mtu: u32,
}

impl ServerNetwork {
    /// Sets what the flags say.
    pub(crate) fn apply(self, options: &mut Options) -> Result<()> {
        options.network.names = Names {
            servers: self.dns_server,
            additional: self.additional_dns_server,
            hosts: self.additional_host_entry,
        };
        options.network.kind = match self.network {
            Network::None => Kind::Loopback,
            Network::BuiltIn => {
                let tag = self.network_tag.as_deref().or(options.tag.as_deref());
                let tag: Tag = tag.unwrap_or_default().parse().context(
                    "the network cannot be marked with --tag: give it a --network-tag, or no \
                     network with --network none",
                )?;
                Kind::BuiltIn(Box::new(BuiltIn {
                    tag,
                    pool: self.network_pool,
                    external: self.external_ip,
                    external6: self.external_ipv6,
                    ipv6: self.network_ipv6,
                    mtu: self.mtu,
                    allow_host_access: self.allow_host_access,
                    deny: self.deny_network,
                    port_start: self.port_pool_start,
                    port_size: self.port_pool_size,
                    port_state: self.port_pool_properties_path,
                }))
            }
        };
        Ok(())
    }
}
