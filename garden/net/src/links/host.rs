//! The host's side: bridges, the host's ends of veth pairs, and what start-up asks.
//!
//! Called with a socket of the host's network namespace. Making is refused if the name exists
//! (but for a bridge, which containers of a subnet share), removing what is not there succeeds.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use super::rtnetlink::{
    DELETE_LINK, GET_ADDRESS, GET_LINK, NEW_LINK, SET_LINK, add_address, by_name, link,
    link_header, read_address, read_bytes, read_link,
};
use crate::error::KernelError;
use crate::lease::Lease;
use crate::names::{Owned, Tag};
use crate::netlink::Socket;
use crate::netlink::message::{Message, flags};

/// As long as what Guardian sets: a veth needs no queue, its other end takes packets at once.
const QUEUE_LENGTH: u32 = 1;

/// Makes the bridge of a lease's subnet if it is not there; returns its index.
pub(crate) fn ensure_bridge(socket: &mut Socket, lease: &Lease) -> Result<u32, KernelError> {
    let name = &lease.names.bridge;
    let failed = |step: &str| format!("{step} the bridge {name}");
    // A bridge whose address follows its ports would change it with each container that comes and
    // goes, and neighbours' caches would be wrong.
    let address = random_address()
        .map_err(|error| KernelError::io(failed("choose an address for"), error))?;
    let mut message = Message::new(
        NEW_LINK,
        flags::CREATE | flags::EXCLUSIVE,
        &link_header(0, true),
    );
    message
        .text(link::NAME, name)
        .bytes(link::ADDRESS, &address)
        .nest(link::INFO, |info| {
            info.text(link::INFO_KIND, "bridge")
                .nest(link::INFO_DATA, |data| {
                    data.bytes(link::MULTICAST_SNOOPING, &[0]);
                });
        });
    match socket.execute(&[message]) {
        Ok(_) => guard_ipv6(name, lease.ipv6.is_some())
            .map_err(|error| KernelError::io(failed("protect"), error))?,
        Err(refusal) if refusal.errno == Errno::EXIST => {}
        Err(refusal) => return Err(KernelError::new(failed("make"), refusal)),
    }
    let index = index_of(socket, name)?;
    // Also for one that was there: whoever made it may have died before this.
    let v4 = add_address(index, lease.gateway().into(), lease.subnet.prefix());
    let v6 = lease
        .ipv6
        .map(|ipv6| add_address(index, ipv6.gateway.into(), ipv6.prefix));
    for message in std::iter::once(v4).chain(v6) {
        match socket.execute(&[message]) {
            Err(refusal) if refusal.errno != Errno::EXIST => {
                return Err(KernelError::new(
                    failed("give the gateway's address to"),
                    refusal,
                ));
            }
            _ => {}
        }
    }
    Ok(index)
}

