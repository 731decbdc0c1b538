//! Owner, mode, time and extended attributes of an object in a layer.
//!
//! Made by the front ends from foreign values and applied by the tree. The list of extended
//! attributes is an allow-list: whatever the host's kernel would act upon (overlay's own,
//! security modules, integrity) never reaches the disk.

use std::io;
use std::os::fd::AsFd;

use garden_sys::xattr;
use rustix::fs::{Gid, Mode, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{Doing, Fault};
use crate::error::Rule;

/// The greatest owner: greater ones have become root in programs that used signed numbers
/// (CVE-2024-40635).
const LAST_OWNER: u64 = i32::MAX as u64;

/// Owner, mode, time and extended attributes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Permissions, with set-id and sticky bits.
    pub mode: u32,
    /// Owner, as the image has it.
    pub uid: u32,
    /// Group, as the image has it.
    pub gid: u32,
    /// Modification time: seconds since the epoch, and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes: name and value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub xattrs: Vec<(String, Vec<u8>)>,
}

impl Default for Attributes {
    /// A directory that nobody described: `rwxr-xr-x root root`, from the epoch.
    fn default() -> Self {
        Self {
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            xattrs: Vec::new(),
        }
    }
}

/// Checks an owner.
pub(crate) fn owner(id: u64) -> Result<u32, Rule> {
    match u32::try_from(id) {
        Ok(small) if id <= LAST_OWNER => Ok(small),
        _ => Err(Rule::Owner(id)),
    }
}

/// Whether an extended attribute may be kept; if so, the value to keep.
pub(crate) fn allowed(name: &str, value: &[u8]) -> Option<Vec<u8>> {
    if name == CAPABILITY {
        return capability(value);
    }
    let plain = name.starts_with("user.") && name.len() > 5 && !name.starts_with("user.overlay.");
    (plain && name.len() <= 255).then(|| value.to_vec())
}

/// How the kernel refuses an attribute that no file system takes.
const TOO_LONG: [Option<i32>; 2] = [
    Some(Errno::TOOBIG.raw_os_error()),
    Some(Errno::RANGE.raw_os_error()),
];

const CAPABILITY: &str = "security.capability";

/// The value of `security.capability` in its second form (`struct vfs_ns_cap_data`,
/// capabilities(7)). The third names a user namespace of the machine that packed the image, which
/// means nothing here; the mapping of the layer's mount takes its place.
fn capability(value: &[u8]) -> Option<Vec<u8>> {
    const REVISION: u32 = 0xff00_0000;
    let (head, _) = value.split_first_chunk::<4>()?;
    let magic = u32::from_le_bytes(*head);
    match (magic & REVISION, value.len()) {
        (0x0200_0000, 20) => Some(value.to_vec()),
        (0x0300_0000, 24) => {
            let magic = magic & !REVISION | 0x0200_0000;
            let mut second = magic.to_le_bytes().to_vec();
            second.extend_from_slice(&value[4..20]);
            Some(second)
        }
        _ => None,
    }
}

impl Attributes {
    /// Reads them from an object, as a directory of a lower layer.
    pub(crate) fn read(fd: impl AsFd) -> io::Result<Self> {
        let stat = rustix::fs::fstat(&fd)?;
        let mut xattrs = Vec::new();
        for name in xattr::names(&fd)? {
            if let Some(value) = xattr::get(&fd, &name)?
                && let Some(value) = allowed(&name, &value)
            {
                xattrs.push((name, value));
            }
        }
        xattrs.sort();
        Ok(Self {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: time_of(&stat),
            xattrs,
        })
    }

    /// Applies them to an open file or directory: owner before mode, because a change of owner
    /// takes set-id bits away, and both before `security.capability` for the same reason. What is
    /// right already is not written. Attributes that the file system would not take are dropped
    /// here, too; returns how many.
    pub(crate) fn apply(&mut self, fd: impl AsFd) -> Result<u64, Fault> {
        let fd = fd.as_fd();
        let now = rustix::fs::fstat(fd).doing("look at it")?;
        let owned = (now.st_uid, now.st_gid) == (self.uid, self.gid);
        if !owned {
            let owner = (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)));
            rustix::fs::fchown(fd, owner.0, owner.1).doing("set the owner")?;
        }
        if now.st_mode & 0o7777 != self.mode || !owned && self.mode & 0o6000 != 0 {
            rustix::fs::fchmod(fd, Mode::from_raw_mode(self.mode)).doing("set the mode")?;
        }
        let before = self.xattrs.len();
        let mut failure = None;
        self.xattrs
            .retain(|(name, value)| match xattr::set(fd, name, value) {
                Ok(()) => true,
                Err(error) if error.kind() == io::ErrorKind::Unsupported => false,
                Err(error) if TOO_LONG.contains(&error.raw_os_error()) => {
                    failure.get_or_insert(Rule::Attribute(name.clone(), value.len()).into());
                    true
                }
                Err(error) => {
                    let length = value.len();
                    let step = format!("set the extended attribute {name:?} of {length} bytes");
                    failure.get_or_insert(Fault::Host(step, error));
                    true
                }
            });
        match failure {
            Some(failure) => Err(failure),
            None => Ok((before - self.xattrs.len()) as u64),
        }
    }

    /// Takes away what an earlier description of the same object set and this one does not.
    pub(crate) fn remove_others(&self, fd: impl AsFd) -> Result<(), Fault> {
        let step = "replace the extended attributes";
        for name in xattr::names(&fd).doing(step)? {
            let ours = name == CAPABILITY || name.starts_with("user.");
            if ours && !self.xattrs.iter().any(|(kept, _)| *kept == name) {
                rustix::fs::fremovexattr(&fd, &*name).doing(step)?;
            }
        }
        Ok(())
    }
}

/// The modification time that a `stat` tells.
pub(crate) fn time_of(stat: &Stat) -> (i64, u32) {
    (stat.st_mtime, stat.st_mtime_nsec.try_into().unwrap_or(0))
}

/// A time, for both access and modification.
pub(crate) fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_harmless_attributes_are_kept() {
        let kept = |name| allowed(name, b"y").is_some();
        assert!(kept("user.comment"));
        for name in [
            "trusted.overlay.opaque",
            "trusted.x",
            "user.overlay.opaque",
            "user.overlay.redirect",
            "user.",
            "security.selinux",
            "security.ima",
            "security.evm",
            "system.posix_acl_access",
            "security.capability",
        ] {
            assert!(!kept(name), "{name}");
        }
    }

    #[test]
    fn capabilities_lose_the_namespace_they_name() {
        let mut second = vec![0x01, 0, 0, 0x02];
        second.extend([7; 16]);
        assert_eq!(allowed(CAPABILITY, &second), Some(second.clone()));
        let mut third = vec![0x01, 0, 0, 0x03];
        third.extend([7; 16]);
        third.extend(1000_u32.to_le_bytes());
        assert_eq!(allowed(CAPABILITY, &third), Some(second.clone()));
        assert_eq!(allowed(CAPABILITY, &second[..12]), None);
        assert_eq!(allowed(CAPABILITY, &[]), None);
    }

    #[test]
    fn owners_that_could_wrap_are_refused() {
        assert_eq!(owner(2_147_483_647).unwrap(), 2_147_483_647);
        assert!(owner(2_147_483_648).is_err());
        assert!(owner(1 << 32).is_err());
    }
}
