//! Connections that the kernel remembers of containers that are gone.
//!
//! An address is handed to somebody else one day, and with it would go what the kernel remembers
//! of its connections: established ones, and where they were redirected to. To find them the kernel
//! walks its whole table, which takes milliseconds on a large host; so it is not done when a
//! container goes, but before anything of it is handed out again, and then for all that have gone
//! meanwhile ([`Freed`]). Until then nobody has the address.
//!
//! For a few addresses the kernel picks out the entries (Linux 5.8; an older one sends all of
//! them). Each is compared again here before it is deleted: a filter that an old kernel does not
//! understand must not become a flush of the host's connections.

use std::collections::HashSet;
use std::net::IpAddr;

use rustix::io::Errno;

use crate::error::KernelError;
use crate::lease::Lease;
use crate::netlink::message::{Message, Reader};
use crate::netlink::{Refusal, Socket};

/// `NFNL_SUBSYS_CTNETLINK` and its messages.
const SUBSYSTEM: u16 = 1;
const GET: u16 = 1;
const DELETE: u16 = 2;

/// Attributes (`CTA_…`).
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
const TUPLE_ADDRESSES: u16 = 1;
/// `CTA_FILTER_F_CTA_IP_SRC`, the bit of the source's address.
const FILTER_SOURCE: u32 = 1;

const HEADER: usize = 4;
/// Deletions sent at once.
const DELETE_AT_ONCE: usize = 200;

/// More addresses than this are looked for in one walk over all entries.
const FEW: usize = 4;

/// What was given back, and may still be remembered.
#[derive(Debug, Default, Clone)]
pub(crate) struct Freed {
    addresses: HashSet<IpAddr>,
    /// Host ports: their connections are found by the container's address.
    ports: HashSet<u16>,
}

impl Freed {
    /// Notes what a container had.
    pub(crate) fn note(&mut self, lease: &Lease) {
        self.addresses.extend(addresses(lease));
        self.ports.extend(lease.ports.iter().map(|port| port.host));
    }

    /// Whether a lease, or a port, is of what somebody else had.
    pub(crate) fn concerns(&self, lease: &Lease) -> bool {
        addresses(lease).any(|address| self.addresses.contains(&address))
            || lease
                .ports
                .iter()
                .any(|port| self.ports.contains(&port.host))
    }

    /// Whether somebody else had a host port.
    pub(crate) fn has_port(&self, port: u16) -> bool {
        self.ports.contains(&port)
    }

    /// Strikes out what is forgotten.
    pub(crate) fn strike(&mut self, forgotten: &Self) {
        self.addresses
            .retain(|address| !forgotten.addresses.contains(address));
        self.ports.retain(|port| !forgotten.ports.contains(port));
    }
}

fn addresses(lease: &Lease) -> impl Iterator<Item = IpAddr> {
    let v6 = lease.ipv6.map(|ipv6| IpAddr::V6(ipv6.address));
    std::iter::once(IpAddr::V4(lease.address)).chain(v6)
}

/// Deletes every connection from or to what was freed.
pub(crate) fn forget(socket: &mut Socket, freed: &Freed) -> Result<(), KernelError> {
    let failed = |refusal| {
        KernelError::new(
            "delete the connections of containers that are gone",
            refusal,
        )
    };
    let few: Vec<Option<IpAddr>> = if freed.addresses.len() > FEW {
        vec![None]
    } else {
        freed.addresses.iter().copied().map(Some).collect()
    };
    for address in few {
        // From it, and to it, redirected or not.
        for direction in [ORIGINAL, REPLY] {
            let request = request(address, direction);
            forget_some(socket, &request, &freed.addresses, direction).map_err(failed)?;
        }
    }
    Ok(())
}

fn forget_some(
    socket: &mut Socket,
    request: &Message,
    addresses: &HashSet<IpAddr>,
    direction: u16,
) -> Result<(), Refusal> {
    let mut doomed: Vec<Message> = Vec::new();
    let each = |payload: &[u8]| doomed.extend(deletion(payload, addresses, direction));
    match socket.dump(request, each) {
        // No connection tracking, no connections.
        Err(refusal)
            if matches!(
                refusal.errno,
                Errno::NOENT | Errno::OPNOTSUPP | Errno::INVAL
            ) && doomed.is_empty() =>
        {
            return Ok(());
        }
        result => result?,
    }
    for messages in doomed.chunks(DELETE_AT_ONCE) {
        match socket.execute(messages) {
            // Ended by itself meanwhile.
            Err(refusal) if refusal.errno != Errno::NOENT => return Err(refusal),
            _ => {}
        }
    }
    Ok(())
}

/// Asks for the connections whose packets of one direction come from an address; for all without.
fn request(address: Option<IpAddr>, direction: u16) -> Message {
    let mut message = Message::new(SUBSYSTEM << 8 | GET, 0, &header(address));
    if let Some(address) = address {
        message
            .nest(direction, |tuple| {
                tuple.nest(TUPLE_ADDRESSES, |addresses| {
                    write_source(addresses, address)
                });
            })
            .nest(FILTER, |filter| {
                for one in [ORIGINAL, REPLY] {
                    let bits = if one == direction { FILTER_SOURCE } else { 0 };
                    filter.native(one, bits);
                }
            });
    }
    message
}

fn header(address: Option<IpAddr>) -> [u8; HEADER] {
    let family = match address {
        None => 0,
        Some(IpAddr::V4(_)) => 2,
        Some(IpAddr::V6(_)) => 10,
    };
    [family, 0, 0, 0]
}

/// Attribute of the source's address: 1 for IPv4, 3 for IPv6.
fn write_source(message: &mut Message, address: IpAddr) {
    match address {
        IpAddr::V4(address) => message.bytes(1, &address.octets()),
        IpAddr::V6(address) => message.bytes(3, &address.octets()),
    };
}

fn source(tuple: Reader<'_>) -> Option<IpAddr> {
    let addresses = tuple.inner(TUPLE_ADDRESSES);
    if let Some(bytes) = addresses.get(1) {
        return bytes.first_chunk::<4>().map(|bytes| IpAddr::from(*bytes));
    }
    addresses
        .get(3)?
        .first_chunk::<16>()
        .map(|bytes| IpAddr::from(*bytes))
}

/// The request that deletes this very connection, if it is one of the addresses'.
fn deletion(payload: &[u8], doomed: &HashSet<IpAddr>, direction: u16) -> Option<Message> {
    let attributes = Reader::behind(payload, HEADER);
    let address = source(attributes.inner(direction))?;
    if !doomed.contains(&address) {
        return None;
    }
    let mut message = Message::new(SUBSYSTEM << 8 | DELETE, 0, &header(Some(address)));
    let original = attributes.get(ORIGINAL)?;
    message.nest(ORIGINAL, |tuple| renest(tuple, original));
    for kind in [ZONE, ID] {
        if let Some(value) = attributes.get(kind) {
            message.bytes(kind, value);
        }
    }
    Some(message)
}

/// Copies a tuple: its parts are attributes of attributes.
fn renest(message: &mut Message, tuple: &[u8]) {
    for (kind, value) in Reader(tuple) {
        // `CTA_TUPLE_ZONE` is a plain number, addresses and protocol are nested.
        if kind == 3 {
            message.bytes(kind, value);
        } else {
            message.nest(kind, |inner| {
                for (kind, value) in Reader(value) {
                    inner.bytes(kind, value);
                }
            });
        }
    }
}
