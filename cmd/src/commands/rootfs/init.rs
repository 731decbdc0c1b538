//! `init-store` and `delete-store`.
//!
//! Making a store may be repeated: what is there is kept, and only compared with what was asked
//! for. One at a time on a host, as deployment tools start several at once.

use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::time::Duration;

use garden_rootfs::Store;
use rustix::fs::{FlockOperation, Mode, OFlags};

use super::args::Parsed;
use super::place::{Namespace, Place};
use super::{Context, Failure, backing, expect_args};

/// How often a store that is being opened is emptied again, and how long to wait in between.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(20);
/// Held while a store is made or removed.
const LOCK: &str = "/run/garden-init-store.lock";

/// Makes a store, or sees that it is as wanted.
pub(super) fn init_store(context: &Context, flags: &Parsed) -> Result<(), Failure> {
    expect_args::<0>(flags, "init-store --store <path>")?;
    let place = &context.place;
    let shown = place.path().display();
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::new(format!(
            "store {shown} can only be initialized by Root user"
        )));
    }
    let wanted = Namespace::parse(&flags.list("uid-mapping"), &flags.list("gid-mapping"))
        .map_err(Failure::new)?;
    let _lock = lock()?;
    let size = u64::try_from(context.config.init.store_size_bytes).unwrap_or(0);
    backing::ensure(place, size, context.config.init.with_direct_io)?;
    let known = place.namespace()?;
    if let Some(known) = &known {
        known.expect_same(&wanted).map_err(Failure::new)?;
    }
    let store = place.open(&context.config)?;
    if let Some(group) = wanted.root_group().map_err(Failure::new)? {
        store.let_group_pass(group)?;
    }
    if known.is_none() {
        // Last: it says that everything else is done.
        place.write_namespace(&wanted)?;
        tracing::info!(store = %shown, "store initialised");
    }
    Ok(())
}

/// Removes a store and all that is in it. Its backing file stays.
pub(super) fn delete_store(context: &Context, flags: &Parsed) -> Result<(), Failure> {
    expect_args::<0>(flags, "delete-store --store <path>")?;
    let place = &context.place;
    let _lock = lock()?;
    // A foreign directory is not removed because a flag was mistyped.
    let ours = place.namespace()?.is_some() || Store::is_at(place.path());
    if ours {
        empty(place)?;
    } else if place.exists() && !is_empty(place) {
        return Err(Failure::new(format!(
            "{} is no store: remove it by hand if it is to go",
            place.path().display()
        )));
    }
    let mut tries = 0;
    loop {
        backing::unmount(place)?;
        match std::fs::remove_dir(place.path()) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            // Whoever clears up after an earlier command has just opened it, and made what it lacked.
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty && tries < TRIES => {
                tries += 1;
                std::thread::sleep(PAUSE);
                empty(place)?;
            }
            Err(error) => {
                let path = place.path().display();
                return Err(Failure::new(format!("deleting store path {path}: {error}")));
            }
        }
    }
}

fn empty(place: &Place) -> Result<(), Failure> {
    Store::delete(place.path())?;
    tracing::info!(store = %place.path().display(), "store deleted");
    Ok(())
}

fn is_empty(place: &Place) -> bool {
    std::fs::read_dir(place.path()).is_ok_and(|mut entries| {
        // What every new file system has.
        entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == "lost+found"))
    })
}

fn lock() -> Result<OwnedFd, Failure> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let failed = |errno: rustix::io::Errno| {
        let error = std::io::Error::from(errno);
        Failure::new(format!("cannot take the lock {LOCK}: {error}"))
    };
    let lock = rustix::fs::open(LOCK, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).map_err(failed)?;
    Ok(lock)
}
