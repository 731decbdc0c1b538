//! Requests to the debug server.
//!
//! One page a request, whole, each a look of its own; answers are never kept by a browser. A web page
//! from elsewhere must not speak through an operator's browser: what changes something is refused
//! to it, and what the status page may load is nothing but itself.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::look::Look;
use super::{Levels, page, prometheus, vars};
use crate::api::listen::Arrival;
use crate::api::{Listeners, Meters};
use crate::manager::Manager;

/// Clients at a time. It is for a few people and a scraper.
const CONNECTIONS: usize = 64;

/// How long a client may take to say what it wants, or stay idle.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long nothing is accepted after the host refused a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The longest body: the name of a level.
const MAX_BODY: usize = 4096;

/// What the pages are made from.
pub struct Debug {
    manager: Manager,
    meters: Arc<Meters>,
    levels: Levels,
    started: Instant,
}

impl fmt::Debug for Debug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Debug").finish_non_exhaustive()
    }
}

/// An answer's status, content type and body.
type Page = (StatusCode, &'static str, String);

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

impl Debug {
    /// Pages about a manager and the API server in front of it.
    pub fn new(manager: Manager, meters: Arc<Meters>, levels: Levels) -> Self {
        Self {
            manager,
            meters,
            levels,
            started: Instant::now(),
        }
    }

    /// Serves until `stop` is cancelled.
    pub async fn serve(self, listeners: Listeners, stop: CancellationToken) {
        let debug = Arc::new(self);
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let accept = async {
                let permit = Arc::clone(&room).acquire_owned().await;
                (permit, listeners.accept().await)
            };
            tokio::select! {
                () = stop.cancelled() => return,
                Some(_) = connections.join_next() => {}
                (permit, arrived) = accept => match arrived {
                    Ok(arrival) => {
                        let debug = Arc::clone(&debug);
                        connections.spawn(async move {
                            debug.connection(arrival).await;
                            drop(permit);
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection to the debug server");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }

    async fn connection(self: Arc<Self>, arrival: Arrival) {
        let Ok(stream) = arrival.establish().await else {
            return;
        };
        let service = service_fn(|request| {
            let debug = Arc::clone(&self);
            async move { Ok::<_, Infallible>(debug.answer(request).await) }
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = served.await {
            tracing::debug!(%error, "a connection to the debug server broke");
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path().to_owned();
        if request.method() == Method::GET && path == "/" {
            return page::status();
        }
        let (status, kind, body) = match (request.method(), path.as_str()) {
            (&Method::GET, "/status.json") => as_json(&self.look().await),
            (&Method::GET, "/healthz") => self.health(),
            (&Method::GET, "/metrics") => {
                let query = request.uri().query().unwrap_or_default();
                let each = query.split('&').any(|part| part == "containers=1");
                let text = prometheus::write(&self.look().await, each);
                (StatusCode::OK, prometheus::CONTENT_TYPE, text)
            }
            (&Method::GET, "/debug/vars" | "/debug/metrics") => {
                as_json(&vars::write(&self.look().await))
            }
            (&Method::GET, "/log-level") => {
                (StatusCode::OK, TEXT, format!("{}\n", (self.levels.get)()))
            }
            (&Method::POST | &Method::PUT, "/log-level") => self.set_level(request).await,
            (_, path) => nowhere(path),
        };
        let mut response = Response::new(Full::from(body));
        *response.status_mut() = status;
        guard(&mut response, kind);
        response
    }

    async fn look(&self) -> Look {
        Look::take(&self.manager, &self.meters, self.started).await
    }

    /// Well, as long as it answers; what should be seen to is told, and is no reason to end a server.
    fn health(&self) -> Page {
        let queue = self.manager.services().queue().snapshot();
        let health = serde_json::json!({
            "status": "ok",
            "containers": self.manager.handles().len(),
            "teardown_depth": queue.depth,
            "teardown_stuck": queue.stuck,
        });
        as_json(&health)
    }

    async fn set_level(&self, request: Request<Incoming>) -> Page {
        let refuse = |status, text: &str| (status, TEXT, format!("{text}\n"));
        if let Some(origin) = request.headers().get(header::ORIGIN)
            && !is_own(origin, request.headers().get(header::HOST))
        {
            return refuse(StatusCode::FORBIDDEN, "not from a page of another server");
        }
        let body = Limited::new(request.into_body(), MAX_BODY).collect();
        let Ok(Ok(body)) = tokio::time::timeout(PATIENCE, body).await else {
            return refuse(StatusCode::BAD_REQUEST, "the body is the name of a level");
        };
        let body = body.to_bytes();
        let name = String::from_utf8_lossy(&body);
        match (self.levels.set)(name.trim()) {
            Ok(()) => {
                tracing::info!(level = name.trim(), "logging another level from now on");
                (StatusCode::OK, TEXT, String::new())
            }
            Err(error) => {
                let text = format!("{error}: one of debug, info, error, fatal");
                refuse(StatusCode::BAD_REQUEST, &text)
            }
        }
    }
}

/// Whether a page was loaded from this very server.
fn is_own(origin: &HeaderValue, host: Option<&HeaderValue>) -> bool {
    let text = |value: &HeaderValue| value.to_str().unwrap_or_default().to_owned();
    let origin = text(origin);
    let from = origin.strip_prefix("http://").unwrap_or(&origin);
    host.is_some_and(|host| text(host) == from)
}

fn nowhere(path: &str) -> Page {
    let text = if path.starts_with("/debug/pprof") {
        "this server is not written in Go: look at /metrics, or use perf(1) with its pid\n"
    } else if matches!(path, "/block-profile-rate" | "/mutex-profile-fraction") {
        "this server is not written in Go and has no such profiles: use perf(1) with its pid\n"
    } else {
        "there are: / /status.json /healthz /metrics /debug/vars /debug/metrics /log-level\n"
    };
    (StatusCode::NOT_FOUND, TEXT, text.to_owned())
}

fn as_json(value: &impl serde::Serialize) -> Page {
    match serde_json::to_string(value) {
        Ok(text) => (StatusCode::OK, JSON, text + "\n"),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, TEXT, error.to_string()),
    }
}

/// What every answer tells a browser.
pub(super) fn guard(response: &mut Response<Full<Bytes>>, kind: &'static str) {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_other_servers_are_told_apart() {
        let value = HeaderValue::from_static;
        let host = value("127.0.0.1:17013");
        assert!(is_own(&value("http://127.0.0.1:17013"), Some(&host)));
        for other in ["http://evil.example", "null", "http://127.0.0.1:80", ""] {
            assert!(!is_own(&value(other), Some(&host)), "{other}");
        }
        assert!(!is_own(&value("http://127.0.0.1:17013"), None));
    }

    #[test]
    fn what_is_not_there_says_what_is() {
        assert!(nowhere("/debug/pprof/heap").2.contains("perf"));
        assert!(nowhere("/x").2.contains("/metrics"));
    }
}
