//! What a container is told about names: the contents of its `/etc/hosts` and `/etc/resolv.conf`.
//!
//! The rules are in [`garden_net::dns`]; here is only who says what. The files themselves are
//! `container::names`'.

use std::net::IpAddr;

use garden_net::dns;

use super::config::Names;
use super::record::NetworkRecord;
use crate::model::Handle;

/// What the network says about names.
#[derive(Debug, Clone, Default)]
pub(crate) struct Resolution {
    /// Name servers that go before all others; even an empty list is an answer.
    pub(crate) servers: Option<Vec<String>>,
    /// Search domains instead of the host's.
    pub(crate) search: Vec<String>,
    /// Who answers for a host whose only server is one on its own loopback.
    pub(crate) instead_of_loopback: Option<IpAddr>,
    /// Whether the operator's lines for `/etc/hosts` apply (in Guardian not with a plugin).
    pub(crate) operator_hosts: bool,
}

/// The contents of a file each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    pub(crate) hosts: String,
    pub(crate) resolv_conf: String,
}

/// What a connected container's files say; nothing if nobody knows its address. Reads the host's
/// `resolv.conf`.
pub(crate) fn contents(
    names: &Names,
    handle: &Handle,
    record: &NetworkRecord,
    resolution: &Resolution,
) -> Option<Contents> {
    let Some(IpAddr::V4(address)) = record.addresses.container else {
        return None;
    };
    let address6 = match record.addresses.container_v6 {
        Some(IpAddr::V6(address)) => Some(address),
        _ => None,
    };
    // A host without the file has no servers, as resolv.conf(5) has it.
    let host = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let texts = |servers: &[IpAddr]| servers.iter().map(ToString::to_string).collect::<Vec<_>>();
    let hosts: &[String] = if resolution.operator_hosts {
        &names.hosts
    } else {
        &[]
    };
    Some(Contents {
        hosts: dns::hosts(handle.as_str(), Some(address), address6, hosts),
        resolv_conf: dns::resolv_conf(&dns::Resolver {
            plugin_servers: resolution.servers.as_deref(),
            plugin_search: &resolution.search,
            servers: &texts(&names.servers),
            additional: &texts(&names.additional),
            host: &host,
            instead_of_loopback: resolution.instead_of_loopback,
        }),
    })
}
