//! Connections: accepting them, telling their kinds apart, ending them.
//!
//! Any stream will do; unix sockets and TCP are there. Stopping closes the listener, cuts process
//! connections at once (processes run on), and waits for every other request that was begun.

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::backend::{Backend, Filters};
use super::grace::Grace;
use super::handlers::{self, Shared};
use super::head::{Rewound, read_head};
use super::hijack;
use super::streams::Streams;
use crate::error::Error;
use crate::model::Handle;

/// How long nothing is accepted after the host refused a connection (it is short of files or
/// memory, and trying at once would only spin).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How a server serves.
#[derive(Debug, Clone)]
pub struct Options {
    /// The grace time of containers that are created without one; `None` is for ever.
    pub default_grace_time: Option<Duration>,
    /// How long a connection may take for a request's head, or stay idle; `None` is for ever.
    /// Never applies to process connections.
    pub header_timeout: Option<Duration>,
    /// Connections at a time. An app with output holds three for as long as it runs. More wait
    /// until one ends.
    pub max_connections: usize,
    /// How long output is still carried after the exit of a process, when a grandchild holds the
    /// pipe open. Stock clients wait for the end of output before they tell the exit.
    pub output_linger: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            default_grace_time: None,
            header_timeout: Some(Duration::from_secs(60)),
            max_connections: 65_536,
            output_linger: Duration::from_secs(1),
        }
    }
}

/// Where connections come from.
pub trait Listener: Send {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Waits for the next one. Must not lose one when dropped.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        Self::accept(self).await.map(|(stream, _)| stream)
    }
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        let (stream, _) = Self::accept(self).await?;
        // Frames are small and each is awaited.
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// A Garden API server over a [`Backend`].
pub struct Server<B> {
    shared: Arc<Shared<B>>,
    connections: TaskTracker,
    room: Arc<Semaphore>,
    expired: mpsc::UnboundedReceiver<Handle>,
}

impl<B> fmt::Debug for Server<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

impl<B: Backend> Server<B> {
    /// A server that serves nothing yet. Must be called inside a runtime.
    pub fn new(backend: Arc<B>, options: Options) -> Self {
        let (sender, expired) = mpsc::unbounded_channel();
        let room = options.max_connections.min(Semaphore::MAX_PERMITS);
        Self {
            shared: Arc::new(Shared {
                backend,
                options,
                streams: Arc::new(Streams::new()),
                grace: Arc::new(Grace::new(sender)),
                doomed: Arc::default(),
                stop: CancellationToken::new(),
                requests: TaskTracker::new(),
            }),
            connections: TaskTracker::new(),
            room: Arc::new(Semaphore::new(room)),
            expired,
        }
    }

    /// Serves until `stop` is cancelled, and returns when all requests are answered. The
    /// listener may exist long before: early clients then wait instead of failing.
    pub async fn serve<L: Listener>(
        mut self,
        listener: L,
        stop: CancellationToken,
    ) -> Result<(), Error> {
        self.arm_survivors().await?;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(handle) = self.expired.recv() => self.reap(handle),
                stream = accept(&listener, &self.room) => match stream {
                    Ok((stream, permit)) => {
                        let shared = Arc::clone(&self.shared);
                        self.connections.spawn(async move {
                            connection(shared, stream).await;
                            drop(permit);
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        drop(listener);
        self.shared.stop.cancel();
        self.connections.close();
        self.connections.wait().await;
        self.shared.requests.close();
        self.shared.requests.wait().await;
        Ok(())
    }

    /// Starts the grace time of what an earlier server left.
    async fn arm_survivors(&self) -> Result<(), Error> {
        let all = Filters::from([("garden.state".to_owned(), "all".to_owned())]);
        for handle in self.shared.backend.list(&all).await? {
            match self.shared.backend.grace_time(&handle).await {
                Ok(period) => self.shared.grace.arm(&handle, period),
                Err(Error::ContainerNotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn reap(&self, handle: Handle) {
        let shared = Arc::clone(&self.shared);
        self.shared.requests.spawn(async move {
            match shared.destroy(&handle).await {
                Ok(()) => tracing::info!(%handle, "destroyed: unused for its grace time"),
                Err(error) => {
                    let error = crate::error::report(&error);
                    tracing::warn!(%handle, error, "cannot destroy what is unused");
                }
            }
        });
    }
}

async fn accept<L: Listener>(
    listener: &L,
    room: &Arc<Semaphore>,
) -> io::Result<(L::Stream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(room).acquire_owned().await;
    let permit = permit.map_err(io::Error::other)?;
    Ok((listener.accept().await?, permit))
}

async fn connection<B, S>(shared: Arc<Shared<B>>, mut stream: S)
where
    B: Backend,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut early = BytesMut::new();
    let read = read_head(&mut stream, &mut early);
    let head = tokio::select! {
        head = within(shared.options.header_timeout, read) => head,
        // One that has asked for nothing yet is owed nothing.
        () = shared.stop.cancelled() => return,
    };
    match head {
        Some(Ok(Some(head))) => hijack::serve(shared, stream, early, head).await,
        Some(Ok(None)) if !early.is_empty() => plain(shared, Rewound { early, stream }).await,
        _ => {}
    }
}

async fn within<T>(limit: Option<Duration>, work: impl Future<Output = T>) -> Option<T> {
    match limit {
        Some(limit) => tokio::time::timeout(limit, work).await.ok(),
        None => Some(work.await),
    }
}

async fn plain<B, S>(shared: Arc<Shared<B>>, stream: S)
where
    B: Backend,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, std::convert::Infallible>(handlers::handle(shared, request).await) }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(shared.options.header_timeout)
        // A client that has said all it wants is still to be answered.
        .half_close(true);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = shared.stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(error = %crate::error::report(&error), "a connection broke");
    }
}
