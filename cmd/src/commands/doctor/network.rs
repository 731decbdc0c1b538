//! Checks of what the built-in network needs of the host.

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

use super::Finding;
use super::host::Host;

/// The ports that a server hands out unless it is told otherwise: the first of them.
const FIRST_PORT: u32 = 61_001;
/// A request of nf_tables (linux/netfilter/nf_tables.h): the number of its generation.
const NFT_GETGEN: u16 = (10 << 8) | 16;
/// linux/netlink.h: a request, to be acknowledged.
const REQUEST_ACK: u16 = 1 | 4;
/// linux/netlink.h: the type of a failure or an acknowledgement.
const NLMSG_ERROR: u16 = 2;

/// Whether the kernel's packet filter answers. Asking loads its module, as a server would.
pub(super) fn filter(host: &Host) -> Finding {
    match ask() {
        Ok(true) => Finding::ok("nftables"),
        Ok(false) | Err(_) if host.root => Finding::warn(
            "no nftables in this kernel",
            "modprobe nf_tables; without it, containers have a loopback only, or an external network",
        ),
        Ok(false) => Finding::unknown("only root can ask for nftables"),
        Err(error) => Finding::unknown(format!("nftables cannot be asked for: {error}")),
    }
}

fn ask() -> rustix::io::Result<bool> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        Some(netlink::NETFILTER),
    )?;
    let mut request = Vec::with_capacity(20);
    request.extend(20_u32.to_ne_bytes());
    request.extend(NFT_GETGEN.to_ne_bytes());
    request.extend(REQUEST_ACK.to_ne_bytes());
    // Sequence, port; then family, version and resource of netfilter's own header.
    request.extend([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    rustix::net::send(&socket, &request, SendFlags::empty())?;
    // Answered before the call above returns.
    let mut answer = vec![0_u8; 1024];
    let (length, _) = rustix::net::recv(&socket, answer.as_mut_slice(), RecvFlags::empty())?;
    Ok(answer.get(..length).is_some_and(is_success))
}

/// Whether an answer of netlink says no error.
fn is_success(answer: &[u8]) -> bool {
    let (Some(kind), Some(code)) = (answer.get(4..6), answer.get(16..20)) else {
        return false;
    };
    kind != NLMSG_ERROR.to_ne_bytes() || code == [0; 4]
}

pub(super) fn forwarding(_: &Host) -> Finding {
    match Host::file("/proc/sys/net/ipv4/ip_forward").as_deref() {
        Some("1") => Finding::ok("on"),
        Some(_) => Finding::warn(
            "off: containers of a bridge reach this host only",
            "sysctl net.ipv4.ip_forward=1",
        ),
        None => Finding::unknown("this kernel has no IPv4"),
    }
}

pub(super) fn ports(_: &Host) -> Finding {
    let range = Host::file("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut numbers = range
        .split_whitespace()
        .filter_map(|text| text.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(first), Some(last)) => overlap(first, last),
        _ => Finding::unknown("this kernel has no IPv4"),
    }
}

fn overlap(first: u32, last: u32) -> Finding {
    let found = format!("the kernel's own are {first} to {last}");
    if last < FIRST_PORT {
        return Finding::ok(format!("{found}, containers' begin at {FIRST_PORT}"));
    }
    Finding::warn(
        format!("{found}: outgoing connections may take those of containers"),
        format!(
            "sysctl net.ipv4.ip_local_port_range='{first} {}', or begin the server's elsewhere",
            FIRST_PORT - 1
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn ports_of_containers_are_not_the_kernels() {
        assert_eq!(overlap(32_768, 60_999).state, State::Ok);
        assert_eq!(overlap(1024, 65_535).state, State::Warn);
    }

    #[test]
    fn an_error_of_netlink_is_told_from_an_answer() {
        let mut answer = vec![0_u8; 36];
        answer[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        assert!(is_success(&answer));
        answer[16..20].copy_from_slice(&(-95_i32).to_ne_bytes());
        assert!(!is_success(&answer));
        assert!(!is_success(&[]));
    }
}
