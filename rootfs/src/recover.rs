//! Finding what an earlier run left, of a process or of the machine.
//!
//! Run by a thread of a server that has just begun to serve, and by [`crate::Store::maintain`]:
//! beside creates and imports, by the same rules as collection, so nothing waits for it. What it
//! finds goes to the trash. Nothing of another boot is used meanwhile either, because whoever looks
//! at a record looks at its boot: this only takes away what nobody sees.
//!
//! One object that cannot be dealt with is told and left for the next time; the rest goes on.

pub(crate) mod locks;
pub(crate) mod mounts;

use serde::Serialize;

use crate::error::{Result, Step};
use crate::rootfs::State;
use crate::store::Store;
use crate::store::hold;
use crate::{dirs, staging};

/// How much was found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Recovered {
    /// Mounts below the store that belonged to nothing.
    pub mounts: usize,
    /// Things that were being made by processes that died.
    pub staging: usize,
    /// Root filesystems of another boot.
    pub rootfs: usize,
    /// Layers that cannot be trusted.
    pub layers: usize,
    /// Images without all their layers.
    pub images: usize,
    /// Lock files of processes that died.
    pub locks: usize,
    /// Limits of root filesystems that are gone.
    pub limits: usize,
}

/// Looks through the whole store, until it is told to stop.
pub(crate) fn recover(store: &Store, stop: &dyn Fn() -> bool) -> Recovered {
    type Part = fn(&Store, &dyn Fn() -> bool) -> Result<usize>;
    let mut found = Recovered::default();
    let parts: [(&mut usize, &str, Part); 7] = [
        (&mut found.mounts, "mounts", |store, _| {
            mounts::detach(store)
        }),
        (&mut found.staging, "staging directories", |store, _| {
            staging::sweep(&store.inner.dirs, &store.inner.trash)
        }),
        (&mut found.rootfs, "root filesystems", sweep_rootfs),
        (&mut found.layers, "layers", sweep_layers),
        (&mut found.images, "images", sweep_images),
        (&mut found.locks, "locks", |store, _| {
            locks::sweep(&store.inner.dirs)
        }),
        (&mut found.limits, "limits", |store, _| {
            store.inner.quota.sweep()
        }),
    ];
    for (count, what, part) in parts {
        match part(store, stop) {
            Ok(number) => *count = number,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, what, "cannot look for what an earlier run left");
            }
        }
    }
    if let Err(error) = store.inner.trash.look() {
        tracing::warn!(%error, "what an earlier run left in the trash stays");
    }
    if found != Recovered::default() {
        tracing::info!(?found, "took away what an earlier run left");
    }
    found
}

/// No process outlives a boot, and what a volatile mount wrote cannot be trusted after it.
fn sweep_rootfs(store: &Store, stop: &dyn Fn() -> bool) -> Result<usize> {
    let dirs = &store.inner.dirs;
    let mut swept = 0;
    for id in dirs::names(&dirs.rootfs).step(|| "list root filesystems".to_owned())? {
        if stop() {
            break;
        }
        match store.state(&id) {
            State::Live(_) | State::Gone => {}
            State::OfAnotherBoot => {
                let discarded = store.inner.trash.discard(&dirs.rootfs, &id, Vec::new());
                swept += usize::from(told(discarded, "root filesystem", &id));
            }
            State::Unreadable => {
                tracing::warn!(
                    id,
                    "a root filesystem has no readable record: check the store"
                );
            }
        }
    }
    Ok(swept)
}

/// What is not durable counts only for the boot in which it was made.
fn sweep_layers(store: &Store, stop: &dyn Fn() -> bool) -> Result<usize> {
    let dirs = &store.inner.dirs;
    let mut swept = 0;
    for name in dirs::names(&dirs.layers).step(|| "list layers".to_owned())? {
        if stop() {
            break;
        }
        if !store.inner.layers.is_trusted(&name) {
            let discarded = discard_unused(store, &dirs.layers, &name, || {
                !store.inner.layers.is_trusted(&name)
            });
            swept += usize::from(told(discarded, "layer", &name));
        }
    }
    Ok(swept)
}

/// An image without all its layers is only a name; importing makes it again.
fn sweep_images(store: &Store, stop: &dyn Fn() -> bool) -> Result<usize> {
    let dirs = &store.inner.dirs;
    let mut swept = 0;
    let whole = |name: &str| {
        let image = store.image(name);
        image.is_some_and(|image| store.has_layers(&image))
    };
    for name in dirs::names(&dirs.images).step(|| "list images".to_owned())? {
        if stop() {
            break;
        }
        if !whole(&name) {
            let discarded = discard_unused(store, &dirs.images, &name, || !whole(&name));
            swept += usize::from(told(discarded, "image", &name));
        }
    }
    Ok(swept)
}

/// Discards an object if nobody uses it and it is still to go when nobody else can reach it.
fn discard_unused(
    store: &Store,
    parent: &std::os::fd::OwnedFd,
    name: &str,
    still: impl Fn() -> bool,
) -> std::io::Result<bool> {
    let Ok(since) = hold::stamp(parent, name)? else {
        return Ok(false);
    };
    let Ok(_condemned) = hold::condemn(parent, name, since)? else {
        return Ok(false);
    };
    Ok(still() && store.inner.trash.discard(parent, name, Vec::new())?)
}

fn told<E: std::fmt::Display>(
    discarded: std::result::Result<bool, E>,
    what: &str,
    name: &str,
) -> bool {
    match discarded {
        Ok(discarded) => discarded,
        Err(error) => {
            tracing::warn!(%error, what, name, "cannot discard what an earlier run left");
            false
        }
    }
}
