//! Rule: which namespaces are made and which are the container's.

use std::path::PathBuf;

use garden_wire::POD_NAMESPACES;
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType};

const SHARED: [(LinuxNamespaceType, &str); 4] = [
    (LinuxNamespaceType::Pid, "pid"),
    (LinuxNamespaceType::Network, "network"),
    (LinuxNamespaceType::Ipc, "ipc"),
    (LinuxNamespaceType::Uts, "uts"),
];

/// Whether a process sees the container's mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mount {
    /// It does: it is a process in the container.
    Joined,
    /// It has its own: it is a pea.
    Own,
}

/// New ones, for a container's init.
pub(super) fn own(privileged: bool) -> Vec<LinuxNamespace> {
    let user = (!privileged).then_some(LinuxNamespaceType::User);
    let shared = SHARED.iter().map(|(kind, _)| *kind);
    user.into_iter()
        .chain(shared)
        .chain([LinuxNamespaceType::Mount])
        .map(|kind| namespace(kind, None))
        .collect()
}

/// The container's, for a process or a pea in it.
pub(super) fn joined(privileged: bool, mount: Mount) -> Vec<LinuxNamespace> {
    let user = (!privileged).then_some((LinuxNamespaceType::User, "user"));
    let mount = match mount {
        Mount::Joined => namespace(LinuxNamespaceType::Mount, Some("mount")),
        Mount::Own => namespace(LinuxNamespaceType::Mount, None),
    };
    user.into_iter()
        .chain(SHARED)
        .map(|(kind, name)| namespace(kind, Some(name)))
        .chain([mount])
        .collect()
}

fn namespace(kind: LinuxNamespaceType, pod: Option<&str>) -> LinuxNamespace {
    let mut namespace = LinuxNamespaceBuilder::default()
        .typ(kind)
        .build()
        .unwrap_or_default();
    namespace.set_path(pod.map(|name| PathBuf::from(format!("{POD_NAMESPACES}/{name}"))));
    namespace
}
