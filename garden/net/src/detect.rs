//! What the host's own network says, when no option does: its address and its MTU.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use rustix::io::Errno;

use crate::error::{KernelError, NetworkError};
use crate::links::host;
use crate::netlink::Socket;

/// No link of a container has a larger one, as before: paths through tunnels rarely carry more.
pub const LARGEST_MTU: u32 = 1500;
/// Smallest that carries IPv6; below it a container could not be reached in both families.
const SMALLEST_MTU: u32 = 1280;

/// The address from which this host reaches the world. Nothing is sent for it.
///
/// # Errors
/// There is no way out of this host; the text names the option that helps.
pub fn external_address() -> Result<Ipv4Addr, NetworkError> {
    let address = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        // Connecting a datagram socket looks up the route and no more. The address is one for
        // documentation: what counts is that it is not local.
        socket.connect((Ipv4Addr::new(198, 51, 100, 1), 9))?;
        socket.local_addr()
    });
    match address.map(|address| address.ip()) {
        Ok(IpAddr::V4(address)) if !address.is_unspecified() => Ok(address),
        Ok(_) => Err(undetected("the way out has no IPv4 address")),
        Err(error) => Err(undetected(&error.to_string())),
    }
}

fn undetected(reason: &str) -> NetworkError {
    NetworkError::Option {
        option: "external-ip",
        reason: format!(
            "cannot be detected ({reason}): name the host's address with --external-ip"
        ),
    }
}

/// The MTU for containers, in bytes: the one asked for, or (0) that of the link which has the
/// external address; 1500 at most.
///
/// # Errors
/// No link has the address, or the MTU asked for is too small.
pub fn mtu(asked: u32, external: IpAddr) -> Result<u32, NetworkError> {
    let refuse = |reason: String| NetworkError::Option {
        option: "mtu",
        reason,
    };
    let mtu = if asked == 0 {
        let mut socket = Socket::route()
            .map_err(|errno: Errno| KernelError::new("open a netlink socket for links", errno))?;
        host::mtu_of(&mut socket, external)?.ok_or_else(|| {
            refuse(format!(
                "cannot be detected: no link has the external address {external}; set --mtu"
            ))
        })?
    } else {
        asked
    };
    if mtu < SMALLEST_MTU && asked != 0 {
        return Err(refuse(format!(
            "{asked} is below {SMALLEST_MTU}, the smallest that carries IPv6"
        )));
    }
    Ok(mtu.min(LARGEST_MTU))
}

/// Others' filters that drop by default what is forwarded, and so keep containers from the world,
/// in words for a person. A legacy `iptables` filter cannot be asked for its policy this way; it is
/// named when it is there.
///
/// # Errors
/// The kernel's refusal, which says that there is no nftables or no right to look.
pub fn other_filters() -> Result<Vec<String>, NetworkError> {
    let mut socket = Socket::netfilter()
        .map_err(|errno| KernelError::new("open a netlink socket for the packet filter", errno))?;
    let mut found = crate::nft::dropping(&mut socket)?;
    for (names, program) in [
        ("/proc/net/ip_tables_names", "iptables-legacy"),
        ("/proc/net/ip6_tables_names", "ip6tables-legacy"),
    ] {
        let tables = std::fs::read_to_string(names).unwrap_or_default();
        if tables.lines().any(|table| table == "filter") {
            found.push(format!(
                "the filter of {program} (its policy is not known here)"
            ));
        }
    }
    Ok(found)
}
