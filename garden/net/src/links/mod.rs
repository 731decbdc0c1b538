//! Interfaces: a bridge for a subnet, a veth pair for a container.
//!
//! [`host`] works where the server lives, [`inside`] in a container's network namespace. A pair is
//! made with its container's end in its namespace already: it is never to be seen on the host,
//! and dies with the namespace. No process is started and no thread changes its namespace but one
//! made for it.

pub(crate) mod host;
pub(crate) mod inside;
mod rtnetlink;
