//! Guardian's external network plugins: a program is asked to do what the built-in network does.
//!
//! The protocol is Guardian's, to the byte where plugins look at it: the program gets the operator's
//! extra arguments, then `--action A --handle H`; JSON goes in and comes out; what it writes to
//! standard error is for the log. Unlike there, an action has a time in which it must end.
//!
//! Every call blocks for as long as the plugin runs, and calls for different containers may run side
//! by side. Nothing is remembered here: what a plugin reports are properties of the container, which
//! whoever keeps containers stores, and gives back with the next call.

mod message;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::lease::MappedPort;
use crate::network::PortRequest;
use crate::plugin::{self, Call, PluginError, said};
use crate::rules::NetOutRule;

/// Where a plugin reports the container's address.
pub const CONTAINER_IP: &str = "garden.network.container-ip";
/// Its IPv6 address.
pub const CONTAINER_IPV6: &str = "garden.network.container-ipv6";
/// The host's address on the container's network.
pub const HOST_IP: &str = "garden.network.host-ip";
/// The interface's name inside.
pub const INTERFACE: &str = "garden.network.interface";
/// The host ports that lead to the container, as a JSON list.
pub const MAPPED_PORTS: &str = "garden.network.mapped-ports";

/// Properties that a plugin is told begin with this, which it does not see.
const FOR_PLUGINS: &str = "network.";
/// The other property that it is told, as it is.
const LOG_CONFIG: &str = "log_config";

/// A plugin, as the operator has configured it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plugin {
    /// The program.
    pub path: PathBuf,
    /// Arguments in front of those of the protocol.
    pub extra_arguments: Vec<OsString>,
    /// How long an action may take.
    pub timeout: Duration,
}

/// A container, as its keeper describes it.
#[derive(Debug, Clone, Copy)]
pub struct Container<'a> {
    /// Its handle.
    pub handle: &'a str,
    /// The process whose network namespace it is.
    pub pid: u32,
    /// All of its properties. The plugin is told those that are meant for it.
    pub properties: &'a BTreeMap<String, String>,
}

/// What an `up` reported.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Up {
    /// To be stored as properties of the container, all of them.
    pub properties: BTreeMap<String, String>,
    /// For its `resolv.conf`; none: as without a plugin.
    pub dns_servers: Option<Vec<IpAddr>>,
    /// For its `resolv.conf`; none: as without a plugin.
    pub search_domains: Option<Vec<String>>,
    /// The last of what it said for the log.
    pub stderr: String,
}

/// A plugin could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ExternalError {
    /// It ended with a failure. The text is one that operators know.
    #[error("external networker encountered an error running '{action}' action: {status}{}", said(.stderr))]
    Failed {
        /// What it was asked.
        action: &'static str,
        /// How it ended.
        status: String,
        /// The last of its standard error.
        stderr: String,
    },
    /// It did not run to its end.
    #[error("external networker encountered an error running '{action}' action")]
    Run {
        /// What it was asked.
        action: &'static str,
        /// Why.
        #[source]
        source: PluginError,
    },
    /// Its answer is not what the protocol says.
    #[error("unmarshaling result from external networker: {reason} (action '{action}')")]
    Answer {
        /// What it was asked.
        action: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The container has no address: it was never up. The text, line break included, is Guardian's.
    #[error("cannot find container [{handle}]\n")]
    NotUp {
        /// Its handle.
        handle: String,
    },
}

impl Up {
    /// The container's address, if the plugin reported one.
    ///
    /// # Errors
    /// When what it reported is none.
    pub fn address(&self) -> Result<Option<IpAddr>, ExternalError> {
        address(&self.properties, CONTAINER_IP)
    }

    /// The container's IPv6 address, if the plugin reported one.
    ///
    /// # Errors
    /// When what it reported is none.
    pub fn address6(&self) -> Result<Option<IpAddr>, ExternalError> {
        address(&self.properties, CONTAINER_IPV6)
    }
}

/// An address among properties.
fn address(
    properties: &BTreeMap<String, String>,
    key: &str,
) -> Result<Option<IpAddr>, ExternalError> {
    match properties.get(key).map(String::as_str) {
        None | Some("") => Ok(None),
        Some(text) => match text.parse() {
            Ok(address) => Ok(Some(address)),
            Err(_) => Err(ExternalError::Answer {
                action: "up",
                reason: format!("the property {key} is no address: {text:?}"),
            }),
        },
    }
}

