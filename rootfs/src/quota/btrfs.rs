//! Quota by subvolumes: btrfs.
//!
//! Every root filesystem is a subvolume, whose account (qgroup) the kernel keeps by its number.
//! Numbers are never used again, so there is nothing to allocate. What is limited is what the
//! subvolume refers to: data that a copied-up file shares with its layer counts, as it does on
//! other file systems (but not with simple quotas, where the layer's subvolume allocated it).

use std::io;
use std::os::fd::OwnedFd;

use garden_sys::btrfs::{self, Switch};
use rustix::io::Errno;

use super::missing::NotCounted;

/// Whether quota is switched on, or why it is no use.
pub(super) fn probe(directory: &OwnedFd) -> Result<(), NotCounted> {
    match btrfs::quota_status(directory) {
        Ok(Some(status)) => {
            tracing::debug!(?status, "btrfs quota is switched on");
            Ok(())
        }
        Ok(None) => Err(NotCounted::SwitchedOff),
        Err(error) => {
            tracing::debug!(%error, "btrfs does not say whether it has quota");
            Err(NotCounted::Refused)
        }
    }
}

/// Switches quota on for the whole file system if it is off: simple quotas where the kernel has
/// them, and full ones, with a scan in the background, where it has not.
pub(super) fn switch_on(directory: &OwnedFd) -> io::Result<()> {
    if btrfs::quota_status(directory)?.is_some() {
        return Ok(());
    }
    match btrfs::switch_quota(directory, Switch::Simple) {
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {}
        other => return other,
    }
    btrfs::switch_quota(directory, Switch::Full)
}

/// Limits the subvolume of which this is the top directory.
pub(super) fn limit(top: &OwnedFd, bytes: u64) -> io::Result<()> {
    btrfs::limit(top, bytes)
}

/// The bytes of a root filesystem; `None` when it is no subvolume, or is not counted.
pub(super) fn bytes(top: &OwnedFd) -> io::Result<Option<u64>> {
    if !btrfs::is_subvolume(top)? {
        return Ok(None);
    }
    let qgroup = btrfs::qgroup(top, btrfs::subvolume(top)?)?;
    Ok(qgroup.map(|qgroup| qgroup.referenced))
}

/// Removes `parent/name` if it is a subvolume without others in it, with all it contains: a tenth
/// of the time that unlinking file by file takes, and the same space later. `false` when it has to
/// be removed file by file.
pub(super) fn remove(parent: &OwnedFd, name: &str, top: &OwnedFd) -> bool {
    if !btrfs::is_subvolume(top).unwrap_or(false) {
        return false;
    }
    let number = btrfs::subvolume(top);
    if let Err(error) = btrfs::destroy_subvolume(parent, name) {
        tracing::debug!(%error, name, "a subvolume is removed file by file");
        return false;
    }
    if let Ok(number) = number {
        forget(parent, number);
    }
    true
}

/// Old kernels keep the account of a removed subvolume; new ones remove it when they are done with
/// it, and are busy until then.
fn forget(at: &OwnedFd, number: u64) {
    if let Err(error) = btrfs::forget(at, number) {
        tracing::trace!(%error, number, "the kernel forgets a subvolume's account itself");
    }
}
