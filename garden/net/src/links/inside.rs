//! The container's side: addresses and routes within its network namespace.
//!
//! A thread that lives only for this enters the namespace and opens a socket there; the socket
//! stays in it, so the caller uses it from where it is. A thread of the server that had to come
//! back from a namespace might one day fail to.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::rtnetlink::{
    GET_LINK, NEW_LINK, add_address, add_default_route, by_name, link_header, read_link,
};
use crate::error::KernelError;
use crate::lease::Lease;
use crate::netlink::Socket;
use crate::netlink::message::Message;

/// The loopback of every namespace has this index (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;

/// Opens a socket within a network namespace.
pub(crate) fn open(namespace: BorrowedFd<'_>) -> Result<Socket, KernelError> {
    let enter = || {
        move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?;
        Socket::route()
    };
    let opened = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, enter);
        // A panic cannot come: nothing in there does.
        thread.map(|thread| thread.join().unwrap_or(Err(Errno::IO)))
    });
    let step = "enter the container's network namespace";
    match opened {
        Ok(socket) => socket.map_err(|errno| KernelError::new(step, errno)),
        Err(error) => Err(KernelError::io(step, error)),
    }
}

/// Brings loopback and the container's interface up, and gives it its addresses and its way out.
pub(crate) fn configure(socket: &mut Socket, lease: &Lease) -> Result<(), KernelError> {
    let name = &lease.names.container_interface;
    let look = by_name(GET_LINK, name);
    let loopback_up = Message::new(NEW_LINK, 0, &link_header(LOOPBACK, true));
    let replies = socket
        .execute(&[loopback_up, look])
        .map_err(|refusal| KernelError::new(format!("bring up loopback beside {name}"), refusal))?;
    let link = replies.first().and_then(|reply| read_link(&reply.payload));
    let index = link
        .map(|link| link.index)
        .ok_or_else(|| KernelError::new(format!("find {name} in the container"), Errno::NODEV))?;

    let mut messages = vec![
        Message::new(NEW_LINK, 0, &link_header(index, true)),
        add_address(index, lease.address.into(), lease.subnet.prefix()),
        add_default_route(index, lease.gateway().into()),
    ];
    if let Some(ipv6) = lease.ipv6 {
        messages.push(add_address(index, ipv6.address.into(), ipv6.prefix));
        messages.push(add_default_route(index, ipv6.gateway.into()));
    }
    socket.execute(&messages).map(drop).map_err(|refusal| {
        let what = match refusal.index {
            Some(0) => "bring up",
            Some(1 | 3) => "give its address to",
            _ => "add the default route of",
        };
        KernelError::new(format!("{what} {name}"), refusal)
    })
}
