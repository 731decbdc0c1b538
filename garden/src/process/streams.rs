//! The standard streams of one process, on the server's side.
//!
//! A pump per output stream reads the pipe and hands each piece to every attachment, waiting for
//! the slowest: nothing is dropped, a client that does not read holds the process back like a
//! pipe that is full. Before the first attachment nothing is read at all, so that output from
//! before a server's restart is still there; after the last one has gone it is read and
//! discarded, so that a process does not hang for want of an audience.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;
use tokio::sync::{Semaphore, mpsc, watch};

/// Pieces of output that may wait for one attachment.
const QUEUE: usize = 64;
/// Most bytes in one piece.
const PIECE: usize = 64 * 1024;
/// How long an exit waits for output that a client does not take.
const DRAIN_PATIENCE: Duration = Duration::from_secs(1);

/// One output stream.
#[derive(Debug)]
pub(crate) struct Output {
    audience: Mutex<Audience>,
    state: watch::Sender<State>,
}

#[derive(Debug, Default)]
struct Audience {
    members: Vec<mpsc::Sender<Bytes>>,
    /// Whether the stream has ended: whoever comes now gets an ended one.
    over: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    /// Somebody has attached.
    wanted: bool,
    /// The process has ended.
    exited: bool,
    /// What was readable when it ended has been handed on, or the stream has ended.
    drained: bool,
    /// The stream has ended.
    over: bool,
}

impl Output {
    /// Starts to pump `reader`; `None` is a stream that has ended.
    pub(crate) fn start(reader: Option<pipe::Receiver>) -> std::sync::Arc<Self> {
        let output = std::sync::Arc::new(Self {
            audience: Mutex::default(),
            state: watch::channel(State::default()).0,
        });
        match reader {
            Some(reader) => {
                let pumped = std::sync::Arc::clone(&output);
                tokio::spawn(async move {
                    pumped.pump(&reader).await;
                    pumped.end();
                });
            }
            None => output.end(),
        }
        output
    }

    fn audience(&self) -> std::sync::MutexGuard<'_, Audience> {
        self.audience.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new attachment: gets everything from now on.
    pub(crate) fn subscribe(&self) -> mpsc::Receiver<Bytes> {
        let receiver = self.join();
        self.state.send_modify(|state| state.wanted = true);
        receiver
    }

    /// One more that listens, for whom alone nothing is read.
    pub(crate) fn join(&self) -> mpsc::Receiver<Bytes> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let mut audience = self.audience();
        if !audience.over {
            audience.members.push(sender);
        }
        receiver
    }

    /// Tells that the process has ended, and waits until what it left readable is handed on.
    pub(crate) async fn drain(&self) {
        let mut state = self.state.subscribe();
        self.state.send_modify(|state| state.exited = true);
        if !self.state.borrow().wanted {
            return;
        }
        let drained = state.wait_for(|state| state.drained);
        if tokio::time::timeout(DRAIN_PATIENCE, drained).await.is_err() {
            tracing::debug!("output is not taken by its client; the exit does not wait for it");
        }
    }

    fn end(&self) {
        let mut audience = self.audience();
        audience.over = true;
        audience.members.clear();
        drop(audience);
        self.state.send_modify(|state| {
            state.drained = true;
            state.over = true;
        });
    }

    /// Waits for the end of the stream.
    pub(crate) async fn over(&self) {
        // The sender is part of this value: it cannot be gone.
        let _ = self.state.subscribe().wait_for(|state| state.over).await;
    }

    async fn pump(&self, reader: &pipe::Receiver) {
        let mut state = self.state.subscribe();
        if state.wait_for(|state| state.wanted).await.is_err() {
            return;
        }
        let mut buffer = vec![0_u8; PIECE];
        loop {
            let exited = self.state.borrow().exited;
            let mut read = reader.try_read(&mut buffer);
            if exited && !self.state.borrow().drained && would_block(&read) {
                // Asked of the kernel itself: the reactor knows a pipe that was just made, or that
                // was written to just now, as empty until it has looked.
                read = rustix::io::read(reader, &mut buffer).map_err(Into::into);
            }
            match read {
                Ok(0) => return,
                Ok(count) => self.hand_on(buffer.get(..count).unwrap_or_default()).await,
                Err(_) if would_block(&read) => {
                    if exited && !self.state.borrow().drained {
                        self.state.send_modify(|state| state.drained = true);
                    }
                    tokio::select! {
                        ready = reader.readable() => if ready.is_err() { return },
                        // Only an exit that has not been looked at above.
                        _ = state.wait_for(|state| state.exited), if !exited => {}
                    }
                }
                // A terminal whose last user has gone reads as an error (EIO).
                Err(_) => return,
            }
        }
    }

    async fn hand_on(&self, piece: &[u8]) {
        let members = self.audience().members.clone();
        if members.is_empty() {
            return;
        }
        let piece = Bytes::copy_from_slice(piece);
        let mut gone = false;
        for member in &members {
            gone |= member.send(piece.clone()).await.is_err();
        }
        if gone {
            self.audience().members.retain(|member| !member.is_closed());
        }
    }
}

