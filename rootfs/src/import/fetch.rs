//! What the pipeline needs of an image that lies somewhere else.
//!
//! Implemented by image layouts on disk and by registries; called by the importer from several
//! threads at once. An implementation never decides what is right: whoever reads a blob hashes it.

use std::io::Read;

use crate::error::Result;
use crate::oci::{Blob, Manifest};

/// An image whose documents can be read and whose layers can be streamed.
pub(crate) trait Fetch: Sync {
    /// Resolves to the manifest for this platform. Every document is verified against what named
    /// it.
    fn manifest(&self) -> Result<Manifest>;

    /// Streams a blob from its start. Resuming after a broken body happens inside. The caller
    /// hashes and counts. Does not wait for a network: what fails there is an error of the stream,
    /// which may carry one of this crate.
    fn open(&self, blob: &Blob) -> Result<Box<dyn Read + Send>>;
}
