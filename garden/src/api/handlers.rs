//! The plain routes: one request, one response.
//!
//! Every request is carried out in a task of its own: a client that leaves cancels nothing, and a
//! handler that panics takes nothing along. Never logs properties, their names, environment,
//! arguments or image credentials.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::backend::{Backend, CpuScale};
use super::error::{ApiError, KIND_HEADER};
use super::grace::{Doomed, Grace, Touch};
use super::head::{BODY_PAUSE, MAX_BODY, PAUSED};
use super::meters::Meters;
use super::routes::{Route, Unknown, query};
use super::server::Options;
use super::session::Context;
use super::streams::Streams;
use super::wire::{self, WireHandle, WireHandles, WireNetOutRule, WirePorts, WireStop, WireValue};
use super::{bulk, events, files, health, own, own_limits, pull, story};
use crate::error::Error;
use crate::model::{ContainerSpec, Handle, NetOutRule};

pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;
pub(super) type Answer = Result<Response<Body>, ApiError>;

/// What all requests of one server share.
#[derive(Debug)]
pub(super) struct Shared<B> {
    pub(super) backend: Arc<B>,
    pub(super) options: Options,
    pub(super) streams: Arc<Streams>,
    pub(super) grace: Arc<Grace>,
    pub(super) doomed: Arc<Doomed>,
    /// The server stops.
    pub(super) stop: CancellationToken,
    /// Requests that are being carried out.
    pub(super) requests: TaskTracker,
    /// How many there were, and how long they took.
    pub(super) meters: Arc<Meters>,
}

impl<B: Backend> Shared<B> {
    /// What process connections need.
    pub(super) fn sessions(&self) -> Context {
        Context {
            streams: Arc::clone(&self.streams),
            stop: self.stop.clone(),
            output_linger: self.options.output_linger,
        }
    }

    /// Runs a request to its end, whatever becomes of its client.
    pub(super) async fn carry_out<T: Send + 'static>(
        &self,
        request: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, ApiError> {
        let task = self.requests.spawn(request.in_current_span());
        task.await.map_err(|failure| {
            tracing::error!(error = %failure, "a request panicked");
            ApiError::Bug
        })
    }

    /// The handle in a path, and its grace time paused.
    pub(super) fn touch(&self, handle: &str) -> Result<(Handle, Touch), ApiError> {
        let handle = parse_handle(handle)?;
        let touch = self.grace.touch(&handle);
        Ok((handle, touch))
    }

    /// Destroys a container, for a request or because its grace time is over.
    pub(super) async fn destroy(&self, handle: &Handle) -> Result<(), ApiError> {
        let doom = self.doomed.claim(handle);
        let Some(_doom) = doom else {
            return Err(ApiError::being_destroyed(handle));
        };
        let destroyed = self.backend.destroy(handle).await;
        if let Ok(()) | Err(Error::ContainerNotFound(_)) = destroyed {
            self.grace.disarm(handle);
        }
        Ok(destroyed?)
    }
}

/// A handle that cannot be one belongs to no container.
pub(super) fn parse_handle(text: &str) -> Result<Handle, ApiError> {
    text.parse()
        .map_err(|_| ApiError::UnknownHandle(text.to_owned()))
}

/// The span of a request. The id that a caller may send along is traced as Guardian does it.
pub(super) fn span(route: &Route, request_id: Option<&str>) -> tracing::Span {
    let span = tracing::info_span!(
        "garden-server",
        request = route.name(),
        handle = tracing::field::Empty,
        trace_id = tracing::field::Empty,
        span_id = tracing::field::Empty,
    );
    if let Some(handle) = route.handle() {
        span.record("handle", handle);
    }
    let trace = request_id.map(|id| id.replace('-', ""));
    if let Some(trace) = trace.filter(|t| t.len() == 32 && t.bytes().all(|b| b.is_ascii_hexdigit()))
    {
        let random = uuid::Uuid::new_v4().simple().to_string();
        span.record("trace_id", trace);
        span.record("span_id", &random[..16]);
    }
    span
}

/// Notes a failure, unless it is part of the day's work.
pub(super) fn log(error: &ApiError) {
    match error {
        ApiError::Domain(Error::ProcessNotFound(_)) | ApiError::UnknownProcess(_) => {}
        ApiError::Domain(Error::Host { .. }) | ApiError::Bug => {
            tracing::error!(error = %crate::error::report(error), "request failed");
        }
        _ => tracing::info!(error = %crate::error::report(error), "request refused"),
    }
}

