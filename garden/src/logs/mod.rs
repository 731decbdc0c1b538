//! What processes wrote, kept for whoever asks later: `garden logs`.
//!
//! Only of a process whose specification asks for it (`log_bytes`), so that nothing changes for
//! Garden's clients. A recorder is one more listener to a process's output, beside its attachments;
//! it writes lines of JSON into a ring ([`crate::ring`]) in the container's directory, which is on a
//! tmpfs, goes with the container, and outlives both the process and a server.
//!
//! ```text
//! logs/<instance>.log       what it is the log of
//! logs/<instance>.<number>  its lines, at most two files
//! ```
//!
//! Called by the manager. Must never hold a process back for longer than writing to a tmpfs takes.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rustix::fs::{AtFlags, Mode, OFlags};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use crate::api::base64;
use crate::error::Error;
use crate::model::ProcessId;
use crate::ring::{self, Reader, Writer};
use crate::services::{lock, now_ms};
use crate::workers::Workers;

/// The most that one log may hold, in bytes: it is memory of the host.
pub const MOST_BYTES: u64 = 16 << 20;
/// Less would be lost in the making.
const LEAST_BYTES: u64 = 4 << 10;
/// Logs of processes that have ended, per container.
const ENDED_KEPT: usize = 16;
/// Bytes that are read of a log at once.
const PIECE: usize = 64 << 10;

/// One log of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogInfo {
    /// The process.
    pub process: ProcessId,
    /// Whether that is a pea.
    pub pea: bool,
    /// When it was begun, in milliseconds since the epoch.
    pub since_ms: u64,
    /// Whether nothing more will come.
    #[serde(default)]
    pub over: bool,
}

/// A piece of output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When it was read from the process, in milliseconds since the epoch.
    pub time_ms: u64,
    /// `stdout` or `stderr`; what a terminal shows is its `stdout`.
    pub stream: String,
    /// What was written, not necessarily a whole line of it, where it is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The same in base64, where it is no text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
}

impl LogLine {
    /// The bytes that were written.
    pub fn bytes(&self) -> Vec<u8> {
        match (&self.text, &self.base64) {
            (Some(text), _) => text.clone().into_bytes(),
            (None, Some(text)) => base64::decode(text).unwrap_or_default(),
            (None, None) => Vec::new(),
        }
    }
}

/// What is recorded of a log on file.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    #[serde(flatten)]
    info: LogInfo,
    bytes: u64,
}

/// A log that is known.
#[derive(Debug)]
struct Log {
    instance: String,
    record: Record,
    /// Grows with each write; `over` with the last.
    state: watch::Sender<State>,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    writes: u64,
    over: bool,
}

/// The logs of one container.
#[derive(Debug, Default)]
pub(crate) struct Logs(Mutex<BTreeMap<String, Arc<Log>>>);

/// A log as it is read.
#[derive(Debug)]
pub struct LogStream {
    lines: mpsc::Receiver<Bytes>,
}

impl LogStream {
    /// Some whole lines, each a [`LogLine`]; `None` at the end.
    pub async fn next(&mut self) -> Option<Bytes> {
        self.lines.recv().await
    }
}

/// Whether a log may have this size.
///
/// # Errors
/// [`Error::Invalid`] when it may not.
pub(crate) fn check(bytes: Option<u64>) -> Result<(), Error> {
    match bytes {
        Some(bytes) if !(LEAST_BYTES..=MOST_BYTES).contains(&bytes) => Err(Error::Invalid(
            format!("log_bytes={bytes}: a log has {LEAST_BYTES} to {MOST_BYTES} bytes"),
        )),
        _ => Ok(()),
    }
}

/// Both outputs of a process.
pub(crate) type Outputs = (mpsc::Receiver<Bytes>, mpsc::Receiver<Bytes>);

impl Logs {
    /// Finds the logs that an earlier server kept in a container's directory.
    pub(crate) fn find(&self, container: BorrowedFd<'_>) {
        let Ok(directory) = open(container) else {
            return;
        };
        for (instance, record) in records(&directory) {
            let state = watch::channel(State::default()).0;
            let log = Log {
                instance: instance.clone(),
                record,
                state,
            };
            lock(&self.0).insert(instance, Arc::new(log));
        }
    }

    /// Whether a process has a log that an earlier server has begun.
    pub(crate) fn has(&self, instance: &str) -> bool {
        lock(&self.0).contains_key(instance)
    }

    /// Records that no earlier process writes any more.
    pub(crate) fn close_all_but(&self, running: impl Fn(&str) -> bool) {
        for log in lock(&self.0).values() {
            if !running(&log.instance) {
                log.state.send_modify(|state| state.over = true);
            }
        }
    }

