//! One server for each set of names: bridges, links and the packet filter's table of one tag.
//!
//! A server removes what it does not know under its tag. So it claims the tag first, by a name that
//! only one socket in a network namespace can have, and that the kernel gives up with its process.
//! Nothing connects to it, and nothing has to be cleaned up.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

use crate::error::Error;

/// A tag of this network namespace, held for as long as this lives.
#[derive(Debug)]
pub(crate) struct Claim(#[expect(dead_code, reason = "held, not used")] UnixListener);

impl Claim {
    /// Takes the tag.
    ///
    /// # Errors
    /// Another server has it.
    pub(crate) fn take(tag: &str) -> Result<Self, Error> {
        let name = format!("garden-network-{tag}");
        let taken = SocketAddr::from_abstract_name(name)
            .and_then(|address| UnixListener::bind_addr(&address));
        match taken {
            Ok(listener) => Ok(Self(listener)),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                Err(Error::Invalid(format!(
                    "another server of this host has the network tag {tag:?}: give this one its \
                     own --network-tag and --network-pool, or --network none"
                )))
            }
            Err(error) => Err(Error::host("cannot claim the network's names", error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_one_servers_until_it_ends() {
        let tag = format!("test-{}", std::process::id());
        let first = Claim::take(&tag).unwrap();
        let refused = Claim::take(&tag).unwrap_err().report();
        assert!(refused.contains("--network-tag"), "{refused}");
        drop(first);
        Claim::take(&tag).unwrap();
    }
}
