//! Messages between the server, the zygote and the shims.
//!
//! Everything travels over `SOCK_SEQPACKET` unix sockets, one JSON value a packet, file
//! descriptors beside it by `SCM_RIGHTS`. [`packet`] moves bytes and descriptors, [`message`]
//! says what they mean. The server uses both ends asynchronously, the zygote and the shims from
//! a poll loop; nothing here blocks or knows which side it serves.

pub mod message;
pub mod packet;

pub use message::*;
pub use packet::{PacketError, Received, receive, send, socket_pair};
