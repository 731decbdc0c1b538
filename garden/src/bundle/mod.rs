//! OCI runtime specifications, built by a chain of rules.
//!
//! Each rule is a pure function in a file of its own that fills one part of a [`Spec`]; the
//! chains for a container's init, for a process in it and for a pea differ only in their rules.
//! There is no bundle on disk: the specification travels to the shim in memory.
//! Source: OCI runtime-spec 1.x, `config.md` and `config-linux.md`.

mod capabilities;
mod linux;
mod mounts;
mod namespaces;
mod process;

use std::collections::HashMap;

use oci_spec::runtime::{LinuxBuilder, RootBuilder, Spec, SpecBuilder};

pub use garden_wire::IdRange;

pub use capabilities::{PRIVILEGED, UNPRIVILEGED, held_by_host};
pub use mounts::StagedBind;
pub use process::ProcessInput;

use crate::devices::DeviceSpec;
use crate::error::Error;

/// What the rules know of a container.
#[derive(Debug, Clone)]
pub struct ContainerInput<'a> {
    /// No user namespace, all capabilities.
    pub privileged: bool,
    /// Its name inside.
    pub hostname: &'a str,
    /// The maps of its user namespace; the same for users and groups.
    pub ids: &'a [IdRange],
    /// Its bind mounts, as the shim will have staged them.
    pub binds: &'a [StagedBind],
    /// Devices of the host that appear inside; unprivileged ones have them among their binds.
    pub devices: &'a [DeviceSpec],
    /// Whether its view of its cgroups is several bind mounts, which need a place to be.
    pub cgroup_tmpfs: bool,
    /// Whether its root filesystem is read-only.
    pub read_only: bool,
    /// Settings of its namespaces, by name. Not looked at for a pea, which has none of its own.
    pub sysctls: HashMap<String, String>,
}

/// The specification of a container's init.
///
/// # Errors
/// When a value does not fit the specification's types: a bug, or an id map that is empty.
pub fn init(container: &ContainerInput<'_>, process: &ProcessInput<'_>) -> Result<Spec, Error> {
    let linux = LinuxBuilder::default()
        .namespaces(namespaces::own(container.privileged))
        .masked_paths(linux::masked_paths(container.privileged))
        .readonly_paths(Vec::<String>::new())
        .devices(linux::devices(container.privileged, container.devices)?)
        .sysctl(container.sysctls.clone());
    let linux = if container.privileged {
        linux
    } else {
        linux
            .uid_mappings(linux::id_mappings(container.ids)?)
            .gid_mappings(linux::id_mappings(container.ids)?)
    };
    let spec = SpecBuilder::default()
        .hostname(container.hostname)
        .root(root(container.read_only)?)
        .mounts(mounts::all(container)?)
        .process(process::build(process)?)
        .linux(linux.build().map_err(invalid)?);
    spec.build().map_err(invalid)
}

/// The specification of a process in a container: every namespace is the container's.
///
/// # Errors
/// As [`init`].
pub fn exec(privileged: bool, process: &ProcessInput<'_>) -> Result<Spec, Error> {
    let linux = LinuxBuilder::default()
        .namespaces(namespaces::joined(privileged, namespaces::Mount::Joined))
        .build()
        .map_err(invalid)?;
    SpecBuilder::default()
        .root(root(false)?)
        .mounts(Vec::new())
        .process(process::build(process)?)
        .linux(linux)
        .build()
        .map_err(invalid)
}

/// The specification of a pea: the container's namespaces, but a root filesystem of its own.
///
/// # Errors
/// As [`init`].
pub fn pea(container: &ContainerInput<'_>, process: &ProcessInput<'_>) -> Result<Spec, Error> {
    let linux = LinuxBuilder::default()
        .namespaces(namespaces::joined(
            container.privileged,
            namespaces::Mount::Own,
        ))
        .masked_paths(linux::masked_paths(container.privileged))
        .readonly_paths(Vec::<String>::new())
        .devices(linux::devices(container.privileged, container.devices)?)
        .build()
        .map_err(invalid)?;
    SpecBuilder::default()
        .root(root(container.read_only)?)
        .mounts(mounts::all(container)?)
        .process(process::build(process)?)
        .linux(linux)
        .build()
        .map_err(invalid)
}

fn root(read_only: bool) -> Result<oci_spec::runtime::Root, Error> {
    // The path is the shim's business: it attaches the mount that it was sent.
    RootBuilder::default()
        .path("rootfs")
        .readonly(read_only)
        .build()
        .map_err(invalid)
}

fn invalid(error: oci_spec::OciSpecError) -> Error {
    Error::host("cannot build the runtime specification", error)
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxNamespaceType;

    use super::*;

    const IDS: &[IdRange] = &[IdRange {
        inside: 0,
        outside: 4_294_967_294,
        size: 1,
    }];

    fn container(privileged: bool) -> ContainerInput<'static> {
        ContainerInput {
            privileged,
            hostname: "h",
            ids: IDS,
            devices: &[],
            binds: &[],
            cgroup_tmpfs: false,
            read_only: false,
            sysctls: HashMap::new(),
        }
    }

    fn path_of(spec: &Spec, kind: LinuxNamespaceType) -> Option<Option<String>> {
        let linux = spec.linux().clone().unwrap();
        let all = linux.namespaces().clone().unwrap();
        all.iter()
            .find(|namespace| namespace.typ() == kind)
            .map(|namespace| namespace.path().as_ref().map(|p| p.display().to_string()))
    }

    #[test]
    fn an_unprivileged_init_makes_its_namespaces_and_a_pea_joins_all_but_the_mounts() {
        let init = init(&container(false), &ProcessInput::default()).unwrap();
        assert_eq!(path_of(&init, LinuxNamespaceType::User), Some(None));
        assert_eq!(path_of(&init, LinuxNamespaceType::Network), Some(None));
        let pea = pea(&container(false), &ProcessInput::default()).unwrap();
        let user = path_of(&pea, LinuxNamespaceType::User);
        assert_eq!(user, Some(Some("/pod/ns/user".to_owned())));
        assert_eq!(path_of(&pea, LinuxNamespaceType::Mount), Some(None));
        let exec = exec(false, &ProcessInput::default()).unwrap();
        let mount = path_of(&exec, LinuxNamespaceType::Mount);
        assert_eq!(mount, Some(Some("/pod/ns/mount".to_owned())));
    }

    #[test]
    fn a_privileged_container_has_no_user_namespace_and_no_masked_paths() {
        let init = init(&container(true), &ProcessInput::default()).unwrap();
        assert_eq!(path_of(&init, LinuxNamespaceType::User), None);
        let linux = init.linux().clone().unwrap();
        assert!(linux.masked_paths().as_ref().unwrap().is_empty());
        let exec = exec(true, &ProcessInput::default()).unwrap();
        assert_eq!(path_of(&exec, LinuxNamespaceType::User), None);
    }
}