    /// Begins the log of a process, or goes on with it after a restart.
    pub(crate) fn record(
        &self,
        container: BorrowedFd<'_>,
        threads: &Workers,
        (instance, info, bytes): (&str, LogInfo, u64),
        outputs: Outputs,
    ) -> io::Result<()> {
        let directory = Arc::new(open(container)?);
        let mut all = lock(&self.0);
        let log = match all.get(instance) {
            Some(log) => Arc::clone(log),
            None => {
                let record = Record { info, bytes };
                write(&directory, instance, &record)?;
                Arc::new(Log {
                    instance: instance.to_owned(),
                    record,
                    state: watch::channel(State::default()).0,
                })
            }
        };
        for old in superseded(&all, &log) {
            all.remove(&old);
            forget(&directory, &old);
        }
        all.insert(instance.to_owned(), Arc::clone(&log));
        drop(all);
        tokio::spawn(follow(log, directory, threads.clone(), outputs));
        Ok(())
    }

    /// What logs there are, the oldest first.
    pub(crate) fn list(&self) -> Vec<LogInfo> {
        let all = lock(&self.0);
        let mut list: Vec<_> = all.values().map(|log| log.info()).collect();
        list.sort_by_key(|info| info.since_ms);
        list
    }

    /// Reads the newest log of a process; with `follow`, also what is still to come.
    pub(crate) fn read(
        &self,
        container: BorrowedFd<'_>,
        threads: &Workers,
        process: &ProcessId,
        follow: bool,
    ) -> Result<LogStream, Error> {
        let directory =
            open(container).map_err(|error| Error::host("cannot open the logs", error))?;
        let newest = lock(&self.0)
            .values()
            .filter(|log| log.record.info.process == *process)
            .max_by_key(|log| log.record.info.since_ms)
            .cloned();
        let log = newest.ok_or_else(|| Error::ProcessNotFound(process.clone()))?;
        let (sender, lines) = mpsc::channel(4);
        let reader = Reader::new(Arc::new(directory), &log.instance);
        tokio::spawn(serve(log, reader, threads.clone(), sender, follow));
        Ok(LogStream { lines })
    }
}

impl Log {
    fn info(&self) -> LogInfo {
        LogInfo {
            over: self.state.borrow().over,
            ..self.record.info.clone()
        }
    }
}

/// The logs that make room for a new one: of earlier processes of its name, and the oldest of those
/// that have ended.
fn superseded(all: &BTreeMap<String, Arc<Log>>, new: &Log) -> Vec<String> {
    let mut ended: Vec<_> = all
        .values()
        .filter(|log| log.instance != new.instance && log.state.borrow().over)
        .collect();
    ended.sort_by_key(|log| log.record.info.since_ms);
    let spare = ended.len().saturating_sub(ENDED_KEPT);
    ended
        .iter()
        .enumerate()
        .filter(|(index, log)| *index < spare || log.record.info.process == new.record.info.process)
        .map(|(_, log)| log.instance.clone())
        .collect()
}

/// Writes down what a process says until it says no more.
async fn follow(
    log: Arc<Log>,
    directory: Arc<OwnedFd>,
    threads: Workers,
    (mut stdout, mut stderr): Outputs,
) {
    let (instance, bytes) = (log.instance.clone(), log.record.bytes);
    let opened = threads.run(move || Writer::open(directory, &instance, bytes));
    let mut writer = opened.await.ok().and_then(Result::ok);
    let (mut out, mut err) = (true, true);
    while out || err {
        let (stream, piece) = tokio::select! {
            piece = stdout.recv(), if out => ("stdout", piece),
            piece = stderr.recv(), if err => ("stderr", piece),
        };
        let Some(piece) = piece else {
            if stream == "stdout" {
                out = false
            } else {
                err = false
            }
            continue;
        };
        // A log that cannot be written is given up; the process must not notice.
        let Some(mut open) = writer.take() else {
            continue;
        };
        let line = line(stream, &piece);
        let written = threads.run(move || open.write(&line).map(|()| open)).await;
        match written {
            Ok(Ok(open)) => writer = Some(open),
            Ok(Err(error)) => tracing::warn!(%error, "a process's log is given up"),
            Err(panicked) => tracing::warn!(error = %panicked, "a process's log is given up"),
        }
        log.state.send_modify(|state| state.writes += 1);
    }
    log.state.send_modify(|state| state.over = true);
}

