//! No network: a container has its loopback and nothing else.

use super::provider::{Connected, Provider, Wanted};
use super::record::NetworkRecord;
use crate::error::Error;
use crate::model::{ContainerSpec, Handle, NetOutRule, PortMapping};

/// Connects nothing. What asks for a connection is refused, so that nobody waits for one in vain.
#[derive(Debug)]
pub(super) struct Loopback;

fn no_network() -> Error {
    Error::Invalid(
        "this server has no network to configure: its containers have a loopback only; start it \
         without --network none"
            .to_owned(),
    )
}

impl Provider for Loopback {
    fn check(&self, spec: &ContainerSpec) -> Result<(), Error> {
        // Rules only open what is closed otherwise: here all is closed, and an address or a port
        // is what a client relies on.
        if spec.network.is_some() || !spec.net_in.is_empty() {
            return Err(no_network());
        }
        Ok(())
    }

    fn connect(&self, _: &Wanted<'_>) -> Result<Connected, Error> {
        Ok(Connected::default())
    }

    fn disconnect(&self, _: &str, _: &str, _: Option<&NetworkRecord>) -> Result<(), Error> {
        Ok(())
    }

    fn net_in(
        &self,
        _: &Handle,
        _: &NetworkRecord,
        _: PortMapping,
    ) -> Result<(PortMapping, NetworkRecord), Error> {
        Err(no_network())
    }

    fn net_out(
        &self,
        _: &Handle,
        _: &NetworkRecord,
        _: &[NetOutRule],
    ) -> Result<NetworkRecord, Error> {
        Err(no_network())
    }
}
