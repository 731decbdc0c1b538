//! What a container has of the network, as it stands in the container's record.

use std::collections::BTreeMap;
use std::fmt;

use garden_net::Lease;
use serde::{Deserialize, Serialize};

use crate::model::{Addresses, PortMapping};

/// What a container has of the network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkRecord {
    /// Where it is reached; clients see these.
    pub addresses: Addresses,
    /// Ports of the host that lead into it, in the order in which they were made.
    pub mapped_ports: Vec<PortMapping>,
    /// Properties that the network gave it. A property of this name that the user sets afterwards
    /// goes before them.
    pub properties: BTreeMap<String, String>,
    /// What only the implementation understands.
    pub own: Own,
}

/// What an implementation has to know of a container again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Own {
    /// Nothing: it was not connected.
    #[default]
    None,
    /// Of the built-in network.
    BuiltIn(Box<Lease>),
}

impl fmt::Display for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "no network",
            Self::BuiltIn(_) => "the built-in network",
        })
    }
}

/// Names under which clients find the same among a container's properties.
const CONTAINER_IP: &str = "garden.network.container-ip";
const CONTAINER_IPV6: &str = "garden.network.container-ipv6";
const HOST_IP: &str = "garden.network.host-ip";
const EXTERNAL_IP: &str = "garden.network.external-ip";
const MAPPED_PORTS: &str = "garden.network.mapped-ports";

impl NetworkRecord {
    /// What clients see of it among the container's properties, in Guardian's words.
    pub(crate) fn shown(&self) -> BTreeMap<String, String> {
        let mut all = self.properties.clone();
        for (key, address) in [
            (CONTAINER_IP, self.addresses.container),
            (CONTAINER_IPV6, self.addresses.container_v6),
            (HOST_IP, self.addresses.host),
            (EXTERNAL_IP, self.addresses.external),
        ] {
            all.extend(address.map(|address| (key.to_owned(), address.to_string())));
        }
        if !self.mapped_ports.is_empty() {
            let ports: Vec<String> = (self.mapped_ports.iter())
                .map(|port| {
                    format!(
                        "{{\"HostPort\":{},\"ContainerPort\":{}}}",
                        port.host_port, port.container_port
                    )
                })
                .collect();
            all.insert(MAPPED_PORTS.to_owned(), format!("[{}]", ports.join(",")));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_see_guardians_properties() {
        let record = NetworkRecord {
            addresses: Addresses {
                container: "10.254.0.2".parse().ok(),
                ..Addresses::default()
            },
            mapped_ports: vec![PortMapping {
                host_port: 61001,
                container_port: 80,
            }],
            ..NetworkRecord::default()
        };
        let shown = record.shown();
        assert_eq!(shown["garden.network.container-ip"], "10.254.0.2");
        assert_eq!(
            shown["garden.network.mapped-ports"],
            r#"[{"HostPort":61001,"ContainerPort":80}]"#
        );
        assert_eq!(shown.len(), 2);
    }

    #[test]
    fn records_of_earlier_releases_have_none() {
        let record: NetworkRecord = serde_json::from_str("{}").unwrap();
        assert_eq!(record.own, Own::None);
    }
}
