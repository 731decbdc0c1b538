//! What a server tells about a container.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use crate::api::wire::WireInfo;
use crate::model::{Addresses, PortMapping};

/// A container as the Garden API describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Info {
    /// `active`, or `stopped` after a stop.
    pub state: String,
    /// What happened to it, oldest first (`Out of memory`, …).
    pub events: Vec<String>,
    /// Where it is reached.
    pub addresses: Addresses,
    /// Its directory on the server's host.
    pub path: PathBuf,
    /// Its running processes, where the server tells (Guardian does not).
    pub process_ids: Vec<String>,
    /// Its properties.
    pub properties: BTreeMap<String, String>,
    /// Ports that lead into it.
    pub mapped_ports: Vec<PortMapping>,
}

impl From<WireInfo> for Info {
    fn from(wire: WireInfo) -> Self {
        Self {
            addresses: wire.addresses(),
            mapped_ports: wire.ports(),
            state: wire.state,
            events: wire.events,
            path: wire.container_path,
            process_ids: wire.process_ids,
            properties: wire.properties,
        }
    }
}
