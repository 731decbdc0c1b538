//! `garden pull`: an image into the store before it is needed.
//!
//! By the server if one runs, for the images are its own; else directly in the store, beside
//! whoever else works there.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::Args;
use garden::client::Client;
use garden::error::Error;
use garden::model::{ImageRef, PullProgress, PulledImage};
use garden_rootfs::{Credentials, ImageSource, ImportOptions, Role, Store, StoreOptions};

use super::{print, print_json, rootfs};
use crate::host::STORE;
use crate::progress::{self, Bars};
use crate::reach::Target;
use crate::registry::RegistryArgs;

/// Fetch an image, so that the first container of it does not wait
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  garden pull docker:///library/busybox#1.36
  garden pull --insecure-registry 127.0.0.1:5000 docker://127.0.0.1:5000/app#v1")]
pub(crate) struct PullArgs {
    /// The image: docker://[HOST/]REPOSITORY[#TAG], oci:///PATH[:REF], or a tar or a directory
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Name at the registry
    #[arg(long, env = "GARDEN_REGISTRY_USERNAME", value_name = "NAME")]
    username: Option<String>,
    /// Password at the registry; by the environment it is in no list of processes
    #[arg(
        long,
        env = "GARDEN_REGISTRY_PASSWORD",
        hide_env_values = true,
        value_name = "PASSWORD"
    )]
    password: Option<String>,
    /// No bars and no summary
    #[arg(long, short)]
    quiet: bool,
    /// Print what was fetched, for programs
    #[arg(long)]
    json: bool,
    /// Directory of images and root filesystems
    #[arg(
        long,
        env = "GARDEN_STORE",
        value_name = "DIR",
        default_value = STORE,
        help_heading = "Without a server"
    )]
    store: PathBuf,
    #[command(flatten, next_help_heading = "Without a server")]
    registry: RegistryArgs,
}

/// Fetches it.
pub(crate) async fn run(target: &Target, args: PullArgs) -> Result<u8> {
    let begun = Instant::now();
    let mut image = super::image(&args.image)?;
    image.username.clone_from(&args.username);
    image.password.clone_from(&args.password);
    let watched = progress::is_watched(args.quiet);
    let pulled = match target.find().await {
        Some(client) => by_server(&client, &image, watched).await?,
        None => {
            let (store, registry) = (args.store.clone(), args.registry.clone());
            let here = move || here(store, &registry, &image, watched);
            tokio::task::spawn_blocking(here).await??
        }
    };
    if args.json {
        print_json(&pulled)?;
    } else if !args.quiet {
        print(&format!(
            "{}\n",
            progress::summary(&pulled, begun.elapsed())
        ))?;
    }
    Ok(0)
}

async fn by_server(client: &Client, image: &ImageRef, watched: bool) -> Result<PulledImage, Error> {
    let mut bars = Bars::new(watched);
    let pulled = client.pull(image, |event| bars.show(&event)).await;
    bars.clear();
    pulled
}

/// Fetches the image of a container that is to be created, if somebody wants to see it come. What
/// cannot be fetched like that (an image plugin's, or one of a server that cannot do it) comes when
/// the container is created.
pub(crate) async fn watch(client: &Client, image: Option<&ImageRef>, quiet: bool) -> Result<()> {
    let Some(image) = image.filter(|image| !image.uri.starts_with("raw:")) else {
        return Ok(());
    };
    if !progress::is_watched(quiet) {
        return Ok(());
    }
    match by_server(client, image, true).await {
        Ok(_) | Err(Error::Invalid(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn here(
    path: PathBuf,
    registry: &RegistryArgs,
    image: &ImageRef,
    watched: bool,
) -> Result<PulledImage> {
    let mut options = StoreOptions::new(&path);
    options.role = Role::Tool;
    options.registry = registry.policy()?;
    let store = Store::open(&options)?;
    let credentials = (image.username.is_some() || image.password.is_some()).then(|| Credentials {
        username: image.username.clone().unwrap_or_default(),
        password: image.password.clone().unwrap_or_default(),
    });
    let bars = Mutex::new(Bars::new(watched));
    let show = |event| {
        if let (Some(event), Ok(mut bars)) = (PullProgress::of(event), bars.lock()) {
            bars.show(&event);
        }
    };
    let mut options = ImportOptions::default();
    options.credentials = credentials.as_ref();
    options.progress = Some(&show);
    let imported =
        ImageSource::parse(&image.uri).and_then(|source| store.import_with(&source, &options));
    if let Ok(bars) = bars.into_inner() {
        bars.clear();
    }
    // What is left of a failure as well as what is to be made durable.
    rootfs::clear_up_later(&path);
    let imported = imported.with_context(|| format!("cannot fetch {}", shown(image)))?;
    Ok(PulledImage {
        id: imported.id.to_string(),
        layers: imported.layers.len(),
        bytes: imported.size(),
        source: imported.source,
    })
}

/// An image in an error text: without what may be a signature.
fn shown(image: &ImageRef) -> &str {
    image.uri.split('?').next().unwrap_or_default()
}
