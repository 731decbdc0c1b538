//! A packet socket in the async world.
//!
//! tokio has no type for `SOCK_SEQPACKET`; its stream type only lends its readiness here, every
//! read and write is one packet by `garden_wire`.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use garden_wire::{PacketError, Received};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::net::UnixStream;

/// One end of a packet connection.
#[derive(Debug)]
pub(crate) struct PacketSocket(UnixStream);

impl PacketSocket {
    /// Takes over a connected packet socket. Must be called within a runtime.
    pub(crate) fn new(socket: OwnedFd) -> std::io::Result<Self> {
        let stream = std::os::unix::net::UnixStream::from(socket);
        stream.set_nonblocking(true)?;
        UnixStream::from_std(stream).map(Self)
    }

    /// The socket itself.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Sends one packet.
    pub(crate) async fn send<T: Serialize>(
        &self,
        value: &T,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), PacketError> {
        self.moving(Interest::WRITABLE, || {
            garden_wire::send(self.0.as_fd(), value, descriptors)
        })
        .await
    }

    /// Receives one packet.
    pub(crate) async fn receive<T: DeserializeOwned>(&self) -> Result<Received<T>, PacketError> {
        self.moving(Interest::READABLE, || garden_wire::receive(self.0.as_fd()))
            .await
    }

    async fn moving<T>(
        &self,
        interest: Interest,
        mut step: impl FnMut() -> Result<T, PacketError>,
    ) -> Result<T, PacketError> {
        loop {
            self.0
                .ready(interest)
                .await
                .map_err(|source| PacketError::Io {
                    doing: "wait for",
                    source,
                })?;
            let mut outcome = None;
            // `try_io` clears the readiness when it sees `WouldBlock`.
            let _ = self.0.try_io(interest, || match step() {
                Err(PacketError::NotReady) => Err(std::io::ErrorKind::WouldBlock.into()),
                done => {
                    outcome = Some(done);
                    Ok(())
                }
            });
            if let Some(outcome) = outcome {
                return outcome;
            }
        }
    }
}
