//! Rules: masked paths, id maps and device nodes.

use std::path::PathBuf;

use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType, LinuxIdMapping, LinuxIdMappingBuilder,
};

use super::{IdRange, invalid};
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

pub(super) fn masked_paths(privileged: bool) -> Vec<String> {
    if privileged {
        return Vec::new();
    }
    MASKED.iter().map(|path| (*path).to_owned()).collect()
}

/// Nodes beside the usual ones: FUSE, for who may mount.
pub(super) fn devices(privileged: bool) -> Result<Vec<LinuxDevice>, Error> {
    if !privileged {
        return Ok(Vec::new());
    }
    let fuse = LinuxDeviceBuilder::default()
        .path(PathBuf::from("/dev/fuse"))
        .typ(LinuxDeviceType::C)
        .major(10)
        .minor(229)
        .file_mode(0o666_u32)
        .uid(0_u32)
        .gid(0_u32)
        .build()
        .map_err(invalid)?;
    Ok(vec![fuse])
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
