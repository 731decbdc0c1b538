//! What a plugin's `create` answers, and the mount that is made of it.
//!
//! A fragment of an OCI runtime specification, of which the fields that Guardian uses count:
//! `root.path`, `process.env` and `mounts`. The root filesystem is the directory `root.path` with
//! all that is mounted there, or, where the plugin leaves mounting to its caller, the mount on
//! `/` among `mounts`. Either becomes a detached mount, as the store's own are: nothing is added to
//! the host's mount table, and the plugin's own mounts stay as they are.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use garden_sys::mount::{Attributes, Change, Propagation, set_attributes};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use serde::Deserialize;

use super::error::{Error, Result};
use super::overlay::Layers;

/// A root filesystem that a plugin made.
#[derive(Debug)]
pub struct Provided {
    /// Its mount, detached. Closing the last reference may sync the plugin's disk unless the plugin
    /// has deleted it before, or it is volatile.
    pub mount: OwnedFd,
    /// The environment of the image, as `K=V`.
    pub env: Vec<String>,
    /// What else the plugin wants to be mounted, in this order.
    pub binds: Vec<Bind>,
    /// Whether the kernel never syncs it.
    pub volatile: bool,
}

/// A bind mount that a plugin asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// On the host.
    pub source: PathBuf,
    /// In the container.
    pub destination: PathBuf,
    /// Whether it can be written to.
    pub writable: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Fragment {
    root: Option<Root>,
    process: Option<Process>,
    mounts: Option<Vec<Mount>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Root {
    path: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Process {
    env: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Mount {
    destination: PathBuf,
    #[serde(rename = "type")]
    kind: String,
    source: PathBuf,
    options: Option<Vec<String>>,
}

impl Mount {
    fn has(&self, option: &str) -> bool {
        self.options.iter().flatten().any(|known| known == option)
    }

    fn is_bind(&self) -> bool {
        self.kind == "bind" || self.has("bind") || self.has("rbind")
    }
}

impl Fragment {
    /// Makes the mount.
    pub(super) fn open(self, program: &Path) -> Result<Provided> {
        let unusable = |what: String, source| Error::Unusable {
            program: program.to_owned(),
            what,
            source,
        };
        let mut root = None;
        let mut binds = Vec::new();
        for mount in self.mounts.unwrap_or_default() {
            if mount.destination == Path::new("/") {
                // As when they are mounted one after the other: the last one covers the rest.
                root = Some(mount);
            } else if mount.is_bind() {
                binds.push(Bind {
                    writable: !mount.has("ro"),
                    source: mount.source,
                    destination: mount.destination,
                });
            } else {
                let what = format!(
                    "a mount of the type {:?} on {}: only bind mounts and a mount on / are \
                     supported",
                    mount.kind,
                    mount.destination.display()
                );
                return Err(unusable(what, None));
            }
        }
        let path = self.root.unwrap_or_default().path;
        let (mount, volatile) = match root {
            Some(mount) if mount.is_bind() => (clone(&mount.source), false),
            Some(mount) if mount.kind == "overlay" => {
                let options = mount.options.unwrap_or_default().join(",");
                let layers = Layers::parse(&options).map_err(|what| unusable(what, None))?;
                let volatile = layers.volatile;
                let made = layers.mount(&path);
                let made = made.map_err(|(what, source)| unusable(what, Some(source)))?;
                (Ok(made), volatile)
            }
            Some(mount) => {
                let what = format!("a mount of the type {:?} on /", mount.kind);
                return Err(unusable(what, None));
            }
            None if path.is_absolute() => (clone(&path), false),
            None => {
                let what = "it names no absolute root.path and no mount on /".to_owned();
                return Err(unusable(what, None));
            }
        };
        let mount = mount.map_err(|source| {
            let what = format!("a root filesystem at {}", path.display());
            unusable(what, Some(source))
        })?;
        Ok(Provided {
            mount,
            env: self.process.unwrap_or_default().env.unwrap_or_default(),
            binds,
            volatile,
        })
    }
}

/// A detached, private copy of what is mounted at a directory, with all that is mounted below.
fn clone(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let mount = open_tree(CWD, path, flags)?;
    if !rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&mount)?.st_mode).is_dir() {
        return Err(rustix::io::Errno::NOTDIR.into());
    }
    let change = Change {
        propagation: Some(Propagation::Private),
        recursive: true,
        ..Change::default()
    };
    changed(set_attributes(&mount, &change))?;
    Ok(mount)
}

/// Before Linux 5.12 detached mounts cannot be changed. What is lost are precautions: nothing in a
/// user namespace makes device nodes, and what a container mounts stays in its own namespace.
fn changed(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.raw_os_error() == Some(Errno::NOSYS.raw_os_error()) => Ok(()),
        other => other,
    }
}

/// Keeps devices in it from being opened, in this copy of the mount and what is below it.
pub(super) fn forbid_devices(mount: &OwnedFd) -> io::Result<()> {
    let change = Change {
        set: Attributes::NO_DEVICES,
        recursive: true,
        ..Change::default()
    };
    changed(set_attributes(mount, &change))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(json: &str) -> String {
        let fragment: Fragment = serde_json::from_str(json).unwrap();
        fragment
            .open(Path::new("/bin/plugin"))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn what_cannot_be_used_is_told() {
        assert!(refusal("{}").contains("no absolute root.path"));
        assert!(refusal(r#"{"root":{"path":"a/b"},"process":null}"#).contains("root.path"));
        let odd = r#"{"root":{"path":"/"},"mounts":[{"destination":"/x","type":"tmpfs"}]}"#;
        assert!(refusal(odd).contains("\"tmpfs\" on /x"));
        let odd = r#"{"mounts":[{"destination":"/","type":"ext4"}]}"#;
        assert!(refusal(odd).contains("\"ext4\" on /"));
        assert!(refusal(r#"{"root":{"path":"/nowhere/at/all"}}"#).contains("/nowhere/at/all"));
    }
}
