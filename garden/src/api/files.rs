//! Tar archives into and out of containers.
//!
//! In: a failure is answered only once the client has sent everything (within bounds), because a
//! client that still writes would see a broken pipe instead of the answer. Out: a failure after
//! the first byte cuts the response short, so that nobody takes a part for the whole.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_util::io::{ReaderStream, StreamReader};
use tracing::Instrument;

use super::backend::{Backend, FilesOut, Filters, StreamIn};
use super::channel::{Mapped, Received};
use super::grace::Touch;
use super::handlers::{Answer, Body, done};
use super::routes::query;
use crate::error::Error;
use crate::model::Handle;

/// How long the rest of an upload that nobody wants any more is taken.
const DRAIN: Duration = Duration::from_secs(30);

/// How long such an upload may pause: its client may wait for the answer instead.
const DRAIN_PAUSE: Duration = Duration::from_secs(2);

/// Bytes read at once from an archive on its way out.
const PIECE: usize = 256 << 10;

pub(super) async fn stream_in<B: Backend>(
    backend: &B,
    handle: &Handle,
    request: Request<Incoming>,
) -> Answer {
    let mut parameters = query(request.uri().query().unwrap_or_default());
    // Of our own: what a client of Guardian's never sends.
    let owners = is_set(&parameters, "owners");
    let (sender, receiver) = mpsc::channel(4);
    let forward = forward(request.into_body(), sender);
    let forward = tokio::spawn(forward.in_current_span());
    let files = StreamIn {
        user: parameters.remove("user").unwrap_or_default(),
        destination: parameters.remove("destination").unwrap_or_default(),
        owners,
        tar: Box::pin(StreamReader::new(Received(receiver))),
    };
    let outcome = backend.stream_in(handle, files).await;
    let abort = forward.abort_handle();
    if tokio::time::timeout(DRAIN, forward).await.is_err() {
        abort.abort();
    }
    outcome?;
    done()
}

/// Moves an upload to the backend; what the backend does not want is read and dropped.
async fn forward(mut body: Incoming, to: mpsc::Sender<io::Result<Bytes>>) {
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            () = to.closed() => match tokio::time::timeout(DRAIN_PAUSE, body.frame()).await {
                Ok(frame) => frame,
                Err(_paused) => return,
            },
        };
        let Some(frame) = frame else { return };
        let piece = match frame {
            Ok(frame) => match frame.into_data() {
                Ok(data) => Ok(data),
                Err(_trailers) => continue,
            },
            Err(error) => Err(io::Error::other(error)),
        };
        let cut = piece.is_err();
        let _ = to.send(piece).await;
        if cut {
            return;
        }
    }
}

pub(super) async fn stream_out<B: Backend>(
    backend: &B,
    handle: &Handle,
    touch: Touch,
    request: &Request<Incoming>,
) -> Answer {
    let mut parameters = query(request.uri().query().unwrap_or_default());
    let files = FilesOut {
        user: parameters.remove("user").unwrap_or_default(),
        source: parameters.remove("source").unwrap_or_default(),
        head: is_set(&parameters, "head"),
        follow: is_set(&parameters, "follow"),
    };
    let source = files.source.clone();
    let mut tar = backend.stream_out(handle, files).await?;
    // A failure before the head of the response is gone can still be told, so it is kept back until
    // there is a whole piece, or until all is known to be well.
    let mut first = Vec::new();
    let failed = |error| Error::host(format!("streaming out {source}"), error);
    let peek = (&mut tar).take(PIECE as u64).read_to_end(&mut first).await;
    peek.map_err(failed)?;
    let rest = ReaderStream::with_capacity(io::Cursor::new(first).chain(tar), PIECE);
    let frames = Mapped::new(rest, move |piece: io::Result<Bytes>| {
        // The container is in use until the last byte was taken.
        let _in_use = &touch;
        if let Err(error) = &piece {
            tracing::warn!(%error, "a stream out was cut short");
        }
        piece.map(Frame::data)
    });
    let mut response = Response::new(Body::new(StreamBody::new(frames)));
    let kind = HeaderValue::from_static("application/x-tar");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

fn is_set(parameters: &Filters, name: &str) -> bool {
    parameters.get(name).is_some_and(|value| value == "true")
}
