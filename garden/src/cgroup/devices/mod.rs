//! Which processes may use which devices, and which block devices a rate holds for.
//!
//! Called by the groups when they are made, and by `limit` for rates. What is allowed is one list of
//! rules for both versions. cgroup v1 has a hierarchy for it: containers share a group for each kind
//! that is written once, and one with rules of its own has a group below [`OWN`]. cgroup v2 asks a
//! program that is attached to the container's group, and by inheritance rules everything below; a
//! pea beside has it, too. Programs of groups above (systemd's, another runtime's) are asked as well
//! and all must agree, so that nothing here can widen what the server itself was given.
//!
//! Must never leave a group without its program for a moment: what is attached is replaced in place.

mod flat;
mod program;

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use garden_sys::bpf::{self, LoadError};

use super::files::{self, put};
use super::{CgroupError, failed};
use crate::devices::DeviceRule;

/// Devices that every container may use; `m` everywhere: a node may be made, though not opened.
const COMMON: [&str; 11] = [
    "c *:* m",
    "b *:* m",
    // null, full, zero, tty, random, urandom; terminals, ptmx; tun.
    "c 1:3 rwm",
    "c 1:8 rwm",
    "c 1:7 rwm",
    "c 5:0 rwm",
    "c 1:5 rwm",
    "c 1:9 rwm",
    "c 136:* rwm",
    "c 5:2 rwm",
    "c 10:200 rwm",
];
const FUSE: &str = "c 10:229 rwm";

/// By this name tools show the programs, and by it they are known again.
const NAME: &std::ffi::CStr = c"garden_devices";

/// Of a v1 hierarchy, what holds the groups of containers with rules of their own. No container is
/// named by it: their groups lie below it.
pub(super) const OWN: &str = "own";

/// What the processes of a container and its peas may use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Devices {
    /// Whether it is privileged, and so has `/dev/fuse`.
    pub privileged: bool,
    /// Further rules, behind those that all have.
    pub rules: Vec<DeviceRule>,
}

impl Devices {
    /// One kind's without further rules.
    const fn plain(privileged: bool) -> Self {
        Self {
            privileged,
            rules: Vec::new(),
        }
    }

    fn all(&self) -> Vec<DeviceRule> {
        let fuse = self.privileged.then_some(FUSE);
        let common = COMMON.into_iter().chain(fuse);
        let common = common.filter_map(|text| text.parse().ok());
        common.chain(self.rules.iter().copied()).collect()
    }
}

/// How this host restricts devices.
#[derive(Debug, Clone)]
pub(super) enum Control {
    /// By a hierarchy of cgroup v1.
    V1,
    /// By programs.
    Programs(Arc<Programs>),
    /// Not at all.
    None(Arc<Absent>),
}

/// Programs that most containers have, loaded once.
#[derive(Debug)]
pub(super) struct Programs {
    unprivileged: OwnedFd,
    privileged: OwnedFd,
}

/// Why devices are not restricted.
#[derive(Debug)]
pub(super) struct Absent {
    why: String,
    /// The server is in a user namespace: nobody below it can make a device node.
    nested: bool,
}

impl Control {
    /// Finds out what this host can do.
    pub(super) fn find(has_v1: bool) -> Self {
        if has_v1 {
            return Self::V1;
        }
        let load = |privileged| load(&Devices::plain(privileged));
        match load(false).and_then(|unprivileged| Ok((unprivileged, load(true)?))) {
            Ok((unprivileged, privileged)) => Self::Programs(Arc::new(Programs {
                unprivileged,
                privileged,
            })),
            Err(error) => {
                let why = crate::error::report(&error);
                tracing::warn!(
                    error = why,
                    "containers are not restricted in which devices they open"
                );
                let nested = is_in_user_namespace();
                Self::None(Arc::new(Absent { why, nested }))
            }
        }
    }

    /// Refuses what would not be restricted as it was asked for, before anything is made.
    ///
    /// # Errors
    /// [`CgroupError::NoDevices`], [`CgroupError::OutOfRange`].
    pub(super) fn check(&self, devices: &Devices) -> Result<(), CgroupError> {
        match self {
            Self::V1 => flatten(devices).map(drop),
            Self::Programs(_) => Ok(()),
            // Its root could open every disk of the host.
            Self::None(absent) if devices.privileged && !absent.nested => {
                Err(CgroupError::NoDevices(absent.why.clone()))
            }
            Self::None(absent) if !devices.rules.is_empty() => {
                Err(CgroupError::NoDevices(absent.why.clone()))
            }
            Self::None(_) => Ok(()),
        }
    }