fn line(stream: &str, piece: &[u8]) -> Vec<u8> {
    let text = std::str::from_utf8(piece).ok();
    let line = LogLine {
        time_ms: now_ms(),
        stream: stream.to_owned(),
        base64: text.is_none().then(|| base64::encode(piece)),
        text: text.map(str::to_owned),
    };
    let mut bytes = serde_json::to_vec(&line).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// Hands whole lines on until there are no more, or nobody takes them.
async fn serve(
    log: Arc<Log>,
    mut reader: Reader,
    threads: Workers,
    lines: mpsc::Sender<Bytes>,
    follow: bool,
) {
    let mut state = log.state.subscribe();
    let mut rest: Vec<u8> = Vec::new();
    loop {
        // Looked at first: what is written from here on is seen by the next round.
        let over = state.borrow_and_update().over;
        let read = threads.run(move || {
            let read = reader.read(PIECE);
            (reader, read)
        });
        let Ok((back, Ok(bytes))) = read.await else {
            return;
        };
        reader = back;
        let more = !bytes.is_empty();
        rest.extend(bytes);
        if let Some(end) = rest.iter().rposition(|byte| *byte == b'\n') {
            let whole: Vec<u8> = rest.drain(..=end).collect();
            if lines.send(whole.into()).await.is_err() {
                return;
            }
        }
        if more {
            continue;
        }
        if over || !follow {
            return;
        }
        tokio::select! {
            changed = state.changed() => if changed.is_err() { return },
            () = lines.closed() => return,
        }
    }
}

/// The directory of a container's logs, made when missing.
fn open(container: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const NAME: &str = "logs";
    match rustix::fs::mkdirat(container, NAME, Mode::RWXU) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(container, NAME, flags, Mode::empty())?)
}

fn record_name(instance: &str) -> String {
    format!("{instance}.log")
}

fn write(directory: &OwnedFd, instance: &str, record: &Record) -> io::Result<()> {
    let bytes = serde_json::to_vec(record)?;
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mode = Mode::RUSR | Mode::WUSR;
    let file = rustix::fs::openat(directory, record_name(instance), flags, mode)?;
    io::Write::write_all(&mut std::fs::File::from(file), &bytes)
}

fn records(directory: &OwnedFd) -> Vec<(String, Record)> {
    let Ok(entries) = rustix::fs::Dir::read_from(directory.as_fd()) else {
        return Vec::new();
    };
    let names = entries.flatten().filter_map(|entry| {
        let name = entry.file_name().to_str().ok()?;
        Some(name.strip_suffix(".log")?.to_owned())
    });
    names
        .filter_map(|instance| {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let name = record_name(&instance);
            let file = rustix::fs::openat(directory, name, flags, Mode::empty()).ok()?;
            // One that was being written when a server died is no log.
            let record = serde_json::from_reader(std::fs::File::from(file)).ok()?;
            Some((instance, record))
        })
        .collect()
}

fn forget(directory: &OwnedFd, instance: &str) {
    ring::remove_all(directory, instance);
    let _ = rustix::fs::unlinkat(directory, record_name(instance), AtFlags::empty());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(process: &str) -> LogInfo {
        LogInfo {
            process: process.parse().unwrap(),
            pea: false,
            since_ms: now_ms(),
            over: false,
        }
    }

    async fn all(mut stream: LogStream) -> String {
        let mut text = String::new();
        while let Some(lines) = stream.next().await {
            for line in lines.split(|byte| *byte == b'\n').filter(|l| !l.is_empty()) {
                let line: LogLine = serde_json::from_slice(line).unwrap();
                text.push_str(&line.text.unwrap());
            }
        }
        text
    }

    #[tokio::test]
    async fn what_was_said_is_read_later_and_by_a_later_server() {
        let dir = tempfile::tempdir().unwrap();
        let container: OwnedFd = std::fs::File::open(dir.path()).unwrap().into();
        let threads = Workers::start("test-logs", 1).unwrap();
        let logs = Logs::default();
        let (stdout, out) = mpsc::channel(4);
        let (stderr, err) = mpsc::channel(4);
        let wanted = ("i1", info("p"), LEAST_BYTES);
        logs.record(container.as_fd(), &threads, wanted, (out, err))
            .unwrap();
        let id: ProcessId = "p".parse().unwrap();
        let followed = logs.read(container.as_fd(), &threads, &id, true).unwrap();
        stdout.send("one ".into()).await.unwrap();
        drop(stdout);
        stderr.send("two".into()).await.unwrap();
        drop(stderr);
        let text = all(followed).await;
        assert!(text.contains("one ") && text.contains("two"), "{text}");
        assert!(logs.list()[0].over);
        let later = Logs::default();
        later.find(container.as_fd());
        assert!(later.has("i1") && !later.has("i2"));
        let again = later.read(container.as_fd(), &threads, &id, false).unwrap();
        assert_eq!(all(again).await.len(), 7);
        let other: ProcessId = "q".parse().unwrap();
        assert!(
            later
                .read(container.as_fd(), &threads, &other, false)
                .is_err()
        );
    }

    #[tokio::test]
    async fn a_process_of_the_same_name_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let container: OwnedFd = std::fs::File::open(dir.path()).unwrap().into();
        let threads = Workers::start("test-logs", 1).unwrap();
        let logs = Logs::default();
        for instance in ["i1", "i2"] {
            let outputs = (mpsc::channel(1).1, mpsc::channel(1).1);
            let wanted = (instance, info("p"), LEAST_BYTES);
            logs.record(container.as_fd(), &threads, wanted, outputs)
                .unwrap();
            while !logs.list().iter().all(|info| info.over) {
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(logs.list().len(), 1);
        assert!(!logs.has("i1"));
        assert!(check(Some(1)).is_err() && check(None).is_ok());
    }
}
