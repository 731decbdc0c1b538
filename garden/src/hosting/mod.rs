//! A manager and its API server together, hosted by this process.
//!
//! `garden server` hosts one for the host; `garden run` without a server and the experiments
//! host one for as long as they live ([`solo`]). Both speak to it through [`Client`], so that there
//! is one way for everything.

pub mod cleanup;
pub mod solo;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api::{self, Listen, Listeners, Meters, Server};
use crate::client::Client;
use crate::connection::Address;
use crate::debug::{Debug, Levels};
use crate::error::Error;
use crate::manager::{Manager, Options};

/// How long teardown workers may take to put what they do aside when the server ends.
const CLOSE_GRACE: Duration = Duration::from_secs(2);

/// A manager and its API server.
pub struct Hosted {
    manager: Manager,
    client: Client,
    stop: CancellationToken,
    serving: JoinHandle<Result<(), Error>>,
    meters: Arc<Meters>,
}

impl Hosted {
    /// Listens, opens a manager, and serves it. Clients may connect from the very beginning;
    /// they are answered when what an earlier server left is known.
    ///
    /// # Errors
    /// As [`Manager::open`], and when there is nothing that can be listened on.
    pub async fn start(
        options: Options,
        listen: Listen,
        serving: api::Options,
    ) -> Result<Self, Error> {
        let runtime_dir = options.runtime_dir.clone();
        // The directory may not exist yet, and the socket is usually in it.
        let made = tokio::task::spawn_blocking(move || std::fs::create_dir_all(runtime_dir));
        let failed = |error| Error::host("cannot make the runtime directory", error);
        made.await
            .map_err(|error| failed(error.into()))?
            .map_err(failed)?;
        let unix = listen.unix.as_ref().map(|socket| socket.path.clone());
        let listeners = listen.bind()?;
        let address = unix.map_or_else(|| over_tcp(&listeners), Address::Unix);
        let places = listeners.places();
        let destroy = options.destroy_on_start;
        let manager = Manager::open(options).await?;
        if destroy {
            manager.destroy_all().await;
        }
        let server = Server::new(Arc::new(manager.clone()), serving);
        let meters = server.meters();
        let stop = CancellationToken::new();
        let ended = stop.clone();
        let serving = tokio::spawn(async move { server.serve(listeners, ended).await });
        tracing::info!(?places, "serving");
        Ok(Self {
            manager,
            client: Client::new(address),
            stop,
            serving,
            meters,
        })
    }

    /// Serves health, metrics and a status page on addresses of their own, as long as the server
    /// runs.
    pub fn debug(&self, listeners: Listeners, levels: Levels) {
        tracing::info!(places = ?listeners.places(), "serving metrics and the status page");
        let debug = Debug::new(self.manager.clone(), Arc::clone(&self.meters), levels);
        tokio::spawn(debug.serve(listeners, self.stop.clone()));
    }

    /// A client of it.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The manager itself, for what only its own process may do.
    pub fn manager(&self) -> &Manager {
        &self.manager
    }

    /// Ends the server. Containers run on; what is to be torn down stays on file.
    pub async fn stop(self) {
        self.stop.cancel();
        match self.serving.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(error = error.report(), "the API server failed"),
            Err(error) => tracing::error!(%error, "the API server panicked"),
        }
        self.manager.close(CLOSE_GRACE).await;
    }

    /// Ends the server with all its containers, and removes what it put on the host.
    pub async fn dissolve(self, patience: Duration) {
        self.manager.destroy_all().await;
        if !self.manager.settle(patience).await {
            tracing::warn!("not everything is torn down yet; the next start will go on with it");
        }
        let manager = self.manager.clone();
        self.stop().await;
        manager.remove_traces();
    }
}

/// Where a server without a unix socket is reached from here.
fn over_tcp(listeners: &Listeners) -> Address {
    let (host, port) = match listeners.tcp().first() {
        Some(address) if address.ip().is_unspecified() => ("localhost".to_owned(), address.port()),
        Some(address) => (address.ip().to_string(), address.port()),
        None => ("localhost".to_owned(), 0),
    };
    Address::Tcp { host, port }
}

/// Finds the supervisor program: where the option says, beside this executable, or where packages
/// put it.
///
/// # Errors
/// When it is in none of these places: the text names them.
pub fn find_shim(option: Option<&Path>) -> Result<PathBuf, Error> {
    const NAME: &str = "garden-shim";
    let beside = std::env::current_exe()
        .and_then(|path| path.canonicalize())
        .ok()
        .and_then(|path| path.parent().map(|directory| directory.join(NAME)));
    let installed = PathBuf::from("/usr/libexec/garden").join(NAME);
    let candidates: Vec<PathBuf> = match option {
        Some(path) => vec![path.to_owned()],
        None => beside.into_iter().chain([installed]).collect(),
    };
    let found = candidates.iter().find_map(|path| path.canonicalize().ok());
    found.ok_or_else(|| {
        let places: Vec<_> = candidates
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        Error::Invalid(format!(
            "the program {NAME} is not in {}: name its place with --shim",
            places.join(" or ")
        ))
    })
}
