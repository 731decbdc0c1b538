//! Learning that a container, or a pea, ran out of memory.
//!
//! The kernel's counters are the truth; the alarm of the group, and a supervisor's word on a
//! process that ended, are reasons to look at them. What the counters say beyond what has been told
//! becomes the event `Out of memory` of the container (clients compare this text). How far it has
//! been told is in the container's record, so that a kill while no server ran is told by the next
//! one. A pea with limits of its own is not its container: its kills are in its exit and in the
//! log.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::task::AbortHandle;

use super::Container;
use crate::cgroup::{Listening, Place};
use crate::error::Error;
use crate::services::lock;

/// What clients look for among a container's events.
pub(crate) const OUT_OF_MEMORY: &str = "Out of memory";

/// How often the counters are looked at after an alarm that sounds before the kill, and the first
/// pause between two looks, which doubles: about 250 ms in all.
const LOOKS: u32 = 8;
const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// Between two looks at a container that is always at its limit.
const AT_LEAST: Duration = Duration::from_millis(50);

/// How far the kills in a container have been told.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// By group: the container's own under the empty name.
    kills: Mutex<HashMap<String, u64>>,
    watch: Mutex<Option<AbortHandle>>,
}

impl Told {
    /// So many kills in the container's own group have been told.
    pub(super) fn new(kills: u64) -> Self {
        Self {
            kills: Mutex::new(HashMap::from([(String::new(), kills)])),
            watch: Mutex::default(),
        }
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        if let Some(watch) = lock(&self.watch).take() {
            watch.abort();
        }
    }
}

/// Begins to watch a container, in the background; also tells what happened while nobody did.
pub(crate) fn watch(container: &Arc<Container>) {
    let task = tokio::spawn(begin(Arc::downgrade(container)));
    *lock(&container.told.watch) = Some(task.abort_handle());
}

async fn begin(weak: Weak<Container>) {
    let Some(container) = weak.upgrade() else {
        return;
    };
    let record = container.record();
    let cgroups = container.services.cgroups.clone();
    let alarm = container
        .services
        .files
        .run(move || cgroups.alarm(&Place::Container(&record.cgroup)));
    let listening = match alarm
        .await
        .map_err(Error::from)
        .and_then(|alarm| Ok(alarm?))
    {
        Ok(None) => return,
        Ok(Some(alarm)) => alarm
            .listen()
            .map_err(|error| Error::host("cannot wait", error)),
        Err(error) => Err(error),
    };
    match listening {
        Ok(listening) => {
            drop(container);
            follow(weak, listening).await;
        }
        Err(error) => {
            // Exits still tell: only kills that end no process of ours go unseen.
            tracing::warn!(handle = %container.handle, error = error.report(), "no watch for memory");
        }
    }
}

async fn follow(container: Weak<Container>, alarm: Listening) {
    loop {
        alarm.rearm();
        // Once more after each alarm is armed, so that nothing falls between.
        let Some(held) = container.upgrade() else {
            return;
        };
        let known = look(&held).await;
        drop(held);
        if known.is_none() || alarm.wait().await.is_err() {
            return;
        }
        if !alarm.sounds_before() {
            // It also sounds for each time that memory was reclaimed at a limit.
            tokio::time::sleep(AT_LEAST).await;
        } else if !look_until_told(&container).await {
            return;
        }
    }
}

/// Looks until there is news; `false` when there is nothing to look at any more.
async fn look_until_told(container: &Weak<Container>) -> bool {
    let mut pause = FIRST_PAUSE;
    for _ in 0..LOOKS {
        let Some(held) = container.upgrade() else {
            return false;
        };
        match look(&held).await {
            None => return false,
            Some(0) => {}
            Some(_) => return true,
        }
        drop(held);
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    true
}

/// Compares the counters with what was told, and tells the difference as one event. Returns the
/// difference; `None` when the group is gone.
pub(crate) async fn look(container: &Arc<Container>) -> Option<u64> {
    let cgroups = container.services.cgroups.clone();
    let cgroup = container.record().cgroup;
    let read = container
        .services
        .meters
        .run(move || cgroups.oom_kills(&Place::Container(&cgroup)));
    let counters = read.await.unwrap_or_default();
    if counters.is_empty() {
        return None;
    }
    let (more, own) = {
        let mut told = lock(&container.told.kills);
        let more = advance(&mut told, counters);
        (more, told.get("").copied().unwrap_or_default())
    };
    if more > 0 {
        tracing::info!(handle = %container.handle, kills = more, "out of memory");
        let noted = container.change(|record| {
            record.events.push(OUT_OF_MEMORY.to_owned());
            record.oom_kills = own;
        });
        if let Err(error) = noted {
            tracing::warn!(handle = %container.handle, error = %crate::error::report(&error), "an event is not on file");
        }
    }
    Some(more)
}

/// Takes new counters over; returns by how much they have grown.
fn advance(told: &mut HashMap<String, u64>, counters: Vec<(String, u64)>) -> u64 {
    let mut more = 0;
    for (group, kills) in &counters {
        let before = told.get(group).copied().unwrap_or_default();
        more += kills.saturating_sub(before);
    }
    *told = counters.into_iter().collect();
    more
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(list: &[(&str, u64)]) -> Vec<(String, u64)> {
        list.iter().map(|(g, n)| ((*g).to_owned(), *n)).collect()
    }

    #[test]
    fn each_kill_is_told_once_also_when_a_pea_leaves() {
        let mut told = HashMap::from([(String::new(), 1)]);
        assert_eq!(advance(&mut told, counters(&[("", 1)])), 0);
        assert_eq!(advance(&mut told, counters(&[("", 1), ("pea", 2)])), 2);
        assert_eq!(advance(&mut told, counters(&[("", 2), ("pea", 2)])), 1);
        // The pea is gone, and with it its counter; another comes.
        assert_eq!(advance(&mut told, counters(&[("", 2)])), 0);
        assert_eq!(advance(&mut told, counters(&[("", 2), ("next", 1)])), 1);
    }
}
