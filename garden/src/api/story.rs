//! `GET /garden/v1/containers/:handle/logs[/:process]` and `.../timeline`: what was, and how long.
//!
//! `logs` lists of which processes output is kept; `logs/:process` is a line of JSON for each piece
//! of it (`follow=true` goes on with what is still to come); `timeline` is all that is remembered
//! of a container, also of one that is gone.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::StreamBody;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tracing::Instrument;

use super::backend::{Backend, Filters};
use super::channel::{Mapped, Received};
use super::error::ApiError;
use super::handlers::{Answer, Body, Shared, json, parse_handle};
use super::routes::Route;
use crate::error::Error;
use crate::logs::LogInfo;
use crate::model::{Handle, ProcessId};

/// Reply to `GET /garden/v1/containers/:handle/logs`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogList {
    /// The logs, the oldest first.
    pub logs: Vec<LogInfo>,
}

pub(super) async fn answer<B: Backend>(
    shared: &Arc<Shared<B>>,
    route: Route,
    parameters: &Filters,
) -> Answer {
    match route {
        Route::Logs(handle) => {
            let logs = shared.backend.logs(&parse_handle(&handle)?).await?;
            json(&LogList { logs })
        }
        Route::Log(handle, process) => {
            let follow = match parameters.get("follow").map(String::as_str) {
                None | Some("false") => false,
                Some("true" | "") => true,
                Some(other) => {
                    let text = format!("follow={other}: give true or false");
                    return Err(Error::Invalid(text).into());
                }
            };
            let unknown = |_| ApiError::UnknownProcess(process.clone());
            let id: ProcessId = process.parse().map_err(unknown)?;
            stream(shared, &parse_handle(&handle)?, &id, follow).await
        }
        Route::Timeline(handle) => json(&shared.backend.timeline(&parse_handle(&handle)?).await?),
        other => Err(ApiError::NoRoute(other.name().to_owned())),
    }
}

async fn stream<B: Backend>(
    shared: &Arc<Shared<B>>,
    handle: &Handle,
    process: &ProcessId,
    follow: bool,
) -> Answer {
    let mut log = shared.backend.log(handle, process, follow).await?;
    let (lines, waiting) = mpsc::channel::<Bytes>(1);
    let stop = shared.stop.clone();
    let forward = async move {
        loop {
            let piece = tokio::select! {
                piece = log.next() => piece,
                () = lines.closed() => return,
                () = stop.cancelled() => return,
            };
            let Some(piece) = piece else { return };
            tokio::select! {
                sent = lines.send(piece) => if sent.is_err() { return },
                () = stop.cancelled() => return,
            }
        }
    };
    shared.requests.spawn(forward.in_current_span());
    let frames = Mapped::new(Received(waiting), |piece: Bytes| {
        Ok::<_, io::Error>(Frame::data(piece))
    });
    let mut response = Response::new(Body::new(StreamBody::new(frames)));
    let kind = HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}
