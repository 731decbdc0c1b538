//! Connections that the kernel remembers of a container that is gone.
//!
//! An address is handed to somebody else one day, and with it would go what the kernel remembers
//! of its connections: established ones, and where they were redirected to. So they are deleted
//! when an address is freed. Whatever came through a mapped port has the container's address on
//! its way back, so ports need no search of their own.
//!
//! The kernel picks out the entries (Linux 5.8; an older one sends all of them), and each is
//! compared again here before it is deleted: a filter that an old kernel does not understand must
//! not become a flush of the host's connections.

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

/// Deletes every connection from or to a container's addresses.
pub(crate) fn forget(socket: &mut Socket, lease: &Lease) -> Result<(), KernelError> {
    let v6 = lease.ipv6.map(|ipv6| IpAddr::V6(ipv6.address));
    for address in std::iter::once(IpAddr::V4(lease.address)).chain(v6) {
        // From it, and to it, redirected or not.
        for direction in [ORIGINAL, REPLY] {
            forget_direction(socket, address, direction).map_err(|refusal| {
                KernelError::new(format!("delete the connections of {address}"), refusal)
            })?;
        }
    }
    Ok(())
}

fn forget_direction(socket: &mut Socket, address: IpAddr, direction: u16) -> Result<(), Refusal> {
    let mut doomed: Vec<Message> = Vec::new();
    let request = request(address, direction);
    let each = |payload: &[u8]| doomed.extend(deletion(payload, address, direction));
    match socket.dump(&request, each, || {}) {
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

/// Asks for the connections whose packets of one direction come from an address.
fn request(address: IpAddr, direction: u16) -> Message {
    let mut message = Message::new(SUBSYSTEM << 8 | GET, 0, &header(address));
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
    message
}

fn header(address: IpAddr) -> [u8; HEADER] {
    [if address.is_ipv4() { 2 } else { 10 }, 0, 0, 0]
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

/// The request that deletes this very connection, if it is one of the address.
fn deletion(payload: &[u8], address: IpAddr, direction: u16) -> Option<Message> {
    let attributes = Reader::behind(payload, HEADER);
    if source(attributes.inner(direction)) != Some(address) {
        return None;
    }
    let mut message = Message::new(SUBSYSTEM << 8 | DELETE, 0, &header(address));
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
