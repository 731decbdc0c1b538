//! What a container may reach: NetOut rules, checked and brought into the filter's terms.
//!
//! [`NetOutRule`] is what a client says, as all of Garden speaks of it. `compile` refuses what
//! has no meaning, before anything is made, and leaves `Match`es: one per family, whatever the
//! number of networks and ports, because these become sets.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::cidr::{Range, merge};

/// The protocol of a packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Every protocol.
    #[default]
    All,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP.
    Icmp,
    /// ICMPv6.
    Icmp6,
}

/// Traffic that may leave a container, also into denied networks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetOutRule {
    /// The protocol.
    pub protocol: Protocol,
    /// Inclusive address ranges; empty means everywhere.
    pub networks: Vec<(IpAddr, IpAddr)>,
    /// Inclusive port ranges, empty means all; only with TCP and UDP.
    pub ports: Vec<(u16, u16)>,
    /// ICMP type and, if given, code. Counts for ICMP only.
    pub icmp: Option<(u8, Option<u8>)>,
    /// Whether the kernel logs each new connection.
    pub log: bool,
}

/// Why a rule has no meaning.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// Only TCP and UDP have ports.
    #[error("Ports cannot be specified for Protocol {0}")]
    PortsWithoutProtocol(&'static str),
    /// No protocol has this number; 4 (ICMPv6) needs IPv6.
    #[error("invalid protocol: {0}")]
    Protocol(u8),
    /// A range that is backwards, or of two families.
    #[error(
        "invalid network range {0}-{1}: both ends must be of one family, the first not above the last"
    )]
    Networks(IpAddr, IpAddr),
    /// A range that is backwards.
    #[error("invalid port range {0}-{1}: the first must not be above the last")]
    Ports(u16, u16),
}

/// Where a packet goes; of the two families only one can match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Destination {
    /// Any address of any family.
    Anywhere,
    /// Merged.
    V4(Vec<Range<u32>>),
    /// Merged.
    V6(Vec<Range<u128>>),
}

/// One rule of the filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Match {
    pub(crate) protocol: Protocol,
    pub(crate) destination: Destination,
    /// Merged; nothing means all.
    pub(crate) ports: Vec<Range<u16>>,
    /// Its type and code; no code means all.
    pub(crate) icmp: Option<(u8, Option<u8>)>,
    pub(crate) log: bool,
}

/// Checks a rule and brings it into the filter's terms. `ipv6` says whether this instance has it:
/// without it, ICMPv6 is a protocol that does not exist.
pub(crate) fn compile(rule: &NetOutRule, ipv6: bool) -> Result<Vec<Match>, RuleError> {
    let protocol = rule.protocol;
    if protocol == Protocol::Icmp6 && !ipv6 {
        return Err(RuleError::Protocol(4));
    }
    let without_ports = match protocol {
        Protocol::Tcp | Protocol::Udp => None,
        Protocol::All => Some("ALL"),
        Protocol::Icmp => Some("ICMP"),
        Protocol::Icmp6 => Some("ICMPv6"),
    };
    if let (Some(name), false) = (without_ports, rule.ports.is_empty()) {
        return Err(RuleError::PortsWithoutProtocol(name));
    }
    let ports = compile_ports(&rule.ports)?;
    let icmp = rule
        .icmp
        .filter(|_| matches!(protocol, Protocol::Icmp | Protocol::Icmp6));
    let matches = destinations(&rule.networks)?
        .into_iter()
        .map(|destination| Match {
            protocol,
            destination,
            ports: ports.clone(),
            icmp,
            log: rule.log,
        });
    Ok(matches.collect())
}

fn compile_ports(ports: &[(u16, u16)]) -> Result<Vec<Range<u16>>, RuleError> {
    if let Some((start, end)) = ports.iter().find(|(start, end)| start > end) {
        return Err(RuleError::Ports(*start, *end));
    }
    let merged = merge(ports.to_vec());
    // All ports are no condition.
    Ok(if merged == [(0, u16::MAX)] {
        Vec::new()
    } else {
        merged
    })
}

fn destinations(networks: &[(IpAddr, IpAddr)]) -> Result<Vec<Destination>, RuleError> {
    if networks.is_empty() {
        return Ok(vec![Destination::Anywhere]);
    }
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for (start, end) in networks {
        let (start, end) = (start.to_canonical(), end.to_canonical());
        match (start, end) {
            _ if start > end => return Err(RuleError::Networks(start, end)),
            (IpAddr::V4(start), IpAddr::V4(end)) => v4.push((u32::from(start), u32::from(end))),
            (IpAddr::V6(start), IpAddr::V6(end)) => v6.push((u128::from(start), u128::from(end))),
            _ => return Err(RuleError::Networks(start, end)),
        }
    }
    let v4 = (!v4.is_empty()).then(|| Destination::V4(merge(v4)));
    let v6 = (!v6.is_empty()).then(|| Destination::V6(merge(v6)));
    Ok(v4.into_iter().chain(v6).collect())
}