fn would_block(read: &std::io::Result<usize>) -> bool {
    matches!(read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

/// Input that may wait for one process, in bytes; more is left with those who send it.
const INPUT_ROOM: usize = 1 << 20;

/// Where standard input goes.
#[derive(Debug, Clone)]
pub(crate) struct Input {
    queue: mpsc::UnboundedSender<Bytes>,
    room: Arc<Semaphore>,
}

impl Input {
    /// Starts to write to `writer`. `closed` is run when the input has ended and all of it is
    /// written.
    pub(crate) fn start(
        mut writer: pipe::Sender,
        closed: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        // Bounded by the room, which whoever sends has taken.
        let (queue, mut receiver) = mpsc::unbounded_channel::<Bytes>();
        let room = Arc::new(Semaphore::new(INPUT_ROOM));
        let given_back = Arc::clone(&room);
        tokio::spawn(async move {
            while let Some(piece) = receiver.recv().await {
                // An empty piece is the end.
                if piece.is_empty() || writer.write_all(&piece).await.is_err() {
                    break;
                }
                given_back.add_permits(piece.len());
            }
            // What comes now is lost, as in a pipe that nobody reads: nobody is to wait for it.
            given_back.close();
            drop(writer);
            receiver.close();
            closed.await;
        });
        Self { queue, room }
    }

    /// Permits for bytes that may wait; see [`super::Attachment::input_room`].
    pub(crate) fn room(&self) -> Arc<Semaphore> {
        Arc::clone(&self.room)
    }

    /// Queues bytes; ignored after the end.
    pub(crate) fn send(&self, piece: Bytes) {
        if !piece.is_empty() {
            let _ = self.queue.send(piece);
        }
    }

    /// Ends the input after what is queued.
    pub(crate) fn close(&self) {
        let _ = self.queue.send(Bytes::new());
    }
}

/// Makes a pipe's reading end usable here. Also for a terminal's master.
pub(crate) fn reader(fd: OwnedFd) -> std::io::Result<pipe::Receiver> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    pipe::Receiver::from_owned_fd_unchecked(fd)
}

/// Makes a pipe's writing end usable here. Also for a terminal's master.
pub(crate) fn writer(fd: OwnedFd) -> std::io::Result<pipe::Sender> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    pipe::Sender::from_owned_fd_unchecked(fd)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn output() -> (std::fs::File, std::sync::Arc<Output>) {
        let (read, write) = rustix::pipe::pipe().unwrap();
        (write.into(), Output::start(Some(reader(read).unwrap())))
    }

    #[tokio::test]
    async fn everything_readable_at_the_exit_comes_before_it() {
        let (mut write, output) = output();
        let mut stream = output.subscribe();
        write.write_all(b"last words").unwrap();
        // A grandchild still holds the pipe: `write` stays open.
        output.drain().await;
        assert_eq!(stream.recv().await.unwrap(), "last words");
        write.write_all(b"more").unwrap();
        assert_eq!(stream.recv().await.unwrap(), "more");
        drop(write);
        assert_eq!(stream.recv().await, None);
    }

    #[tokio::test]
    async fn nothing_is_read_before_somebody_attaches_and_nothing_lost() {
        let (mut write, output) = output();
        write.write_all(b"early").unwrap();
        output.drain().await;
        drop(write);
        let mut stream = output.subscribe();
        assert_eq!(stream.recv().await.unwrap(), "early");
        assert_eq!(stream.recv().await, None);
        assert_eq!(output.subscribe().recv().await, None);
    }

    #[tokio::test]
    async fn an_attachment_that_leaves_does_not_stop_the_stream() {
        let (mut write, output) = output();
        drop(output.subscribe());
        for _ in 0..64 {
            write.write_all(&[b'x'; 16 * 1024]).unwrap();
            tokio::task::yield_now().await;
        }
        drop(write);
        output.drain().await;
    }
}
