//! A server for one command, where none runs.
//!
//! Several commands may be at it at the same time, and any of them may be killed. Each takes a
//! numbered slot, with a runtime directory, a store and a tag of its own; whoever comes next takes
//! away what the dead left in theirs. The stores stay: the images in them are a cache.
//!
//! ```text
//! <root>/run/lock        held while slots are taken or given back
//! <root>/run/<slot>/     runtime directory of a slot; its own lock is held by its user
//! <root>/store/<slot>/   its images
//! ```

use std::hash::{Hash as _, Hasher as _};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};
use tokio::task::JoinHandle;

use super::Hosted;
use crate::api;
use crate::client::Client;
use crate::error::Error;
use crate::manager::{Manager, Options};

/// More commands than this at the same time deserve a server.
const SLOTS: usize = 64;
/// How long the end of a command waits for what its containers leave.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where slots are.
#[derive(Debug, Clone)]
pub struct Place {
    /// Directory of the runtime directories; on a tmpfs.
    pub run: PathBuf,
    /// Directory of the stores.
    pub store: PathBuf,
    /// What the cgroups are told apart by; made from `run` when absent.
    pub tag: Option<String>,
}

impl Default for Place {
    fn default() -> Self {
        Self {
            run: "/run/garden/solo".into(),
            store: "/var/lib/garden/solo".into(),
            tag: None,
        }
    }
}

impl Place {
    /// Told apart from the slots of other places on this host.
    fn tag(&self, slot: usize) -> String {
        if let Some(tag) = &self.tag {
            return format!("{tag}.{slot}");
        }
        let mut hasher = std::hash::DefaultHasher::new();
        self.run.hash(&mut hasher);
        format!("solo{slot}-{:08x}", hasher.finish() & 0xffff_ffff)
    }

    fn options(&self, slot: usize, template: &Options) -> Options {
        Options {
            runtime_dir: self.run.join(slot.to_string()),
            store_dir: self.store.join(slot.to_string()),
            tag: Some(self.tag(slot)),
            ..template.clone()
        }
    }
}

/// A server for one command.
pub struct Solo {
    hosted: Hosted,
    place: Place,
    slot: usize,
    sweeping: JoinHandle<()>,
}

impl Solo {
    /// Takes a slot and serves in it. `template` says everything but the places.
    ///
    /// # Errors
    /// As [`Hosted::start`], and when all slots are taken.
    pub async fn start(place: Place, template: Options) -> Result<Self, Error> {
        for slot in 0..SLOTS {
            let options = place.options(slot, &template);
            let socket = options.runtime_dir.join("garden.sock");
            let lock = take_lock(&place).await?;
            let started =
                Hosted::start(options, api::Listen::at(socket), api::Options::default()).await;
            drop(lock);
            match started {
                Err(error) if error.is_in_use() => {}
                Err(error) => return Err(error),
                Ok(hosted) => {
                    // What a killed command left here.
                    hosted.manager().destroy_all().await;
                    let sweeping = tokio::spawn(sweep(place.clone(), template, slot));
                    return Ok(Self {
                        hosted,
                        place,
                        slot,
                        sweeping,
                    });
                }
            }
        }
        Err(Error::Exhausted(format!(
            "{SLOTS} commands run without a server already: start one with `garden server`"
        )))
    }

    /// A client of it.
    pub fn client(&self) -> &Client {
        self.hosted.client()
    }

    /// The manager itself.
    pub fn manager(&self) -> &Manager {
        self.hosted.manager()
    }

    /// Ends it with all its containers and gives the slot back.
    pub async fn finish(self) {
        let _ = self.sweeping.await;
        let lock = take_lock(&self.place).await;
        self.hosted.dissolve(PATIENCE).await;
        drop(lock);
        tracing::debug!(slot = self.slot, "slot given back");
    }
}

/// Takes away what killed commands left in other slots.
async fn sweep(place: Place, template: Options, own: usize) {
    let Ok(entries) = std::fs::read_dir(&place.run) else {
        return;
    };
    let slots = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    for slot in slots
        .filter(|slot: &usize| *slot != own && *slot < SLOTS)
        .collect::<Vec<_>>()
    {
        let Ok(lock) = take_lock(&place).await else {
            return;
        };
        let opened = Manager::open(place.options(slot, &template)).await;
        drop(lock);
        match opened {
            Ok(manager) => {
                tracing::info!(slot, "taking away what a killed command left");
                manager.destroy_all().await;
                manager.settle(PATIENCE).await;
                manager.close(Duration::from_secs(1)).await;
                manager.remove_traces();
            }
            Err(error) if error.is_in_use() => {}
            Err(error) => tracing::warn!(slot, error = error.report(), "cannot look into a slot"),
        }
    }
}

/// Keeps others from taking a slot whose directory is just being removed.
async fn take_lock(place: &Place) -> Result<OwnedFd, Error> {
    let run = place.run.clone();
    let taken = tokio::task::spawn_blocking(move || {
        std::fs::create_dir_all(&run)?;
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
        let lock = rustix::fs::open(run.join("lock"), flags, Mode::RUSR | Mode::WUSR)?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
        Ok::<_, std::io::Error>(lock)
    });
    let failed = |error| Error::host(format!("cannot use {}", place.run.display()), error);
    taken
        .await
        .map_err(|error| failed(error.into()))?
        .map_err(failed)
}
