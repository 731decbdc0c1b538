//! Collection that nobody asks for: by a server's thread, and by a create that found no space.

use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::{CollectPolicy, Disk, Outcome, Space, WaterMarks};
use crate::error::{Error, Result};
use crate::store::{Signal, Store};

/// How often the disk is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// How long freed space may take to show up: journals, and the cleaner of btrfs.
const SETTLE: Duration = Duration::from_secs(10);
/// After a collection that found too little, the next one waits as long.
const BACK_OFF: Duration = Duration::from_mins(1);
/// How long a create without space waits for the trash, before and after collecting.
const PATIENCE: Duration = Duration::from_secs(30);

/// The life of a server's thread: makes room whenever its disk is short of it.
pub(crate) fn watch(store: &Store, policy: &CollectPolicy, signal: &Signal) {
    let mut next = Instant::now();
    let mut boosted = false;
    while !signal.wait(LOOK) {
        let disk = match Disk::look(&store.inner.dirs) {
            Ok(disk) => disk,
            Err(error) => {
                tracing::warn!(%error, "the free space of the store is not known");
                continue;
            }
        };
        let short = policy.free.is_some_and(|marks| disk.is_short(marks));
        if std::mem::replace(&mut boosted, short) != short {
            store.inner.trash.boost(short);
        }
        // What is in the trash is room that is made already; how much is seen when it is gone.
        let collects = short || policy.threshold_bytes.is_some();
        if !collects || Instant::now() < next || (short && store.inner.trash.is_busy()) {
            continue;
        }
        match store.collect(policy) {
            Ok(report) => {
                let wait = match report.outcome {
                    Outcome::NotNeeded => LOOK,
                    Outcome::TrashIsEnough | Outcome::Collected => SETTLE,
                    Outcome::NothingMore => BACK_OFF,
                };
                next = Instant::now() + wait;
                if report.outcome != Outcome::NotNeeded {
                    tracing::info!(%report, "the disk of the store is short of space");
                }
            }
            Err(error) => {
                next = Instant::now() + BACK_OFF;
                tracing::warn!(%error, "cannot make room on the disk of the store");
            }
        }
    }
}

impl Store {
    /// Does something that needs space. When there is none, waits once for what the trash and a
    /// collection set free, and tries once more.
    pub(crate) fn with_room<T>(&self, work: impl Fn() -> Result<T>) -> Result<T> {
        match work() {
            Err(error) if is_full(&error) => {
                tracing::info!(%error, "no space: waiting for the trash and a collection");
                self.make_room(None);
                work().map_err(|error| self.full(error))
            }
            other => other,
        }
    }

    /// Does something that needs nobody knows how much space. When that is more than there is, makes
    /// twice as much free as there was, and tries again, for as long as there is something to give
    /// up: at the end more than half of the work was worth it.
    pub(crate) fn with_more_room<T>(&self, work: impl Fn() -> Result<T>) -> Result<T> {
        loop {
            let before = Disk::look(&self.inner.dirs)?;
            let error = match work() {
                Err(error) if is_full(&error) => error,
                other => return other,
            };
            tracing::info!(%error, free = before.free_bytes, "it needs more space than there is");
            let twice = Space::Bytes(before.free_bytes.saturating_mul(2));
            self.make_room(Some(WaterMarks {
                low: twice,
                high: twice,
            }));
            let after = Disk::look(&self.inner.dirs)?;
            let more = |before: u64, after: u64| after > before.saturating_add(before / 16);
            if !more(before.free_bytes, after.free_bytes)
                && !more(before.free_inodes, after.free_inodes)
            {
                return Err(self.full(error));
            }
        }
    }

    /// Makes room, up to these marks or those of the server.
    fn make_room(&self, marks: Option<WaterMarks>) {
        self.inner.trash.boost(true);
        self.empty_trash();
        // What was used a minute ago is better imported again than not being able to create.
        let mut policy = CollectPolicy {
            min_age: Duration::ZERO,
            ..CollectPolicy::default()
        };
        let server = self.policy().and_then(|server| server.free);
        policy.free = marks.or(server).or(policy.free);
        match self.collect(&policy) {
            Ok(report) => tracing::info!(%report, "made room for what found no space"),
            Err(error) => tracing::warn!(%error, "cannot make room"),
        }
        self.empty_trash();
        self.inner.trash.boost(false);
    }

    fn empty_trash(&self) {
        match self.serves() {
            true => drop(self.inner.trash.wait_done(PATIENCE)),
            // Nobody else may be there to do it.
            false => {
                if let Err(error) = self.inner.trash.drain() {
                    tracing::warn!(%error, "cannot empty the trash");
                }
            }
        }
    }

    fn full(&self, error: Error) -> Error {
        match is_full(&error) {
            true => Error::StoreFull {
                store: self.inner.dirs.path.clone(),
                source: Box::new(error),
            },
            false => error,
        }
    }
}

/// Whether a step failed for want of space.
fn is_full(error: &Error) -> bool {
    let Error::Host { source, .. } = error else {
        return false;
    };
    let full = [Errno::NOSPC, Errno::DQUOT].map(|errno| errno.raw_os_error());
    source
        .raw_os_error()
        .is_some_and(|errno| full.contains(&errno))
}
