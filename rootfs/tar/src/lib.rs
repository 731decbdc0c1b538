//! The tar format: reading and writing headers, in bounded memory; packing files and filling them.
//!
//! Used by the importer of images (`garden-rootfs`), by the shim's streams into and out of
//! containers and by `garden cp`; so small that the shim can afford it. What is read goes to no disk
//! from here: where an entry goes, and what of it is allowed, is decided by who reads it. Nothing here
//! trusts a size, a name or a record.

mod block;
mod fill;
mod header;
pub mod pack;
mod sparse;
mod write;

use std::io;

pub use block::BLOCK;
pub use fill::{FillError, times};
pub use header::{Described, Entries, Entry, Kind};
pub use write::{Head, Type};

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A header that says something impossible.
    #[error("its header is wrong: {0}")]
    Header(String),
    /// The stream cannot be read, or ends too early.
    #[error("the archive cannot be read: {0}")]
    Read(#[source] io::Error),
}

impl Error {
    /// What a failed read means: the stream's fault, unless one of ours came through it.
    pub(crate) fn reading(error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(own) => own,
            Err(error) => Self::Read(error),
        }
    }
}