/// A container must not be able to configure the host: no router advertisement is believed on a
/// bridge, and without IPv6 the bridge has none. Before the first port is attached, so in time.
fn guard_ipv6(bridge: &str, ipv6: bool) -> std::io::Result<()> {
    let mut settings = vec![("accept_ra", "0")];
    if !ipv6 {
        settings.push(("disable_ipv6", "1"));
    }
    for (name, value) in settings {
        match std::fs::write(format!("/proc/sys/net/ipv6/conf/{bridge}/{name}"), value) {
            // A kernel without IPv6 has nothing to guard.
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Makes a container's veth pair: one end attached to the bridge and up, the other in the namespace.
pub(crate) fn create_pair(
    socket: &mut Socket,
    lease: &Lease,
    bridge: u32,
    namespace: BorrowedFd<'_>,
) -> Result<(), KernelError> {
    let namespace = u32::try_from(namespace.as_raw_fd()).unwrap_or(u32::MAX);
    let mut message = Message::new(
        NEW_LINK,
        flags::CREATE | flags::EXCLUSIVE,
        &link_header(0, true),
    );
    let end = |message: &mut Message, name: &str| {
        message
            .text(link::NAME, name)
            .native(link::MTU, lease.mtu)
            .native(link::QUEUE_LENGTH, QUEUE_LENGTH);
    };
    end(&mut message, &lease.names.host_interface);
    message
        .native(link::MASTER, bridge)
        .nest(link::INFO, |info| {
            info.text(link::INFO_KIND, "veth")
                .nest(link::INFO_DATA, |data| {
                    data.nest(link::PEER, |peer| {
                        // Not up: the kernel ties the ends together only when both are there.
                        peer.body.extend_from_slice(&link_header(0, false));
                        end(peer, &lease.names.container_interface);
                        peer.native(link::NAMESPACE, namespace);
                    });
                });
        });
    // Where bridges pass frames through the packet filter (br_netfilter, as many hosts have it), a
    // container that connects to its own mapped port is answered by its own port of the bridge.
    let mut hairpin = by_name(NEW_LINK, &lease.names.host_interface);
    hairpin.nest(link::INFO, |info| {
        info.text(link::INFO_PORT_KIND, "bridge")
            .nest(link::INFO_PORT_DATA, |data| {
                data.bytes(link::HAIRPIN, &[1]);
            });
    });
    socket
        .execute(&[message, hairpin])
        .map(drop)
        .map_err(|refusal| {
            let (pair, bridge) = (&lease.names.host_interface, &lease.names.bridge);
            KernelError::new(
                format!("make the veth pair {pair} on the bridge {bridge}"),
                refusal,
            )
        })
}

/// What went through a container's interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes that the container received.
    pub received: u64,
    /// Bytes that the container sent.
    pub sent: u64,
}

/// Reads the counters of the host's end, which receives what the container sends; none if it is
/// not there.
pub(crate) fn usage(socket: &mut Socket, name: &str) -> Result<Option<Usage>, KernelError> {
    match socket.execute(&[by_name(GET_LINK, name)]) {
        Ok(replies) => Ok(replies
            .first()
            .and_then(|reply| read_bytes(&reply.payload))
            .map(|(received, sent)| Usage {
                received: sent,
                sent: received,
            })),
        Err(refusal) if refusal.errno == Errno::NODEV => Ok(None),
        Err(refusal) => Err(KernelError::new(
            format!("read the counters of {name}"),
            refusal,
        )),
    }
}

/// Removes a link, and with it the other end of a pair.
pub(crate) fn remove(socket: &mut Socket, name: &str) -> Result<(), KernelError> {
    match socket.execute(&[by_name(DELETE_LINK, name)]) {
        Err(refusal) if refusal.errno != Errno::NODEV => {
            Err(KernelError::new(format!("remove the link {name}"), refusal))
        }
        _ => Ok(()),
    }
}

/// Removes links, and with them the other ends of pairs, at once: the kernel waits for all
/// processors several times for a removal, but not for each link of one. `group` is a number of
/// links that no others have.
pub(crate) fn remove_all<'a>(
    socket: &mut Socket,
    group: u32,
    names: impl Iterator<Item = &'a str>,
) -> Result<(), KernelError> {
    let mut found = false;
    for name in names {
        let mut message = by_name(SET_LINK, name);
        message.native(link::GROUP, group);
        match socket.execute(&[message]) {
            Ok(_) => found = true,
            Err(refusal) if refusal.errno == Errno::NODEV => {}
            Err(refusal) => {
                return Err(KernelError::new(format!("mark the link {name}"), refusal));
            }
        }
    }
    if !found {
        return Ok(());
    }
    let mut message = Message::new(DELETE_LINK, 0, &link_header(0, false));
    message.native(link::GROUP, group);
    match socket.execute(&[message]) {
        // They went by themselves, with the container's namespace.
        Err(refusal) if refusal.errno != Errno::NODEV => Err(KernelError::new(
            "remove the links of containers that are gone",
            refusal,
        )),
        _ => Ok(()),
    }
}

/// Names of all links that are this instance's.
pub(crate) fn owned(socket: &mut Socket, tag: &Tag) -> Result<Vec<(String, Owned)>, KernelError> {
    let mut names = std::collections::HashMap::new();
    let request = Message::new(GET_LINK, 0, &link_header(0, false));
    let each = |payload: &[u8]| {
        let link = read_link(payload);
        names.extend(link.and_then(|link| tag.owns(&link.name).map(|kind| (link.name, kind))));
    };
    socket
        .dump(&request, each)
        .map_err(|refusal| KernelError::new("list the links of the host", refusal))?;
    Ok(names.into_iter().collect())
}

/// The MTU of the link that has an address, in bytes; none if no link has it.
pub(crate) fn mtu_of(socket: &mut Socket, address: IpAddr) -> Result<Option<u32>, KernelError> {
    let mut index = None;
    let request = Message::new(GET_ADDRESS, 0, &[0; 8]);
    let each = |payload: &[u8]| {
        if let Some((link, found)) = read_address(payload)
            && found == address
        {
            index.get_or_insert(link);
        }
    };
    socket
        .dump(&request, each)
        .map_err(|refusal| KernelError::new("list the addresses of the host", refusal))?;
    let Some(index) = index else { return Ok(None) };
    let replies = socket
        .execute(&[Message::new(GET_LINK, 0, &link_header(index, false))])
        .map_err(|refusal| {
            KernelError::new(
                format!("look at the link with the address {address}"),
                refusal,
            )
        })?;
    Ok(replies
        .first()
        .and_then(|reply| read_link(&reply.payload))
        .map(|link| link.mtu))
}

fn index_of(socket: &mut Socket, name: &str) -> Result<u32, KernelError> {
    let step = || format!("look at the link {name}");
    let replies = socket
        .execute(&[by_name(GET_LINK, name)])
        .map_err(|refusal| KernelError::new(step(), refusal))?;
    let link = replies.first().and_then(|reply| read_link(&reply.payload));
    link.map(|link| link.index)
        .ok_or_else(|| KernelError::new(step(), Errno::NODEV))
}

/// A locally administered unicast address.
fn random_address() -> std::io::Result<[u8; 6]> {
    let mut address = [0; 6];
    rustix::rand::getrandom(&mut address, rustix::rand::GetRandomFlags::empty())?;
    address[0] = address[0] & 0xfe | 0x02;
    Ok(address)
}
