//! The threads that empty the trash.
//!
//! Each works on one tree at a time. One that is stuck in the kernel holds up nobody: it is
//! replaced, within bounds, and ends when it comes back and there are enough. A process without
//! such threads empties the trash in the thread that asks for it.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::pace::{Pacer, Progress};
use super::{Item, State, Trash, Work};
use crate::dirs;
use crate::error::{Result, Step};
use crate::remove;

/// How long the first repetition waits; each further one waits twice as long, up to a minute.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_mins(1);
/// How often what is held is kept over a failure.
const HELD_FAILURES: u32 = 3;
/// A thread that got nowhere for as long is stuck.
const STUCK: Duration = Duration::from_secs(30);
/// How many threads are started in place of stuck ones.
const MOST_REPLACED: usize = 8;
/// The record that most trees have.
const RECORD: &str = "record.json";

impl Trash {
    /// Starts the threads. They end soon after [`Trash::stop`].
    pub(crate) fn start(self: &Arc<Self>, workers: usize) -> Result<()> {
        let workers = workers.max(1);
        self.lock().wanted = workers;
        (0..workers).try_for_each(|_| self.start_one())
    }

    fn start_one(self: &Arc<Self>) -> Result<()> {
        let mut state = self.lock();
        let trash = Arc::clone(self);
        std::thread::Builder::new()
            .name(format!("garden-trash-{}", state.threads))
            .spawn(move || trash.work())
            .step(|| "start a trash thread".to_owned())?;
        state.threads += 1;
        Ok(())
    }

    /// Starts threads in place of those that are stuck. Called now and then.
    pub(crate) fn replace_stuck(self: &Arc<Self>) {
        self.replace_older_than(STUCK);
    }

    fn replace_older_than(self: &Arc<Self>, age: Duration) {
        let mut state = self.lock();
        let now = Instant::now();
        for work in &mut state.working {
            let progress = work.progress.objects();
            if work.seen.0 != progress {
                work.seen = (progress, now);
                work.stuck = false;
            } else if !work.stuck && now.duration_since(work.seen.1) >= age {
                work.stuck = true;
                let path = self.dirs.path.join("trash").join(&work.name);
                tracing::warn!(path = %path.display(),
                    "a thread that removes a tree is stuck in the kernel: look at the disk");
            }
        }
        let missing = state.missing();
        drop(state);
        for _ in 0..missing {
            if let Err(error) = self.start_one() {
                tracing::warn!(%error, "the trash is emptied by fewer threads");
            }
        }
    }

    /// Removes in this thread what can be removed now, each tree once.
    pub(crate) fn drain(&self) -> Result<()> {
        self.look()?;
        let begun = Instant::now();
        while !self.stopped()
            && let Some(next) = {
                let mut state = self.lock();
                state.begin(|item| item.failures == 0 || item.not_before <= begun)
            }
        {
            self.remove(next);
        }
        Ok(())
    }

    fn work(&self) {
        // Whoever put something in is to return before it is removed.
        if let Err(error) = garden_sys::priority::make_batch() {
            tracing::debug!(%error, "the trash keeps its priority on the processor");
        }
        while let Some(next) = self.take() {
            self.remove(next);
        }
        self.lock().threads -= 1;
    }

    fn remove(&self, (token, mut item, progress): (u64, Item, Arc<Progress>)) {
        let removed = self.empty(&mut item, &progress);
        let mut state = self.lock();
        let at = (state.working.iter()).position(|work| work.token == token);
        if let Some(work) = at.map(|at| state.working.swap_remove(at)) {
            item.with.held.extend(work.late);
        }
        let mut closing = Vec::new();
        match removed {
            Err(error) if !self.stopped() => {
                self.failed(&mut item, &error);
                if item.failures >= HELD_FAILURES {
                    closing.append(&mut item.with.held);
                }
                state.waiting.push_back(item);
            }
            _ => closing.append(&mut item.with.held),
        }
        drop(state);
        // May be the last reference to a mount, and sync a whole disk: not under the lock.
        drop(closing);
        self.changed.notify_all();
    }

