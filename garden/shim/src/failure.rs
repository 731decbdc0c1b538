//! Failures of the shim: what the server is told.
//!
//! A failure crosses two process borders (init → worker → shim → server), so it is plain data
//! from the start: the wire's [`Failure`]. Helpers here make one from an errno and a step.

use garden_wire::{Failure, FailureKind};

/// The shim's result.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// A failure of no special kind.
pub(crate) fn other(message: impl Into<String>) -> Failure {
    Failure {
        kind: FailureKind::Other,
        message: message.into(),
    }
}

/// Names the step that an error belongs to.
pub(crate) trait Step<T> {
    /// Turns the error into a failure that begins with `doing`.
    fn step(self, doing: &str) -> Result<T>;
}

impl<T, E: std::fmt::Display> Step<T> for std::result::Result<T, E> {
    fn step(self, doing: &str) -> Result<T> {
        self.map_err(|error| other(format!("{doing}: {error}")))
    }
}
