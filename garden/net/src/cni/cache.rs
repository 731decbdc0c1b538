//! What was attached, on disk: DEL must be told the same as ADD was, whatever has changed since.
//!
//! A file per attachment, written before the first plugin runs, once more with the result, and removed
//! when DEL is done. So a server that dies at any point leaves enough for the next to clean up.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{CniError, Port};

/// An attachment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The configuration, as it was read.
    pub(super) configuration: Value,
    #[serde(default)]
    pub(super) ports: Vec<Port>,
    #[serde(default)]
    pub(super) arguments: Vec<(String, String)>,
    /// What ADD answered; none: it did not come that far.
    #[serde(default)]
    pub(super) result: Option<Value>,
}

/// The file of an attachment. The names were checked: none has a `/`.
pub(super) fn path(directory: &Path, network: &str, id: &str, interface: &str) -> PathBuf {
    directory.join(format!("{network}-{id}-{interface}.json"))
}

impl Record {
    pub(super) fn write(&self, path: &Path) -> Result<(), CniError> {
        let write = || -> io::Result<()> {
            if let Some(directory) = path.parent() {
                fs::create_dir_all(directory)?;
            }
            let new = path.with_extension("new");
            fs::write(&new, serde_json::to_vec(self)?)?;
            fs::rename(&new, path)
        };
        write().map_err(|source| CniError::Cache {
            path: path.to_owned(),
            source,
        })
    }

    pub(super) fn read(path: &Path) -> Result<Option<Self>, CniError> {
        let read = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.and_then(|bytes| Ok(serde_json::from_slice(&bytes)?)),
        };
        read.map(Some).map_err(|source| CniError::Cache {
            path: path.to_owned(),
            source,
        })
    }
}

pub(super) fn forget(path: &Path) -> Result<(), CniError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(CniError::Cache {
            path: path.to_owned(),
            source: error,
        }),
        _ => Ok(()),
    }
}
