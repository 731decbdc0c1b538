//! `stats`, `capacity`, and a command that has nothing left to do.

use garden_rootfs::Usage;
use serde::Serialize;

use super::args::Parsed;
use super::place::{Found, Place};
use super::{Context, Failure, expect_args, print};

#[derive(Serialize)]
struct Stats {
    disk_usage: DiskUsage,
}

/// Guardian reads the first two.
#[derive(Serialize)]
struct DiskUsage {
    total_bytes_used: u64,
    exclusive_bytes_used: u64,
    quota_size_bytes: u64,
    committed_space_bytes: u64,
}

#[derive(Serialize)]
struct Capacity {
    capacity: u64,
}

/// What a root filesystem takes.
pub(super) fn stats(context: &Context, flags: &Parsed) -> Result<(), Failure> {
    let [word] = expect_args(flags, "stats <id|image path>")?;
    let id = match context.place.find(&word) {
        Found::Id(id) => id,
        Found::Outside => return Err(Failure::new(Place::outside(&word))),
    };
    let unknown = || Failure::new(format!("Image `{id}` not found."));
    if !context.place.exists() {
        return Err(unknown());
    }
    let store = context.place.open(&context.config)?;
    if !store.contains(&id) {
        return Err(unknown());
    }
    let usage: Usage = store.usage(&id)?;
    show(&Stats {
        disk_usage: DiskUsage {
            total_bytes_used: usage.total_bytes(),
            exclusive_bytes_used: usage.exclusive_bytes,
            quota_size_bytes: usage.quota_bytes,
            committed_space_bytes: usage.committed_bytes(),
        },
    })
}

/// How much the store holds: what it was configured to hold, or else its whole disk.
pub(super) fn capacity(context: &Context, flags: &Parsed) -> Result<(), Failure> {
    expect_args::<0>(flags, "capacity")?;
    let configured = u64::try_from(context.config.init.store_size_bytes).unwrap_or(0);
    let capacity = if configured > 0 {
        configured
    } else {
        context.place.expect_store()?;
        let disk = rustix::fs::statvfs(context.place.path()).map_err(|errno| {
            let error = std::io::Error::from(errno);
            Failure::new(format!(
                "cannot measure {}: {error}",
                context.place.path().display()
            ))
        })?;
        disk.f_blocks.saturating_mul(disk.f_frsize)
    };
    show(&Capacity { capacity })
}

/// Layers have their sizes on record since they were unpacked.
pub(super) fn generate_volume_size_metadata(
    context: &Context,
    flags: &Parsed,
) -> Result<(), Failure> {
    expect_args::<0>(flags, "generate-volume-size-metadata")?;
    context.place.expect_store()
}

fn show(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(|error| Failure::new(error.to_string()))?;
    print(&format!("{text}\n")).map_err(|error| Failure::new(error.to_string()))
}
