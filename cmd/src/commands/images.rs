//! `garden images`: the images in a store of this host.
//!
//! Looked at directly, beside whoever else works there: what is in a store is files. There is no
//! verb that removes one: the store gives up by itself what was not used for long.

use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::{Result, bail};
use clap::Args;
use garden_rootfs::{Role, Store, StoreOptions};
use serde::Serialize;

use super::{print, print_json};
use crate::host::STORE;
use crate::table;

/// List the images in the store; unused ones are given up when the disk runs short
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  garden images
  garden images --json")]
pub(crate) struct ImagesArgs {
    /// Directory of images and root filesystems
    #[arg(
        long,
        env = "GARDEN_STORE",
        value_name = "DIR",
        default_value = STORE
    )]
    store: PathBuf,
    /// Identifiers only
    #[arg(long, short)]
    quiet: bool,
    /// For programs
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Shown {
    id: String,
    source: String,
    layers: usize,
    bytes: u64,
    /// Since a root filesystem was made from it last.
    unused_ms: u64,
    /// Whether it is never given up.
    pinned: bool,
}

/// Lists them.
pub(crate) async fn run(args: ImagesArgs) -> Result<u8> {
    let (quiet, json) = (args.quiet, args.json);
    let images = tokio::task::spawn_blocking(move || look(&args)).await??;
    if json {
        print_json(&images)?;
    } else if quiet {
        let names: String = images.iter().map(|i| format!("{}\n", i.id)).collect();
        print(&names)?;
    } else {
        let rows: Vec<_> = images
            .iter()
            .map(|image| {
                vec![
                    short(&image.id),
                    image.layers.to_string(),
                    table::size(image.bytes),
                    table::age(image.unused_ms),
                    if image.pinned { "yes" } else { "-" }.to_owned(),
                    image.source.clone(),
                ]
            })
            .collect();
        let heading = ["ID", "LAYERS", "SIZE", "UNUSED", "PINNED", "SOURCE"];
        print(&table::format(&heading, &rows))?;
    }
    Ok(0)
}

fn look(args: &ImagesArgs) -> Result<Vec<Shown>> {
    if !Store::is_at(&args.store) {
        bail!(
            "there is no store at {}: name the server's with --store",
            args.store.display()
        );
    }
    let mut options = StoreOptions::new(&args.store);
    options.role = Role::Tool;
    let now = SystemTime::now();
    let images = Store::open(&options)?.list_images()?;
    Ok(images
        .into_iter()
        .map(|known| Shown {
            id: known.image.id.to_string(),
            layers: known.image.layers.len(),
            bytes: known.image.size(),
            unused_ms: now
                .duration_since(known.last_used)
                .map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            pinned: known.pinned,
            source: known.image.source,
        })
        .collect())
}

/// Enough of a digest to tell it from others.
fn short(id: &str) -> String {
    let digits = id.split_once(':').map_or(id, |(_, digits)| digits);
    digits.chars().take(12).collect()
}
