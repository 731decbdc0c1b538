//! What belongs to nothing: of processes that died, of earlier boots, and what the trash cannot
//! get rid of.

use std::time::Duration;

use super::{Check, FindingKind, Repaired};
use crate::error::{Result, Step};
use crate::recover::{locks, mounts};
use crate::rootfs::State;
use crate::{dirs, staging};

/// Much longer than it takes to lock what was just made.
const MAKING: Duration = Duration::from_millis(50);

impl Check<'_> {
    pub(super) fn leftovers(&mut self) -> Result<()> {
        let store = self.store;
        let (dirs, trash) = (&store.inner.dirs, &store.inner.trash);
        let taken = || Ok(Repaired::Done("taken away".to_owned()));
        for path in mounts::leaked(store)? {
            let text = "something is mounted here that belongs to nothing";
            let kind = FindingKind::LeakedMount;
            self.found(kind, path.display().to_string(), text, || {
                mounts::detach_one(dirs, &path).step(|| "detach it".to_owned())?;
                Ok(Repaired::Done("detached".to_owned()))
            });
        }
        let mut names = dirs::names(&dirs.tmp).step(|| "list staging directories".to_owned())?;
        names.retain(|name| staging::is_free(dirs, name));
        if !names.is_empty() {
            // What was made just now was not locked yet.
            std::thread::sleep(MAKING);
        }
        for name in names {
            if staging::is_free(dirs, &name) {
                let text = "something half made was left by a process that died";
                let kind = FindingKind::Leftover;
                self.found(kind, format!("tmp/{name}"), text, || {
                    staging::sweep_one(dirs, trash, &name)?;
                    taken()
                });
            }
        }
        for id in dirs::names(&dirs.rootfs).step(|| "list root filesystems".to_owned())? {
            if matches!(store.state(&id), State::OfAnotherBoot) {
                let text = "it is of another boot: nobody can use it any more";
                let kind = FindingKind::Leftover;
                self.found(kind, format!("rootfs/{id}"), text, || {
                    let discarded = trash.discard(&dirs.rootfs, &id, Vec::new());
                    discarded.step(|| format!("take {id:?} away"))?;
                    taken()
                });
            }
        }
        for name in locks::stale(dirs)? {
            let text = "the lock of a process that died was left";
            let kind = FindingKind::Leftover;
            self.found(kind, format!("locks/{name}"), text, || {
                locks::remove(dirs, &name)?;
                taken()
            });
        }
        for failure in trash.stats().failures {
            let text = format!("it cannot be removed: {}", failure.reason);
            let kind = FindingKind::TrashFailure;
            self.found(kind, failure.path.display().to_string(), text, || {
                let why = "it is tried again, for as long as it takes";
                Ok(Repaired::Left(why.to_owned()))
            });
        }
        Ok(())
    }
}
