//! Images as the store knows them: layers, and what the image says about running it.
//!
//! Made by the importer, kept as a record in the store, used to create root filesystems.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::unpack::attributes::Attributes;

/// An image whose layers are all in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// What it is known by in the store: changes whenever the source's content does.
    pub id: Digest,
    /// The source, as it was given.
    pub source: String,
    /// Its layers, the topmost last.
    pub layers: Vec<Layer>,
    /// What `/` itself is to look like.
    pub root: Attributes,
    /// What it says about running it.
    pub config: ImageConfig,
}

/// A layer of an image in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Its name in the store.
    pub key: String,
    /// The digest of its tar; for a directory, the digest of a description of its tree.
    pub diff_id: Digest,
    /// Bytes in its regular files.
    pub size: u64,
}

impl Image {
    /// Bytes in the regular files of all layers.
    pub fn size(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size).sum()
    }
}

/// What an image says about running it (OCI image specification, config.md). Everything is empty
/// for a tar or a directory.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// `K=V` strings.
    pub env: Vec<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`.
    pub user: Option<String>,
    /// The working directory.
    pub working_dir: Option<String>,
    /// The start of the command line.
    pub entrypoint: Vec<String>,
    /// The rest of the command line, when the user gives none.
    pub cmd: Vec<String>,
    /// Ports that it listens on: `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// Directories that are meant to hold data.
    pub volumes: Vec<String>,
    /// Free text by key.
    pub labels: BTreeMap<String, String>,
    /// The signal that asks it to stop.
    pub stop_signal: Option<String>,
}

impl fmt::Debug for ImageConfig {
    /// Leaves out the values of the environment and the command line: they may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageConfig")
            .field("env", &self.env.len())
            .field("user", &self.user)
            .field("working_dir", &self.working_dir)
            .finish_non_exhaustive()
    }
}
