//! One packet: a serialised value and the descriptors that go with it.
//!
//! A packet that would not fit a socket buffer (a huge environment, say) travels in a sealed
//! memory file, so that there is no size which works today and fails with a longer argument list.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// What fits a packet itself; longer values go into a memory file.
const INLINE_LIMIT: usize = 32 * 1024;
/// The longest value accepted at all: no honest message comes near.
const VALUE_LIMIT: u64 = 64 * 1024 * 1024;
/// Descriptors in one packet; the kernel's own bound is 253 (`SCM_MAX_FD`).
pub const MAX_DESCRIPTORS: usize = 250;

const INLINE: u8 = 0;
const IN_MEMORY_FILE: u8 = 1;

/// Why a packet could not be moved.
#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    /// The peer is gone.
    #[error("the other side has closed the connection")]
    Closed,
    /// Nothing can be moved now; wait for the socket to become ready.
    #[error("the socket is not ready")]
    NotReady,
    /// The kernel refused.
    #[error("cannot {doing} a packet")]
    Io {
        /// `send` or `receive`.
        doing: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The value is not what this side understands.
    #[error("cannot understand a packet: both sides must be of one release")]
    Format(#[source] serde_json::Error),
    /// The packet breaks a bound or lost descriptors on its way.
    #[error("a packet is malformed: {0}")]
    Malformed(&'static str),
}

fn io_error(doing: &'static str) -> impl Fn(rustix::io::Errno) -> PacketError {
    move |errno| match errno {
        rustix::io::Errno::AGAIN => PacketError::NotReady,
        rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET | rustix::io::Errno::NOTCONN => {
            PacketError::Closed
        }
        errno => PacketError::Io {
            doing,
            source: errno.into(),
        },
    }
}

/// A connected pair of packet sockets, both close-on-exec and blocking.
///
/// # Errors
/// The kernel's, when it has no descriptors or memory left.
pub fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Sends one value with its descriptors.
///
/// # Errors
/// [`PacketError::NotReady`] on a non-blocking socket whose buffer is full, [`PacketError::Closed`]
/// when nobody listens, [`PacketError::Io`] for everything else.
pub fn send<T: Serialize>(
    socket: BorrowedFd<'_>,
    value: &T,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), PacketError> {
    let mut bytes = vec![INLINE];
    serde_json::to_writer(&mut bytes, value).map_err(PacketError::Format)?;
    if bytes.len() <= INLINE_LIMIT {
        return send_raw(socket, &bytes, descriptors);
    }
    let file =
        memory_file(bytes.get(1..).unwrap_or_default()).map_err(|source| PacketError::Io {
            doing: "send",
            source,
        })?;
    let mut all = Vec::with_capacity(descriptors.len() + 1);
    all.push(file.as_fd());
    all.extend_from_slice(descriptors);
    send_raw(socket, &[IN_MEMORY_FILE], &all)
}

fn send_raw(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), PacketError> {
    if descriptors.len() > MAX_DESCRIPTORS {
        return Err(PacketError::Malformed("too many descriptors"));
    }
    let mut space =
        vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS + 1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(PacketError::Malformed("too many descriptors"));
    }
    loop {
        match rustix::net::sendmsg(
            socket,
            &[io::IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        ) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(io_error("send")(errno)),
        }
    }
}

fn memory_file(bytes: &[u8]) -> io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create(
        "garden-packet",
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    )?;
    let mut file = std::fs::File::from(file);
    io::Write::write_all(&mut file, bytes)?;
    // Sealed, so that the reader may trust that the value does not change under it.
    rustix::fs::fcntl_add_seals(
        &file,
        SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
    )?;
    Ok(file.into())
}

/// A value and the descriptors that came with it, in the order they were sent.
#[derive(Debug)]
pub struct Received<T> {
    /// The value.
    pub value: T,
    /// The descriptors, all close-on-exec.
    pub descriptors: Vec<OwnedFd>,
}

/// Receives one packet.
///
/// # Errors
/// As [`send`]; [`PacketError::Format`] when the value is of another type or release.
pub fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> Result<Received<T>, PacketError> {
    let mut bytes = vec![0_u8; INLINE_LIMIT + 1];
    let mut space =
        vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS + 1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        match rustix::net::recvmsg(
            socket,
            &mut [io::IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        ) {
            Ok(message) => break message,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(io_error("receive")(errno)),
        }
    };
    let mut descriptors = Vec::new();
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = ancillary {
            descriptors.extend(fds);
        }
    }
    if message
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(PacketError::Malformed(
            "it was cut on its way (out of descriptors?)",
        ));
    }
    let body = bytes.get(..message.bytes).unwrap_or_default();
    match body.split_first() {
        None => Err(PacketError::Closed),
        Some((&INLINE, json)) => {
            let value = serde_json::from_slice(json).map_err(PacketError::Format)?;
            Ok(Received { value, descriptors })
        }
        Some((&IN_MEMORY_FILE, _)) if !descriptors.is_empty() => {
            let file = std::fs::File::from(descriptors.remove(0));
            let value = read_memory_file(&file)?;
            Ok(Received { value, descriptors })
        }
        Some(_) => Err(PacketError::Malformed("unknown kind")),
    }
}

fn read_memory_file<T: DeserializeOwned>(file: &std::fs::File) -> Result<T, PacketError> {
    use std::os::unix::fs::FileExt as _;
    let failed = |source| PacketError::Io {
        doing: "receive",
        source,
    };
    let seals = rustix::fs::fcntl_get_seals(file).map_err(|errno| failed(errno.into()))?;
    let length = file.metadata().map_err(failed)?.len();
    if !seals.contains(SealFlags::WRITE | SealFlags::SHRINK) || length > VALUE_LIMIT {
        return Err(PacketError::Malformed(
            "its memory file is not sealed, or too long",
        ));
    }
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    file.read_exact_at(&mut bytes, 0).map_err(failed)?;
    serde_json::from_slice(&bytes).map_err(PacketError::Format)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _, Write as _};

    use super::*;

    #[test]
    fn a_value_arrives_with_its_descriptors() {
        let (left, right) = socket_pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"hello").unwrap();
        send(left.as_fd(), &"value", &[file.as_fd()]).unwrap();
        let got: Received<String> = receive(right.as_fd()).unwrap();
        assert_eq!(got.value, "value");
        let mut copy = std::fs::File::from(got.descriptors.into_iter().next().unwrap());
        copy.rewind().unwrap();
        let mut text = String::new();
        copy.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn a_value_larger_than_any_socket_buffer_arrives() {
        let (left, right) = socket_pair().unwrap();
        let long = "x".repeat(5 << 20);
        let extra = tempfile::tempfile().unwrap();
        send(left.as_fd(), &long, &[extra.as_fd()]).unwrap();
        let got: Received<String> = receive(right.as_fd()).unwrap();
        assert_eq!(got.value, long);
        assert_eq!(got.descriptors.len(), 1);
    }

    #[test]
    fn a_closed_peer_is_told_apart_from_an_error() {
        let (left, right) = socket_pair().unwrap();
        drop(left);
        assert!(matches!(
            receive::<String>(right.as_fd()),
            Err(PacketError::Closed)
        ));
        assert!(matches!(
            send(right.as_fd(), &1, &[]),
            Err(PacketError::Closed)
        ));
    }

    #[test]
    fn an_unsealed_memory_file_is_refused() {
        let (left, right) = socket_pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        send_raw(left.as_fd(), &[IN_MEMORY_FILE], &[file.as_fd()]).unwrap();
        let refused = receive::<String>(right.as_fd());
        assert!(refused.is_err());
    }
}
