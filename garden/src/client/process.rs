//! Running processes from the client's side: the hijacked connections.
//!
//! In the stock client's order: one connection for frames, then one for each output that is
//! wanted. Dropping a [`Process`] detaches from it; the process runs on.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Client;
use super::transport::{broken, failure, path};
use crate::api::base64;
use crate::api::error::KIND_HEADER;
use crate::api::frames::{Decoder, Frame};
use crate::api::head::{Rewound, STDIN_HEADER};
use crate::api::wire::{WireProcessSpec, WireTty, encode};
use crate::connection::Connection;
use crate::error::Error;
use crate::model::{Handle, ProcessId, ProcessSpec, Signal, WindowSize};

/// The largest piece of input in one frame.
const PIECE: usize = 32 << 10;

/// Which outputs of a process are to be fetched. What is not is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Standard output, or the terminal.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
}

impl Wanted {
    /// Both.
    pub const ALL: Self = Self {
        stdout: true,
        stderr: true,
    };
    /// Neither.
    pub const NONE: Self = Self {
        stdout: false,
        stderr: false,
    };
}

/// A process on the server. Dropping it detaches; input and signals that are still queued here
/// are lost then.
#[derive(Debug)]
pub struct Process {
    /// Its name.
    pub id: ProcessId,
    /// Its standard output, when wanted.
    pub stdout: Option<Output>,
    /// Its standard error, when wanted.
    pub stderr: Option<Output>,
    input: Input,
    connection: JoinHandle<Result<i32, Error>>,
    ended: Option<Result<i32, ()>>,
}

/// The way to a process: its input, signals, the size of its terminal. All are carried out in
/// the order of the calls; nothing tells when they were.
#[derive(Debug, Clone)]
pub struct Input {
    frames: mpsc::Sender<Vec<u8>>,
    process: String,
    /// Whether the server takes input that is not text.
    binary: bool,
}

/// What a process writes, as it comes; ends soon after the process.
#[derive(Debug)]
pub struct Output(Rewound<Connection>);

impl Client {
    /// Starts a process or a pea.
    pub async fn run(
        &self,
        handle: &Handle,
        spec: &ProcessSpec,
        wanted: Wanted,
    ) -> Result<Process, Error> {
        let body = encode(&WireProcessSpec::from(spec));
        let body = body.map_err(|source| broken("cannot write to", source))?;
        let target = path(&["containers", handle.as_str(), "processes"]);
        self.process(handle, "POST", &target, Some(&body), wanted)
            .await
    }

    /// Joins a process or a pea.
    pub async fn attach(
        &self,
        handle: &Handle,
        process: &ProcessId,
        wanted: Wanted,
    ) -> Result<Process, Error> {
        let target = path(&["containers", handle.as_str(), "processes", process.as_str()]);
        self.process(handle, "GET", &target, None, wanted).await
    }

    async fn process(
        &self,
        handle: &Handle,
        method: &str,
        target: &str,
        body: Option<&[u8]>,
        wanted: Wanted,
    ) -> Result<Process, Error> {
        let (mut stream, binary) = hijack(self, method, target, body).await?;
        let mut decoder = Decoder::new(BytesMut::new());
        let first = next_frame(&mut stream, &mut decoder).await?;
        let (Some(text), Some(id)) = (first.process_id, first.stream_id) else {
            return Err(broken("cannot use a process of", "it has no id"));
        };
        let process: ProcessId = text.parse().map_err(|e| broken("a strange id from", e))?;
        let (sender, frames) = mpsc::channel(16);
        let connection = tokio::spawn(converse(stream, decoder, frames));
        let mut process = Process {
            input: Input {
                frames: sender,
                process: process.to_string(),
                binary,
            },
            id: process,
            stdout: None,
            stderr: None,
            connection,
            ended: None,
        };
        let output = async |side: &str| {
            let handle = handle.as_str();
            let segments = [
                "containers",
                handle,
                "processes",
                &text,
                "attaches",
                &id,
                side,
            ];
            let stream = hijack(self, "GET", &path(&segments), None).await;
            stream.map(|(stream, _)| stream)
        };
        if wanted.stdout {
            process.stdout = Some(output("stdout").await?);
        }
        if wanted.stderr {
            process.stderr = Some(output("stderr").await?);
        }
        Ok(process)
    }
}

impl Process {
    /// The way to it.
    pub fn input(&self) -> Input {
        self.input.clone()
    }