    /// Has a v2 group restricted, in the place of what was attached for it before.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn restrict(&self, path: &Path, devices: &Devices) -> Result<(), CgroupError> {
        let Self::Programs(programs) = self else {
            return Ok(());
        };
        let own;
        let program = if devices.rules.is_empty() && devices.privileged {
            &programs.privileged
        } else if devices.rules.is_empty() {
            &programs.unprivileged
        } else {
            own = load(devices).map_err(|error| CgroupError::Program {
                path: path.to_owned(),
                source: error,
            })?;
            &own
        };
        let group = files::open_directory(path)?;
        let ours = NAME.to_str().unwrap_or_default();
        let there = bpf::device_programs(group.as_fd())
            .map_err(failed("read the device programs of", path))?;
        let there = there.into_iter().find(|(_, name)| name == ours);
        let replaced = there.as_ref().map(|(program, _)| program.as_fd());
        bpf::attach_device_program(group.as_fd(), program.as_fd(), replaced)
            .map_err(failed("restrict the devices of", path))
    }
}

fn load(devices: &Devices) -> Result<OwnedFd, LoadError> {
    bpf::load_device_program(&program::assemble(&devices.all()), NAME)
}

/// user_namespaces(7): in the first one every id is itself.
fn is_in_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    !map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn flatten(devices: &Devices) -> Result<Vec<DeviceRule>, CgroupError> {
    flat::flatten(&devices.all()).map_err(|denial| {
        CgroupError::OutOfRange(format!(
            "the device rule \"{denial}\" takes a part of what another rule gives as a whole, which \
             cgroup v1 cannot do: deny the whole, and allow what is left"
        ))
    })
}

/// Makes the shared groups of v1.
pub(super) fn prepare_v1(parent: &Path) -> Result<(), CgroupError> {
    for privileged in [false, true] {
        let devices = Devices::plain(privileged);
        restrict_v1(&parent.join(shared(&devices)), &devices)?;
    }
    Ok(())
}

/// The name of the v1 group that containers share.
pub(super) fn shared(devices: &Devices) -> &'static str {
    if devices.privileged {
        "privileged"
    } else {
        "unprivileged"
    }
}

/// Makes a v1 group with these rules, unless it is there.
pub(super) fn restrict_v1(path: &Path, devices: &Devices) -> Result<(), CgroupError> {
    files::make(path)?;
    // Written by an earlier server already, and perhaps in use: writing again would open a gap.
    let current = std::fs::read_to_string(path.join("devices.list")).unwrap_or_default();
    if !current.starts_with("a ") {
        return Ok(());
    }
    let rules = flatten(devices)?;
    put(path, "devices.deny", "a")?;
    for rule in rules {
        put(path, "devices.allow", &rule.to_string())?;
    }
    Ok(())
}

/// The block devices of the host whose rates can be limited, as `MAJOR:MINOR`: what is a disk by
/// itself, not what is made of others or of memory.
pub(super) fn block() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/sys/block") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(is_disk))
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("dev")).ok())
        .map(|numbers| numbers.trim().to_owned())
        .collect()
}

fn is_disk(name: &str) -> bool {
    !["loop", "ram", "zram", "dm-"]
        .iter()
        .any(|kind| name.starts_with(kind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::MOST;

    #[test]
    fn disks_are_told_from_what_is_made_of_them() {
        assert!(is_disk("sda") && is_disk("vda") && is_disk("nvme0n1"));
        assert!(!is_disk("loop0") && !is_disk("ram3") && !is_disk("dm-1") && !is_disk("zram0"));
    }

    #[test]
    fn every_rule_of_our_own_is_one() {
        assert_eq!(Devices::plain(false).all().len(), COMMON.len());
        assert_eq!(Devices::plain(true).all().len(), COMMON.len() + 1);
        flatten(&Devices::plain(true)).unwrap();
    }

    #[test]
    fn what_would_not_hold_is_refused() {
        let absent = |nested| {
            let why = "not permitted".to_owned();
            Control::None(Arc::new(Absent { why, nested }))
        };
        let with_rule = Devices {
            privileged: false,
            rules: vec!["c 1:11 r".parse().unwrap()],
        };
        assert!(absent(false).check(&Devices::plain(false)).is_ok());
        assert!(absent(false).check(&Devices::plain(true)).is_err());
        assert!(absent(true).check(&Devices::plain(true)).is_ok());
        assert!(absent(true).check(&with_rule).is_err());
        let denial = Devices {
            privileged: false,
            rules: vec!["deny c 1:3 m".parse().unwrap()],
        };
        let error = Control::V1.check(&denial).unwrap_err();
        assert!(error.to_string().contains("deny c 1:3 m"), "{error}");
    }

    #[test]
    fn root_the_kernel_takes_as_many_rules_as_there_may_be() {
        let rule = "deny c 4095:1048575 rw".parse().unwrap();
        let devices = Devices {
            privileged: true,
            rules: vec![rule; 2 * MOST],
        };
        match (load(&Devices::default()), load(&devices)) {
            (Err(error), _) => println!(
                "SKIPPED root_the_kernel_takes_as_many_rules_as_there_may_be: {}",
                crate::error::report(&error)
            ),
            (_, Err(error)) => panic!("{}", crate::error::report(&error)),
            _ => {}
        }
    }
}