    /// In an order that survives a crash at any point: what a record promised is given back before
    /// the record goes, and that is the last to go.
    fn empty(&self, item: &mut Item, progress: &Progress) -> io::Result<()> {
        let pacer = Pacer::new(self, progress);
        let name = item.name.as_ref();
        // None for a file, and for what is gone.
        let tree = dirs::directory(&self.dirs.trash, &item.name).ok();
        let record = tree
            .as_ref()
            .and_then(|tree| dirs::read(tree, RECORD).ok()?);
        let work = self.when_gone.get();
        if let (Some(tree), Some(work)) = (&tree, work)
            && work.remove(&item.name, tree)
        {
            item.with.held.clear();
            progress.moved();
            return Ok(());
        }
        remove::contents(&self.dirs.trash, name, RECORD.as_ref(), &pacer)?;
        item.with.held.clear();
        progress.moved();
        if let (Some(tree), Some(work)) = (tree, work) {
            work.gone(&item.name, &tree, record.as_deref())?;
        }
        remove::tree(&self.dirs.trash, name, &pacer)
    }

    fn failed(&self, item: &mut Item, error: &io::Error) {
        let wait = FIRST_WAIT * 2_u32.pow(item.failures.min(10));
        item.failures = item.failures.saturating_add(1);
        item.not_before = Instant::now() + wait.min(LONGEST_WAIT);
        item.reason = match error.kind() {
            io::ErrorKind::CrossesDevices => {
                "something is mounted inside: unmount it, it is not looked into".to_owned()
            }
            _ => error.to_string(),
        };
        let path = self.dirs.path.join("trash").join(&item.name);
        tracing::warn!(path = %path.display(), failures = item.failures, reason = item.reason,
            "cannot remove a tree; it is tried again");
    }

