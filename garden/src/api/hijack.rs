//! The four routes that take their connection over: run, attach, and the two outputs.
//!
//! Their failures are plain HTTP responses; but the connection is closed without announcing it,
//! as the stock client wants.

use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tracing::Instrument;

use super::backend::Backend;
use super::error::ApiError;
use super::grace::Touch;
use super::handlers::{Shared, span};
use super::head::{self, Head};
use super::routes::{Route, Side};
use super::session;
use super::wire::{WireProcessSpec, decode_request};
use crate::model::{ProcessId, ProcessSpec};
use crate::process::Attachment;

/// Serves a connection whose first head is for one of the four routes. `early` is what was read
/// beyond the head.
pub(super) async fn serve<B, S>(shared: Arc<Shared<B>>, mut stream: S, early: BytesMut, head: Head)
where
    B: Backend,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let span = span(&head.route, head.request_id.as_deref());
    let work = async {
        if let Route::Output(side, id) = &head.route {
            return output(&shared, stream, *side, id).await;
        }
        let mut early = early;
        let begun = Instant::now();
        let started = tokio::select! {
            started = start(&shared, &head, &mut stream, &mut early) => started,
            () = shared.stop.cancelled() => return,
        };
        let took = begun.elapsed();
        shared
            .meters
            .record(head.route.name(), took, started.is_err());
        match started {
            Ok((attachment, touch)) => {
                super::handlers::finished(false, took);
                let status = match head.route {
                    Route::Run(_) => "201 Created",
                    _ => "200 OK",
                };
                let context = shared.sessions();
                let opening = (status, head.base64);
                session::serve(stream, early, opening, attachment, context, touch).await;
            }
            Err(error) => {
                super::handlers::log(&error);
                if session::send(&mut stream, &head::failure(&error)).await {
                    session::close(stream, &shared.stop).await;
                }
            }
        }
    };
    work.instrument(span).await;
}

/// Gets the process. Once asked for it is started whatever becomes of the client.
async fn start<B: Backend, S: AsyncRead + AsyncWrite + Unpin>(
    shared: &Arc<Shared<B>>,
    head: &Head,
    stream: &mut S,
    early: &mut BytesMut,
) -> Result<(Attachment, Touch), ApiError> {
    match &head.route {
        Route::Run(handle) => {
            let body = head.read_body(stream, early).await?;
            let (handle, touch) = shared.touch(handle)?;
            let spec: ProcessSpec = decode_request::<WireProcessSpec>(&body)?.try_into()?;
            let backend = Arc::clone(&shared.backend);
            let run = async move { backend.run(&handle, spec).await };
            Ok((shared.carry_out(run).await??, touch))
        }
        Route::Attach(handle, process) => {
            let (handle, touch) = shared.touch(handle)?;
            let id: ProcessId = process
                .parse()
                .map_err(|_| ApiError::UnknownProcess(process.clone()))?;
            let backend = Arc::clone(&shared.backend);
            let attach = async move { backend.attach(&handle, &id).await };
            Ok((shared.carry_out(attach).await??, touch))
        }
        other => Err(ApiError::NoRoute(other.name().to_owned())),
    }
}

/// Sends one output, raw, until it ends. An unknown stream is one that has ended: a client that
/// comes late must not see a failure.
async fn output<B: Backend, S: AsyncRead + AsyncWrite + Unpin>(
    shared: &Shared<B>,
    mut stream: S,
    side: Side,
    id: &str,
) {
    let reader = shared.streams.find(id, side).map(|output| output.reader());
    if !session::send(&mut stream, &head::success("200 OK", false, false)).await {
        return;
    }
    let copy = async {
        let Some(reader) = reader else { return };
        while let Some(chunk) = reader.next().await {
            if stream.write_all(&chunk).await.is_err() {
                return;
            }
        }
        let _ = stream.shutdown().await;
    };
    tokio::select! {
        () = copy => {}
        () = shared.stop.cancelled() => {}
    }
}
