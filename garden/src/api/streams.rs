//! Output of processes on its way to clients that fetch it over connections of their own.
//!
//! Every run and attach opens a pair of streams, found by an id. A stream queues what comes
//! before its reader does, and stays for [`RETENTION`] after the process connection ended, so
//! that a late reader still gets everything. With a reader it pushes back instead of losing;
//! without one it never stalls the process for longer than [`PATIENCE`], once.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::routes::Side;

/// How long the streams of an ended connection can be asked for.
const RETENTION: Duration = Duration::from_secs(60);

/// Bytes that wait for a reader; the last piece may exceed it.
const QUEUE: usize = 1 << 20;

/// How long a full queue waits for a first reader before output is dropped: clients ask for the
/// streams right after the run, but on a busy machine not within any number of microseconds.
const PATIENCE: Duration = Duration::from_secs(2);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All streams of one server.
#[derive(Debug)]
pub(super) struct Streams {
    /// Makes ids of different servers different: one from before a restart must find nothing.
    prefix: String,
    next: AtomicU64,
    pairs: Mutex<HashMap<String, Pair>>,
}

/// The two streams of one run or attach.
#[derive(Debug, Clone)]
pub(super) struct Pair {
    pub(super) id: String,
    pub(super) stdout: Arc<Output>,
    pub(super) stderr: Arc<Output>,
}

impl Streams {
    pub(super) fn new() -> Self {
        let mut prefix = uuid::Uuid::new_v4().simple().to_string();
        prefix.truncate(8);
        Self {
            prefix,
            next: AtomicU64::new(1),
            pairs: Mutex::default(),
        }
    }

    pub(super) fn open(&self) -> Pair {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let pair = Pair {
            id: format!("{}-{number}", self.prefix),
            stdout: Arc::default(),
            stderr: Arc::default(),
        };
        lock(&self.pairs).insert(pair.id.clone(), pair.clone());
        pair
    }

    pub(super) fn find(&self, id: &str, side: Side) -> Option<Arc<Output>> {
        lock(&self.pairs).get(id).map(|pair| match side {
            Side::Stdout => Arc::clone(&pair.stdout),
            Side::Stderr => Arc::clone(&pair.stderr),
        })
    }

    /// Forgets a pair after its retention.
    pub(super) fn retire(self: &Arc<Self>, id: String) {
        let streams = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(RETENTION).await;
            lock(&streams.pairs).remove(&id);
        });
    }
}

/// One output of one process connection.
#[derive(Debug, Default)]
pub(super) struct Output {
    state: Mutex<State>,
    /// Something to read, or the end.
    data: Notify,
    /// Something was read, or a reader left.
    room: Notify,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Bytes>,
    bytes: usize,
    readers: usize,
    ended: bool,
    dropped: u64,
}

/// A connected reader.
#[derive(Debug)]
pub(super) struct Reader(Arc<Output>);

impl Output {
    /// Moves output from the process into the queue until it ends, or until `cut`; then what is
    /// already there is moved still, and the stream ends.
    pub(super) async fn pump(
        self: Arc<Self>,
        mut from: mpsc::Receiver<Bytes>,
        cut: impl Future<Output = ()>,
        stop: CancellationToken,
    ) {
        let patience = Instant::now() + PATIENCE;
        let work = async {
            tokio::pin!(cut);
            loop {
                tokio::select! {
                    biased;
                    chunk = from.recv() => match chunk {
                        Some(chunk) => self.push(chunk, patience).await,
                        None => return,
                    },
                    () = &mut cut => break,
                }
            }
            for _ in 0..from.len() {
                if let Ok(chunk) = from.try_recv() {
                    self.push(chunk, patience).await;
                }
            }
        };
        tokio::select! {
            () = work => {}
            () = stop.cancelled() => {}
        }
        self.end();
    }

