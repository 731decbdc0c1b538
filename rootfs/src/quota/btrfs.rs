//! Quota by subvolumes: btrfs.
//!
//! Every root filesystem is a subvolume, whose account (qgroup) the kernel keeps by its number.
//! Numbers are never used again, so there is nothing to allocate. What is limited is what the
//! subvolume refers to: data that a copied-up file shares with its layer counts, as it does on
//! other file systems (but not with simple quotas, where the layer's subvolume allocated it).

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use garden_sys::btrfs::{self, Switch};
use rustix::io::Errno;

use super::missing::NotCounted;

/// The first number that a subvolume can have.
const FIRST: u64 = 256;
/// The accounts that a sweep looks at, at most.
const MOST_SWEPT: usize = 100_000;

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

/// Accounts of subvolumes that were removed, or seem to be, which the kernel keeps.
///
/// Old kernels keep them for ever, new ones remove them with the rest; neither lets them be removed
/// by hand while the subvolume is still being removed in the background.
#[derive(Debug, Default)]
pub(super) struct Stale(Mutex<BTreeSet<u64>>);

impl Stale {
    /// Removes `parent/name` if it is a subvolume without others in it, with all it contains: a
    /// tenth of the time that unlinking file by file takes, and the same space later. `false` when
    /// it has to be removed file by file.
    pub(super) fn remove(&self, parent: &OwnedFd, name: &str, top: &OwnedFd) -> bool {
        if !btrfs::is_subvolume(top).unwrap_or(false) {
            return false;
        }
        let number = btrfs::subvolume(top);
        if let Err(error) = btrfs::destroy_subvolume(parent, name) {
            tracing::debug!(%error, name, "a subvolume is removed file by file");
            return false;
        }
        if let Ok(number) = number {
            self.lock().insert(number);
        }
        true
    }

    /// Forgets the accounts of those that are gone by now.
    pub(super) fn forget(&self, at: &OwnedFd) {
        // Not under the lock: the kernel may be committing.
        let numbers: Vec<_> = self.lock().iter().copied().collect();
        for number in numbers {
            if forget(at, number) {
                self.lock().remove(&number);
            }
        }
    }

    /// Forgets all accounts of subvolumes that are gone, as after a crash: numbers are never used
    /// again, so whosever they were, they are nobody's. Gives how many; what cannot be judged yet
    /// is left for [`Stale::forget`].
    pub(super) fn sweep(&self, at: &OwnedFd) -> io::Result<usize> {
        let (mut forgotten, mut from) = (0, FIRST);
        for _ in 0..MOST_SWEPT {
            let Some(number) = btrfs::next_qgroup(at, from)? else {
                break;
            };
            if !btrfs::is_known(at, number)? {
                if forget(at, number) {
                    forgotten += 1;
                } else {
                    self.lock().insert(number);
                }
            }
            from = number + 1;
        }
        Ok(forgotten)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets the account of a subvolume if that is gone; `false` when it is not yet, or may not be.
///
/// Whoever makes a subvolume, in whatever process, gives it an account first, and a name in the tree
/// of subvolumes then; between the two it looks like one that is gone, and an old kernel would let
/// its account and limit be taken away. Both happen in one transaction. So only an account of an
/// earlier transaction than the running one is looked at.
fn forget(at: &OwnedFd, number: u64) -> bool {
    match is_over(at, number) {
        Ok(Over::Forgotten) => return true,
        Ok(Over::Gone) => {}
        Ok(Over::MayLive) => return false,
        Err(error) => {
            tracing::debug!(%error, number, "cannot look for a subvolume");
            return true;
        }
    }
    match btrfs::forget(at, number).map_err(|error| Errno::from_io_error(&error)) {
        Err(Some(Errno::BUSY)) => false,
        Err(error) => {
            tracing::trace!(?error, number, "the kernel has forgotten an account itself");
            true
        }
        Ok(()) => true,
    }
}

/// What became of a subvolume.
enum Over {
    /// It is there, or may be.
    MayLive,
    /// It is gone, and has an account.
    Gone,
    /// Its account is gone, too.
    Forgotten,
}

fn is_over(at: &OwnedFd, number: u64) -> io::Result<Over> {
    // In this order: what makes an account old enough comes before the look at its subvolume.
    let Some(account) = btrfs::qgroup(at, number)? else {
        return Ok(Over::Forgotten);
    };
    if account.generation >= btrfs::generation(at)? || btrfs::is_known(at, number)? {
        return Ok(Over::MayLive);
    }
    Ok(Over::Gone)
}
