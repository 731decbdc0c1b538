//! The measuring process of a run: hosts a server, drives the instances, and shows the figures.
//!
//! It stops in good order on SIGINT, SIGTERM, and when the guard is gone (its stdin ends); what is
//! left then, and whatever it could not remove, the guard or the next run removes.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use garden::client::Client;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use super::instance::{Common, Healthy, Pending};
use super::report::{Report, Setting};
use super::stages::Record;
use super::{Mode, ScaleArgs, Teardown, Unmount, images};
use crate::commands::{print, print_json};
use crate::host;
use crate::lab::blocking;
use crate::lab::disk::{FileSystem, Mounted};
use crate::lab::place::Place;

/// How often the server is asked what it still has to clean up.
const SAMPLE: Duration = Duration::from_millis(10);
const MEGABYTE: u64 = 1_000_000;

/// Measures; returns the exit code.
pub(super) async fn run(args: ScaleArgs, place: Place) -> Result<u8> {
    let outcome = in_place(&args, &place).await;
    blocking(move || place.remove()).await?;
    match outcome? {
        Ended::Measured(report) => {
            if args.json {
                print_json(&report)?;
            } else {
                print(&report.text())?;
            }
            Ok(0)
        }
        Ended::Stopped(code) => Ok(code),
    }
}

enum Ended {
    Measured(Report),
    /// By a signal, or because the guard is gone.
    Stopped(u8),
}

async fn in_place(args: &ScaleArgs, place: &Place) -> Result<Ended> {
    // Before anything is there that a signal would leave behind.
    let stop = Stop::listen()?;
    let (mount, speed, size) = (place.clone(), args.disk_mbps, disk_size(args));
    let mounted = blocking(move || -> Result<_> {
        let records = Mounted::runtime_directory(&mount)?;
        let disk = speed.map(|speed| Mounted::disk(&mount, FileSystem::Ext4, size, Some(speed)));
        Ok((records, disk.transpose()?))
    });
    let (records, disk) = mounted.await??;
    let store = match &disk {
        Some(disk) => disk.path().join("store"),
        None => place.join("store"),
    };
    let ended = hosted(args, place, records.path(), &store, stop).await;
    blocking(move || drop((records, disk))).await?;
    ended
}

/// Room for every app twice, as a tar and unpacked, and for what else there is. Only what is
/// written takes room on the host.
fn disk_size(args: &ScaleArgs) -> u64 {
    let each = u64::from(args.app_mb) * 2 + u64::from(args.check_mb);
    (u64::from(args.instances) * each + 4_000) * MEGABYTE
}

async fn hosted(
    args: &ScaleArgs,
    place: &Place,
    records: &Path,
    store: &Path,
    mut stop: Stop,
) -> Result<Ended> {
    let socket = records.join("garden.sock");
    let host = host::start(host::Options {
        socket: socket.clone(),
        runtime_dir: records.to_owned(),
        store: store.to_owned(),
        tag: Some(place.tag().to_owned()),
        inline_teardown: args.teardown == Teardown::Inline,
        sync_unmount: args.unmount == Unmount::Sync,
    });
    let host = host.await.context("starting a server for the run")?;
    let ended = tokio::select! {
        report = scale(args, place, Client::new(&socket)) => report.map(Ended::Measured),
        code = stop.wait() => Ok(Ended::Stopped(code)),
    };
    // With the instances that were under way; what fails is left to the place's own removal.
    host.stop_and_destroy().await;
    ended
}

