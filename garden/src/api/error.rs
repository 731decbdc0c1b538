//! Errors on the wire: the envelope, the types that clients switch on, the statuses.
//!
//! The envelope has exactly Garden's five members. What it cannot say (Garden knows five types of
//! error, the manager more) goes into one header of ours, from which our own client restores the
//! manager's error; others never see it.

use std::borrow::Cow;

use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::wire::DecodeError;
use crate::error::Error;
use crate::model::Handle;

/// Carries `kind` or `kind object`, beside the envelope.
pub(crate) const KIND_HEADER: &str = "garden-error-kind";

/// The body of every failure.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Envelope {
    #[serde(rename = "Type")]
    pub(crate) kind: Cow<'static, str>,
    #[serde(rename = "Message")]
    pub(crate) message: String,
    #[serde(rename = "Handle")]
    pub(crate) handle: String,
    #[serde(rename = "ProcessID")]
    pub(crate) process_id: String,
    #[serde(rename = "Binary")]
    pub(crate) binary: String,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// The manager's answer.
    #[error(transparent)]
    Domain(#[from] Error),
    /// A handle in the path that no container has, or could have.
    #[error("unknown handle: {0}")]
    UnknownHandle(String),
    /// A process id in the path that no process has, or could have.
    #[error("unknown process: {0}")]
    UnknownProcess(String),
    /// A body that cannot be read. Guardian answers 500 to it, and so do we.
    #[error(transparent)]
    Body(#[from] DecodeError),
    /// A body that did not arrive, or is too long.
    #[error("{0}")]
    Transfer(String),
    /// No such path.
    #[error("404 page not found: {0}")]
    NoRoute(String),
    /// The path exists, with other methods.
    #[error("method not allowed: use {allow}")]
    Method {
        /// The methods that it has.
        allow: String,
    },
    /// A handler panicked.
    #[error("internal error: the server's log tells more")]
    Bug,
}

impl ApiError {
    /// A handle that is being destroyed by another request.
    pub(super) fn being_destroyed(handle: &Handle) -> Self {
        Self::Domain(Error::BeingDestroyed(handle.clone()))
    }

    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Domain(Error::ContainerNotFound(_) | Error::ProcessNotFound(_))
            | Self::UnknownHandle(_)
            | Self::UnknownProcess(_)
            | Self::NoRoute(_) => StatusCode::NOT_FOUND,
            Self::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    pub(super) fn envelope(&self) -> Envelope {
        let mut envelope = Envelope {
            message: crate::error::report(self),
            ..Envelope::default()
        };
        match self {
            Self::Domain(Error::ContainerNotFound(handle)) => {
                envelope.kind = "ContainerNotFoundError".into();
                envelope.handle = handle.to_string();
            }
            Self::UnknownHandle(handle) => {
                envelope.kind = "ContainerNotFoundError".into();
                envelope.handle.clone_from(handle);
            }
            Self::Domain(Error::ProcessNotFound(process)) => {
                envelope.kind = "ProcessNotFoundError".into();
                envelope.process_id = process.to_string();
            }
            Self::UnknownProcess(process) => {
                envelope.kind = "ProcessNotFoundError".into();
                envelope.process_id.clone_from(process);
            }
            Self::Domain(Error::ExecutableNotFound(_)) => {
                envelope.kind = "ExecutableNotFoundError".into();
            }
            _ => {}
        }
        envelope
    }

    /// The value of [`KIND_HEADER`], for what the envelope does not tell.
    pub(super) fn kind(&self) -> Option<String> {
        match self {
            Self::Domain(error) => kind(error),
            Self::Body(_) | Self::Transfer(_) | Self::NoRoute(_) | Self::Method { .. } => {
                Some("invalid".into())
            }
            _ => None,
        }
    }
}

fn kind(error: &Error) -> Option<String> {
    Some(match error {
        Error::HandleInUse(handle) => format!("handle-in-use {handle}"),
        Error::ProcessIdInUse(process) => format!("process-id-in-use {process}"),
        Error::BeingDestroyed(handle) => format!("being-destroyed {handle}"),
        Error::ContainerLost(handle) => format!("container-lost {handle}"),
        Error::NotExecutable(_) => "not-executable".into(),
        Error::Invalid(_) | Error::BadId { .. } => "invalid".into(),
        Error::Exhausted(_) => "exhausted".into(),
        _ => return None,
    })
}

/// The manager's error out of what its server sent; the inverse of the above.
pub(crate) fn restore(envelope: Envelope, kind: Option<&str>) -> Error {
    let Envelope {
        kind: type_name,
        message,
        handle,
        process_id,
        ..
    } = envelope;
    let (kind, object) = kind
        .map(|kind| kind.split_once(' ').unwrap_or((kind, "")))
        .unwrap_or_default();
    let typed = match (&*type_name, kind) {
        ("ContainerNotFoundError", _) => handle.parse().map(Error::ContainerNotFound).ok(),
        ("ProcessNotFoundError", _) => process_id.parse().map(Error::ProcessNotFound).ok(),
        ("ExecutableNotFoundError", _) => Some(Error::ExecutableNotFound(message.clone())),
        (_, "handle-in-use") => object.parse().map(Error::HandleInUse).ok(),
        (_, "process-id-in-use") => object.parse().map(Error::ProcessIdInUse).ok(),
        (_, "being-destroyed") => object.parse().map(Error::BeingDestroyed).ok(),
        (_, "container-lost") => object.parse().map(Error::ContainerLost).ok(),
        (_, "not-executable") => Some(Error::NotExecutable(message.clone())),
        (_, "invalid") => Some(Error::Invalid(message.clone())),
        (_, "exhausted") => Some(Error::Exhausted(message.clone())),
        _ => None,
    };
    // The whole chain is in the message, so it is also the last cause: `report` says it once.
    typed.unwrap_or_else(|| Error::host(message.clone(), message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(error: Error) -> Error {
        let error = ApiError::Domain(error);
        restore(error.envelope(), error.kind().as_deref())
    }

    #[test]
    fn envelopes_have_gardens_bytes() {
        let error = ApiError::UnknownHandle("web-1".into());
        assert_eq!(
            serde_json::to_string(&error.envelope()).unwrap(),
            r#"{"Type":"ContainerNotFoundError","Message":"unknown handle: web-1","Handle":"web-1","ProcessID":"","Binary":""}"#
        );
    }

    #[test]
    fn our_client_gets_the_managers_errors_back() {
        let handle = || "web-1".parse::<Handle>().unwrap();
        for (error, debug) in [
            (Error::ContainerNotFound(handle()), "ContainerNotFound"),
            (
                Error::ProcessNotFound("p".parse().unwrap()),
                "ProcessNotFound",
            ),
            (Error::HandleInUse(handle()), "HandleInUse"),
            (Error::BeingDestroyed(handle()), "BeingDestroyed"),
            (Error::ContainerLost(handle()), "ContainerLost"),
            (
                Error::ExecutableNotFound("exec: x".into()),
                "ExecutableNotFound",
            ),
            (Error::NotExecutable("exec: y".into()), "NotExecutable"),
            (
                Error::Exhausted("max containers reached".into()),
                "Exhausted",
            ),
            (Error::Invalid("no".into()), "Invalid"),
            (
                Error::host("making a bridge", std::io::Error::other("no")),
                "Host",
            ),
        ] {
            let text = error.report();
            let back = round_trip(error);
            assert_eq!(back.report(), text);
            assert!(format!("{back:?}").starts_with(debug), "{back:?}");
        }
    }
}
