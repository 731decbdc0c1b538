//! One process connection from its head to its end: frames in, wishes out, the exit back.
//!
//! The exit is answered the moment it is known: nothing the client still sends, no output that
//! still waits for a reader and no process that still holds a pipe comes before it. A client that
//! leaves detaches; its process runs on.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::frames::{Decoder, Frame, FrameError};
use super::grace::Touch;
use super::head;
use super::streams::{Pair, Streams};
use crate::model::Exit;
use crate::process::{Attachment, Control};

/// Input that waits for the process, in bytes. More is left in the socket; signals and sizes up
/// to there overtake it.
const PENDING_INPUT: usize = 8 << 20;

/// How long the end of a connection is read on after its last frame, so that input nobody took
/// does not turn the close into a reset that destroys the frame.
const LINGER: Duration = Duration::from_millis(500);

/// How long a client may take to accept a frame of some bytes.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);

/// What the connections of processes share.
#[derive(Debug, Clone)]
pub(super) struct Context {
    pub(super) streams: Arc<Streams>,
    pub(super) stop: CancellationToken,
    /// How long output is carried after an exit, when something still holds the pipe.
    pub(super) output_linger: Duration,
}

/// How a connection ended.
enum End {
    Exit(Option<Exit>),
    Detached,
    Stopped,
}

/// Serves a connection whose process is there. `status` goes into its head.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    early: BytesMut,
    (status, base64): (&str, bool),
    attachment: Attachment,
    context: Context,
    touch: Touch,
) {
    let Attachment {
        id,
        stdout,
        stderr,
        control,
        input_room,
        mut exit,
    } = attachment;
    let pair = context.streams.open();
    let detached = CancellationToken::new();
    for (output, from) in [(&pair.stdout, stdout), (&pair.stderr, stderr)] {
        let cut = cut(exit.clone(), detached.clone(), context.output_linger);
        tokio::spawn(Arc::clone(output).pump(from, cut, context.stop.clone()));
    }
    let _retired = Retired(&pair, &context.streams);
    let mut opening = head::success(status, true, base64);
    opening.extend(Frame::first(id.as_str(), &pair.id).bytes());
    let mut inbox = Inbox::new(Decoder::new(early));
    let end = match send(&mut stream, &opening).await {
        true => {
            let process = (&control, &*input_room);
            listen(&mut stream, &mut inbox, process, &mut exit, &context.stop).await
        }
        false => End::Detached,
    };
    let last = match end {
        End::Stopped => return,
        End::Exit(Some(exit)) => Frame::exit(id.as_str(), exit),
        End::Exit(None) => Frame::failure(
            id.as_str(),
            "lost sight of the process: its exit status is unknown",
        ),
        End::Detached => {
            detached.cancel();
            drop((stream, touch));
            tokio::select! {
                () = inbox.deliver_rest(&control, &input_room) => {}
                _ = ended(&mut exit) => {}
                () = context.stop.cancelled() => {}
            }
            return;
        }
    };
    let delivered = send(&mut stream, &last.bytes()).await;
    drop((control, touch));
    if delivered {
        close(stream, &context.stop).await;
    }
}

/// Forgets the streams some time after the connection, however it ends.
struct Retired<'a>(&'a Pair, &'a Arc<Streams>);

impl Drop for Retired<'_> {
    fn drop(&mut self) {
        self.1.retire(self.0.id.clone());
    }
}

/// The exit of a process; `None` when nobody will tell.
async fn ended(exit: &mut watch::Receiver<Option<Exit>>) -> Option<Exit> {
    exit.wait_for(Option::is_some)
        .await
        .ok()
        .and_then(|exit| *exit)
}

/// When output is carried no further: some time after the exit, or at once with the client.
async fn cut(
    mut exit: watch::Receiver<Option<Exit>>,
    detached: CancellationToken,
    linger: Duration,
) {
    let exited = async {
        ended(&mut exit).await;
        tokio::time::sleep(linger).await;
    };
    tokio::select! {
        () = exited => {}
        () = detached.cancelled() => {}
    }
}

