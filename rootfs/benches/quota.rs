//! What quota costs the life of a root filesystem.
//!
//! `cargo bench -p garden-rootfs --bench quota` (root, mkfs.btrfs). Makes a btrfs on a file, in a
//! mount namespace of its own, so that it goes with the process; the same store is measured before
//! its quota is switched on and after, and the ratio is what quota costs. With
//! `GARDEN_BENCH_DIR`, a directory on a file system whose quota is on already, only that is
//! measured.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a table is what it is for, and a failure is its end"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use garden_rootfs::{CreateRequest, DiskLimit, Image, ImageSource, Mapping, Store, StoreOptions};
use support::Tar;

const ROUNDS: usize = 300;
const STEPS: [&str; 4] = ["create", "create with a limit", "usage", "destroy"];

/// Medians, in the order of [`STEPS`].
type Medians = [Duration; STEPS.len()];

fn main() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED quota: needs root");
        return;
    }
    if let Some(place) = std::env::var_os("GARDEN_BENCH_DIR") {
        let dir = tempfile::tempdir_in(place).unwrap();
        report(&measure(&dir.path().join("store"), false), None);
        return;
    }
    support::own_mounts();
    let dir = tempfile::tempdir().unwrap();
    let (file, disk) = (dir.path().join("btrfs"), dir.path().join("disk"));
    let made = std::fs::File::create(&file).and_then(|file| file.set_len(4 << 30));
    made.and_then(|()| std::fs::create_dir(&disk)).unwrap();
    let done = |command: &mut Command| command.status().is_ok_and(|status| status.success());
    if !done(
        Command::new("mkfs.btrfs")
            .arg("-q")
            .arg(&file)
            .stdout(Stdio::null()),
    ) {
        println!("SKIPPED quota: needs mkfs.btrfs");
        return;
    }
    let mount = done(
        Command::new("mount")
            .args(["-o", "loop"])
            .args([&file, &disk]),
    );
    assert!(mount, "this kernel mounts no btrfs");
    let without = measure(&disk.join("without"), false);
    let with = measure(&disk.join("with"), true);
    report(&with, Some(&without));
}

/// Many short lives in a store of its own.
fn measure(path: &Path, switch_on: bool) -> Medians {
    let mut options = StoreOptions::new(path);
    options.switch_quota_on = switch_on;
    let store = Store::open(&options).unwrap();
    let tar = path.with_extension("tar");
    std::fs::write(&tar, Tar::default().file("f", "f").done()).unwrap();
    let image = store.import(&ImageSource::Path(tar)).unwrap();
    let mut times = [const { Vec::new() }; STEPS.len()];
    for round in 0..ROUNDS {
        let id = format!("r{round}");
        let bytes = (round % 2 == 1).then_some(64 << 20);
        let begun = Instant::now();
        let mount = create(&store, &image, &id, bytes);
        times[round % 2].push(begun.elapsed());
        let begun = Instant::now();
        store.usage(&id).unwrap();
        times[2].push(begun.elapsed());
        let begun = Instant::now();
        assert!(store.destroy_holding(&id, vec![mount]).unwrap());
        times[3].push(begun.elapsed());
        store.wait_trash_empty(Duration::from_secs(60));
    }
    times.map(|mut times| {
        times.sort();
        times[times.len() / 2]
    })
}

fn create(store: &Store, image: &Image, id: &str, bytes: Option<u64>) -> std::os::fd::OwnedFd {
    let request = CreateRequest {
        id,
        image,
        mapping: Mapping::Host,
        read_only: false,
        limit: DiskLimit {
            bytes,
            ..DiskLimit::default()
        },
    };
    store.create(&request).unwrap().mount
}

fn report(with: &Medians, without: Option<&Medians>) {
    for (step, name) in STEPS.iter().enumerate() {
        let ms = |time: &Medians| time[step].as_secs_f64() * 1000.0;
        match without {
            Some(without) => println!(
                "{name:<20} {:.3} ms with quota, {:.3} without: {:.2} times",
                ms(with),
                ms(without),
                ms(with) / ms(without)
            ),
            None => println!("{name:<20} {:.3} ms", ms(with)),
        }
    }
}