impl Plugin {
    /// Connects a container. Rules and ports go with the call; the ports that the plugin has mapped
    /// are among the properties that it reports.
    ///
    /// # Errors
    /// When the plugin fails, takes too long, or answers something else. `down` is due then, too.
    pub fn up(
        &self,
        container: &Container<'_>,
        rules: &[NetOutRule],
        ports: &[PortRequest],
    ) -> Result<Up, ExternalError> {
        let told = container.properties.iter().filter_map(|(key, value)| {
            let key = match key.strip_prefix(FOR_PLUGINS) {
                Some(key) => key,
                None if key == LOG_CONFIG => key,
                None => return None,
            };
            Some((key.to_owned(), value.clone()))
        });
        let input = message::up(container.pid, told.collect(), rules, ports);
        let (stdout, stderr) = self.ask("up", container.handle, &input)?;
        let wrong = |reason| ExternalError::Answer {
            action: "up",
            reason,
        };
        let up = message::read_up(&stdout).map_err(wrong)?;
        let up = Up { stderr, ..up };
        // An address that is none would be found out at each later call.
        up.address()?;
        up.address6()?;
        Ok(up)
    }

    /// Disconnects a container, also one that was never up. Returns what the plugin said for the log.
    ///
    /// # Errors
    /// When the plugin fails or takes too long; may be tried again.
    pub fn down(&self, handle: &str) -> Result<String, ExternalError> {
        let (_, stderr) = self.ask("down", handle, b"null")?;
        Ok(stderr)
    }

    /// Maps a host port. `host` is the host's external address, 0 as a port lets the plugin choose.
    ///
    /// # Errors
    /// [`ExternalError::NotUp`] without an address; when the plugin fails, takes too long, or answers
    /// something else.
    pub fn net_in(
        &self,
        container: &Container<'_>,
        host: IpAddr,
        port: PortRequest,
    ) -> Result<MappedPort, ExternalError> {
        let address = up_at(container)?;
        let input = message::net_in(host, port, address);
        let (stdout, _) = self.ask("net-in", container.handle, &input)?;
        message::read_port(&stdout, port).map_err(|reason| ExternalError::Answer {
            action: "net-in",
            reason,
        })
    }

    /// Allows outgoing traffic.
    ///
    /// # Errors
    /// As [`Plugin::net_in`].
    pub fn net_out(
        &self,
        container: &Container<'_>,
        rule: &NetOutRule,
    ) -> Result<(), ExternalError> {
        let input = message::net_out(up_at(container)?, rule);
        self.ask("net-out", container.handle, &input).map(drop)
    }

    /// Allows outgoing traffic by several rules at once.
    ///
    /// # Errors
    /// As [`Plugin::net_in`].
    pub fn bulk_net_out(
        &self,
        container: &Container<'_>,
        rules: &[NetOutRule],
    ) -> Result<(), ExternalError> {
        let input = message::bulk_net_out(up_at(container)?, rules);
        self.ask("bulk-net-out", container.handle, &input).map(drop)
    }

    /// One call: the bytes of its answer, and what it said for the log.
    fn ask(
        &self,
        action: &'static str,
        handle: &str,
        input: &[u8],
    ) -> Result<(Vec<u8>, String), ExternalError> {
        let mut arguments = self.extra_arguments.clone();
        arguments.extend(["--action", action, "--handle", handle].map(OsString::from));
        let call = Call {
            program: &self.path,
            arguments: &arguments,
            variables: &[],
            input,
            timeout: self.timeout,
        };
        let answer = plugin::run(&call).map_err(|source| ExternalError::Run { action, source })?;
        if !answer.status.success() {
            return Err(ExternalError::Failed {
                action,
                status: answer.status_text(),
                stderr: answer.stderr,
            });
        }
        Ok((answer.stdout, answer.stderr))
    }
}

/// The address that a container has by its properties.
fn up_at(container: &Container<'_>) -> Result<IpAddr, ExternalError> {
    address(container.properties, CONTAINER_IP)?.ok_or_else(|| ExternalError::NotUp {
        handle: container.handle.to_owned(),
    })
}

#[cfg(test)]
mod tests;