/// What precedes a container's lines in the kernel's log: the first 28 characters of its handle,
/// and a space.
pub(crate) fn log_prefix(handle: &str) -> String {
    handle
        .chars()
        .filter(|character| !character.is_control())
        .take(28)
        .chain([' '])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(protocol: Protocol) -> NetOutRule {
        NetOutRule {
            protocol,
            ..NetOutRule::default()
        }
    }

    fn networks(list: &[(&str, &str)]) -> Vec<(IpAddr, IpAddr)> {
        list.iter()
            .map(|(start, end)| (start.parse().unwrap(), end.parse().unwrap()))
            .collect()
    }

    fn refused(rule: &NetOutRule) -> String {
        compile(rule, false).unwrap_err().to_string()
    }

    #[test]
    fn an_empty_rule_allows_everything() {
        let matches = compile(&NetOutRule::default(), false).unwrap();
        assert_eq!(matches.len(), 1);
        assert_eq!(matches[0].protocol, Protocol::All);
        assert_eq!(matches[0].destination, Destination::Anywhere);
        assert!(matches[0].ports.is_empty() && !matches[0].log);
    }

    #[test]
    fn ports_belong_to_tcp_and_udp() {
        let with_ports = |protocol, ports: (u16, u16)| NetOutRule {
            ports: vec![ports],
            ..rule(protocol)
        };
        assert_eq!(
            refused(&with_ports(Protocol::All, (80, 80))),
            "Ports cannot be specified for Protocol ALL"
        );
        assert_eq!(
            refused(&with_ports(Protocol::Icmp, (80, 80))),
            "Ports cannot be specified for Protocol ICMP"
        );
        assert!(compile(&with_ports(Protocol::Tcp, (80, 80)), false).is_ok());
        assert_eq!(
            refused(&with_ports(Protocol::Udp, (9, 8))),
            "invalid port range 9-8: the first must not be above the last"
        );
    }

    #[test]
    fn icmp_of_ipv6_needs_ipv6() {
        assert_eq!(refused(&rule(Protocol::Icmp6)), "invalid protocol: 4");
        assert!(compile(&rule(Protocol::Icmp6), true).is_ok());
    }

    #[test]
    fn networks_are_split_by_family_and_merged() {
        let several = NetOutRule {
            networks: networks(&[
                ("10.0.0.0", "10.0.0.9"),
                ("10.0.0.10", "10.0.0.10"),
                ("fd00::1", "fd00::1"),
                ("::ffff:1.2.3.4", "::ffff:1.2.3.4"),
            ]),
            ports: vec![(1, 5), (3, 9)],
            ..rule(Protocol::Tcp)
        };
        let matches = compile(&several, false).unwrap();
        let address = |text: &str| u32::from(text.parse::<std::net::Ipv4Addr>().unwrap());
        let v4 = vec![
            (address("1.2.3.4"), address("1.2.3.4")),
            (address("10.0.0.0"), address("10.0.0.10")),
        ];
        assert_eq!(matches[0].destination, Destination::V4(v4));
        assert_eq!(matches[0].ports, [(1, 9)]);
        assert!(matches!(&matches[1].destination, Destination::V6(ranges) if ranges.len() == 1));
        for wrong in [("10.0.0.2", "10.0.0.1"), ("10.0.0.2", "fd00::1")] {
            let wrong = NetOutRule {
                networks: networks(&[wrong]),
                ..NetOutRule::default()
            };
            assert!(refused(&wrong).starts_with("invalid network range"));
        }
    }

    #[test]
    fn messages_of_icmp_only_count_there() {
        let messages = |protocol, icmp| NetOutRule {
            icmp,
            ..rule(protocol)
        };
        let kind = Some((0, Some(0)));
        let icmp = compile(&messages(Protocol::Icmp, kind), false).unwrap();
        assert_eq!(icmp[0].icmp, kind);
        let tcp = compile(&messages(Protocol::Tcp, Some((0, None))), false).unwrap();
        assert_eq!(tcp[0].icmp, None);
    }

    #[test]
    fn the_log_names_the_handle_by_its_beginning() {
        assert_eq!(log_prefix("short"), "short ");
        assert_eq!(log_prefix(&"é".repeat(40)), format!("{} ", "é".repeat(28)));
        assert_eq!(log_prefix("a\nb"), "ab ");
    }
}
