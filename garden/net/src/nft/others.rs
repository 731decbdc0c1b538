//! Others' packet filters: those that drop what ours lets through.
//!
//! What one chain accepts is still looked at by the next of the same hook. So a chain that drops
//! by default, a firewall's or `docker`'s, keeps containers from the world, whatever ours says.

use super::table::{SUBSYSTEM, kind};
use crate::error::KernelError;
use crate::netlink::Socket;
use crate::netlink::message::{Message, Reader, text};

/// Bytes of netfilter's header in front of attributes; the first is the family.
const HEADER: usize = 4;
/// `NF_INET_FORWARD`.
const FORWARD: u32 = 2;
/// `NF_DROP`.
const DROP: u32 = 0;
/// `NFPROTO_INET`, `NFPROTO_IPV4`, `NFPROTO_IPV6`.
const FAMILIES: [(u8, &str); 3] = [(1, "inet"), (2, "ip"), (10, "ip6")];

/// Chains that drop by default what is forwarded, in nft's words: `table family name, chain name`.
pub(crate) fn dropping(socket: &mut Socket) -> Result<Vec<String>, KernelError> {
    let mut found = std::collections::BTreeSet::new();
    let request = Message::new(SUBSYSTEM << 8 | u16::from(kind::GET_CHAIN), 0, &[0; HEADER]);
    let each = |payload: &[u8]| found.extend(read(payload));
    socket
        .dump(&request, each)
        .map_err(|refusal| KernelError::new("list the chains of the packet filter", refusal))?;
    Ok(found.into_iter().collect())
}

fn read(payload: &[u8]) -> Option<String> {
    let (_, family) = FAMILIES
        .iter()
        .find(|(number, _)| payload.first() == Some(number))?;
    let attributes = Reader::behind(payload, HEADER);
    let number = |bytes: Option<&[u8]>| Some(u32::from_be_bytes(*bytes?.first_chunk()?));
    let hook = number(attributes.inner(4).get(1))?;
    let policy = number(attributes.get(5))?;
    let (table, chain) = (text(attributes.get(1)?), text(attributes.get(3)?));
    (hook == FORWARD && policy == DROP).then(|| format!("table {family} {table}, chain {chain}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(family: u8, hook: u32, policy: u32) -> Vec<u8> {
        let mut message = Message::new(0, 0, &[family, 0, 0, 0]);
        message.text(1, "filter").text(3, "FORWARD");
        message
            .nest(4, |inner| {
                inner.big(1, hook);
            })
            .big(5, policy);
        message.body
    }

    #[test]
    fn only_chains_that_drop_what_is_forwarded_count() {
        let found = read(&payload(2, FORWARD, DROP));
        assert_eq!(found.as_deref(), Some("table ip filter, chain FORWARD"));
        assert_eq!(read(&payload(2, FORWARD, 1)), None);
        assert_eq!(read(&payload(2, 1, DROP)), None);
        assert_eq!(read(&payload(7, FORWARD, DROP)), None);
        assert_eq!(read(&[2, 0, 0]), None);
    }
}
