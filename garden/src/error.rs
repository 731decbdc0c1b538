//! What the manager answers when it cannot do what was asked.
//!
//! Each variant is a kind that a caller decides on (the API maps kinds to wire types, the command
//! line to exit codes); the text says what failed, on what, and what to try. Causes from below
//! are kept as sources and printed once, by [`Error::report`].

use crate::model::{Handle, IdError, ProcessId};

/// An error with its kind.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No container of this name.
    #[error("unknown handle: {0}")]
    ContainerNotFound(Handle),
    /// No process of this name in its container.
    #[error("unknown process: {0}")]
    ProcessNotFound(ProcessId),
    /// The name is taken. (Clients compare this text.)
    #[error("Handle '{0}' already in use")]
    HandleInUse(Handle),
    /// The process id is taken.
    #[error("process ID '{0}' already in use")]
    ProcessIdInUse(ProcessId),
    /// A handle or process id that cannot be one.
    #[error("the {what} {text:?} cannot be used")]
    BadId {
        /// `handle` or `process id`.
        what: &'static str,
        /// What was given.
        text: String,
        /// What is wrong with it.
        #[source]
        source: IdError,
    },
    /// Another destroy of the same container is under way. (Clients compare this text.)
    #[error("container already being destroyed")]
    BeingDestroyed(Handle),
    /// The container's supervisor died, and everything in it with it.
    #[error(
        "container {0} is lost: its supervisor died, and everything in it was killed; destroy it, \
         and create it anew"
    )]
    ContainerLost(Handle),
    /// The executable is not in the container.
    #[error("{0}")]
    ExecutableNotFound(String),
    /// The executable is there, but cannot be run.
    #[error("{0}")]
    NotExecutable(String),
    /// The image cannot be used as given.
    #[error("{0}")]
    Image(#[from] garden_rootfs::Error),
    /// An image plugin failed. The texts are Guardian's.
    #[error("{0}")]
    Plugin(#[from] garden_rootfs::plugin::Error),
    /// A request that can never work as it stands.
    #[error("{0}")]
    Invalid(String),
    /// More than the server was told to hold.
    #[error("{0}")]
    Exhausted(String),
    /// The host did not do what was asked of it.
    #[error("{doing}")]
    Host {
        /// The step, with its object.
        doing: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// A failed step on the host, with its cause.
    pub fn host(
        doing: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Host {
            doing: doing.into(),
            source: source.into(),
        }
    }

    /// Whether another server has the runtime directory or the store.
    pub fn is_in_use(&self) -> bool {
        use crate::api::ListenError;
        use crate::depot::DepotError;
        match self {
            Self::Image(garden_rootfs::Error::StoreInUse(_)) => true,
            Self::Host { source, .. } => {
                matches!(source.downcast_ref(), Some(DepotError::InUse(_)))
                    || matches!(source.downcast_ref(), Some(ListenError::InUse(_)))
            }
            _ => false,
        }
    }

    /// The error and its whole chain of causes, in one line.
    pub fn report(&self) -> String {
        report(self)
    }
}

impl From<crate::depot::DepotError> for Error {
    fn from(error: crate::depot::DepotError) -> Self {
        Self::host("the server's records cannot be kept", error)
    }
}

impl From<crate::api::ListenError> for Error {
    fn from(error: crate::api::ListenError) -> Self {
        Self::host("the server cannot be reached", error)
    }
}

impl From<crate::cgroup::CgroupError> for Error {
    fn from(error: crate::cgroup::CgroupError) -> Self {
        if error.is_callers() {
            return Self::Invalid(report(&error));
        }
        Self::host("the control groups refused", error)
    }
}

impl From<crate::users::UserError> for Error {
    fn from(error: crate::users::UserError) -> Self {
        Self::Invalid(report(&error))
    }
}

/// An error and its whole chain of causes, in one line.
pub fn report(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let more = source.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = source.source();
    }
    text
}
