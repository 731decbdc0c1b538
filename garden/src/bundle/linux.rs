//! Rules: masked paths, id maps and device nodes.

use std::path::Path;

use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType, LinuxIdMapping, LinuxIdMappingBuilder,
};

use super::{IdRange, invalid};
use crate::devices::{DeviceKind, DeviceSpec, Node};
use crate::error::Error;

/// Paths that tell of the host, or reach it, and that a user namespace does not protect. Each costs
/// a mount per container and pea (a directory: a whole tmpfs): what only the host's root can read
/// anyway is not among them.
const MASKED: [&str; 8] = [
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
];

const FUSE: &str = "/dev/fuse";

pub(super) fn masked_paths(privileged: bool) -> Vec<String> {
    if privileged {
        return Vec::new();
    }
    MASKED.iter().map(|path| (*path).to_owned()).collect()
}

/// Nodes beside the usual ones: FUSE, for who may mount, and those that were asked for. In a user
/// namespace nobody can make a node: there they are bind mounts.
pub(super) fn devices(privileged: bool, wanted: &[DeviceSpec]) -> Result<Vec<LinuxDevice>, Error> {
    if !privileged {
        return Ok(Vec::new());
    }
    let fuse = Node {
        kind: DeviceKind::Character,
        major: 10,
        minor: 229,
        mode: 0o666,
        uid: 0,
        gid: 0,
    };
    let wanted = wanted
        .iter()
        .filter_map(|device| Some((device.destination.as_path(), device.node?)));
    let mut nodes: Vec<(&Path, Node)> = wanted.collect();
    if nodes.iter().all(|(path, _)| *path != Path::new(FUSE)) {
        nodes.push((Path::new(FUSE), fuse));
    }
    nodes
        .into_iter()
        .map(|(path, node)| device(path, node))
        .collect()
}

fn device(path: &Path, node: Node) -> Result<LinuxDevice, Error> {
    let kind = match node.kind {
        DeviceKind::Block => LinuxDeviceType::B,
        _ => LinuxDeviceType::C,
    };
    LinuxDeviceBuilder::default()
        .path(path)
        .typ(kind)
        .major(i64::from(node.major))
        .minor(i64::from(node.minor))
        .file_mode(node.mode)
        .uid(node.uid)
        .gid(node.gid)
        .build()
        .map_err(invalid)
}

pub(super) fn id_mappings(ranges: &[IdRange]) -> Result<Vec<LinuxIdMapping>, Error> {
    ranges
        .iter()
        .map(|range| {
            LinuxIdMappingBuilder::default()
                .container_id(range.inside)
                .host_id(range.outside)
                .size(range.size)
                .build()
                .map_err(invalid)
        })
        .collect()
}