    /// Waits for its end; returns its exit code, 128 + n after signal n. Output may come still:
    /// read it to its end.
    pub async fn wait(&mut self) -> Result<i32, Error> {
        let lost = || broken("lost a process of", "the connection had failed before");
        if let Some(ended) = self.ended {
            return ended.map_err(|()| lost());
        }
        let outcome = (&mut self.connection).await;
        let outcome = outcome.unwrap_or_else(|source| Err(broken("lost a process of", source)));
        self.ended = Some(outcome.as_ref().map(|code| *code).map_err(drop));
        outcome
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Input {
    /// Sends standard input; waits while too much of it is under way. Input to a process that
    /// has ended is lost, as it would be in a pipe.
    pub async fn write(&self, mut bytes: Bytes) {
        while !bytes.is_empty() {
            let piece = self.piece(&mut bytes);
            self.send(piece).await;
        }
    }

    /// Ends standard input.
    pub async fn close(&self) {
        self.send(self.stdin()).await;
    }

    /// Sends a signal.
    pub async fn signal(&self, signal: Signal) {
        let number = match signal {
            Signal::Terminate => 0,
            Signal::Kill => 1,
        };
        let frame = Frame {
            signal: Some(number),
            ..self.frame()
        };
        self.send(frame).await;
    }

    /// Tells the size of the terminal.
    pub async fn resize(&self, size: WindowSize) {
        let frame = Frame {
            tty: Some(WireTty::from(size)),
            ..self.frame()
        };
        self.send(frame).await;
    }

    fn frame(&self) -> Frame {
        Frame {
            process_id: Some(self.process.clone()),
            ..Frame::default()
        }
    }

    fn stdin(&self) -> Frame {
        Frame {
            source: Some(0),
            ..self.frame()
        }
    }

    /// As text where it is text, in base64 where the server takes that; else as well as it goes.
    fn piece(&self, bytes: &mut Bytes) -> Frame {
        let mut end = bytes.len().min(PIECE);
        let text = match std::str::from_utf8(&bytes[..end]) {
            Ok(text) => Some(text),
            // Cut by the piece's end, not wrong: the character goes with the next piece.
            Err(error) if error.error_len().is_none() && error.valid_up_to() > 0 => {
                end = error.valid_up_to();
                std::str::from_utf8(&bytes[..end]).ok()
            }
            Err(_) => None,
        };
        let mut frame = self.stdin();
        match text {
            Some(text) => frame.data = Some(text.to_owned()),
            None if self.binary => frame.base64 = Some(base64::encode(&bytes[..end])),
            None => frame.data = Some(String::from_utf8_lossy(&bytes[..end]).into_owned()),
        }
        bytes.advance(end);
        frame
    }

    async fn send(&self, frame: Frame) {
        // The receiver is gone when the process has ended: then nobody wants it.
        let _ = self.frames.send(frame.bytes()).await;
    }
}

/// Makes a connection whose request leaves HTTP; the bytes after the response's head, and whether
/// input need not be text.
async fn hijack(
    client: &Client,
    method: &str,
    target: &str,
    body: Option<&[u8]>,
) -> Result<(Output, bool), Error> {
    let mut stream = client.connect().await?;
    let version = env!("CARGO_PKG_VERSION");
    let mut request = format!(
        "{method} {target} HTTP/1.1\r\nHost: api\r\nUser-Agent: garden/{version}\r\n\
         {STDIN_HEADER}: base64\r\n"
    );
    if let Some(body) = body {
        let length = body.len();
        request.push_str(&format!(
            "Content-Type: application/json\r\nContent-Length: {length}\r\n"
        ));
    }
    request.push_str("\r\n");
    let mut request = request.into_bytes();
    request.extend_from_slice(body.unwrap_or_default());
    let sent = stream.write_all(&request).await;
    sent.map_err(|source| broken("cannot write to", source))?;
    response(stream).await
}

/// The parts of a response's head that matter.
struct Head {
    status: u16,
    length: usize,
    content_length: usize,
    kind: Option<String>,
    binary: bool,
}

fn head(buffer: &[u8]) -> Result<Option<Head>, httparse::Error> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(length) = response.parse(buffer)? else {
        return Ok(None);
    };
    let header = |name: &str| {
        let mut all = response.headers.iter();
        let found = all.find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(found.value).ok()
    };
    Ok(Some(Head {
        status: response.code.unwrap_or_default(),
        length,
        content_length: header("content-length")
            .and_then(|text| text.parse().ok())
            .unwrap_or_default(),
        kind: header(KIND_HEADER).map(str::to_owned),
        binary: header(STDIN_HEADER) == Some("base64"),
    }))
}

async fn response(mut stream: Connection) -> Result<(Output, bool), Error> {
    let mut early = BytesMut::new();
    let cut = || {
        broken(
            "no answer from",
            io::Error::from(io::ErrorKind::UnexpectedEof),
        )
    };
    let head = loop {
        let read = stream.read_buf(&mut early).await;
        if read.map_err(|source| broken("no answer from", source))? == 0 {
            return Err(cut());
        }
        let head = head(&early).map_err(|e| broken("cannot understand the answer of", e))?;
        if let Some(head) = head {
            break head;
        }
    };
    early.advance(head.length);
    if (200..300).contains(&head.status) {
        return Ok((Output(Rewound { early, stream }), head.binary));
    }
    while early.len() < head.content_length {
        let read = stream.read_buf(&mut early).await;
        if read.map_err(|source| broken("a cut answer from", source))? == 0 {
            break;
        }
    }
    Err(failure(head.status, head.kind.as_deref(), &early))
}

async fn next_frame<S: AsyncRead + Unpin>(
    stream: &mut S,
    decoder: &mut Decoder,
) -> Result<Frame, Error> {
    loop {
        let frame = decoder.next();
        if let Some(frame) = frame.map_err(|e| broken("cannot understand the answer of", e))? {
            return Ok(frame);
        }
        let read = stream.read_buf(decoder.buffer()).await;
        if read.map_err(|source| broken("lost a process of", source))? == 0 {
            let end = io::Error::from(io::ErrorKind::UnexpectedEof);
            return Err(broken("lost a process of", end));
        }
    }
}

/// Carries frames to the server, and waits for the last one from it.
async fn converse(
    stream: Output,
    mut decoder: Decoder,
    mut frames: mpsc::Receiver<Vec<u8>>,
) -> Result<i32, Error> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let write = async {
        while let Some(frame) = frames.recv().await {
            // A server that takes no more has still to tell the exit.
            if writer.write_all(&frame).await.is_err() {
                break;
            }
        }
        std::future::pending::<std::convert::Infallible>().await
    };
    let read = async {
        loop {
            let frame = next_frame(&mut reader, &mut decoder).await?;
            if let Some(text) = frame.error {
                return Err(broken("process error from", text));
            }
            if let Some(code) = frame.exit_status {
                return Ok(code);
            }
        }
    };
    tokio::select! {
        never = write => match never {},
        outcome = read => outcome,
    }
}

impl AsyncRead for Output {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Output {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
