//! What the built-in network refuses, in the manager's words.

use garden_net::NetworkError;
use garden_net::ports::PortError;
use garden_net::subnets::SubnetError;

use crate::error::{Error, report};

impl From<NetworkError> for Error {
    fn from(error: NetworkError) -> Self {
        match error {
            NetworkError::Subnet(
                SubnetError::InsufficientSubnets | SubnetError::InsufficientIps,
            )
            | NetworkError::Port(PortError::Exhausted) => Self::Exhausted(error.to_string()),
            NetworkError::Subnet(_)
            | NetworkError::Port(_)
            | NetworkError::Rule(_)
            | NetworkError::Option { .. } => Self::Invalid(report(&error)),
            NetworkError::Kernel(_)
            | NetworkError::Unknown { .. }
            | NetworkError::Remove { .. } => Self::host("the network refused", error),
        }
    }
}