async fn scale(args: &ScaleArgs, place: &Place, client: Client) -> Result<Report> {
    let (wanted, own) = (args.clone(), place.clone());
    let (image, checker, app) = blocking(move || prepare(&wanted, &own)).await??;
    let (sender, pending) = watch::channel(Pending {
        asked: Instant::now(),
        peas: Vec::new(),
    });
    let sampler = tokio::spawn(sample(client.clone(), sender));
    let mut common = Common {
        client,
        record: Record::start(),
        image,
        checker,
        check_mb: args.check_mb,
        app,
        pending,
    };
    common.warm_up().await.context("warming up")?;
    common.record = Record::start();
    let common = Arc::new(common);
    let instances = usize::from(args.instances);
    let healthy = each(instances, |number| {
        let common = Arc::clone(&common);
        async move {
            let healthy = common.bring_up(number).await?;
            common.torn_down(number, &healthy).await?;
            Ok(healthy)
        }
    });
    let healthy: Arc<Vec<Healthy>> = Arc::new(healthy.await?);
    let checks = healthy.iter().map(|one| one.checks).sum();
    each(instances, |number| {
        let (common, healthy) = (Arc::clone(&common), Arc::clone(&healthy));
        async move { common.destroy(number, &healthy[number].handle).await }
    })
    .await?;
    sampler.abort();
    Ok(Report::new(setting(args), common.record.spans(), checks))
}

/// Runs something for every instance at once; returns the results in the order of the instances,
/// or the first failure.
async fn each<T, F>(instances: usize, run: impl Fn(usize) -> F) -> Result<Vec<T>>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    for number in 0..instances {
        let one = run(number);
        tasks.spawn(async move {
            let result = one.await;
            result
                .map(|result| (number, result))
                .with_context(|| format!("instance {number}"))
        });
    }
    let mut results = Vec::with_capacity(instances);
    while let Some(result) = tasks.join_next().await {
        results.push(result.context("an instance's task")??);
    }
    results.sort_by_key(|(number, _)| *number);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

/// Keeps looking at the server's queue of teardowns; one for all instances, to weigh little.
async fn sample(client: Client, sender: watch::Sender<Pending>) {
    loop {
        let asked = Instant::now();
        if let Ok(status) = client.teardown().await {
            let peas = status.jobs.into_iter().filter_map(|job| job.pea);
            let pending = Pending {
                asked,
                peas: peas.collect(),
            };
            if sender.send(pending).is_err() {
                return;
            }
        }
        tokio::time::sleep(SAMPLE).await;
    }
}

/// Makes the images; returns that of the containers, that of the checks, and the app to stream.
fn prepare(args: &ScaleArgs, place: &Place) -> Result<(String, String, Option<Bytes>)> {
    let base = images::base_tar()?;
    let checker = place.join("base.tar");
    fs::write(&checker, &base).with_context(|| format!("writing {}", checker.display()))?;
    let checker = checker.display().to_string();
    let megabytes = usize::from(args.app_mb);
    Ok(match args.mode {
        Mode::Stream => {
            let app = images::app_tar("", megabytes)?;
            (checker.clone(), checker, Some(Bytes::from(app)))
        }
        Mode::Layer => {
            let layout = place.join("app");
            images::write_layout(&layout, &base, megabytes)?;
            (format!("oci://{}", layout.display()), checker, None)
        }
    })
}

fn setting(args: &ScaleArgs) -> Setting {
    Setting {
        instances: usize::from(args.instances),
        app_mb: usize::from(args.app_mb),
        mode: match args.mode {
            Mode::Stream => "stream",
            Mode::Layer => "layer",
        },
        teardown: match args.teardown {
            Teardown::Async => "async",
            Teardown::Inline => "inline",
        },
        unmount: match args.unmount {
            Unmount::Volatile => "volatile",
            Unmount::Sync => "sync",
        },
        disk_mbps: args.disk_mbps,
    }
}

/// What ends a run early.
struct Stop {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    guard_gone: oneshot::Receiver<()>,
}

impl Stop {
    fn listen() -> Result<Self> {
        let (gone, guard_gone) = oneshot::channel();
        // A thread of its own, which nobody joins: a read cannot be called off.
        std::thread::Builder::new()
            .name("guard-watch".to_owned())
            .spawn(move || {
                let _ = std::io::stdin().read_to_end(&mut Vec::new());
                let _ = gone.send(());
            })?;
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            guard_gone,
        })
    }

    /// Waits for the end; returns the exit code that tells of it.
    async fn wait(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 130,
            _ = self.terminate.recv() => 143,
            _ = &mut self.guard_gone => 143,
        }
    }
}
