//! IPv4 networks, and ranges of addresses.
//!
//! [`Cidr`] reads what Go's `net.ParseCIDR` reads and refuses with its words, because clients of
//! the Garden API know these. `merge` makes of any list of ranges the shortest one with the same
//! members, which is what the kernel's interval sets ask for: they refuse overlaps.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A network: an address whose host bits are zero, and the length of its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    network: Ipv4Addr,
    prefix: u8,
}

/// A text is no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// Go's text.
    #[error("invalid CIDR address: {0}")]
    Invalid(String),
    /// Well formed, but of the other family.
    #[error("network {0} is not IPv4: a container's IPv6 address follows from its IPv4 address")]
    NotIpv4(String),
}

impl Cidr {
    /// The network of `prefix` bits around an address; longer prefixes count as 32.
    #[must_use]
    pub fn around(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        Self {
            network: Ipv4Addr::from(u32::from(address) & mask(prefix)),
            prefix,
        }
    }

    /// Reads `a.b.c.d/n` and keeps the address as well as the network around it.
    ///
    /// # Errors
    /// [`CidrError`], with the text as it was given.
    pub fn parse_address(text: &str) -> Result<(Ipv4Addr, Self), CidrError> {
        let invalid = || CidrError::Invalid(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(invalid)?;
        let address = IpAddr::from_str(address).map_err(|_| invalid())?;
        // Digits only: Rust's own parser would take a sign.
        if prefix.is_empty() || !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(invalid());
        }
        let prefix: u32 = prefix.parse().map_err(|_| invalid())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        if prefix > longest {
            return Err(invalid());
        }
        match address {
            IpAddr::V4(address) => {
                let prefix = u8::try_from(prefix).map_err(|_| invalid())?;
                Ok((address, Self::around(address, prefix)))
            }
            IpAddr::V6(_) => Err(CidrError::NotIpv4(text.to_owned())),
        }
    }

    /// The first address.
    #[must_use]
    pub fn network(&self) -> Ipv4Addr {
        self.network
    }

    /// Bits of the prefix, 0 to 32.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The bits of the prefix as an address.
    #[must_use]
    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from(mask(self.prefix))
    }

    /// The bridge's address: the one behind the first.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network).wrapping_add(1))
    }

    /// The last address.
    #[must_use]
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network) | !mask(self.prefix))
    }

    /// Whether an address is one of the network's.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.prefix) == u32::from(self.network)
    }

    /// Whether two networks have an address in common.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.network) || other.contains(self.network)
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX
        .checked_shl(32 - u32::from(prefix.min(32)))
        .unwrap_or(0)
}

impl fmt::Display for Cidr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.network, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        Self::parse_address(text).map(|(_, network)| network)
    }
}

impl TryFrom<String> for Cidr {
    type Error = CidrError;

    fn try_from(text: String) -> Result<Self, CidrError> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

/// Both ends belong to it.
pub(crate) type Range<T> = (T, T);

/// What a range's ends must offer: the next value.
pub(crate) trait Successor: Copy + Ord {
    /// None behind the last.
    fn next(self) -> Option<Self>;
}

impl Successor for u16 {
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

impl Successor for u32 {
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

impl Successor for u128 {
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

/// The shortest ordered list of ranges with the same members.
pub(crate) fn merge<T: Successor>(mut ranges: Vec<Range<T>>) -> Vec<Range<T>> {
    ranges.sort_unstable();
    let mut merged: Vec<Range<T>> = Vec::with_capacity(ranges.len());
    for (start, end) in ranges {
        match merged.last_mut() {
            Some(last) if last.1.next().is_none_or(|next| start <= next) => {
                last.1 = last.1.max(end)
            }
            _ => merged.push((start, end)),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_as_go_does() {
        let refused = [
            "",
            "/",
            "10.0.0.1",
            "10.0.0/24",
            "10.0.0.1/",
            "10.0.0.1/33",
            "10.0.0.1/+4",
            "10.0.0.1/-1",
            "10.0.0.01/24",
            "banana/30",
            " 10.0.0.1/24",
            "10.0.0.1/24 ",
            "10.0.0.1/2/4",
            "fd00::/129",
            "10.0.0.1/99999999999",
        ];
        for text in refused {
            assert_eq!(
                text.parse::<Cidr>().unwrap_err().to_string(),
                format!("invalid CIDR address: {text}")
            );
        }
        assert_eq!(
            "10.0.0.7/024".parse::<Cidr>().unwrap().to_string(),
            "10.0.0.0/24"
        );
        assert!(matches!(
            "fd00::/64".parse::<Cidr>(),
            Err(CidrError::NotIpv4(_))
        ));
    }

    #[test]
    fn knows_its_ends() {
        let all: Cidr = "0.0.0.0/0".parse().unwrap();
        assert_eq!(
            (all.network(), all.broadcast()),
            (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST)
        );
        let one: Cidr = "10.254.0.6/30".parse().unwrap();
        assert_eq!(one.to_string(), "10.254.0.4/30");
        assert_eq!(one.gateway(), Ipv4Addr::new(10, 254, 0, 5));
        assert_eq!(one.broadcast(), Ipv4Addr::new(10, 254, 0, 7));
        assert_eq!(one.mask(), Ipv4Addr::new(255, 255, 255, 252));
        let single: Cidr = "1.2.3.4/32".parse().unwrap();
        assert!(single.contains(single.network()) && !single.contains(single.gateway()));
    }

    #[test]
    fn is_a_text_in_records() {
        let one: Cidr = serde_json::from_str("\"10.0.0.0/8\"").unwrap();
        assert_eq!(serde_json::to_string(&one).unwrap(), "\"10.0.0.0/8\"");
        assert!(serde_json::from_str::<Cidr>("\"10.0.0.0\"").is_err());
    }

    #[test]
    fn neighbours_merge_up_to_the_last_address() {
        assert_eq!(
            merge(vec![
                (5u16, 9),
                (1, 4),
                (u16::MAX, u16::MAX),
                (20, 30),
                (25, u16::MAX)
            ]),
            [(1, 9), (20, u16::MAX)]
        );
    }

    proptest! {
        #[test]
        fn merged_ranges_have_the_same_members(ranges in prop::collection::vec((0u16..60, 0u16..8), 0..12)) {
            let ranges: Vec<_> = ranges.into_iter().map(|(start, length)| (start, start + length)).collect();
            let merged = merge(ranges.clone());
            let has = |list: &[(u16, u16)], value| list.iter().any(|(start, end)| (*start..=*end).contains(&value));
            for value in 0..80 {
                prop_assert_eq!(has(&ranges, value), has(&merged, value));
            }
            prop_assert!(merged.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0));
        }

        #[test]
        fn overlap_is_a_common_address(a in 0u32..64, b in 0u32..64, long in 26u8..=32, short in 26u8..=32) {
            let (a, b) = (Cidr::around(a.into(), long), Cidr::around(b.into(), short));
            let common = (0u32..64).any(|address| a.contains(address.into()) && b.contains(address.into()));
            prop_assert_eq!(a.overlaps(&b), common);
        }
    }
}
