//! What a container may reach: NetOut rules, checked and brought into the filter's terms.
//!
//! [`NetOutRule`] is what a client says, in the words of the Garden API. `compile` refuses what
//! has no meaning, before anything is made, and leaves `Match`es: one per family, whatever the
//! number of networks and ports, because these become sets.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::cidr::{Range, merge};

/// Lets packets out, also into denied networks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetOutRule {
    /// 0 all, 1 TCP, 2 UDP, 3 ICMP, 4 ICMPv6.
    pub protocol: u8,
    /// Where to; nothing means everywhere.
    pub networks: Vec<IpRange>,
    /// To which ports; nothing means all. Only with TCP and UDP.
    pub ports: Vec<PortRange>,
    /// Which messages; nothing means all. Counts for ICMP only.
    pub icmps: Option<IcmpControl>,
    /// Whether the kernel logs each new connection.
    pub log: bool,
}

/// Addresses from one to another; only one of them means that single address, none everything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IpRange {
    /// The first.
    pub start: Option<IpAddr>,
    /// The last; it belongs to the range.
    pub end: Option<IpAddr>,
}

/// Ports from one to another, both included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortRange {
    /// The first.
    pub start: u16,
    /// The last.
    pub end: u16,
}

/// A kind of ICMP message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IcmpControl {
    /// Its type.
    #[serde(default, rename = "type")]
    pub kind: u8,
    /// Its code; none means all.
    #[serde(default)]
    pub code: Option<u8>,
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

/// The protocol of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    All,
    Tcp,
    Udp,
    Icmp,
    Icmp6,
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
    pub(crate) icmp: Option<IcmpControl>,
    pub(crate) log: bool,
}

/// Checks a rule and brings it into the filter's terms. `ipv6` says whether this instance has it:
/// without it, ICMPv6 is a protocol that does not exist.
pub(crate) fn compile(rule: &NetOutRule, ipv6: bool) -> Result<Vec<Match>, RuleError> {
    let protocol = match rule.protocol {
        0 => Protocol::All,
        1 => Protocol::Tcp,
        2 => Protocol::Udp,
        3 => Protocol::Icmp,
        4 if ipv6 => Protocol::Icmp6,
        other => return Err(RuleError::Protocol(other)),
    };
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
        .icmps
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

fn compile_ports(ports: &[PortRange]) -> Result<Vec<Range<u16>>, RuleError> {
    if let Some(wrong) = ports.iter().find(|range| range.start > range.end) {
        return Err(RuleError::Ports(wrong.start, wrong.end));
    }
    let merged = merge(ports.iter().map(|range| (range.start, range.end)).collect());
    // All ports are no condition.
    Ok(if merged == [(0, u16::MAX)] {
        Vec::new()
    } else {
        merged
    })
}

fn destinations(networks: &[IpRange]) -> Result<Vec<Destination>, RuleError> {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    let mut anywhere = networks.is_empty();
    for range in networks {
        let (start, end) = match (range.start, range.end) {
            (None, None) => {
                anywhere = true;
                continue;
            }
            (Some(start), Some(end)) => (start.to_canonical(), end.to_canonical()),
            (Some(one), None) | (None, Some(one)) => (one.to_canonical(), one.to_canonical()),
        };
        if start > end || start.is_ipv4() != end.is_ipv4() {
            return Err(RuleError::Networks(start, end));
        }
        match (start, end) {
            (IpAddr::V4(start), IpAddr::V4(end)) => v4.push((u32::from(start), u32::from(end))),
            (IpAddr::V6(start), IpAddr::V6(end)) => v6.push((u128::from(start), u128::from(end))),
            _ => return Err(RuleError::Networks(start, end)),
        }
    }
    if anywhere {
        return Ok(vec![Destination::Anywhere]);
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

    fn rule(json: &str) -> NetOutRule {
        serde_json::from_str(json).unwrap()
    }

    fn refused(json: &str) -> String {
        compile(&rule(json), false).unwrap_err().to_string()
    }

    #[test]
    fn an_empty_rule_allows_everything() {
        let matches = compile(&rule("{}"), false).unwrap();
        assert_eq!(matches.len(), 1);
        assert_eq!(matches[0].protocol, Protocol::All);
        assert_eq!(matches[0].destination, Destination::Anywhere);
        assert!(matches[0].ports.is_empty() && !matches[0].log);
        let somewhere = compile(&rule(r#"{"networks":[{},{"start":"1.1.1.1"}]}"#), false).unwrap();
        assert_eq!(somewhere[0].destination, Destination::Anywhere);
    }

    #[test]
    fn ports_belong_to_tcp_and_udp() {
        let ports = r#""ports":[{"start":80,"end":80}]"#;
        assert_eq!(
            refused(&format!("{{{ports}}}")),
            "Ports cannot be specified for Protocol ALL"
        );
        assert_eq!(
            refused(&format!(r#"{{"protocol":3,{ports}}}"#)),
            "Ports cannot be specified for Protocol ICMP"
        );
        assert!(compile(&rule(&format!(r#"{{"protocol":1,{ports}}}"#)), false).is_ok());
        assert_eq!(
            refused(r#"{"protocol":2,"ports":[{"start":9,"end":8}]}"#),
            "invalid port range 9-8: the first must not be above the last"
        );
    }

    #[test]
    fn a_protocol_must_exist() {
        assert_eq!(refused(r#"{"protocol":5}"#), "invalid protocol: 5");
        assert_eq!(refused(r#"{"protocol":4}"#), "invalid protocol: 4");
        assert!(compile(&rule(r#"{"protocol":4}"#), true).is_ok());
    }

    #[test]
    fn networks_are_split_by_family_and_merged() {
        let json = r#"{"protocol":1,"networks":[{"start":"10.0.0.0","end":"10.0.0.9"},{"end":"10.0.0.10"},
            {"start":"fd00::1"},{"start":"::ffff:1.2.3.4"}],"ports":[{"start":1,"end":5},{"start":3,"end":9}]}"#;
        let matches = compile(&rule(json), false).unwrap();
        let address = |text: &str| u32::from(text.parse::<std::net::Ipv4Addr>().unwrap());
        let v4 = vec![
            (address("1.2.3.4"), address("1.2.3.4")),
            (address("10.0.0.0"), address("10.0.0.10")),
        ];
        assert_eq!(matches[0].destination, Destination::V4(v4));
        assert_eq!(matches[0].ports, [(1, 9)]);
        assert!(matches!(&matches[1].destination, Destination::V6(ranges) if ranges.len() == 1));
        assert!(
            refused(r#"{"networks":[{"start":"10.0.0.2","end":"10.0.0.1"}]}"#)
                .starts_with("invalid network range")
        );
        assert!(
            refused(r#"{"networks":[{"start":"10.0.0.2","end":"fd00::1"}]}"#)
                .starts_with("invalid network range")
        );
    }

    #[test]
    fn messages_of_icmp_only_count_there() {
        let icmp = compile(&rule(r#"{"protocol":3,"icmps":{"code":0}}"#), false).unwrap();
        assert_eq!(
            icmp[0].icmp,
            Some(IcmpControl {
                kind: 0,
                code: Some(0)
            })
        );
        assert_eq!(
            compile(&rule(r#"{"protocol":1,"icmps":{}}"#), false).unwrap()[0].icmp,
            None
        );
    }

    #[test]
    fn the_log_names_the_handle_by_its_beginning() {
        assert_eq!(log_prefix("short"), "short ");
        assert_eq!(log_prefix(&"é".repeat(40)), format!("{} ", "é".repeat(28)));
        assert_eq!(log_prefix("a\nb"), "ab ");
    }
}
