//! `list` as GrootFS has it, and `ls` and `images` for people.

use std::time::SystemTime;

use garden_rootfs::{Store, Usage};
use serde::Serialize;

use super::args::Parsed;
use super::{Context, Failure, expect_args, print};
use crate::commands::print_json;
use crate::table;

/// One directory a line.
pub(super) fn list(context: &Context, flags: &Parsed) -> Result<(), Failure> {
    expect_args::<0>(flags, "list")?;
    context.place.expect_store()?;
    let store = context.place.open(&context.config)?;
    let lines: String = store
        .list()?
        .iter()
        .map(|rootfs| format!("{}\n", context.place.directory(&rootfs.id).display()))
        .collect();
    show(if lines.is_empty() {
        "Store empty\n"
    } else {
        &lines
    })
}

#[derive(Serialize)]
struct Row {
    id: String,
    image: String,
    age_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    exclusive_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit_bytes: Option<u64>,
    path: String,
}

/// Root filesystems with what they take.
pub(super) fn ls(context: &Context, flags: &Parsed) -> Result<(), Failure> {
    expect_args::<0>(flags, "ls [--json]")?;
    context.place.expect_store()?;
    let store = context.place.open(&context.config)?;
    let names = names(&store)?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now_ms = now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
    let mut rows = Vec::new();
    for rootfs in store.list()? {
        // One that was destroyed meanwhile has no use any more.
        let usage: Option<Usage> = store.usage(&rootfs.id).ok();
        let id = rootfs.image.map(|image| image.to_string());
        let name = names.iter().find(|(known, _)| Some(known) == id.as_ref());
        let directory = rootfs
            .directory
            .as_ref()
            .map(|path| format!("raw://{}", path.display()));
        let image = name.map(|(_, name)| name.clone()).or(id).or(directory);
        rows.push(Row {
            image: image.unwrap_or_default(),
            age_ms: now_ms.saturating_sub(rootfs.created_ms),
            exclusive_bytes: usage.as_ref().map(|usage| usage.exclusive_bytes),
            total_bytes: usage.as_ref().map(Usage::total_bytes),
            limit_bytes: usage
                .as_ref()
                .map(|usage| usage.quota_bytes)
                .filter(|limit| *limit > 0),
            path: context.place.directory(&rootfs.id).display().to_string(),
            id: rootfs.id,
        });
    }
    if flags.has("json") {
        return print_json(&rows).map_err(|error| Failure::new(error.to_string()));
    }
    let cells: Vec<_> = rows.iter().map(Row::cells).collect();
    show(&table::format(
        &["ID", "AGE", "WRITTEN", "TOTAL", "LIMIT", "IMAGE"],
        &cells,
    ))
}

impl Row {
    fn cells(&self) -> Vec<String> {
        let bytes = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), table::size);
        vec![
            self.id.clone(),
            table::age(self.age_ms),
            bytes(self.exclusive_bytes),
            bytes(self.total_bytes),
            bytes(self.limit_bytes),
            self.image.clone(),
        ]
    }
}

/// Images with their sources.
fn names(store: &Store) -> Result<Vec<(String, String)>, Failure> {
    let images = store.list_images()?;
    Ok(images
        .into_iter()
        .map(|known| (known.image.id.to_string(), known.image.source))
        .collect())
}

/// Images whose layers are all there.
pub(super) fn images(context: &Context, flags: &Parsed) -> Result<(), Failure> {
    expect_args::<0>(flags, "images [--json]")?;
    context.place.expect_store()?;
    let images = context.place.open(&context.config)?.list_images()?;
    if flags.has("json") {
        return print_json(&images).map_err(|error| Failure::new(error.to_string()));
    }
    let rows: Vec<_> = images
        .iter()
        .map(|known| {
            let unused = known.last_used.elapsed().unwrap_or_default().as_millis();
            let id = known.image.id.hex();
            vec![
                id.get(..12).unwrap_or(&id).to_owned(),
                known.image.layers.len().to_string(),
                table::size(known.image.size()),
                table::age(u64::try_from(unused).unwrap_or(u64::MAX)),
                if known.pinned { "yes" } else { "-" }.to_owned(),
                known.image.source.clone(),
            ]
        })
        .collect();
    let heading = ["IMAGE", "LAYERS", "SIZE", "UNUSED", "PINNED", "SOURCE"];
    show(&table::format(&heading, &rows))
}

fn show(text: &str) -> Result<(), Failure> {
    print(text).map_err(|error| Failure::new(error.to_string()))
}
