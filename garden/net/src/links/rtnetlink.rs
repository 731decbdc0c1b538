//! Messages about links, addresses and routes (rtnetlink(7)).
//!
//! Pure. The numbers are those of `linux/rtnetlink.h`, `if_link.h` and `if_addr.h`.

use std::net::IpAddr;

use crate::netlink::message::{Message, Reader, flags, text, u32_at};

pub(super) const NEW_LINK: u16 = 16;
pub(super) const DELETE_LINK: u16 = 17;
pub(super) const GET_LINK: u16 = 18;
pub(super) const SET_LINK: u16 = 19;
const NEW_ADDRESS: u16 = 20;
pub(super) const GET_ADDRESS: u16 = 22;
const NEW_ROUTE: u16 = 24;

/// Attributes of links (`IFLA_…`).
pub(super) mod link {
    pub(in super::super) const ADDRESS: u16 = 1;
    pub(in super::super) const NAME: u16 = 3;
    pub(in super::super) const MTU: u16 = 4;
    pub(in super::super) const MASTER: u16 = 10;
    pub(in super::super) const QUEUE_LENGTH: u16 = 13;
    pub(in super::super) const INFO: u16 = 18;
    pub(in super::super) const INFO_KIND: u16 = 1;
    pub(in super::super) const INFO_DATA: u16 = 2;
    pub(in super::super) const INFO_PORT_KIND: u16 = 4;
    pub(in super::super) const INFO_PORT_DATA: u16 = 5;
    /// `IFLA_STATS64`.
    pub(in super::super) const COUNTERS: u16 = 23;
    pub(in super::super) const GROUP: u16 = 27;
    pub(in super::super) const NAMESPACE: u16 = 28;
    /// `VETH_INFO_PEER`: the other end, a link of its own.
    pub(in super::super) const PEER: u16 = 1;
    /// `IFLA_BRPORT_MODE`: whether a bridge's port gets back what came from it.
    pub(in super::super) const HAIRPIN: u16 = 4;
    /// `IFLA_BR_MCAST_SNOOPING`.
    pub(in super::super) const MULTICAST_SNOOPING: u16 = 23;
}

const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
const UP: u32 = 1;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// `IFA_F_NODAD`: usable at once, without asking whether somebody else has it.
const NO_DUPLICATE_DETECTION: u32 = 2;
const MAIN_TABLE: u8 = 254;
/// Who made a route: an administrator's program.
const PROTOCOL_STATIC: u8 = 4;
const UNICAST: u8 = 1;

/// The header of a link, by index (0: by name, or new), up or left as it is.
pub(super) fn link_header(index: u32, up: bool) -> [u8; LINK_HEADER] {
    let mut header = [0; LINK_HEADER];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    if up {
        header[8..12].copy_from_slice(&UP.to_ne_bytes());
        header[12..16].copy_from_slice(&UP.to_ne_bytes());
    }
    header
}

/// A request about one link by its name.
pub(super) fn by_name(kind: u16, name: &str) -> Message {
    let mut message = Message::new(kind, 0, &link_header(0, false));
    message.text(link::NAME, name);
    message
}

/// Gives a link an address.
pub(super) fn add_address(index: u32, address: IpAddr, prefix: u8) -> Message {
    let family = if address.is_ipv4() { AF_INET } else { AF_INET6 };
    let mut header = vec![family, prefix, 0, 0];
    header.extend_from_slice(&index.to_ne_bytes());
    let mut message = Message::new(NEW_ADDRESS, flags::CREATE | flags::EXCLUSIVE, &header);
    let bytes = octets(address);
    message.bytes(2, &bytes).bytes(1, &bytes);
    match address {
        IpAddr::V4(address) if prefix < 31 => {
            let broadcast = crate::cidr::Cidr::around(address, prefix).broadcast();
            message.bytes(4, &broadcast.octets());
        }
        IpAddr::V4(_) => {}
        IpAddr::V6(_) => {
            message.native(8, NO_DUPLICATE_DETECTION);
        }
    }
    message
}

/// The way to everywhere else.
pub(super) fn add_default_route(index: u32, gateway: IpAddr) -> Message {
    let family = if gateway.is_ipv4() { AF_INET } else { AF_INET6 };
    let header = [
        family,
        0,
        0,
        0,
        MAIN_TABLE,
        PROTOCOL_STATIC,
        0,
        UNICAST,
        0,
        0,
        0,
        0,
    ];
    let mut message = Message::new(NEW_ROUTE, flags::CREATE | flags::EXCLUSIVE, &header);
    message.bytes(5, &octets(gateway)).native(4, index);
    message
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// What the kernel says of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mtu: u32,
}

/// Reads an answer to [`GET_LINK`].
pub(super) fn read_link(payload: &[u8]) -> Option<Link> {
    let attributes = Reader::behind(payload, LINK_HEADER);
    Some(Link {
        index: u32_at(payload, 4)?,
        name: text(attributes.get(link::NAME)?),
        mtu: u32_at(attributes.get(link::MTU)?, 0)?,
    })
}

/// Reads an answer to [`GET_LINK`]: bytes received and sent (`struct rtnl_link_stats64`).
pub(super) fn read_bytes(payload: &[u8]) -> Option<(u64, u64)> {
    let counters = Reader::behind(payload, LINK_HEADER).get(link::COUNTERS)?;
    let counter = |at: usize| {
        let bytes = counters.get(at * 8..)?.first_chunk::<8>()?;
        Some(u64::from_ne_bytes(*bytes))
    };
    // Packets received and sent come first.
    Some((counter(2)?, counter(3)?))
}

/// Reads an answer to [`GET_ADDRESS`]: the link's index, and an address that is its own.
pub(super) fn read_address(payload: &[u8]) -> Option<(u32, IpAddr)> {
    let attributes = Reader::behind(payload, ADDRESS_HEADER);
    // With a point-to-point link the second attribute is the peer's.
    let address = attributes.get(2).or_else(|| attributes.get(1))?;
    let address = match address.len() {
        4 => IpAddr::from(*address.first_chunk::<4>()?),
        _ => IpAddr::from(*address.first_chunk::<16>()?),
    };
    Some((u32_at(payload, 4)?, address))
}
