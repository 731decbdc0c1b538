//! `POST /garden/v1/pull`: brings an image into the server's store and tells how far it is.
//!
//! The request is `{"image":{"uri":…,"username":…,"password":…}}`. The answer is a line of JSON for
//! each event, of which `event` is the name; the last one is `done`, or `failed` with what the
//! error envelope has elsewhere. What fails before there is anything to tell is answered like any
//! other failure. A client that leaves stops nothing: the image is wanted by the next one, too.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_core::Stream;
use http::{HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::StreamBody;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tracing::Instrument;

use super::backend::Backend;
use super::channel::{Mapped, Received};
use super::error::{ApiError, Envelope};
use super::handlers::{Answer, Body, Shared};
use crate::model::{ImageRef, PullProgress, PulledImage};

/// Events on their way to a client. One that does not read misses what is beyond that; others wait
/// for the same import, which must not wait for it.
const WAITING: usize = 1024;

/// The body of a request.
#[derive(Serialize, Deserialize)]
pub(crate) struct WirePull {
    pub(crate) image: WireImage,
}

/// An image, with its secrets.
#[derive(Serialize, Deserialize)]
pub(crate) struct WireImage {
    pub(crate) uri: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) username: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) password: Option<String>,
}

impl From<WireImage> for ImageRef {
    fn from(wire: WireImage) -> Self {
        Self {
            uri: wire.uri,
            username: wire.username,
            password: wire.password,
        }
    }
}

/// A line of the answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum WireEvent {
    Done {
        image: PulledImage,
    },
    Failed {
        error: Envelope,
        #[serde(default)]
        kind: Option<String>,
    },
    // The last one: what is none of the others.
    #[serde(untagged)]
    Progress(PullProgress),
}

pub(super) async fn pull<B: Backend>(shared: &Arc<Shared<B>>, pull: WirePull) -> Answer {
    let (progress, mut told) = mpsc::channel(WAITING);
    let backend = Arc::clone(&shared.backend);
    let import = async move { backend.pull(pull.image.into(), progress).await };
    // Of its own: it goes on when the client leaves, and the server waits for it when it stops.
    let import = shared.requests.spawn(import.in_current_span());
    let first = told.recv().await;
    let (lines, waiting) = mpsc::channel(1);
    if first.is_none() {
        // It has ended without a word: what it says now is all there is.
        let image = import.await.map_err(|_| ApiError::Bug)??;
        let _ = lines.try_send(WireEvent::Done { image });
    } else {
        let forward = async move {
            let mut next = first;
            while let Some(event) = next {
                // When nobody reads any more, the rest is only taken.
                let _ = lines.send(WireEvent::Progress(event)).await;
                next = told.recv().await;
            }
            let outcome = import.await.map_err(|_| ApiError::Bug);
            let last = match outcome.and_then(|outcome| Ok(outcome?)) {
                Ok(image) => WireEvent::Done { image },
                Err(error) => {
                    super::handlers::log(&error);
                    WireEvent::Failed {
                        kind: error.kind(),
                        error: error.envelope(),
                    }
                }
            };
            let _ = lines.send(last).await;
        };
        shared.requests.spawn(forward.in_current_span());
    }
    let mut response = Response::new(Body::new(StreamBody::new(frames(Received(waiting)))));
    let kind = HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

fn frames(
    events: impl Stream<Item = WireEvent> + Send + 'static,
) -> impl Stream<Item = io::Result<Frame<Bytes>>> + Send {
    Mapped::new(events, |event: WireEvent| {
        let mut line = serde_json::to_vec(&event).map_err(io::Error::from)?;
        line.push(b'\n');
        Ok(Frame::data(Bytes::from(line)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PullStage;

    #[test]
    fn events_have_a_line_each() {
        let line = |event: &WireEvent| serde_json::to_string(event).unwrap();
        let event = WireEvent::Progress(PullProgress::Layers { total: 3 });
        assert_eq!(line(&event), r#"{"event":"layers","total":3}"#);
        let event = WireEvent::Progress(PullProgress::Layer {
            index: 1,
            digest: "sha256:00".to_owned(),
            stage: PullStage::Downloading,
            bytes: 5,
            of: 9,
        });
        let text = line(&event);
        assert_eq!(
            text,
            r#"{"event":"layer","index":1,"digest":"sha256:00","stage":"downloading","bytes":5,"of":9}"#
        );
        let back: WireEvent = serde_json::from_str(&text).unwrap();
        assert!(matches!(
            back,
            WireEvent::Progress(PullProgress::Layer { bytes: 5, .. })
        ));
        let done = r#"{"event":"done","image":{"id":"i","source":"s","layers":1,"bytes":2}}"#;
        let back: WireEvent = serde_json::from_str(done).unwrap();
        assert_eq!(line(&back), done);
    }
}
