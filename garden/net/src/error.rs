//! What can go wrong with a network.

use std::io;

use rustix::io::Errno;

use crate::netlink::Refusal;
use crate::ports::PortError;
use crate::rules::RuleError;
use crate::subnets::SubnetError;

/// The kernel refused a step.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}{}", .explanation.as_deref().map(|text| format!(" ({text})")).unwrap_or_default())]
pub struct KernelError {
    step: String,
    explanation: Option<String>,
    #[source]
    source: io::Error,
}

impl KernelError {
    pub(crate) fn new(step: impl Into<String>, refusal: impl Into<Refusal>) -> Self {
        let refusal = refusal.into();
        Self {
            step: step.into(),
            explanation: refusal.text,
            source: refusal.errno.into(),
        }
    }

    pub(crate) fn io(step: impl Into<String>, source: io::Error) -> Self {
        Self {
            step: step.into(),
            explanation: None,
            source,
        }
    }

    /// Whether trying differently cannot help.
    pub(crate) fn is_permission(&self) -> bool {
        let errno = Errno::from_io_error(&self.source);
        matches!(
            errno,
            Some(Errno::PERM | Errno::OPNOTSUPP | Errno::TIMEDOUT)
        )
    }
}

/// A call on the network failed. Nothing of it remains, unless it says so.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No address.
    #[error(transparent)]
    Subnet(#[from] SubnetError),
    /// No host port.
    #[error(transparent)]
    Port(#[from] PortError),
    /// A rule without a meaning.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// No container has this lease: it was removed, or never known here.
    #[error("network of container {handle} is not there: it was removed")]
    Unknown {
        /// The container's handle.
        handle: String,
    },
    /// Taking away did not succeed as a whole. May be tried again.
    #[error(
        "cannot remove the network of container {handle}: try again; its address {address} stays reserved"
    )]
    Remove {
        /// The container's handle.
        handle: String,
        /// Its address.
        address: std::net::Ipv4Addr,
        /// The first thing that failed.
        #[source]
        source: KernelError,
    },
    /// An option that has no meaning.
    #[error("network option {option}: {reason}")]
    Option {
        /// Its name.
        option: &'static str,
        /// What is wrong, and what is right.
        reason: String,
    },
}

impl NetworkError {
    /// Whether it is about what others have, and may give back.
    pub(crate) fn is_shortage(&self) -> bool {
        matches!(
            self,
            Self::Subnet(
                SubnetError::InsufficientSubnets
                    | SubnetError::InsufficientIps
                    | SubnetError::IpAlreadyAllocated
                    | SubnetError::OverlapsExisting(..)
            ) | Self::Port(PortError::Exhausted | PortError::Taken(_))
        )
    }
}
