//! What making a root filesystem of a cached image costs, with its mount in hand: from 1 to 100
//! layers, and beside 0 and 1000 others.
//!
//! ```text
//! cargo bench -p garden-rootfs --bench create            needs root
//! GARDEN_BENCH_DIR=/mnt/x GARDEN_BENCH_PRETEND=descriptors cargo bench ...
//! ```
//!
//! The store is made in `GARDEN_BENCH_DIR` (default: the directory for temporary files) and removed
//! at the end. `GARDEN_BENCH_PRETEND` measures what an older kernel would do.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and has no caller to tell"
)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use garden_rootfs::{
    CreateRequest, DiskLimit, IdRange, Image, ImageSource, Mapping, Pretend, Store, StoreOptions,
};

const RUNS: usize = 300;
const NEIGHBOURS: usize = 1000;

fn main() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED create: needs root");
        return;
    }
    let place = std::env::var_os("GARDEN_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(place).unwrap();
    let without = std::env::var("GARDEN_BENCH_PRETEND").unwrap_or_default();
    let options = StoreOptions {
        pretend: Pretend {
            no_descriptors: without.contains("descriptors"),
            no_mapped_owners: without.contains("mapped-owners"),
            ..Pretend::default()
        },
        ..StoreOptions::new(dir.path().join("store"))
    };
    let store = Store::open(&options).unwrap();
    let host = store.capabilities();
    println!(
        "store on {:?}; by descriptors: {}, mapped owners: {}",
        host.file_system, host.detached_layers, host.mapped_owners
    );
    let images: Vec<_> = [1, 10, 100]
        .map(|layers| image(&store, dir.path(), layers))
        .into();
    // A server trusts what it remembers of layers when none came or went for a second.
    std::thread::sleep(Duration::from_millis(2500));
    for image in &images {
        report(
            &format!("{:>3} layers", image.layers.len()),
            &measure(&store, image),
        );
    }
    let alone = measure(&store, &images[1]);
    for number in 0..NEIGHBOURS {
        let id = format!("neighbour-{number}");
        // Kept mounted, as by a container.
        std::mem::forget(store.create(&request(&id, &images[1])).unwrap().mount);
    }
    let beside = measure(&store, &images[1]);
    report(" 10 layers, beside    0", &alone);
    report(&format!(" 10 layers, beside {NEIGHBOURS}"), &beside);
    for info in store.list().unwrap() {
        store.destroy(&info.id).unwrap();
    }
    store.wait_trash_empty(Duration::from_secs(120));
}

/// Times of creates; what is created goes at once, and its removal is waited for, so that only
/// creates are measured.
fn measure(store: &Store, image: &Image) -> Vec<Duration> {
    let mut times = Vec::with_capacity(RUNS);
    for number in 0..RUNS + 10 {
        let id = format!("bench-{number}");
        let start = Instant::now();
        let rootfs = store.create(&request(&id, image)).unwrap();
        let time = start.elapsed();
        store.destroy_holding(&id, vec![rootfs.mount]).unwrap();
        store.wait_trash_empty(Duration::from_secs(60));
        // The first ones find everything cold.
        if number >= 10 {
            times.push(time);
        }
    }
    times.sort();
    times
}

fn report(what: &str, times: &[Duration]) {
    let at = |part: usize| times[times.len() * part / 100].as_secs_f64() * 1000.0;
    println!(
        "{what}: median {:.3} ms, p10 {:.3}, p95 {:.3}",
        at(50),
        at(10),
        at(95)
    );
}

fn request<'a>(id: &'a str, image: &'a Image) -> CreateRequest<'a> {
    let range = |inside, host, size| IdRange { inside, host, size };
    // As containers have it: root is the highest id, all others are themselves.
    let map = vec![range(0, u32::MAX - 1, 1), range(1, 1, u32::MAX - 2)];
    CreateRequest {
        id,
        image,
        mapping: Mapping::Mapped {
            uid: map.clone(),
            gid: map,
        },
        read_only: false,
        limit: DiskLimit::default(),
    }
}

/// An image of small layers, as a layout.
fn image(store: &Store, dir: &Path, layers: usize) -> Image {
    let path = dir.join(format!("image-{layers}"));
    std::fs::create_dir_all(path.join("blobs/sha256")).unwrap();
    let blob = |bytes: &[u8]| {
        let digest = garden_rootfs::Digest::of(bytes);
        std::fs::write(path.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        (digest.to_string(), bytes.len())
    };
    let described: Vec<_> = (0..layers)
        .map(|number| {
            let mut tar = tar::Builder::new(Vec::new());
            let text = format!("{layers} {number}");
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, format!("file-{number}"), text.as_bytes())
                .unwrap();
            let (digest, size) = blob(&tar.into_inner().unwrap());
            serde_json::json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": digest,
                "size": size,
            })
        })
        .collect();
    let diff_ids: Vec<_> = described
        .iter()
        .map(|layer| layer["digest"].clone())
        .collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let (digest, size) = blob(config.to_string().as_bytes());
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest,
            "size": size,
        },
        "layers": described,
    });
    let (digest, size) = blob(manifest.to_string().as_bytes());
    let index = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest,
            "size": size,
        }],
    });
    std::fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    std::fs::write(path.join("index.json"), index.to_string()).unwrap();
    let source = ImageSource::OciLayout {
        path,
        reference: None,
    };
    store.import(&source).unwrap()
}
