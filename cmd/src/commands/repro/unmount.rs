//! `garden repro unmount`: what unmounting overlays costs on a kernel and a disk.
//!
//! Since Linux 4.14.60 the last unmount of an overlay with an upper directory syncs the whole file
//! system below it: it waits for everything that anybody wrote there. This mounts a number of
//! overlays, writes into each, unmounts them all, and times each unmount, beside one overlay that
//! wrote nothing. The same again in ways that are said to help.

use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::memory::{self, Watch};
use super::overlay::{Ended, Overlay, Way};
use super::report::{Report, Setting, Taken};
use crate::commands::{print, print_json};
use crate::lab::blocking;
use crate::lab::disk::{FileSystem, Mounted};
use crate::lab::guard;
use crate::lab::place::Place;

/// Show whether unmounting an overlay waits for all data on the disk, and what helps
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  garden repro unmount
  garden repro unmount --fs xfs --disk-mbps 50 --mounts 3 --way plain --way volatile
  garden repro unmount --on /var/lib --json")]
pub(crate) struct UnmountArgs {
    /// How many overlays
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u16).range(1..=100))]
    mounts: u16,
    /// What is written into each, in MB (10^6 bytes)
    #[arg(long, value_name = "MB", default_value_t = 20)]
    megabytes: u32,
    /// Whether all are unmounted at the same time or one after the other
    #[arg(long, value_enum, default_value_t = Order::Together)]
    order: Order,
    /// How they are ended; repeatable [default: all]
    #[arg(long = "way", value_enum, value_name = "WAY")]
    ways: Vec<Way>,
    /// Use this directory and its disk, as it is
    #[arg(long, value_name = "DIR", conflicts_with_all = ["fs", "disk_mbps"])]
    on: Option<PathBuf>,
    /// File system of a disk that is made for the run
    #[arg(long, value_enum, default_value_t = FileSystem::Ext4)]
    fs: FileSystem,
    /// How fast that disk is written, in MB per second; 0 for as fast as the host's
    #[arg(long, value_name = "MBPS", default_value_t = 100)]
    disk_mbps: u64,
    /// Print figures for programs
    #[arg(long)]
    json: bool,
    /// Measure in the place of this tag, which the guard has made
    #[arg(long, value_name = "TAG", hide = true)]
    measure: Option<String>,
}

/// When they are unmounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Order {
    /// At the same time.
    Together,
    /// One after the other.
    Serial,
}

/// Runs the verb; returns the exit code.
///
/// # Errors
/// When the run could not be set up, or a step of it failed.
pub(crate) async fn run(args: UnmountArgs) -> Result<u8> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "garden repro needs root: it mounts file systems"
    );
    let Some(tag) = args.measure.clone() else {
        return guard::run().await;
    };
    let json = args.json;
    let report = blocking(move || measure(&args, &Place::of(&tag))).await??;
    if json {
        print_json(&report)?;
    } else {
        print(&report.text())?;
    }
    Ok(0)
}

fn measure(args: &UnmountArgs, place: &Place) -> Result<Report> {
    let disk = match args.on {
        Some(_) => None,
        None => {
            let data = u64::from(args.mounts) * u64::from(args.megabytes) * 1_000_000;
            let speed = Some(args.disk_mbps).filter(|speed| *speed > 0);
            // Twice what is written, and what the file systems want at least.
            Some(Mounted::disk(place, args.fs, 2 * data + (1 << 30), speed)?)
        }
    };
    let directory = match (&args.on, &disk) {
        (Some(on), _) => place.directory_in(on)?,
        (None, Some(disk)) => disk.path().to_owned(),
        (None, None) => place.join("work"),
    };
    let ways = match args.ways.is_empty() {
        true => Way::value_variants(),
        false => &args.ways,
    };
    let setting = Setting {
        kernel: rustix::system::uname().release().to_string_lossy().into(),
        file_system: match disk {
            Some(_) => args.fs.name().to_owned(),
            None => format!("{} (as it is)", directory.display()),
        },
        disk_mbps: disk
            .as_ref()
            .map(|_| args.disk_mbps)
            .filter(|speed| *speed > 0),
        mounts: args.mounts,
        megabytes: args.megabytes,
        order: args.order,
    };
    let mut taken = Vec::new();
    for way in ways {
        taken.push(one_way(args, &directory, *way).with_context(|| format!("way {}", way.name()))?);
    }
    Ok(Report::new(setting, taken))
}

/// All mounts, ended in one way.
fn one_way(args: &UnmountArgs, directory: &Path, way: Way) -> Result<Taken> {
    settle(directory)?;
    let place = |name: &str| directory.join(format!("{}-{name}", way.name()));
    let mut overlays = Vec::new();
    for number in 0..args.mounts {
        let overlay = Overlay::make(place(&number.to_string()), way == Way::Volatile)?;
        let Some(overlay) = overlay else {
            return Ok(Taken::impossible(way));
        };
        overlay.fill(args.megabytes)?;
        overlays.push(overlay);
    }
    // Wrote nothing, and is unmounted in the middle of it.
    let bystander = Overlay::make(place("bystander"), way == Way::Volatile)?;
    let mut bystander = bystander.context("mounting the bystander")?;
    let (dirty_before, _) = memory::now();
    let watch = Watch::start();
    let begun = Instant::now();
    let (ended, beside) = match args.order {
        Order::Together => together(&mut overlays, &mut bystander, way),
        Order::Serial => {
            let ended = overlays.iter_mut().map(|one| one.end(way)).collect();
            (ended, end_bystander(&mut bystander, way))
        }
    };
    let total = begun.elapsed();
    let (dirty_after, _) = memory::now();
    let taken = Taken {
        way,
        ended: ended?,
        bystander_ms: beside?.total_ms(),
        total_ms: total.as_secs_f64() * 1000.0,
        dirty_before,
        dirty_after,
        writeback_peak: watch.peak(),
    };
    drop((overlays, bystander));
    Ok(taken)
}

fn together(
    overlays: &mut [Overlay],
    bystander: &mut Overlay,
    way: Way,
) -> (Result<Vec<Ended>>, Result<Ended>) {
    let barrier = Barrier::new(overlays.len() + 1);
    std::thread::scope(|scope| {
        let start = |overlay| {
            let barrier = &barrier;
            move || {
                barrier.wait();
                Overlay::end(overlay, way)
            }
        };
        let threads: Vec<_> = (overlays.iter_mut())
            .map(|overlay| scope.spawn(start(overlay)))
            .collect();
        barrier.wait();
        let beside = end_bystander(bystander, way);
        let joined = |thread: std::thread::ScopedJoinHandle<'_, Result<Ended>>| {
            thread
                .join()
                .unwrap_or_else(|_| Err(anyhow::anyhow!("a thread ended unexpectedly")))
        };
        (threads.into_iter().map(joined).collect(), beside)
    })
}

/// It has nothing to clear.
fn end_bystander(bystander: &mut Overlay, way: Way) -> Result<Ended> {
    bystander.end(match way {
        Way::ClearFirst => Way::Plain,
        other => other,
    })
}

/// Brings everything to the disk, so that what comes is the only thing that is not.
fn settle(directory: &Path) -> Result<()> {
    let file = std::fs::File::open(directory)
        .with_context(|| format!("opening {}", directory.display()))?;
    rustix::fs::syncfs(&file).with_context(|| format!("syncing {}", directory.display()))
}