    /// Waits for something to do; `None` at the end, and when there are threads enough.
    fn take(&self) -> Option<(u64, Item, Arc<Progress>)> {
        let mut state = self.lock();
        loop {
            if self.stop.load(Ordering::Relaxed) || state.too_many() {
                return None;
            }
            let now = Instant::now();
            if let Some(next) = state.begin(|item| item.not_before <= now) {
                return Some(next);
            }
            let next = state.waiting.iter().map(|item| item.not_before).min();
            let wait = next.map_or(LONGEST_WAIT, |next| next.saturating_duration_since(now));
            let waited = self.changed.wait_timeout(state, wait);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl State {
    /// Takes the first item that fits out of the queue.
    fn begin(&mut self, fits: impl Fn(&Item) -> bool) -> Option<(u64, Item, Arc<Progress>)> {
        let at = self.waiting.iter().position(fits)?;
        let item = self.waiting.remove(at)?;
        let token = self.next;
        self.next += 1;
        let progress = Arc::new(Progress::default());
        self.working.push(Work {
            token,
            name: item.name.clone(),
            since: item.since,
            bytes: item.with.bytes,
            failures: item.failures,
            reason: item.reason.clone(),
            late: Vec::new(),
            progress: Arc::clone(&progress),
            seen: (0, Instant::now()),
            stuck: false,
        });
        Some((token, item, progress))
    }

    fn stuck(&self) -> usize {
        self.working.iter().filter(|work| work.stuck).count()
    }

    /// How many threads are to be started.
    fn missing(&self) -> usize {
        let alive = self.threads.saturating_sub(self.stuck());
        let allowed = (self.wanted + MOST_REPLACED).saturating_sub(self.threads);
        self.wanted.saturating_sub(alive).min(allowed)
    }

    /// Whether one of the threads that are not stuck may end.
    fn too_many(&self) -> bool {
        self.threads.saturating_sub(self.stuck()) > self.wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dirs::Dirs;
    use crate::trash::WhenGone;
    use std::os::fd::OwnedFd;
    use std::path::Path;
    use std::sync::mpsc;

    fn trash(dir: &Path) -> (Arc<Dirs>, Arc<Trash>) {
        let dirs = Arc::new(Dirs::open(&dir.join("store")).unwrap());
        let trash = Trash::new(&dirs);
        (dirs, trash)
    }

    fn put(dirs: &Dirs, trash: &Trash, name: &str) {
        let path = dirs.path.join("tmp").join(name);
        std::fs::create_dir_all(path.join("deep/inside")).unwrap();
        std::fs::write(path.join("record.json"), name).unwrap();
        assert!(trash.discard(&dirs.tmp, name, Vec::new()).unwrap());
    }

    /// Hangs for "stuck" until it is told not to, fails once for "odd", and tells of the others.
    #[derive(Debug)]
    struct Work {
        hang: std::sync::Mutex<mpsc::Receiver<()>>,
        told: mpsc::Sender<String>,
        odd: std::sync::atomic::AtomicU32,
        left: std::path::PathBuf,
    }

    impl WhenGone for Work {
        fn gone(&self, _: &str, _: &OwnedFd, record: Option<&[u8]>) -> io::Result<()> {
            let Some(record) = record else {
                return Ok(());
            };
            let name = String::from_utf8(record.to_vec()).unwrap();
            match &*name {
                "stuck" => drop(self.hang.lock().unwrap().recv()),
                "odd" if self.odd.fetch_add(1, Ordering::Relaxed) == 0 => {
                    return Err(io::Error::other("it is odd"));
                }
                _ => {}
            }
            // Only the record is left of the tree.
            for tree in std::fs::read_dir(&self.left).unwrap() {
                let tree = tree.unwrap().path();
                if std::fs::read(tree.join("record.json")).is_ok_and(|text| text == record) {
                    assert_eq!(std::fs::read_dir(tree).unwrap().count(), 1);
                }
            }
            self.told.send(name).unwrap();
            Ok(())
        }
    }

    #[test]
    fn a_stuck_thread_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (dirs, trash) = trash(dir.path());
        let (release, hang) = mpsc::channel();
        let (told, heard) = mpsc::channel();
        trash.when_gone(Box::new(Work {
            hang: hang.into(),
            told,
            odd: 0.into(),
            left: dirs.path.join("trash"),
        }));
        trash.start(1).unwrap();
        put(&dirs, &trash, "stuck");
        put(&dirs, &trash, "free");
        let deadline = Instant::now() + Duration::from_secs(60);
        let name = loop {
            trash.replace_older_than(Duration::from_millis(50));
            match heard.recv_timeout(Duration::from_millis(20)) {
                Ok(name) => break name,
                Err(_) => assert!(Instant::now() < deadline),
            }
        };
        assert_eq!(name, "free");
        // On a busy machine the thread that did it may have been replaced, too, for a while; or it
        // did it before it came to the other.
        while trash.stats().stuck != 1 {
            assert!(Instant::now() < deadline);
            trash.replace_older_than(Duration::from_millis(50));
            std::thread::sleep(Duration::from_millis(5));
        }
        release.send(()).unwrap();
        assert_eq!(
            heard.recv_timeout(Duration::from_secs(60)).unwrap(),
            "stuck"
        );
        assert!(trash.wait_empty(Duration::from_secs(60)));
        while trash.lock().threads > 1 {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(5));
        }
        trash.stop();
    }

    #[test]
    fn what_fails_is_told_and_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let (dirs, trash) = trash(dir.path());
        let (told, heard) = mpsc::channel();
        trash.when_gone(Box::new(Work {
            hang: mpsc::channel().1.into(),
            told,
            odd: 0.into(),
            left: dirs.path.join("trash"),
        }));
        put(&dirs, &trash, "odd");
        // As another process left it.
        std::fs::create_dir(dirs.path.join("trash/foreign")).unwrap();
        trash.drain().unwrap();
        let stats = trash.stats();
        assert_eq!((stats.items, stats.failing), (1, 1), "{stats:?}");
        assert_eq!(stats.failures[0].reason, "it is odd");
        assert!(heard.try_recv().is_err());
        trash.start(1).unwrap();
        assert_eq!(heard.recv_timeout(Duration::from_secs(60)).unwrap(), "odd");
        assert!(trash.wait_empty(Duration::from_secs(60)));
        assert_eq!(
            std::fs::read_dir(dirs.path.join("trash")).unwrap().count(),
            0
        );
        trash.stop();
    }

    #[test]
    fn what_others_put_in_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let (dirs, trash) = trash(dir.path());
        trash.glance().unwrap();
        trash.start(1).unwrap();
        let (_, tool) = super::tests::trash(dir.path());
        put(&dirs, &tool, "other");
        let deadline = Instant::now() + Duration::from_secs(60);
        while std::fs::read_dir(dirs.path.join("trash")).unwrap().count() > 0 {
            assert!(Instant::now() < deadline);
            trash.glance().unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
        trash.stop();
    }
}
