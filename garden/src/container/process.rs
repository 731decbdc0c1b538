//! A process or a pea as its users see it: streams, control, exit.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::model::{Exit, ProcessId, ProcessInfo, Signal};
use crate::process::streams::{Input, Output};
use crate::process::{Attachment, Control};
use crate::runtime::shim::Shim;
use crate::services::lock;

/// Wishes of one attachment that may wait.
const CONTROL_QUEUE: usize = 64;

/// The server's ends of a process's streams.
#[derive(Debug)]
pub(crate) struct Streams {
    pub(crate) stdin: Option<Input>,
    pub(crate) stdout: Arc<Output>,
    pub(crate) stderr: Arc<Output>,
}

/// A process or a pea: made when its id is taken, complete when it runs.
#[derive(Debug)]
pub(crate) struct ProcessEntry {
    pub(crate) id: ProcessId,
    /// The supervisor's name for it.
    pub(crate) instance: String,
    pub(crate) pea: bool,
    pub(crate) path: String,
    running: OnceLock<Running>,
    /// `None` when nobody will ever know how it ended: whoever waits is told that by the end of this.
    exit: Mutex<Option<watch::Sender<Option<Exit>>>>,
    ended_at: OnceLock<Instant>,
    /// When its supervisor reaped it, in nanoseconds since the epoch; 0 before.
    reaped_at_ns: AtomicU64,
    waited: AtomicBool,
}

#[derive(Debug)]
struct Running {
    pid: u32,
    streams: Streams,
}

impl ProcessEntry {
    /// A process that is about to be started.
    pub(crate) fn new(id: ProcessId, instance: String, pea: bool, path: String) -> Arc<Self> {
        let exit = Mutex::new(Some(watch::channel(None).0));
        Arc::new(Self {
            id,
            instance,
            pea,
            path,
            running: OnceLock::new(),
            exit,
            ended_at: OnceLock::new(),
            reaped_at_ns: AtomicU64::new(0),
            waited: AtomicBool::new(false),
        })
    }

    /// It runs.
    pub(crate) fn started(&self, pid: u32, streams: Streams) {
        let _ = self.running.set(Running { pid, streams });
    }

    /// It was reaped, by its supervisor's word. To be called before its exit is announced.
    pub(crate) fn reaped(&self, at_ns: u64) {
        self.reaped_at_ns.store(at_ns, Ordering::Relaxed);
    }

    /// When it was reaped; 0 when that is not known.
    pub(crate) fn reaped_at_ns(&self) -> u64 {
        self.reaped_at_ns.load(Ordering::Relaxed)
    }

    /// Tells its exit to all attachments, once what it left in its pipes is handed on.
    pub(crate) async fn announce(&self, exit: Exit) {
        self.announce_after(exit, || ()).await;
    }

    /// The same; `first` is done before somebody is told, if anybody waits.
    pub(crate) async fn announce_after(&self, exit: Exit, first: impl FnOnce()) {
        if let Some(running) = self.running.get() {
            tokio::join!(
                running.streams.stdout.drain(),
                running.streams.stderr.drain()
            );
        }
        let _ = self.ended_at.set(Instant::now());
        let mut first = Some(first);
        loop {
            let exit_told = lock(&self.exit);
            let Some(sender) = exit_told.as_ref() else {
                break;
            };
            let waits = sender.receiver_count() > 0;
            if waits && let Some(first) = first.take() {
                // Not under the lock, which others take while they hold the container's.
                drop(exit_told);
                first();
                continue;
            }
            if waits {
                self.waited.store(true, Ordering::Relaxed);
            }
            sender.send_replace(Some(exit));
            break;
        }
        self.close_stdin();
    }

    /// It has ended, and nobody knows how: its supervisor died. What was told already stays.
    pub(crate) fn lose(&self) {
        let mut sender = lock(&self.exit);
        if sender
            .as_ref()
            .is_some_and(|sender| sender.borrow().is_none())
        {
            *sender = None;
            let _ = self.ended_at.set(Instant::now());
        }
        drop(sender);
        self.close_stdin();
    }

    fn close_stdin(&self) {
        // Nobody reads it any more; whoever writes has not noticed yet.
        if let Some(stdin) = self
            .running
            .get()
            .and_then(|running| running.streams.stdin.as_ref())
        {
            stdin.close();
        }
    }

    /// Waits until nothing more can come out of it, which a grandchild may put off.
    pub(crate) async fn output_over(&self) {
        if let Some(running) = self.running.get() {
            tokio::join!(running.streams.stdout.over(), running.streams.stderr.over());
        }
    }