/// Answers one request.
pub(super) async fn handle<B: Backend>(
    shared: Arc<Shared<B>>,
    request: Request<Incoming>,
) -> Response<Body> {
    let route = match Route::parse(request.method().as_str(), request.uri().path()) {
        Ok(route) if !route.hijacks() => route,
        Ok(_) => return failure(&misplaced()),
        Err(unknown) => return failure(&refusal(unknown, request.uri().path())),
    };
    let id = request.headers().get("x-vcap-request-id");
    let span = span(&route, id.and_then(|id| id.to_str().ok()));
    let (name, reads) = (route.name(), request.method() == Method::GET);
    let begun = Instant::now();
    let work = {
        let shared = Arc::clone(&shared);
        async move { answer(shared, route, request).await }.instrument(span.clone())
    };
    let answer = shared.carry_out(work).await.unwrap_or_else(Err);
    let took = begun.elapsed();
    shared.meters.record(name, took, answer.is_err());
    if answer.is_ok() {
        span.in_scope(|| finished(reads, took));
    }
    answer.unwrap_or_else(|error| {
        span.in_scope(|| log(&error));
        failure(&error)
    })
}

/// Notes what was done; what was only looked at, with the details.
pub(super) fn finished(reads: bool, took: Duration) {
    let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    match reads {
        true => tracing::debug!(took_us, "finished"),
        false => tracing::info!(took_us, "finished"),
    }
}

fn misplaced() -> ApiError {
    ApiError::Domain(Error::Invalid(
        "this request takes its connection over: send it first on a new one".into(),
    ))
}

fn refusal(unknown: Unknown, path: &str) -> ApiError {
    match unknown {
        Unknown::Path => ApiError::NoRoute(path.to_owned()),
        Unknown::Method(allow) => ApiError::Method { allow },
    }
}

async fn answer<B: Backend>(
    shared: Arc<Shared<B>>,
    route: Route,
    request: Request<Incoming>,
) -> Answer {
    let backend = &shared.backend;
    if let Some(handle) = route.touches() {
        let (handle, touch) = shared.touch(handle)?;
        return of_container(&shared, &handle, touch, route, request).await;
    }
    let parameters = query(request.uri().query().unwrap_or_default());
    match route {
        Route::Ping => {
            backend.ping().await?;
            done()
        }
        Route::Capacity => json(&wire::WireCapacity::from(backend.capacity().await?)),
        Route::List => {
            let handles = backend.list(&parameters).await?;
            json(&WireHandles {
                handles: handles.into_iter().map(String::from).collect(),
            })
        }
        Route::Create => create(&shared, read(request).await?).await,
        Route::BulkInfo => json(&bulk::info(&shared, &parameters).await),
        Route::BulkMetrics => json(&bulk::metrics(&shared, &parameters).await),
        Route::Destroy(handle) => {
            shared.destroy(&parse_handle(&handle)?).await?;
            done()
        }
        Route::Logs(_) | Route::Log(..) | Route::Timeline(_) => {
            story::answer(&shared, route, &parameters).await
        }
        Route::Events => events::stream(&shared, &parameters).await,
        Route::Health(_)
        | Route::SetHealth(_)
        | Route::RemoveHealth(_)
        | Route::RemoveCheck(..) => health::answer(&**backend, route, request).await,
        Route::Pull => pull::pull(&shared, read(request).await?).await,
        Route::AllLimits(handle) => own_limits::limits(&shared, &handle).await,
        Route::ChangeLimits(handle) => {
            own_limits::change(&shared, &handle, read(request).await?).await
        }
        Route::Usage(handle) => own_limits::metrics(&shared, &handle).await,
        other => own::answer(&shared, other, &parameters).await,
    }
}

async fn create<B: Backend>(shared: &Shared<B>, spec: wire::WireContainerSpec) -> Answer {
    let mut spec = ContainerSpec::try_from(spec)?;
    spec.grace_time = spec.grace_time.or(shared.options.default_grace_time);
    let grace_time = spec.grace_time;
    let handle = shared.backend.create(spec).await?;
    tracing::Span::current().record("handle", handle.as_str());
    shared.grace.arm(&handle, grace_time);
    json(&WireHandle {
        handle: handle.into(),
    })
}

