//! Connections: accepting them, telling their kinds apart, ending them.
//!
//! Where they come from is `listen`'s. Stopping closes the listeners, cuts process connections at
//! once (processes run on), and waits a bounded time for every other request that was begun.

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
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::backend::{Backend, Filters};
use super::grace::Grace;
use super::handlers::{self, Shared};
use super::head::{Rewound, read_head};
use super::hijack;
use super::listen::{Arrival, Listeners};
use super::meters::Meters;
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
    /// How long requests that run may take when the server stops; `None` is for ever. What is
    /// not done by then is given up: the next server cleans up after it, as after a crash.
    pub stop_patience: Option<Duration>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            default_grace_time: None,
            header_timeout: Some(Duration::from_secs(60)),
            max_connections: 65_536,
            output_linger: Duration::from_secs(1),
            stop_patience: None,
        }
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
                meters: Arc::default(),
            }),
            connections: TaskTracker::new(),
            room: Arc::new(Semaphore::new(room)),
            expired,
        }
    }

    /// What it counts.
    pub fn meters(&self) -> Arc<Meters> {
        Arc::clone(&self.shared.meters)
    }

    /// Serves until `stop` is cancelled, and returns when all requests are answered. The
    /// listeners may exist long before: early clients then wait instead of failing.
    pub async fn serve(
        mut self,
        listeners: Listeners,
        stop: CancellationToken,
    ) -> Result<(), Error> {
        self.arm_survivors().await?;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(handle) = self.expired.recv() => self.reap(handle),
                arrived = accept(&listeners, &self.room) => match arrived {
                    Ok((arrival, permit)) => {
                        let shared = Arc::clone(&self.shared);
                        self.connections.spawn(async move {
                            connection(shared, arrival).await;
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
        drop(listeners);
        self.shared.stop.cancel();
        self.connections.close();
        self.shared.requests.close();
        let all_done = async {
            self.connections.wait().await;
            self.shared.requests.wait().await;
        };
        if within(self.shared.options.stop_patience, all_done)
            .await
            .is_none()
        {
            let requests = self.shared.requests.len();
            tracing::warn!(
                requests,
                "stopping without waiting longer for requests that run"
            );
        }
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

async fn accept(
    listeners: &Listeners,
    room: &Arc<Semaphore>,
) -> io::Result<(Arrival, OwnedSemaphorePermit)> {
    let permit = Arc::clone(room).acquire_owned().await;
    let permit = permit.map_err(io::Error::other)?;
    Ok((listeners.accept().await?, permit))
}

async fn connection<B: Backend>(shared: Arc<Shared<B>>, arrival: Arrival) {
    let _open = shared.meters.open();
    let mut early = BytesMut::new();
    let open = async {
        let mut stream = arrival.establish().await?;
        let head = read_head(&mut stream, &mut early).await?;
        Ok::<_, io::Error>((stream, head))
    };
    let opened = tokio::select! {
        opened = within(shared.options.header_timeout, open) => opened,
        // One that has asked for nothing yet is owed nothing.
        () = shared.stop.cancelled() => return,
    };
    match opened {
        Some(Ok((stream, Some(head)))) => hijack::serve(shared, stream, early, head).await,
        Some(Ok((stream, None))) if !early.is_empty() => {
            plain(shared, Rewound { early, stream }).await;
        }
        Some(Err(error)) => tracing::debug!(%error, "a connection came to nothing"),
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
