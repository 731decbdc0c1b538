//! The first request's head of a connection, read before hyper sees it.
//!
//! Four routes leave HTTP after their head: the stock client then uses the raw socket, without
//! any upgrade. hyper has no way for that, so each connection's first head is read here. If it is
//! for one of the four, the socket stays ours; else it goes to hyper with the bytes already read.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::error::ApiError;
use super::routes::Route;
use super::wire;

/// The longest head that is looked for a hijacked route; longer ones are hyper's affair.
const MAX_HEAD: usize = 64 << 10;

/// The longest body of a run.
pub(super) const MAX_BODY: u64 = 64 << 20;

/// How long a body may pause. It is written by a program that has all of it.
pub(super) const BODY_PAUSE: Duration = Duration::from_secs(60);
pub(super) const PAUSED: &str = "the rest of the body did not come";

/// Asks for, and grants, input frames in base64; only our own client sends it.
pub(crate) const STDIN_HEADER: &str = "garden-stdin";

/// The head of a request for one of the four routes.
#[derive(Debug)]
pub(crate) struct Head {
    pub(super) route: Route,
    pub(super) content_length: u64,
    pub(super) chunked: bool,
    pub(super) expect_continue: bool,
    pub(super) base64: bool,
    pub(super) request_id: Option<String>,
}

/// Reads until it is clear what the connection is for. `None`: for hyper. What was read and is
/// not part of a returned head is left in `buffer`.
pub(crate) async fn read_head<S: AsyncRead + Unpin>(
    stream: &mut S,
    buffer: &mut BytesMut,
) -> io::Result<Option<Head>> {
    loop {
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
        let mut headers = [httparse::EMPTY_HEADER; 100];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(buffer) {
            Ok(httparse::Status::Complete(length)) => {
                let head = head(&request);
                if head.is_some() {
                    buffer.advance(length);
                }
                return Ok(head);
            }
            Ok(httparse::Status::Partial) if buffer.len() < MAX_HEAD => {}
            // hyper has the right answer to what cannot be parsed.
            _ => return Ok(None),
        }
    }
}

fn head(request: &httparse::Request<'_, '_>) -> Option<Head> {
    let path = request.path?.split('?').next()?;
    let route = Route::parse(request.method?, path).ok()?;
    if !route.hijacks() {
        return None;
    }
    let header = |name: &str| {
        let mut all = request.headers.iter();
        let found = all.find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(found.value).ok()
    };
    let has = |name, value: &str| header(name).is_some_and(|v| v.eq_ignore_ascii_case(value));
    Some(Head {
        content_length: header("content-length").map_or(Ok(0), str::parse).ok()?,
        chunked: header("transfer-encoding").is_some(),
        expect_continue: has("expect", "100-continue"),
        base64: has(STDIN_HEADER, "base64"),
        request_id: header("x-vcap-request-id").map(str::to_owned),
        route,
    })
}

impl Head {
    /// Reads the body that belongs to the head; what follows it stays in `buffer`.
    pub(crate) async fn read_body<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        buffer: &mut BytesMut,
    ) -> Result<BytesMut, ApiError> {
        let refuse = |text: &str| ApiError::Transfer(text.to_owned());
        if self.chunked {
            return Err(refuse("send a process with Content-Length, not chunked"));
        }
        let length = usize::try_from(self.content_length.min(MAX_BODY + 1))
            .map_err(|_| refuse("the body is too long"))?;
        if self.content_length > MAX_BODY {
            return Err(refuse("the body is too long: at most 64 MiB are read"));
        }
        let lost = |error: io::Error| ApiError::Transfer(format!("reading the body: {error}"));
        if self.expect_continue && buffer.len() < length {
            let go_on = b"HTTP/1.1 100 Continue\r\n\r\n";
            stream.write_all(go_on).await.map_err(lost)?;
        }
        while buffer.len() < length {
            let read = tokio::time::timeout(BODY_PAUSE, stream.read_buf(buffer)).await;
            if read.map_err(|_| refuse(PAUSED))?.map_err(lost)? == 0 {
                return Err(lost(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        Ok(buffer.split_to(length))
    }
}

/// The head that a hijacked connection starts with. The stock client takes the bytes after it
/// raw, whatever the head says; but it insists on being told of a body that can end.
pub(super) fn success(status: &str, json: bool, base64: bool) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status}\r\n");
    if json {
        head.push_str("Content-Type: application/json\r\n");
    }
    if base64 {
        head.push_str("Garden-Stdin: base64\r\n");
    }
    head.push_str("Transfer-Encoding: chunked\r\n\r\n");
    head.into_bytes()
}

/// A whole error response. With a length, and without `Connection: close`: the stock client
/// would lose the error otherwise.
pub(super) fn failure(error: &ApiError) -> Vec<u8> {
    let status = error.status();
    let body = wire::encode(&error.envelope()).unwrap_or_default();
    let mut response = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\n");
    if let Some(kind) = error.kind() {
        response.push_str(&format!("{}: {kind}\r\n", super::error::KIND_HEADER));
    }
    response.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    let mut response = response.into_bytes();
    response.extend_from_slice(&body);
    response
}

/// A stream whose first bytes were already read.
#[derive(Debug)]
pub(crate) struct Rewound<S> {
    pub(crate) early: BytesMut,
    pub(crate) stream: S,
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.early.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let length = self.early.len().min(buf.remaining());
        buf.put_slice(&self.early.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
