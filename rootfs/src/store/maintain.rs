//! Clearing up after tools.
//!
//! Tools have no threads: they leave trees in the trash and layers that are not durable. A server
//! notices; without one, a process that nobody waits for calls `Store::maintain`.

use serde::Serialize;

use super::Store;
use crate::dirs::{self, Lock};
use crate::durable::make_durable;
use crate::error::{Result, Step};
use crate::recover::{self, Recovered};
use crate::trash::TrashStats;

/// What a call of [`Store::maintain`] did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub enum Maintenance {
    /// Another process is at it.
    ByAnother,
    /// It cleared up.
    Done {
        /// What could not be removed, or came meanwhile.
        left: TrashStats,
        /// What killed processes had left.
        recovered: Recovered,
        /// How many layers were made durable.
        durable: usize,
    },
}

impl Store {
    /// Clears up what tools left: removes what is in the trash, discards what a killed one had half
    /// done, and makes layers durable, which syncs the disk. Takes as long as that takes; for a
    /// process that nobody waits for. One process at a time does it: the others return at once.
    pub fn maintain(&self) -> Result<Maintenance> {
        let Some(_lock) = Lock::take(&self.inner.dirs, dirs::MAINTENANCE)? else {
            return Ok(Maintenance::ByAnother);
        };
        let recovered = recover::recover(self, &|| false);
        self.inner.trash.drain()?;
        let pending = self.inner.layers.pending()?;
        if !pending.is_empty() {
            make_durable(&self.inner.dirs, &self.inner.layers, &pending)
                .step(|| "make layers durable".to_owned())?;
        }
        Ok(Maintenance::Done {
            recovered,
            left: self.trash(),
            durable: pending.len(),
        })
    }
}
