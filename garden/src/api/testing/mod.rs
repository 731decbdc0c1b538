//! A server with a manager that plays, and a client of raw bytes.
//!
//! For tests only. The fake keeps the contract of [`Backend`](super::Backend) and starts nothing.

mod backend;
mod process;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) use backend::Fake;

use super::{Listen, Options, Server};
use crate::client::Client;

/// No test waits longer for anything: then something hangs.
const DEADLINE: Duration = Duration::from_secs(20);

/// A running server, and where it is reached.
pub(crate) struct Harness {
    pub(crate) backend: Arc<Fake>,
    pub(crate) socket: PathBuf,
    pub(crate) stop: CancellationToken,
    pub(crate) server: JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl Harness {
    pub(crate) fn start() -> Self {
        Self::with(Options::default())
    }

    pub(crate) fn with(options: Options) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("garden.sock");
        let backend = Arc::new(Fake::default());
        let stop = CancellationToken::new();
        let listener = Listen::at(&socket).bind().unwrap();
        let server = Server::new(Arc::clone(&backend), options);
        let serve = server.serve(listener, stop.clone());
        Self {
            backend,
            socket,
            server: tokio::spawn(async move { serve.await.unwrap() }),
            stop,
            _directory: directory,
        }
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(&self.socket)
    }

    /// A connection that has sent these bytes.
    pub(crate) async fn send(&self, bytes: impl AsRef<[u8]>) -> Raw {
        let mut stream = UnixStream::connect(&self.socket).await.unwrap();
        stream.write_all(bytes.as_ref()).await.unwrap();
        Raw(stream)
    }

    /// A whole plain exchange, as the stock client has it: status line and body.
    pub(crate) async fn call(&self, method: &str, target: &str, body: &str) -> (String, String) {
        let length = body.len();
        let request = format!(
            "{method} {target} HTTP/1.1\r\nHost: api\r\nUser-Agent: Go-http-client/1.1\r\n\
             Content-Length: {length}\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n{body}"
        );
        let answer = self.send(request).await.rest().await;
        let (head, body) = answer.split_once("\r\n\r\n").expect(&answer);
        let status = head.lines().next().unwrap();
        (status.to_owned(), body.to_owned())
    }

    /// Starts a process as the stock client does; its connection and its stream id.
    pub(crate) async fn run(&self, spec: &str) -> (Raw, String) {
        let mut a = self.send(post("/containers/h/processes", spec)).await;
        assert_eq!(a.head().await, CREATED);
        let first = a.line().await;
        let first: serde_json::Value = serde_json::from_str(&first).unwrap();
        (a, first["stream_id"].as_str().unwrap().to_owned())
    }

    /// Asks for one output of a process.
    pub(crate) async fn output(&self, stream: &str, side: &str) -> Raw {
        let mut b = self
            .send(format!(
                "GET /containers/h/processes/p/attaches/{stream}/{side} HTTP/1.1\r\nHost: api\r\n\
                 User-Agent: Go-http-client/1.1\r\nContent-Type: application/json\r\n\r\n"
            ))
            .await;
        assert_eq!(
            b.head().await,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        b
    }
}

/// What a run's head must be, to the byte.
pub(crate) const CREATED: &str = "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\n\
                                  Transfer-Encoding: chunked\r\n\r\n";

/// A request with a body, as the stock client sends it on connections to be hijacked.
pub(crate) fn post(target: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {target} HTTP/1.1\r\nHost: api\r\nUser-Agent: Go-http-client/1.1\r\n\
         Content-Length: {length}\r\nContent-Type: application/json\r\n\r\n{body}"
    )
}

/// Waits for something that will come.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    let what = tokio::time::timeout(DEADLINE, what).await;
    what.expect("something that must come did not")
}

/// A connection of bytes.
pub(crate) struct Raw(pub(crate) UnixStream);

impl Raw {
    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Reads up to and with some bytes.
    pub(crate) async fn until(&mut self, end: &str) -> String {
        let mut read = Vec::new();
        while !read.ends_with(end.as_bytes()) {
            let byte = soon(self.0.read_u8()).await;
            let so_far = || String::from_utf8_lossy(&read).into_owned();
            let byte = byte.unwrap_or_else(|error| panic!("{error} after {:?}", so_far()));
            read.push(byte);
        }
        String::from_utf8(read).unwrap()
    }

    pub(crate) async fn head(&mut self) -> String {
        self.until("\r\n\r\n").await
    }

    pub(crate) async fn line(&mut self) -> String {
        self.until("\n").await
    }

    /// Reads what comes until the server closes.
    pub(crate) async fn rest(mut self) -> String {
        let mut rest = Vec::new();
        soon(self.0.read_to_end(&mut rest)).await.unwrap();
        String::from_utf8(rest).unwrap()
    }
}
