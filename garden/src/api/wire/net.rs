//! Port mappings and rules for outgoing traffic on the wire.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::zero;
use crate::error::Error;
use crate::model::{NetOutRule, PortMapping, Protocol};

/// A port mapping: request and reply of net-in. The request's `handle` repeats the path.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct WirePorts {
    host_port: u32,
    container_port: u32,
}

impl From<WirePorts> for PortMapping {
    fn from(wire: WirePorts) -> Self {
        Self {
            host_port: wire.host_port,
            container_port: wire.container_port,
        }
    }
}

impl From<PortMapping> for WirePorts {
    fn from(mapping: PortMapping) -> Self {
        Self {
            host_port: mapping.host_port,
            container_port: mapping.container_port,
        }
    }
}

/// A rule for outgoing traffic.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct WireNetOutRule {
    #[serde(skip_serializing_if = "zero")]
    protocol: u8,
    #[serde(skip_serializing_if = "zero")]
    networks: Vec<WireAddresses>,
    #[serde(skip_serializing_if = "zero")]
    ports: Vec<WirePortRange>,
    #[serde(skip_serializing_if = "Option::is_none")]
    icmps: Option<WireIcmp>,
    #[serde(skip_serializing_if = "zero")]
    log: bool,
}

/// An inclusive address range; one end alone is that address, none is everywhere.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct WireAddresses {
    #[serde(skip_serializing_if = "zero")]
    start: String,
    #[serde(skip_serializing_if = "zero")]
    end: String,
}

/// An inclusive port range.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct WirePortRange {
    #[serde(skip_serializing_if = "zero")]
    start: u16,
    #[serde(skip_serializing_if = "zero")]
    end: u16,
}

/// An ICMP type and, if present, its code.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct WireIcmp {
    #[serde(rename = "type", skip_serializing_if = "zero")]
    kind: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u8>,
}

fn address(text: &str) -> Result<Option<IpAddr>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse()
        .map(Some)
        .map_err(|_| Error::Invalid(format!("invalid IP address: {text}")))
}

impl WireAddresses {
    /// `None` is everywhere.
    fn range(&self) -> Result<Option<(IpAddr, IpAddr)>, Error> {
        let (start, end) = (address(&self.start)?, address(&self.end)?);
        let (Some(first), Some(last)) = (start.or(end), end.or(start)) else {
            return Ok(None);
        };
        if first.is_ipv4() != last.is_ipv4() || first > last {
            return Err(Error::Invalid(format!(
                "invalid address range: {first}-{last}: \
                 give two addresses of one family, the lower one first"
            )));
        }
        Ok(Some((first, last)))
    }
}

impl WirePortRange {
    fn range(&self) -> Result<(u16, u16), Error> {
        // An end that was left out is Go's zero, and means the start alone.
        let end = if self.end == 0 { self.start } else { self.end };
        if self.start > end {
            return Err(Error::Invalid(format!(
                "invalid port range: {}-{end}: give the lower port first",
                self.start
            )));
        }
        Ok((self.start, end))
    }
}

impl TryFrom<WireNetOutRule> for NetOutRule {
    type Error = Error;

    fn try_from(wire: WireNetOutRule) -> Result<Self, Error> {
        let protocol = match wire.protocol {
            0 => Protocol::All,
            1 => Protocol::Tcp,
            2 => Protocol::Udp,
            3 => Protocol::Icmp,
            4 => Protocol::Icmp6,
            other => return Err(Error::Invalid(format!("invalid protocol: {other}"))),
        };
        let ranges = wire
            .networks
            .iter()
            .map(WireAddresses::range)
            .collect::<Result<Vec<_>, _>>()?;
        // One range that is everywhere makes the whole rule so.
        let networks = ranges.into_iter().collect::<Option<Vec<_>>>();
        Ok(Self {
            protocol,
            networks: networks.unwrap_or_default(),
            ports: wire
                .ports
                .iter()
                .map(WirePortRange::range)
                .collect::<Result<_, _>>()?,
            icmp: wire.icmps.map(|icmp| (icmp.kind, icmp.code)),
            log: wire.log,
        })
    }
}

impl From<&NetOutRule> for WireNetOutRule {
    fn from(rule: &NetOutRule) -> Self {
        Self {
            protocol: match rule.protocol {
                Protocol::All => 0,
                Protocol::Tcp => 1,
                Protocol::Udp => 2,
                Protocol::Icmp => 3,
                Protocol::Icmp6 => 4,
            },
            networks: rule
                .networks
                .iter()
                .map(|(start, end)| WireAddresses {
                    start: start.to_string(),
                    end: end.to_string(),
                })
                .collect(),
            ports: rule
                .ports
                .iter()
                .map(|&(start, end)| WirePortRange { start, end })
                .collect(),
            icmps: rule.icmp.map(|(kind, code)| WireIcmp { kind, code }),
            log: rule.log,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::decode_request;
    use super::*;

    fn rule(json: &str) -> Result<NetOutRule, Error> {
        NetOutRule::try_from(decode_request::<WireNetOutRule>(json.as_bytes()).unwrap())
    }

    #[test]
    fn rules_mean_what_go_means() {
        let loopback: IpAddr = "10.0.0.1".parse().unwrap();
        assert_eq!(rule("{}").unwrap(), NetOutRule::default());
        assert_eq!(rule("null").unwrap(), NetOutRule::default());
        for one in [
            r#"{"start":"10.0.0.1"}"#,
            r#"{"start":"","end":"10.0.0.1"}"#,
        ] {
            let parsed = rule(&format!(r#"{{"networks":[{one}]}}"#)).unwrap();
            assert_eq!(parsed.networks, [(loopback, loopback)]);
        }
        let everywhere = rule(r#"{"networks":[{"start":"10.0.0.1"},{}]}"#).unwrap();
        assert!(everywhere.networks.is_empty());
        let icmp = |json| rule(json).unwrap().icmp;
        assert_eq!(icmp(r#"{"protocol":3,"icmps":{}}"#), Some((0, None)));
        assert_eq!(
            icmp(r#"{"protocol":3,"icmps":{"code":0}}"#),
            Some((0, Some(0)))
        );
        assert_eq!(icmp(r#"{"protocol":3,"icmps":null}"#), None);
        let v6 = rule(r#"{"protocol":4,"networks":[{"start":"2001:db8::1"}]}"#).unwrap();
        assert_eq!(v6.protocol, Protocol::Icmp6);
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(rule(r#"{"protocol":9}"#).is_err());
        assert!(rule(r#"{"networks":[{"start":"CgAAAQ=="}]}"#).is_err());
        assert!(rule(r#"{"networks":[{"start":"10.0.0.1","end":"::1"}]}"#).is_err());
        assert!(rule(r#"{"ports":[{"start":2,"end":1}]}"#).is_err());
    }
}