/// Carries frames to the process until something ends.
async fn listen<S: AsyncRead + Unpin>(
    stream: &mut S,
    inbox: &mut Inbox,
    (control, input_room): (&mpsc::Sender<Control>, &Semaphore),
    exit: &mut watch::Receiver<Option<Exit>>,
    stop: &CancellationToken,
) -> End {
    if inbox.absorb().is_err() {
        return End::Detached;
    }
    loop {
        tokio::select! {
            biased;
            exit = ended(exit) => return End::Exit(exit),
            () = stop.cancelled() => return End::Stopped,
            room = input_room.acquire_many(inbox.wanted()), if inbox.wanted() > 0 => {
                inbox.grant(room.ok());
            }
            permit = control.reserve(), if inbox.waits() => match (permit, inbox.take()) {
                (Ok(permit), Some(wish)) => permit.send(wish),
                (Ok(_), None) => {}
                (Err(_), _) => inbox.close(),
            },
            read = stream.read_buf(inbox.decoder.buffer()), if inbox.has_room() => {
                let gone = !matches!(read, Ok(1..));
                if gone || inbox.absorb().is_err() {
                    return End::Detached;
                }
            }
        }
    }
}

/// What the client wants and the process has not got yet.
struct Inbox {
    decoder: Decoder,
    /// Signals and sizes: they overtake input.
    urgent: VecDeque<Control>,
    input: VecDeque<Control>,
    input_bytes: usize,
    /// There is room for the first of the input.
    granted: bool,
    /// Nobody takes anything any more.
    closed: bool,
}

impl Inbox {
    fn new(decoder: Decoder) -> Self {
        Self {
            decoder,
            urgent: VecDeque::new(),
            input: VecDeque::new(),
            input_bytes: 0,
            granted: false,
            closed: false,
        }
    }

    fn absorb(&mut self) -> Result<(), FrameError> {
        while let Some(frame) = self.decoder.next()? {
            for wish in frame.wishes() {
                match wish {
                    _ if self.closed => {}
                    Control::Stdin(bytes) => {
                        self.input_bytes += bytes.len();
                        self.input.push_back(Control::Stdin(bytes));
                    }
                    Control::CloseStdin => self.input.push_back(wish),
                    Control::Resize(_) | Control::Signal(_) => self.urgent.push_back(wish),
                }
            }
        }
        Ok(())
    }

    /// Whether something can be sent to the process now.
    fn waits(&self) -> bool {
        let ready = match self.input.front() {
            Some(Control::Stdin(_)) => self.granted,
            other => other.is_some(),
        };
        ready || !self.urgent.is_empty()
    }

    /// How much room the first of the input still needs.
    fn wanted(&self) -> u32 {
        match self.input.front() {
            Some(Control::Stdin(bytes)) if !self.granted => {
                u32::try_from(bytes.len()).unwrap_or(u32::MAX)
            }
            _ => 0,
        }
    }

    /// There is room for it; or no need of any, when nothing is read any more.
    fn grant(&mut self, room: Option<SemaphorePermit<'_>>) {
        if let Some(room) = room {
            room.forget();
        }
        self.granted = true;
    }

    fn has_room(&self) -> bool {
        self.input_bytes < PENDING_INPUT
    }

    fn take(&mut self) -> Option<Control> {
        let wish = self.urgent.pop_front().or_else(|| self.input.pop_front());
        if let Some(Control::Stdin(bytes)) = &wish {
            self.input_bytes -= bytes.len();
            self.granted = false;
        }
        wish
    }

    fn close(&mut self) {
        self.closed = true;
        self.urgent.clear();
        self.input.clear();
        self.input_bytes = 0;
    }

    /// A client that says something and leaves at once is heard.
    async fn deliver_rest(&mut self, control: &mpsc::Sender<Control>, input_room: &Semaphore) {
        loop {
            if self.urgent.is_empty() && self.wanted() > 0 {
                let room = input_room.acquire_many(self.wanted()).await;
                self.grant(room.ok());
            }
            let Some(wish) = self.take() else { return };
            if control.send(wish).await.is_err() {
                return;
            }
        }
    }
}

/// Writes what is only some bytes; `false` when the client is gone, or does not take it.
pub(super) async fn send<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> bool {
    let write = async {
        stream.write_all(bytes).await?;
        stream.flush().await
    };
    matches!(
        tokio::time::timeout(WRITE_PATIENCE, write).await,
        Ok(Ok(()))
    )
}

/// Ends a connection gently: says that nothing more comes, and reads on for a bounded time.
pub(super) async fn close<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    stop: &CancellationToken,
) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut sink = vec![0; 16 << 10];
    let drain = async { while matches!(stream.read(&mut sink).await, Ok(1..)) {} };
    tokio::select! {
        _ = tokio::time::timeout(LINGER, drain) => {}
        () = stop.cancelled() => {}
    }
}
