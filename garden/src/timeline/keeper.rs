//! The one writer of timelines: a thread that takes lines from a queue and appends them to files.
//!
//! What containers leave is kept for [`KEPT`], and of no more than [`MOST_GONE`] of them. Started
//! by `mod.rs`, ends when nobody can tell it anything any more. What cannot be written is lost,
//! with one word about it in the log: a timeline is a help, not a record.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use super::{CREATE, DESTROYED, Line, Part, Told};
use crate::ring::{self, Reader, Writer};

/// How long a container's timeline outlives it.
const KEPT: Duration = Duration::from_secs(3600);
/// Timelines of containers that are gone.
const MOST_GONE: usize = 500;
/// What the thread owns.
pub(super) struct Keeper {
    path: PathBuf,
    /// Open once it is there.
    directory: Option<Arc<OwnedFd>>,
    most: u64,
    writers: HashMap<String, Writer>,
    gone: VecDeque<(Instant, String)>,
    complained: bool,
}

impl Keeper {
    /// Makes the directory and takes over what is in it.
    pub(super) fn new(path: PathBuf, most: u64) -> Self {
        let mut keeper = Self {
            path,
            directory: None,
            most,
            writers: HashMap::new(),
            gone: VecDeque::new(),
            complained: false,
        };
        if let Err(error) = keeper.take_over() {
            keeper.complain(&error);
        }
        keeper
    }

    /// Works until the queue's last sender is gone, or it is told to end.
    pub(super) fn run(mut self, told: &Receiver<Told>) {
        while let Ok(told) = told.recv() {
            let (handle, line) = match told {
                Told::Line(handle, line) => (handle, line),
                Told::End(done) => {
                    let _ = done.send(());
                    return;
                }
            };
            if let Err(error) = self.keep(&handle, &line) {
                self.complain(&error);
            }
            if line.step == DESTROYED {
                self.gone.push_back((Instant::now(), handle));
            }
            self.expire(Instant::now());
        }
    }

    /// What an earlier server left is given its time from now on; who lives says so by a line.
    fn take_over(&mut self) -> io::Result<()> {
        std::fs::create_dir_all(&self.path)?;
        self.directory()?;
        for entry in std::fs::read_dir(&self.path)?.flatten() {
            let name = entry.file_name();
            let handle = name.to_str().and_then(|name| name.rsplit_once('.'));
            if let Some((handle, _)) = handle {
                self.gone.push_back((Instant::now(), handle.to_owned()));
            }
        }
        Ok(())
    }

    fn keep(&mut self, handle: &str, line: &Line) -> io::Result<()> {
        let begins = line.step == CREATE && line.part == Part::Begin;
        if begins || line.step == "found" {
            self.gone.retain(|(_, gone)| gone != handle);
        }
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        let mut writer = match self.writers.remove(handle) {
            Some(writer) => writer,
            None => Writer::open(self.directory()?, handle, self.most)?,
        };
        writer.write(&bytes)?;
        // A file for each container would be too many.
        writer.close();
        self.writers.insert(handle.to_owned(), writer);
        Ok(())
    }

    fn directory(&mut self) -> io::Result<Arc<OwnedFd>> {
        if let Some(directory) = &self.directory {
            return Ok(Arc::clone(directory));
        }
        let opened = open(&self.path)?;
        Ok(Arc::clone(self.directory.insert(opened)))
    }

    fn expire(&mut self, now: Instant) {
        while let Some((since, _)) = self.gone.front() {
            let old = now.duration_since(*since) > KEPT || self.gone.len() > MOST_GONE;
            if !old {
                return;
            }
            if let Some((_, handle)) = self.gone.pop_front() {
                self.writers.remove(&handle);
                if let Ok(directory) = self.directory() {
                    ring::remove_all(&directory, &handle);
                }
            }
        }
    }

    fn complain(&mut self, error: &io::Error) {
        if !self.complained {
            self.complained = true;
            tracing::warn!(%error, "timelines of containers are not kept");
        }
    }
}

fn open(directory: &Path) -> io::Result<Arc<OwnedFd>> {
    Ok(Arc::new(File::open(directory)?.into()))
}

/// All that is remembered of a handle.
pub(super) fn read(directory: &Path, handle: &str) -> io::Result<Vec<u8>> {
    Reader::new(open(directory)?, handle).read(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: &str, part: Part) -> Line {
        Line::new(step, part, 1)
    }

    #[test]
    fn what_is_gone_for_long_is_forgotten_and_what_is_back_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut keeper = Keeper::new(dir.path().to_owned(), 1 << 10);
        for handle in ["a", "a.b"] {
            keeper.keep(handle, &line(CREATE, Part::Begin)).unwrap();
            keeper.gone.push_back((Instant::now(), handle.to_owned()));
        }
        keeper.keep("a.b", &line(CREATE, Part::Begin)).unwrap();
        keeper.expire(Instant::now() + KEPT * 2);
        assert!(read(dir.path(), "a").unwrap().is_empty());
        assert!(!read(dir.path(), "a.b").unwrap().is_empty());
    }

    #[test]
    fn a_long_life_has_bounded_space() {
        let dir = tempfile::tempdir().unwrap();
        let mut keeper = Keeper::new(dir.path().to_owned(), 4 << 10);
        for _ in 0..1000 {
            keeper.keep("a", &line("process", Part::Begin)).unwrap();
        }
        let length = read(dir.path(), "a").unwrap().len();
        assert!((2 << 10..=4 << 10).contains(&length), "{length}");
    }
}
