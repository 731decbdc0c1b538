//! Netlink sockets of the host's network namespace, kept for the next call.
//!
//! Closing a socket of the packet filter can wait for all processors, so it is not done after
//! each call. As many are open as there were calls at one time.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::KernelError;
use crate::netlink::Socket;

/// Idle sockets, and how much all have sent.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    route: Mutex<Vec<Socket>>,
    netfilter: Mutex<Vec<Socket>>,
    sent: AtomicU64,
}

/// A socket that goes back when it is dropped.
pub(crate) struct Borrowed<'a> {
    /// None only while it is being dropped.
    socket: Option<Socket>,
    home: &'a Mutex<Vec<Socket>>,
    sent: &'a AtomicU64,
}

impl Sockets {
    /// For links, addresses and routes.
    pub(crate) fn route(&self) -> Result<Borrowed<'_>, KernelError> {
        self.borrow(&self.route, Socket::route)
    }

    /// For the packet filter and connections.
    pub(crate) fn netfilter(&self) -> Result<Borrowed<'_>, KernelError> {
        self.borrow(&self.netfilter, Socket::netfilter)
    }

    fn borrow<'a>(
        &'a self,
        home: &'a Mutex<Vec<Socket>>,
        open: impl FnOnce() -> rustix::io::Result<Socket>,
    ) -> Result<Borrowed<'a>, KernelError> {
        let idle = home.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let socket = match idle {
            Some(socket) => socket,
            None => open().map_err(|errno| KernelError::new("open a netlink socket", errno))?,
        };
        Ok(Borrowed {
            socket: Some(socket),
            home,
            sent: &self.sent,
        })
    }

    /// Counts what was sent by a socket that is not of this pool.
    pub(crate) fn count(&self, sent: u64) {
        self.sent.fetch_add(sent, Ordering::Relaxed);
    }

    /// Messages sent so far by sockets that are idle.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        if let Some(mut socket) = self.socket.take() {
            self.sent
                .fetch_add(std::mem::take(&mut socket.sent), Ordering::Relaxed);
            self.home
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(socket);
        }
    }
}

impl Deref for Borrowed<'_> {
    type Target = Socket;

    fn deref(&self) -> &Socket {
        self.socket
            .as_ref()
            .expect("only dropping takes the socket")
    }
}

impl DerefMut for Borrowed<'_> {
    fn deref_mut(&mut self) -> &mut Socket {
        self.socket
            .as_mut()
            .expect("only dropping takes the socket")
    }
}
