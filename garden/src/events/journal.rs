//! A container's events as a file beside its record: for the next server.
//!
//! One event a line, appended as they happen, and written anew when there are twice as many as a log
//! remembers; on a tmpfs, like everything there, so no write waits for a disk. Written by whoever
//! published, after publishing; a failure costs the next server some memory and nothing else. When
//! the container's directory is given up, the log is closed first, so that nothing appears in a
//! directory that is being removed.

use std::io;
use std::sync::Arc;

use super::{Event, Log, REMEMBERED};
use crate::depot::ContainerDir;
use crate::services::lock;

/// Lines in the file before it is written anew.
const MOST_LINES: usize = 2 * REMEMBERED;

/// How far a log is on file.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// The number of the last event that is.
    last: u64,
    lines: usize,
    closed: bool,
}

impl Log {
    /// Puts on file what is not there yet.
    pub(crate) fn keep(&self, dir: &ContainerDir) {
        // Held over the write, so that lines are in the order of their numbers.
        let mut written = lock(&self.journal);
        if written.closed {
            return;
        }
        let all = self.read();
        let fresh = all.partition_point(|event| event.sequence <= written.last);
        let Some(last) = all.last().filter(|_| fresh < all.len()) else {
            return;
        };
        let anew = written.lines + (all.len() - fresh) > MOST_LINES;
        let lines = if anew { &all[..] } else { &all[fresh..] };
        let done = text(lines).and_then(|text| {
            if anew {
                dir.write_events(&text)
            } else {
                dir.append_events(&text)
            }
        });
        match done {
            Ok(()) => {
                written.lines = lines.len() + if anew { 0 } else { written.lines };
                written.last = last.sequence;
            }
            Err(error) => {
                tracing::warn!(%error, directory = %dir.path().display(), "events are not on file");
            }
        }
    }

    /// Takes over what an earlier server put on file; returns it. Lines that cannot be read (the
    /// last may be cut short, a newer release may know other events) are left out.
    pub(crate) fn recall(&self, dir: &ContainerDir) -> Vec<Arc<Event>> {
        let text = dir.read_events();
        let mut all: Vec<Arc<Event>> = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .map(Arc::new)
            .collect();
        let mut written = lock(&self.journal);
        // A line that is not whole must not swallow the next one.
        written.lines = if text.is_empty() || text.ends_with('\n') {
            text.lines().count()
        } else {
            MOST_LINES
        };
        written.last = all.last().map_or(0, |event| event.sequence);
        all.drain(..all.len().saturating_sub(REMEMBERED));
        let mut list = lock(&self.list);
        list.extend(all.iter().cloned());
        all
    }

    /// Writes no more.
    pub(crate) fn close(&self) {
        lock(&self.journal).closed = true;
    }
}

fn text(events: &[Arc<Event>]) -> io::Result<String> {
    let mut text = String::new();
    for event in events {
        text.push_str(&serde_json::to_string(&**event)?);
        text.push('\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::depot::Depot;
    use crate::events::{EventKind, Events};

    fn place() -> (tempfile::TempDir, ContainerDir) {
        let place = tempfile::tempdir().unwrap();
        let depot = Depot::open(place.path()).unwrap();
        let dir = depot.reserve(&"h".parse().unwrap()).unwrap().unwrap();
        (place, dir)
    }

    fn numbers(log: &Log) -> Vec<u64> {
        log.read().iter().map(|event| event.sequence).collect()
    }

    #[test]
    fn a_later_server_knows_the_last_events_however_many_there_were() {
        let (_place, dir) = place();
        let (events, log) = (Events::default(), Log::default());
        for _ in 0..5 * REMEMBERED + 3 {
            events.publish("h", None, EventKind::Created, Some(&log));
            log.keep(&dir);
        }
        assert!(dir.read_events().lines().count() <= MOST_LINES);
        let later = Log::default();
        let recalled = later.recall(&dir);
        assert_eq!(numbers(&later), numbers(&log));
        let again = Events::after(1 << 32);
        again.publish("h", None, EventKind::Found, Some(&later));
        later.keep(&dir);
        again.recall(recalled);
        let (past, _) = again.subscribe(Some(&later));
        assert_eq!(past.len(), REMEMBERED + 1);
        assert!(past.is_sorted_by_key(|event| event.sequence));
        let third = Log::default();
        third.recall(&dir);
        assert_eq!(numbers(&third), numbers(&later));
    }

    #[test]
    fn a_line_that_was_cut_short_costs_itself_only() {
        let (_place, dir) = place();
        let (events, log) = (Events::default(), Log::default());
        events.publish("h", None, EventKind::Created, Some(&log));
        log.keep(&dir);
        dir.append_events("{\"sequence\":2,\"ti").unwrap();
        let later = Log::default();
        assert_eq!(later.recall(&dir).len(), 1);
        Events::after(7).publish("h", None, EventKind::Found, Some(&later));
        later.keep(&dir);
        assert_eq!(dir.read_events().lines().count(), 2);
        later.close();
        Events::after(8).publish("h", None, EventKind::Stopped, Some(&later));
        later.keep(&dir);
        assert_eq!(dir.read_events().lines().count(), 2);
    }
}
