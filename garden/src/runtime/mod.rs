//! The way to the processes: the zygote, which makes shims, and the shims, which make processes.
//!
//! The only part of the manager that speaks the wire protocol. It knows nothing of images,
//! networks or limits: it moves specifications and descriptors.

pub mod shim;
mod socket;
pub mod zygote;

use garden_wire::{Failure, FailureKind};

use crate::error::Error;

/// What a shim's or the zygote's refusal means to the caller.
pub(crate) fn failure(failure: Failure) -> Error {
    match failure.kind {
        FailureKind::ExecutableNotFound => Error::ExecutableNotFound(failure.message),
        FailureKind::NotExecutable => Error::NotExecutable(failure.message),
        FailureKind::WorkingDirectory | FailureKind::ResourceLimit => {
            Error::Invalid(failure.message)
        }
        _ => Error::host("the container's supervisor refused", failure.message),
    }
}
