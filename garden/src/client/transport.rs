//! One request, one response, one connection.
//!
//! Paths are escaped here and nowhere else: callers give segments.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::{TcpStream, UnixStream};

use super::Client;
use crate::api::error::{Envelope, KIND_HEADER, restore};
use crate::api::wire::{self, decode_response};
use crate::connection::{self, Address, Connection};
use crate::error::Error;

pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// How long the other host may take to answer at all; after that a call takes as long as it takes.
const PATIENCE: Duration = Duration::from_secs(10);

impl Client {
    /// A new connection.
    pub(super) async fn connect(&self) -> Result<Connection, Error> {
        self.connected().await.map_err(|source| {
            let address = self.address();
            Error::host(
                format!("cannot reach a garden server at {address} (is it running?)"),
                source,
            )
        })
    }

    async fn connected(&self) -> io::Result<Connection> {
        let (host, port) = match self.address() {
            Address::Unix(path) => {
                return UnixStream::connect(path).await.map(Connection::Unix);
            }
            Address::Tcp { host, port } => (host.as_str(), *port),
        };
        let open = async {
            let stream = TcpStream::connect((host, port)).await?;
            connection::prepare(&stream)?;
            match &self.tls {
                None => Ok(Connection::Tcp(stream)),
                Some(tls) => {
                    let shaken = tls.establish(host, stream).await?;
                    Ok(Connection::Tls(Box::new(shaken)))
                }
            }
        };
        let late = |_| io::Error::from(io::ErrorKind::TimedOut);
        tokio::time::timeout(PATIENCE, open).await.map_err(late)?
    }
}

/// An answer that cannot be used.
pub(super) fn broken(
    doing: &str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> Error {
    Error::host(format!("{doing} the garden server"), source)
}

/// A path of segments, each escaped.
pub(super) fn path(segments: &[&str]) -> String {
    let mut path = String::new();
    for segment in segments {
        path.push('/');
        escape(segment, &mut path);
    }
    path
}

/// A query of parameters, escaped, with its question mark.
pub(super) fn query<'a>(parameters: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut query = String::new();
    for (key, value) in parameters {
        query.push(if query.is_empty() { '?' } else { '&' });
        escape(key, &mut query);
        query.push('=');
        escape(value, &mut query);
    }
    query
}

fn escape(text: &str, into: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte) {
            into.push(char::from(byte));
        } else {
            into.push_str(&format!("%{byte:02X}"));
        }
    }
}

/// A request to be sent.
pub(super) struct Call {
    method: Method,
    target: String,
    body: Option<(&'static str, Body)>,
}

impl Call {
    pub(super) fn new(method: Method, target: impl Into<String>) -> Self {
        Self {
            method,
            target: target.into(),
            body: None,
        }
    }

    pub(super) fn json<T: Serialize>(mut self, value: &T) -> Result<Self, Error> {
        let body = wire::encode(value).map_err(|source| broken("cannot write to", source))?;
        let body = Full::from(body).map_err(|never| match never {});
        self.body = Some(("application/json", Body::new(body)));
        Ok(self)
    }

    pub(super) fn tar(mut self, body: Body) -> Self {
        self.body = Some(("application/x-tar", body));
        self
    }

    fn request(self) -> Result<Request<Body>, http::Error> {
        let mut request = Request::builder()
            .method(self.method)
            .uri(self.target)
            .header("host", "api")
            .header("user-agent", concat!("garden/", env!("CARGO_PKG_VERSION")))
            .header("connection", "close");
        let nothing = || Body::new(Empty::new().map_err(|never| match never {}));
        let body = match self.body {
            Some((kind, body)) => {
                request = request.header("content-type", kind);
                body
            }
            None => nothing(),
        };
        request.body(body)
    }
}

impl Client {
    pub(super) fn get(&self, target: impl Into<String>) -> Call {
        Call::new(Method::GET, target)
    }

    /// Sends a request and returns its response, if that is a success.
    pub(super) async fn send(&self, call: Call) -> Result<Response<Incoming>, Error> {
        checked(self.exchange(call).await?).await
    }

    /// Sends a request to a route that other servers do not have; `None` when this one has not.
    pub(super) async fn send_own(&self, call: Call) -> Result<Option<Response<Incoming>>, Error> {
        let response = self.exchange(call).await?;
        match response.status() {
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => Ok(None),
            _ => checked(response).await.map(Some),
        }
    }

    async fn exchange(&self, call: Call) -> Result<Response<Incoming>, Error> {
        let request = call
            .request()
            .map_err(|source| broken("cannot make a request to", source))?;
        let stream = self.connect().await?;
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|e| broken("cannot talk to", e))?;
        // Carries the response's body, too; ends with it.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the server broke");
            }
        });
        let sent = sender.send_request(request).await;
        sent.map_err(|source| broken("no answer from", source))
    }

    /// A request with an answer.
    pub(super) async fn ask<T: DeserializeOwned>(&self, call: impl IntoCall) -> Result<T, Error> {
        let body = whole(self.send(call.into_call()?).await?).await?;
        decode_response(&body).map_err(|source| broken("cannot understand the answer of", source))
    }

    /// A request whose answer is only success.
    pub(super) async fn done(&self, call: impl IntoCall) -> Result<(), Error> {
        let response = self.send(call.into_call()?).await?;
        whole(response).await.map(drop)
    }
}

/// A call, or why there is none.
pub(super) trait IntoCall {
    fn into_call(self) -> Result<Call, Error>;
}

impl IntoCall for Call {
    fn into_call(self) -> Result<Call, Error> {
        Ok(self)
    }
}

impl IntoCall for Result<Call, Error> {
    fn into_call(self) -> Self {
        self
    }
}

/// A response that is a success, or the error that it is.
async fn checked(response: Response<Incoming>) -> Result<Response<Incoming>, Error> {
    if response.status().is_success() {
        return Ok(response);
    }
    let kind = response.headers().get(KIND_HEADER);
    let kind = kind.and_then(|kind| kind.to_str().ok()).map(str::to_owned);
    let status = response.status();
    let body = whole(response).await?;
    Err(failure(status.as_u16(), kind.as_deref(), &body))
}

/// The server's error out of a response that is no success.
pub(super) fn failure(status: u16, kind: Option<&str>, body: &[u8]) -> Error {
    match serde_json::from_slice::<Envelope>(body) {
        Ok(envelope) => restore(envelope, kind),
        Err(source) => broken(&format!("status {status}, without a reason, from"), source),
    }
}

async fn whole(response: Response<Incoming>) -> Result<Bytes, Error> {
    let body = response.into_body().collect().await;
    let body = body.map_err(|source| broken("a cut answer from", source))?;
    Ok(body.to_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped() {
        assert_eq!(
            path(&["containers", "a b/c+ü"]),
            "/containers/a%20b%2Fc%2B%C3%BC"
        );
        assert_eq!(query([("a:b", ""), ("c", "d&e")]), "?a:b=&c=d%26e");
        assert_eq!(query([]), "");
    }
}
