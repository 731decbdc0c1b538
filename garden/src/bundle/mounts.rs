//! Rule: the mounts of a container or a pea, in their order.

use std::path::PathBuf;

use garden_wire::bind_source;
use oci_spec::runtime::{Mount, MountBuilder};

use super::{ContainerInput, invalid};
use crate::error::Error;

/// A bind mount whose source the server has opened and the shim will stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StagedBind {
    /// Its number among the request's bind descriptors.
    pub index: usize,
    /// Whether its source is a directory.
    pub directory: bool,
    /// Where it appears inside.
    pub destination: PathBuf,
    /// Whether the inside may write.
    pub writable: bool,
    /// Mount flags of the source that a user namespace may not clear (`nodev`, `noexec`, …).
    pub inherited: Vec<&'static str>,
}

/// Destination, type, options.
const DEFAULTS: [(&str, &str, &[&str]); 6] = [
    ("/sys", "sysfs", &["noexec", "nosuid", "nodev", "ro"]),
    (
        "/dev",
        "tmpfs",
        &["nosuid", "noexec", "strictatime", "mode=755", "size=65536k"],
    ),
    (
        "/dev/shm",
        "tmpfs",
        &["noexec", "nosuid", "nodev", "mode=1777"],
    ),
    ("/dev/mqueue", "mqueue", &["noexec", "nosuid", "nodev"]),
    (
        "/dev/pts",
        "devpts",
        &[
            "nosuid",
            "noexec",
            "newinstance",
            "gid=5",
            "ptmxmode=0666",
            "mode=0620",
        ],
    ),
    ("/proc", "proc", &["nosuid", "noexec", "nodev"]),
];

/// Where a view of v1 hierarchies is mounted: one directory for each controller.
const CGROUPS: (&str, &str, &[&str]) = (
    "/sys/fs/cgroup",
    "tmpfs",
    &["nosuid", "noexec", "nodev", "mode=755", "size=64k"],
);

pub(super) fn all(container: &ContainerInput<'_>) -> Result<Vec<Mount>, Error> {
    let mut mounts = Vec::with_capacity(DEFAULTS.len() + 1 + container.binds.len());
    let cgroups = container.cgroup_tmpfs.then_some(CGROUPS);
    for (destination, kind, options) in DEFAULTS.into_iter().chain(cgroups) {
        mounts.push(
            MountBuilder::default()
                .destination(destination)
                .typ(kind)
                .source(kind)
                .options(
                    options
                        .iter()
                        .map(|option| (*option).to_owned())
                        .collect::<Vec<_>>(),
                )
                .build()
                .map_err(invalid)?,
        );
    }
    for bind in container.binds {
        mounts.push(bind_mount(bind)?);
    }
    Ok(mounts)
}

fn bind_mount(bind: &StagedBind) -> Result<Mount, Error> {
    let access = if bind.writable { "rw" } else { "ro" };
    let options = ["bind", access]
        .into_iter()
        .chain(bind.inherited.iter().copied());
    MountBuilder::default()
        .destination(&bind.destination)
        .typ("bind")
        .source(bind_source(bind.index, bind.directory))
        .options(
            options
                .map(|option| (*option).to_owned())
                .collect::<Vec<_>>(),
        )
        .build()
        .map_err(invalid)
}
