//! `GET /garden/v1/events`: what happens, a line of JSON for each event.
//!
//! Parameters: `handle`, `kind` (several with commas), `since_ms` (also what is remembered since
//! then), `follow=true` (go on with what will happen). Without any, what is remembered. A reader
//! that is too slow gets a line `missed` with the number of events that it did not get; nothing
//! ever waits for it. Ends with the server.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::sync::mpsc;
use tracing::Instrument;

use super::backend::{Backend, Filters};
use super::channel::{Mapped, Received};
use super::handlers::{Answer, Body, Shared};
use crate::error::Error;
use crate::events::{Event, EventFilter};

/// Events on their way into one connection.
const WAITING: usize = 16;

pub(super) async fn stream<B: Backend>(shared: &Arc<Shared<B>>, parameters: &Filters) -> Answer {
    let mut events = shared.backend.events(filter(parameters)?).await?;
    let (lines, waiting) = mpsc::channel::<Arc<Event>>(WAITING);
    let stop = shared.stop.clone();
    let forward = async move {
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(event) => tokio::select! {
                        sent = lines.send(event) => if sent.is_err() { return },
                        () = stop.cancelled() => return,
                    },
                    None => return,
                },
                () = lines.closed() => return,
                () = stop.cancelled() => return,
            }
        }
    };
    shared.requests.spawn(forward.in_current_span());
    let frames = Mapped::new(Received(waiting), |event: Arc<Event>| {
        let mut line = serde_json::to_vec(&*event).map_err(io::Error::from)?;
        line.push(b'\n');
        Ok(Frame::data(Bytes::from(line)))
    });
    let mut response = Response::new(Body::new(StreamBody::new(frames)));
    let kind = HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

fn filter(parameters: &Filters) -> Result<EventFilter, Error> {
    let wrong = |key: &str, text: &str, give: &str| {
        Err(Error::Invalid(format!("{key}={text}: give {give}")))
    };
    let since_ms = match parameters.get("since_ms").map(|text| (text, text.parse())) {
        None => None,
        Some((_, Ok(since))) => Some(since),
        Some((text, Err(_))) => return wrong("since_ms", text, "whole milliseconds"),
    };
    let follow = match parameters.get("follow").map(String::as_str) {
        None | Some("false") => false,
        Some("true" | "") => true,
        Some(other) => return wrong("follow", other, "true or false"),
    };
    let kinds = parameters.get("kind").map_or("", String::as_str).split(',');
    Ok(EventFilter {
        handle: parameters.get("handle").cloned(),
        kinds: kinds
            .filter(|kind| !kind.is_empty())
            .map(str::to_owned)
            .collect(),
        since_ms,
        follow,
    })
}