    /// When its exit was told.
    pub(crate) fn ended_at(&self) -> Option<Instant> {
        self.ended_at.get().copied()
    }

    /// Whether its exit has been told, or is known to be lost.
    pub(crate) fn ended(&self) -> bool {
        let sender = lock(&self.exit);
        sender
            .as_ref()
            .is_none_or(|sender| sender.borrow().is_some())
    }

    /// Whether somebody was told of its exit.
    pub(crate) fn waited(&self) -> bool {
        self.ended() && self.waited.load(Ordering::Relaxed)
    }

    /// Its exit, to wait for; `None` when nobody will ever know it.
    pub(crate) fn exit(&self) -> Option<watch::Receiver<Option<Exit>>> {
        lock(&self.exit).as_ref().map(watch::Sender::subscribe)
    }

    /// As a list shows it; `None` before it runs and after its end.
    pub(crate) fn info(&self) -> Option<ProcessInfo> {
        let running = self.running.get().filter(|_| !self.ended())?;
        Some(ProcessInfo {
            id: self.id.clone(),
            pid: running.pid,
            pea: self.pea,
            path: self.path.clone(),
        })
    }

    /// Permits for input; none are needed where nothing is read.
    fn input_room(&self) -> Arc<Semaphore> {
        let stdin = self
            .running
            .get()
            .and_then(|running| running.streams.stdin.as_ref());
        stdin.map_or_else(
            || {
                let none = Semaphore::new(0);
                none.close();
                Arc::new(none)
            },
            Input::room,
        )
    }

    /// Its outputs from now on, for a listener of the server's own. Unless `now`, nothing is read
    /// before somebody attaches. `None` before it runs.
    pub(crate) fn listen(
        &self,
        now: bool,
    ) -> Option<(mpsc::Receiver<Bytes>, mpsc::Receiver<Bytes>)> {
        let streams = &self.running.get()?.streams;
        let listen = |output: &Output| match now {
            true => output.subscribe(),
            false => output.join(),
        };
        Some((listen(&streams.stdout), listen(&streams.stderr)))
    }

    /// Another attachment: gets all output from now on. `None` before it runs.
    pub(crate) fn attach(self: &Arc<Self>, shim: &Shim) -> Option<Attachment> {
        let (control, wishes) = mpsc::channel(CONTROL_QUEUE);
        // First of all: either its end is known by now, or the announcement finds us waiting.
        let exit = self.exit();
        if self.ended() {
            self.waited.store(true, Ordering::Relaxed);
        }
        let (stdout, stderr) = match self.running.get() {
            Some(running) => {
                tokio::spawn(obey(Arc::clone(self), shim.clone(), wishes));
                (
                    running.streams.stdout.subscribe(),
                    running.streams.stderr.subscribe(),
                )
            }
            // It ended before this server was started: there is only its exit to tell.
            None if self.ended() => (mpsc::channel(1).1, mpsc::channel(1).1),
            None => return None,
        };
        Some(Attachment {
            id: self.id.clone(),
            stdout,
            stderr,
            control,
            input_room: self.input_room(),
            // One whose other end is gone tells that it is lost.
            exit: exit.unwrap_or_else(|| watch::channel(None).1),
        })
    }
}

/// Does what an attachment wishes, until it leaves. Input is only queued here, so that a signal
/// overtakes what the process does not read.
async fn obey(entry: Arc<ProcessEntry>, shim: Shim, mut wishes: mpsc::Receiver<Control>) {
    let Some(running) = entry.running.get() else {
        return;
    };
    while let Some(wish) = wishes.recv().await {
        let done = match wish {
            Control::Stdin(bytes) => {
                if let Some(stdin) = &running.streams.stdin {
                    stdin.send(bytes);
                }
                Ok(())
            }
            Control::CloseStdin => {
                if let Some(stdin) = &running.streams.stdin {
                    stdin.close();
                }
                Ok(())
            }
            Control::Resize(size) => shim.resize(&entry.instance, size.columns, size.rows).await,
            Control::Signal(signal) => shim.signal(&entry.instance, number(signal)).await,
        };
        if let Err(error) = done {
            tracing::debug!(process = %entry.id, error = error.report(), "a wish was refused");
        }
    }
}

fn number(signal: Signal) -> i32 {
    match signal {
        Signal::Terminate => 15,
        Signal::Kill => 9,
    }
}
