//! `garden server`: the server of a host.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use garden::api;
use garden::hosting::{Hosted, find_shim};
use garden::manager::{Options, Unmount, WithoutQuota};

use crate::reach::Target;
use crate::streams;

/// Run the server; containers outlive it
#[derive(Debug, Args)]
#[command(after_help = "Example:
  garden server --default-image /var/images/base.tar")]
pub(crate) struct ServerArgs {
    /// Directory of sockets and records, on a tmpfs
    #[arg(
        long,
        env = "GARDEN_RUNTIME_DIR",
        value_name = "DIR",
        default_value = "/run/garden"
    )]
    runtime_dir: PathBuf,
    /// Directory of images and root filesystems
    #[arg(
        long,
        env = "GARDEN_STORE",
        value_name = "DIR",
        default_value = "/var/lib/garden/store"
    )]
    store: PathBuf,
    /// Tells this server's cgroups from those of other servers on this host
    #[arg(long, env = "GARDEN_TAG", value_name = "TAG")]
    tag: Option<String>,
    /// The supervisor program [default: beside this one]
    #[arg(long, env = "GARDEN_SHIM", value_name = "PATH")]
    shim: Option<PathBuf>,
    /// Image of containers that name none
    #[arg(long, value_name = "IMAGE")]
    default_image: Option<String>,
    /// Most containers at a time [default: unlimited]
    #[arg(long, value_name = "N")]
    max_containers: Option<usize>,
    /// Let fsync work inside containers; unmounting then writes the whole disk of the store
    #[arg(long)]
    sync_unmount: bool,
    /// Where the store's file system has no quota: count what is used, or refuse disk limits
    #[arg(long, value_name = "HOW", value_enum, default_value = "account")]
    without_quota: OnNoQuota,
}

/// What becomes of disk limits that cannot be enforced.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum OnNoQuota {
    /// Make the container, say that its limit does not hold, and count.
    Account,
    /// Refuse to make the container.
    Refuse,
}

/// Serves until SIGINT or SIGTERM.
pub(crate) async fn run(target: &Target, args: ServerArgs) -> Result<u8> {
    let mut options = Options::new(
        args.runtime_dir,
        args.store,
        find_shim(args.shim.as_deref())?,
    );
    options.tag = args.tag;
    options.default_image = args.default_image;
    options.max_containers = args.max_containers;
    options.without_quota = match args.without_quota {
        OnNoQuota::Account => WithoutQuota::Account,
        OnNoQuota::Refuse => WithoutQuota::Refuse,
    };
    if args.sync_unmount {
        options.unmount = Unmount::Sync;
    }
    let hosted = Hosted::start(options, &target.socket, api::Options::default()).await?;
    tracing::info!(socket = %target.socket.display(), "serving");
    streams::interrupted().await;
    tracing::info!("ending; containers run on");
    hosted.stop().await;
    Ok(0)
}
