//! Names of interfaces, chains and the table.
//!
//! An interface's name has 15 bytes at most, and must tell whose it is: `w`, the instance's tag
//! of up to two characters, then either `brdg-` and the subnet in hex or ten characters of an id
//! and `-0` (host's end) or `-1` (container's end). Lengths differ by tag, so that no instance
//! takes another's for its own. Ids are random: nothing has to be remembered to not use one twice,
//! and the kernel refuses the one in 10¹⁵ that exists.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// What an id is made of: 5 bits a character.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";
const ID_LENGTH: usize = 10;
const CHAIN_PREFIX: &str = "container-";

/// An instance's mark in names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tag(String);

/// A tag that cannot be part of names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "tag {0:?} must be at most two letters or digits: it is part of interface names of 15 characters"
)]
pub struct TagError(String);

impl std::str::FromStr for Tag {
    type Err = TagError;

    fn from_str(text: &str) -> Result<Self, TagError> {
        if text.len() > 2 || !text.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(TagError(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl Tag {
    /// As it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of the instance's table.
    pub(crate) fn table(&self) -> String {
        if self.0.is_empty() {
            "garden".to_owned()
        } else {
            format!("garden-{}", self.0)
        }
    }

    /// The name of a subnet's bridge.
    pub(crate) fn bridge(&self, network: Ipv4Addr) -> String {
        let dash = if self.0.len() > 1 { "" } else { "-" };
        format!("w{}brdg{dash}{:08x}", self.0, u32::from(network))
    }

    /// The number by which the kernel knows those links of this instance as one that are about to go.
    /// It follows from the tag, and is far above the numbers that people give.
    pub(crate) fn doomed(&self) -> u32 {
        let tag = self
            .0
            .bytes()
            .fold(0, |tag, byte| tag << 8 | u32::from(byte));
        0x8000_0000 | tag
    }

    /// Whether an interface is of this instance, and which kind of.
    pub(crate) fn owns(&self, interface: &str) -> Option<Owned> {
        let rest = interface.strip_prefix('w')?.strip_prefix(self.0.as_str())?;
        let dash = if self.0.len() > 1 { "" } else { "-" };
        if let Some(hex) = rest
            .strip_prefix("brdg")
            .and_then(|rest| rest.strip_prefix(dash))
        {
            let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            if hex.len() == 8 && hex.bytes().all(digit) {
                return Some(Owned::Bridge);
            }
        }
        let id = rest.strip_suffix("-0")?;
        (id.len() == ID_LENGTH && id.bytes().all(|byte| ALPHABET.contains(&byte)))
            .then_some(Owned::HostEnd)
    }
}

/// What an interface of ours is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owned {
    Bridge,
    HostEnd,
}

/// Names of what belongs to one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// Never used twice.
    pub id: String,
    /// The bridge of its subnet.
    pub bridge: String,
    /// The end of its veth pair that is attached to the bridge.
    pub host_interface: String,
    /// The end within the container.
    pub container_interface: String,
}

impl Names {
    /// New ones, for a container in a subnet.
    ///
    /// # Errors
    /// The kernel's, if it has no random bytes.
    pub(crate) fn new(tag: &Tag, network: Ipv4Addr) -> std::io::Result<Self> {
        let mut random = [0u8; ID_LENGTH];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let letter = |byte: &u8| {
            ALPHABET
                .get(usize::from(byte % 32))
                .map_or('0', |letter| char::from(*letter))
        };
        let id: String = random.iter().map(letter).collect();
        Ok(Self {
            bridge: tag.bridge(network),
            host_interface: format!("w{}{id}-0", tag.0),
            container_interface: format!("w{}{id}-1", tag.0),
            id,
        })
    }

    /// The chain with the container's rules.
    pub(crate) fn chain(&self) -> String {
        format!("{CHAIN_PREFIX}{}", self.id)
    }
}

/// Whether a chain holds a container's rules.
pub(crate) fn is_container_chain(chain: &str) -> bool {
    chain.starts_with(CHAIN_PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETWORK: Ipv4Addr = Ipv4Addr::new(10, 254, 0, 4);

    #[test]
    fn names_fit_and_tell_whose_they_are() {
        let tags: Vec<Tag> = ["", "a", "ab", "br", "b"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        for tag in &tags {
            let names = Names::new(tag, NETWORK).unwrap();
            for name in [
                &names.bridge,
                &names.host_interface,
                &names.container_interface,
            ] {
                assert!(name.len() <= 15, "{name}");
            }
            for other in &tags {
                let owned = |kind| (other == tag).then_some(kind);
                assert_eq!(
                    other.owns(&names.bridge),
                    owned(Owned::Bridge),
                    "{other:?} {}",
                    names.bridge
                );
                assert_eq!(
                    other.owns(&names.host_interface),
                    owned(Owned::HostEnd),
                    "{other:?}"
                );
                assert_eq!(other.owns(&names.container_interface), None);
            }
        }
        assert_eq!(tags[0].bridge(NETWORK), "wbrdg-0afe0004");
        assert_eq!(tags[1].table(), "garden-a");
    }

    #[test]
    fn what_is_about_to_go_is_told_apart_by_tag() {
        let tags = ["", "a", "b", "ab", "ba", "aa", "0a"];
        let mut numbers: Vec<u32> = tags
            .iter()
            .map(|tag| tag.parse::<Tag>().unwrap().doomed())
            .collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), tags.len());
        assert!(numbers[0] >= 0x8000_0000);
    }

    #[test]
    fn others_interfaces_are_not_ours() {
        for name in [
            "wlan0",
            "wg0",
            "w",
            "wbrdg-",
            "wbrdg-0AFE0004",
            "wbrdg-0afe000x",
            "w0123456789-2",
            "w012345678z-0",
        ] {
            assert_eq!(Tag::default().owns(name), None, "{name}");
        }
    }

    #[test]
    fn a_tag_is_two_letters_at_most() {
        for text in ["abc", "-", "a/", "ä"] {
            assert!(text.parse::<Tag>().is_err(), "{text}");
        }
    }
}
