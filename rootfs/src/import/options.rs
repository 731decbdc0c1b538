//! How an import is done, and what it tells while it runs.
//!
//! Part of the public interface: made by whoever imports, read by the pipeline and, for the
//! credentials, by the registry client.

use std::fmt;

use crate::digest::Digest;

/// How an import is done. The default is what [`crate::Store::import`] does.
#[derive(Clone, Copy, Default)]
#[non_exhaustive]
pub struct ImportOptions<'a> {
    /// Who asks the registry. They are sent to the host of the image and to nobody else.
    pub credentials: Option<&'a Credentials>,
    /// Is told how far the import is: from several threads, a few times per second for each
    /// layer, and never with a lock held. It should return quickly, as a thread that works waits.
    pub progress: Option<&'a (dyn Fn(Progress) + Sync)>,
    /// The most bytes that all new layers of the image may have when they are not compressed:
    /// what is left of a quota. More is refused as [`crate::Rule::Quota`]: at once when the packed
    /// layers alone are bigger, else while they are unpacked.
    pub most_bytes: Option<u64>,
    /// Accepts layouts whose claims about their layers are false, as Guardian writes them for
    /// `preloaded+layer`: the names of layers without `urls` and all diff ids are then not
    /// believed, and not checked. The store knows such layers by what was really in them, so that
    /// a false claim can never pass as another layer.
    pub unverified_layouts: bool,
}

impl fmt::Debug for ImportOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImportOptions")
            .field("credentials", &self.credentials)
            .field("progress", &self.progress.is_some())
            .field("most_bytes", &self.most_bytes)
            .field("unverified_layouts", &self.unverified_layouts)
            .finish()
    }
}

/// A name and a password, or a token, for a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The name of the user.
    pub username: String,
    /// The password; never written to a log or a record.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// How far an import is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// How many layers the image has: the first event.
    Layers {
        /// Their number.
        total: usize,
    },
    /// Something about one layer.
    Layer {
        /// Which one, from 0, the topmost last.
        index: usize,
        /// The digest of the blob, as the image names it.
        digest: Digest,
        /// What happens with it.
        stage: Stage,
        /// Bytes of the blob that were read.
        bytes: u64,
        /// Bytes that the blob has, as the image says; 0 when nobody knows.
        of: u64,
    },
    /// All layers are in the store: the last event of an import that succeeds.
    Done,
}

/// What happens with a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// It waits for its turn, or for somebody else who imports the same layer.
    Waiting,
    /// Its bytes are read, checked and unpacked as they come.
    Downloading,
    /// All bytes were read; what was read ahead is unpacked.
    Unpacking,
    /// It was imported.
    Done,
    /// It was in the store.
    Cached,
}
