//! How long opening a store takes, whatever is in it.
//!
//! `cargo bench -p garden-rootfs --bench open` (root). A store with a thousand root filesystems is
//! opened as a server and as a tool; then all of them are made to be of another boot, so that
//! opening finds a thousand things to take away, and it serves while it does.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a table is what it is for, and a failure is its end"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use garden_rootfs::{CreateRequest, DiskLimit, Image, Mapping, Role, Store, StoreOptions};
use support::{Place, Tar};

const MANY: usize = 1000;

fn open(dir: &Path, role: Role) -> (Store, Duration) {
    let mut options = StoreOptions::new(dir.join("store"));
    options.role = role;
    let since = Instant::now();
    let store = Store::open(&options).unwrap();
    (store, since.elapsed())
}

fn request<'a>(id: &'a str, image: &'a Image) -> CreateRequest<'a> {
    CreateRequest {
        id,
        image,
        mapping: Mapping::Host,
        read_only: false,
        limit: DiskLimit::default(),
    }
}

/// The median of some.
fn median(mut once: impl FnMut() -> Duration) -> f64 {
    let mut times: Vec<_> = (0..21).map(|_| once()).collect();
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1000.0
}

fn main() {
    let Some(mut place) = Place::with_mounts("open") else {
        return;
    };
    let image = place.import("base.tar", &Tar::default().file("f", "f").done());
    let image = image.unwrap();

    let times = |place: &mut Place, what: &str| {
        place.store = None;
        let dir = place.dir.path().to_owned();
        let server = median(|| open(&dir, Role::Server).1);
        let tool = median(|| open(&dir, Role::Tool).1);
        println!("{what:<40} server {server:.3} ms, tool {tool:.3} ms");
        place.reopen();
    };
    times(&mut place, "empty");
    for number in 0..MANY {
        let id = format!("r{number}");
        place.store().create(&request(&id, &image)).unwrap();
    }
    times(&mut place, "1000 root filesystems");
    place.store = None;
    for number in 0..MANY {
        let record = place.path(&format!("store/rootfs/r{number}/record.json"));
        let text = std::fs::read_to_string(&record).unwrap();
        let text = text.replacen("\"boot\":\"", "\"boot\":\"another-", 1);
        std::fs::write(&record, text).unwrap();
    }
    let (store, opened) = open(place.dir.path(), Role::Server);
    let since = Instant::now();
    let rootfs = store.create(&request("r999", &image)).unwrap();
    let served = since.elapsed();
    assert_eq!(store.list().unwrap().len(), 1);
    assert!(store.wait_trash_empty(Duration::from_secs(600)));
    println!(
        "{:<40} server {:.3} ms, a create then {:.3} ms, all gone after {:.0} ms",
        "1000 root filesystems of another boot",
        opened.as_secs_f64() * 1000.0,
        served.as_secs_f64() * 1000.0,
        since.elapsed().as_secs_f64() * 1000.0
    );
    drop(rootfs);
    place.store = Some(store);
}
