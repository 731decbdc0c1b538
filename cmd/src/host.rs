//! Hosting a server in this process, for verbs that cannot do without one.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use garden::api;
use garden::hosting::solo::{Place, Solo};
use garden::hosting::{Hosted, find_shim};
use garden::manager::{self, TeardownMode, Unmount};

/// The store of a server, for whoever looks at it without asking one.
pub(crate) const STORE: &str = "/var/lib/garden/store";

/// How long the end waits for what containers leave.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where a hosted server keeps its things.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Without a server")]
pub(crate) struct HostArgs {
    /// Directory of sockets and records, on a tmpfs
    #[arg(long, env = "GARDEN_RUNTIME_DIR", value_name = "DIR")]
    pub(crate) runtime_dir: Option<PathBuf>,
    /// Directory of images and root filesystems
    #[arg(long, env = "GARDEN_STORE", value_name = "DIR")]
    pub(crate) store: Option<PathBuf>,
    /// Tells this server's cgroups from those of others
    #[arg(long, env = "GARDEN_TAG", value_name = "TAG")]
    pub(crate) tag: Option<String>,
    /// The supervisor program
    #[arg(long, env = "GARDEN_SHIM", value_name = "PATH")]
    pub(crate) shim: Option<PathBuf>,
}

impl HostArgs {
    /// Hosts a server for one command.
    pub(crate) async fn solo(&self) -> Result<Solo> {
        let mut place = Place::default();
        if let Some(run) = &self.runtime_dir {
            place.run.clone_from(run);
        }
        if let Some(store) = &self.store {
            place.store.clone_from(store);
        }
        place.tag.clone_from(&self.tag);
        let shim = find_shim(self.shim.as_deref())?;
        let template = manager::Options::new(place.run.clone(), place.store.clone(), shim);
        Ok(Solo::start(place, template).await?)
    }
}

/// A server of an experiment's own.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    /// Its socket.
    pub(crate) socket: PathBuf,
    /// Its runtime directory.
    pub(crate) runtime_dir: PathBuf,
    /// Its store.
    pub(crate) store: PathBuf,
    /// The tag of its cgroups.
    pub(crate) tag: Option<String>,
    /// Whether a pea's client waits for its teardown.
    pub(crate) inline_teardown: bool,
    /// Whether unmounting may cost a sync.
    pub(crate) sync_unmount: bool,
}

/// A server hosted by this process.
pub(crate) struct Host(Hosted);

/// Starts it.
pub(crate) async fn start(options: Options) -> Result<Host> {
    let mut managed = manager::Options::new(options.runtime_dir, options.store, find_shim(None)?);
    managed.tag = options.tag;
    if options.inline_teardown {
        managed.teardown = TeardownMode::Inline;
    }
    if options.sync_unmount {
        managed.unmount = Unmount::Sync;
    }
    Ok(Host(
        Hosted::start(
            managed,
            api::Listen::at(&options.socket),
            api::Options::default(),
        )
        .await?,
    ))
}

impl Host {
    /// Ends it with all its containers and removes its traces.
    pub(crate) async fn stop_and_destroy(self) {
        self.0.dissolve(PATIENCE).await;
    }
}
