//! The JSON of the Garden wire API, and its mapping to the manager's words.
//!
//! Used by the server and by the client, nowhere else. The types imitate Go's encoder: zero
//! values are left out where Go leaves them out, presence matters only for pointers, enums are
//! numbers, durations are integer nanoseconds.

mod container;
mod dialect;
mod info;
mod limits;
mod net;
mod process;

pub(crate) use container::{WireContainerSpec, grace_from_nanos, grace_to_nanos};
pub(crate) use dialect::{DecodeError, decode_bare, decode_request, decode_response, encode};
pub(crate) use info::{WireBulkInfo, WireBulkMetrics, WireCapacity, WireInfo, WireMetrics};
pub(crate) use limits::WireLimits;
pub(crate) use net::{WireNetOutRule, WirePorts};
pub(crate) use process::{WireProcessSpec, WireTty};

use serde::{Deserialize, Serialize};

/// Reply to a create.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct WireHandle {
    #[serde(rename = "Handle")]
    pub(crate) handle: String,
}

/// Reply to a list.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct WireHandles {
    #[serde(rename = "Handles")]
    pub(crate) handles: Vec<String>,
}

/// Request of a stop.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct WireStop {
    pub(crate) kill: bool,
}

/// A property's value, both ways.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct WireValue {
    pub(crate) value: String,
}

/// Whether Go's `omitempty` would leave the value out.
pub(super) fn zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