/// The requests that use one container; its grace time is paused while they run.
async fn of_container<B: Backend>(
    shared: &Shared<B>,
    handle: &Handle,
    touch: Touch,
    route: Route,
    request: Request<Incoming>,
) -> Answer {
    let backend = &shared.backend;
    match route {
        Route::Info(_) => json(&wire::WireInfo::from(backend.info(handle).await?)),
        Route::Stop(_) => {
            let stop: WireStop = read(request).await?;
            backend.stop(handle, stop.kill).await?;
            done()
        }
        Route::StreamIn(_) => files::stream_in(&**backend, handle, request).await,
        Route::StreamOut(_) => files::stream_out(&**backend, handle, touch, &request).await,
        // Guardian answers an empty one too, whatever was set: it has no bandwidth limits.
        Route::BandwidthLimits(_) => {
            backend.limits(handle).await?;
            done()
        }
        Route::CpuLimits(_) => limits(shared, handle, |all| json(&all.cpu_limits)).await,
        Route::DiskLimits(_) => limits(shared, handle, |all| json(&all.disk_limits)).await,
        Route::MemoryLimits(_) => limits(shared, handle, |all| json(&all.memory_limits)).await,
        Route::NetIn(_) => {
            let ports: WirePorts = read(request).await?;
            json(&WirePorts::from(
                backend.net_in(handle, ports.into()).await?,
            ))
        }
        Route::NetOut(_) => {
            let rule: WireNetOutRule = read(request).await?;
            backend.net_out(handle, vec![rule.try_into()?]).await?;
            done()
        }
        Route::BulkNetOut(_) => {
            let rules: Option<Vec<WireNetOutRule>> = read_list(request).await?;
            let rules = rules.unwrap_or_default().into_iter();
            let rules: Vec<NetOutRule> =
                rules.map(NetOutRule::try_from).collect::<Result<_, _>>()?;
            backend.net_out(handle, rules).await?;
            done()
        }
        Route::SetGraceTime(_) => {
            let nanos: Option<i64> = read_list(request).await?;
            let grace_time = wire::grace_from_nanos(nanos.unwrap_or_default());
            backend.set_grace_time(handle, grace_time).await?;
            shared.grace.arm(handle, grace_time);
            done()
        }
        Route::Metrics(_) => json(&wire::WireMetrics::from(backend.metrics(handle).await?)),
        other => properties(&**backend, handle, other, request).await,
    }
}

async fn limits<B: Backend>(
    shared: &Shared<B>,
    handle: &Handle,
    answer: impl FnOnce(wire::WireLimits) -> Answer,
) -> Answer {
    let mut all = shared.backend.limits(handle).await?;
    if shared.backend.cpu_scale() == CpuScale::Weight {
        // Guardian tells the kernel's number, in whatever scale that is.
        all.cpu_shares = all.cpu_shares.map(crate::cgroup::weight_of_shares);
    }
    answer((&all).into())
}

async fn properties<B: Backend>(
    backend: &B,
    handle: &Handle,
    route: Route,
    request: Request<Incoming>,
) -> Answer {
    match route {
        Route::Properties(_) => json(&backend.properties(handle).await?),
        Route::Property(_, key) => {
            let mut value = backend.property(handle, &key).await?;
            // A client that escapes like a form means a space by it.
            if value.is_none() && key.contains('+') {
                value = backend.property(handle, &key.replace('+', " ")).await?;
            }
            let missing = || Error::Invalid(format!("property does not exist: {key}"));
            json(&WireValue {
                value: value.ok_or_else(missing)?,
            })
        }
        Route::SetProperty(_, key) => {
            let value: WireValue = read(request).await?;
            backend.set_property(handle, key, value.value).await?;
            done()
        }
        Route::RemoveProperty(_, key) => {
            backend.remove_property(handle, &key).await?;
            done()
        }
        other => Err(ApiError::NoRoute(other.name().to_owned())),
    }
}

/// A whole body. Its content type does not matter.
async fn body(request: Request<Incoming>) -> Result<Bytes, ApiError> {
    let limit = usize::try_from(MAX_BODY).unwrap_or(usize::MAX);
    let mut limited = Limited::new(request.into_body(), limit);
    let mut whole = BytesMut::new();
    let paused = |_| ApiError::Transfer(PAUSED.to_owned());
    let lost = |error| ApiError::Transfer(format!("reading the body: {error}"));
    while let Some(frame) = timeout(BODY_PAUSE, limited.frame()).await.map_err(paused)? {
        if let Ok(data) = frame.map_err(lost)?.into_data() {
            whole.extend_from_slice(&data);
        }
    }
    Ok(whole.freeze())
}

pub(super) async fn read<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, ApiError> {
    Ok(wire::decode_request(&body(request).await?)?)
}

/// A body that is not an object, and may be `null`.
async fn read_list<T: DeserializeOwned>(request: Request<Incoming>) -> Result<Option<T>, ApiError> {
    Ok(wire::decode_bare(&body(request).await?)?)
}

/// The answer that says nothing but success.
pub(super) fn done() -> Answer {
    json(&serde_json::Map::new())
}

pub(super) fn json<T: Serialize>(value: &T) -> Answer {
    let body = wire::encode(value).map_err(|error| {
        tracing::error!(%error, "an answer cannot be written");
        ApiError::Bug
    })?;
    Ok(response(StatusCode::OK, body))
}

fn failure(error: &ApiError) -> Response<Body> {
    let body = wire::encode(&error.envelope()).unwrap_or_default();
    let mut response = response(error.status(), body);
    let headers = response.headers_mut();
    if let Some(Ok(kind)) = error.kind().map(HeaderValue::try_from) {
        headers.insert(KIND_HEADER, kind);
    }
    if let ApiError::Method { allow } = error
        && let Ok(allow) = HeaderValue::try_from(allow)
    {
        headers.insert(header::ALLOW, allow);
    }
    response
}

fn response(status: StatusCode, body: Vec<u8>) -> Response<Body> {
    let body = Full::from(body).map_err(|never| match never {});
    let mut response = Response::new(Body::new(body));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