    async fn push(&self, chunk: Bytes, patience: Instant) {
        loop {
            let readers = {
                let mut state = lock(&self.state);
                if state.bytes < QUEUE {
                    state.bytes += chunk.len();
                    state.queue.push_back(chunk);
                    drop(state);
                    self.data.notify_one();
                    return;
                }
                if state.readers == 0 && Instant::now() >= patience {
                    state.dropped += chunk.len() as u64;
                    return;
                }
                state.readers
            };
            // `notify_one` keeps a permit, so what happened since the lock is not missed.
            if readers == 0 {
                let _ = tokio::time::timeout_at(patience, self.room.notified()).await;
            } else {
                self.room.notified().await;
            }
        }
    }

    fn end(&self) {
        let dropped = {
            let mut state = lock(&self.state);
            state.ended = true;
            state.dropped
        };
        self.data.notify_one();
        if dropped > 0 {
            tracing::debug!(bytes = dropped, "dropped output that nobody read");
        }
    }

    pub(super) fn reader(self: Arc<Self>) -> Reader {
        lock(&self.state).readers += 1;
        // A waiting pump must learn that it may wait longer now.
        self.room.notify_one();
        Reader(self)
    }
}

impl Reader {
    /// What comes next; `None` at the end.
    pub(super) async fn next(&self) -> Option<Bytes> {
        loop {
            {
                let mut state = lock(&self.0.state);
                if let Some(chunk) = state.queue.pop_front() {
                    state.bytes -= chunk.len();
                    drop(state);
                    self.0.room.notify_one();
                    return Some(chunk);
                }
                if state.ended {
                    drop(state);
                    // Another reader may wait for the same end.
                    self.0.data.notify_one();
                    return None;
                }
            }
            self.0.data.notified().await;
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        lock(&self.0.state).readers -= 1;
        self.0.room.notify_one();
        // A wake-up that this reader no longer uses belongs to the next.
        self.0.data.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk() -> Bytes {
        Bytes::from(vec![b'x'; 64 << 10])
    }

    async fn drain(output: &Arc<Output>) -> usize {
        let reader = Arc::clone(output).reader();
        let mut total = 0;
        while let Some(chunk) = reader.next().await {
            total += chunk.len();
        }
        total
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_nobody_reads_is_not_stalled() {
        let output = Arc::<Output>::default();
        let (sender, receiver) = mpsc::channel(4);
        let pump = tokio::spawn(Arc::clone(&output).pump(
            receiver,
            std::future::pending(),
            CancellationToken::new(),
        ));
        for _ in 0..1000 {
            sender.send(chunk()).await.unwrap();
        }
        drop(sender);
        pump.await.unwrap();
        assert_eq!(drain(&output).await, QUEUE);
        assert_eq!(drain(&output).await, 0);
    }

    #[tokio::test]
    async fn a_slow_reader_loses_nothing() {
        let output = Arc::<Output>::default();
        let (sender, receiver) = mpsc::channel(4);
        let stop = CancellationToken::new();
        tokio::spawn(Arc::clone(&output).pump(receiver, std::future::pending(), stop));
        let writer = tokio::spawn(async move {
            for _ in 0..1000 {
                sender.send(chunk()).await.unwrap();
            }
        });
        let reader = Arc::clone(&output).reader();
        let mut total = 0;
        while let Some(chunk) = reader.next().await {
            total += chunk.len();
            tokio::task::yield_now().await;
        }
        writer.await.unwrap();
        assert_eq!(total, 1000 * chunk().len());
    }

    #[tokio::test]
    async fn a_cut_keeps_what_was_there() {
        let output = Arc::<Output>::default();
        let (sender, receiver) = mpsc::channel(4);
        sender.send(Bytes::from_static(b"last")).await.unwrap();
        let stop = CancellationToken::new();
        Arc::clone(&output)
            .pump(receiver, std::future::ready(()), stop)
            .await;
        assert_eq!(drain(&output).await, 4);
    }

    #[test]
    fn ids_of_two_servers_differ() {
        let (a, b) = (Streams::new(), Streams::new());
        assert!(b.find(&a.open().id, Side::Stdout).is_none());
    }
}
