//! Collection on the real kernel: what goes, what stays, what is said about it.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "only for tests")]

mod support;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use garden_rootfs::{
    CollectPolicy, CreateRequest, DiskLimit, Error, Image, ImageSource, Mapping, Outcome, Role,
    Rootfs, Space, Store, WaterMarks,
};
use support::{Layout, Place, Tar, read};

const KB: usize = 1 << 10;

/// An image with one layer of its own, of so many KiB, above a common one.
fn image(place: &Place, name: &str, kilobytes: usize) -> Image {
    let common = Tar::default().file("common", "c").done();
    let own = Tar::default()
        .file(name, &"x".repeat(kilobytes * KB))
        .done();
    let layout = Layout::new(place.path(name)).layer(&common).layer(&own);
    place.store().import(&layout.done()).unwrap()
}

/// Says when an image was used last.
fn used_ago(place: &Place, image: &Image, ago: Duration) {
    let record = place
        .path("store/images")
        .join(format!("{}.json", image.id.hex()));
    let file = File::options().write(true).open(record).unwrap();
    file.set_modified(SystemTime::now() - ago).unwrap();
    for layer in &image.layers {
        let layer = File::open(place.path("store/layers").join(&layer.key)).unwrap();
        layer.set_modified(SystemTime::now() - ago).unwrap();
    }
}

fn create(store: &Store, id: &str, image: &Image) -> garden_rootfs::Result<Rootfs> {
    store.create(&CreateRequest {
        id,
        image,
        mapping: Mapping::Host,
        read_only: false,
        limit: DiskLimit::default(),
    })
}

/// The images in the store, by their sources' last names.
fn names(place: &Place) -> Vec<String> {
    let mut names: Vec<_> = (place.store().list_images().unwrap().iter())
        .map(|info| info.image.source.rsplit('/').next().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn what_is_unused_goes_and_the_rest_stays() {
    let Some(mut place) = Place::with_mounts("what_is_unused_goes_and_the_rest_stays") else {
        return;
    };
    let used = image(&place, "used", 1);
    let pinned = image(&place, "pinned", 1);
    let unused = image(&place, "unused", 1);
    let rootfs = create(place.store(), "r", &used).unwrap();
    place.store().pin(pinned.id).unwrap();
    // What was imported just now is still held.
    let report = place.store().collect(&CollectPolicy::unused()).unwrap();
    assert!(report.images.is_empty(), "{report:?}");
    place.reopen();
    let young = CollectPolicy {
        min_age: Duration::from_secs(3600),
        ..CollectPolicy::unused()
    };
    let report = place.store().collect(&young).unwrap();
    assert!(
        report.images.is_empty() && report.kept.young >= 3,
        "{report:?}"
    );
    let report = place.store().collect(&CollectPolicy::unused()).unwrap();
    assert_eq!(report.outcome, Outcome::Collected, "{report:?}");
    assert_eq!(report.images, [unused.id]);
    assert_eq!(report.layers, [unused.layers[1].key.clone()]);
    assert_eq!(report.collected_bytes, KB as u64);
    assert_eq!((report.kept.used_images, report.kept.pinned_images), (1, 1));
    assert_eq!(names(&place), ["pinned", "used"]);
    assert!(read(&rootfs.mount, "used").starts_with("xx"));
    // Not a name any more: a create says what to do.
    let error = create(place.store(), "s", &unused).unwrap_err();
    assert!(error.to_string().contains("import it again"), "{error}");
    // Now nothing uses them.
    place.store().destroy("r").unwrap();
    assert!(place.store().unpin(pinned.id).unwrap());
    assert!(!place.store().unpin(pinned.id).unwrap());
    let report = place.store().collect(&CollectPolicy::unused()).unwrap();
    assert_eq!(report.images.len(), 2, "{report:?}");
    assert_eq!(report.layers.len(), 3, "{report:?}");
    place.assert_nothing_left(0);
    let again = image(&place, "unused", 1);
    assert_eq!(again, unused);
}

#[test]
fn the_least_recently_used_go_first() {
    let Some(mut place) = Place::new("the_least_recently_used_go_first") else {
        return;
    };
    let hour = Duration::from_secs(3600);
    for (at, name) in ["third", "first", "fourth", "second"].iter().enumerate() {
        let ago = [3, 5, 2, 4][at];
        let made = image(&place, name, 100);
        used_ago(&place, &made, hour * ago);
    }
    place.reopen();
    let all = 400 * KB as u64 + 1;
    let threshold = |bytes| CollectPolicy {
        free: None,
        threshold_bytes: Some(bytes),
        everything: false,
        min_age: hour / 2,
    };
    let report = place.store().collect(&threshold(all + 1)).unwrap();
    assert_eq!(report.outcome, Outcome::NotNeeded);
    assert_eq!(report.committed_bytes, all);
    assert!(
        report.to_string().contains("nothing was collected"),
        "{report}"
    );
    let report = place.store().collect(&threshold(all)).unwrap();
    assert_eq!(report.outcome, Outcome::Collected, "{report:?}");
    assert_eq!(names(&place), ["fourth", "second", "third"]);
    let report = place.store().collect(&threshold(150 * KB as u64)).unwrap();
    assert_eq!(report.outcome, Outcome::Collected, "{report:?}");
    assert_eq!(names(&place), ["fourth"]);
    // A use counts, whatever the order of imports.
    let first = image(&place, "first", 100);
    used_ago(&place, &first, hour * 3);
    let fourth = image(&place, "fourth", 100);
    place.reopen();
    let report = place.store().collect(&threshold(150 * KB as u64)).unwrap();
    assert_eq!(report.images, [first.id], "{report:?}");
    used_ago(&place, &fourth, hour);
    // More than there is.
    let report = place.store().collect(&threshold(0)).unwrap();
    assert_eq!(report.outcome, Outcome::NothingMore, "{report:?}");
    assert!(names(&place).is_empty());
    place.assert_nothing_left(0);
}

#[test]
fn promised_quotas_count_towards_the_threshold() {
    let test = "promised_quotas_count_towards_the_threshold";
    let Some(place) = Place::with_mounts(test) else {
        return;
    };
    let one = image(&place, "one", 1);
    let mut request = CreateRequest {
        id: "limited",
        image: &one,
        mapping: Mapping::Host,
        read_only: false,
        limit: DiskLimit {
            bytes: Some(1 << 20),
            ..DiskLimit::default()
        },
    };
    let limited = place.store().create(&request).unwrap();
    request.id = "unlimited";
    request.limit = DiskLimit::default();
    let unlimited = place.store().create(&request).unwrap();
    let threshold = CollectPolicy {
        free: None,
        threshold_bytes: Some(1 << 30),
        ..CollectPolicy::default()
    };
    let report = place.store().collect(&threshold).unwrap();
    // The limit is one of image and writes together.
    assert_eq!(report.committed_bytes, 1 << 20);
    drop((limited, unlimited));
}

#[test]
fn images_that_share_everything_go_together_or_not_at_all() {
    let Some(mut place) = Place::new("images_that_share_everything_go_together_or_not_at_all")
    else {
        return;
    };
    let hour = Duration::from_secs(3600);
    let tar = Tar::default().file("f", &"x".repeat(100 * KB)).done();
    // The same content, in two files that are two images, and one that has nothing to do with it.
    let a = place.import("a", &tar).unwrap();
    let b = place.import("b", &tar).unwrap();
    let c = image(&place, "c", 100);
    assert!(a.layers == b.layers && a.id != b.id);
    for (image, ago) in [(&a, 9), (&c, 8), (&b, 7)] {
        used_ago(&place, image, hour * ago);
    }
    place.reopen();
    let policy = |bytes: usize| CollectPolicy {
        free: None,
        threshold_bytes: Some(bytes as u64),
        everything: false,
        min_age: hour,
    };
    // Giving up the oldest sets nothing free, so it stays.
    let report = place.store().collect(&policy(150 * KB)).unwrap();
    assert_eq!(report.images, [c.id], "{report:?}");
    assert_eq!(report.kept.shared_images, 1);
    let report = place.store().collect(&policy(50 * KB)).unwrap();
    assert_eq!(report.images, [a.id, b.id], "{report:?}");
    place.assert_nothing_left(0);
}

#[test]
fn a_bad_record_is_told_and_not_obeyed() {
    let Some(mut place) = Place::with_mounts("a_bad_record_is_told_and_not_obeyed") else {
        return;
    };
    let (used, bad, unused) = (
        image(&place, "used", 1),
        image(&place, "bad", 1),
        image(&place, "unused", 1),
    );
    let rootfs = create(place.store(), "r", &used).unwrap();
    place.reopen();
    assert!(place.store().wait_trash_empty(Duration::from_secs(60)));
    let record = place.path("store/rootfs/r/record.json");
    let text = std::fs::read_to_string(&record).unwrap();
    std::fs::write(&record, format!("{{{text}")).unwrap();
    let record = place
        .path("store/images")
        .join(format!("{}.json", bad.id.hex()));
    std::fs::write(&record, "{").unwrap();
    std::fs::create_dir(place.path("store/rootfs/empty")).unwrap();
    let report = place.store().collect(&CollectPolicy::unused()).unwrap();
    let mut told: Vec<_> = report
        .problems
        .iter()
        .map(|told| told.object.clone())
        .collect();
    told.sort();
    let expected = format!("images/{}.json", bad.id.hex());
    assert_eq!(
        told,
        [expected.as_str(), "rootfs/empty", "rootfs/r"],
        "{report:?}"
    );
    // The record of the root filesystem is damaged, and still says what it needs.
    assert!(report.images.contains(&unused.id));
    assert!(report.layers.contains(&bad.layers[1].key));
    assert!(report.layers.contains(&unused.layers[1].key));
    assert!(read(&rootfs.mount, "used").starts_with("xx"));
    assert!(place.tree(&used.layers[1].key).join("used").exists());
}

/// A place without a store, and where a disk for one can be.
fn without_store(test: &str) -> Option<(Place, PathBuf)> {
    let mut place = Place::with_mounts(test)?;
    place.store = None;
    let path = place.path("disk");
    Some((place, path))
}

/// A small disk in memory, gone with its last user.
struct Disk<'a>(&'a Path);

impl<'a> Disk<'a> {
    /// One of 16 MiB; `None`, with a message, when it cannot be mounted.
    fn small(test: &str, path: &'a Path) -> Option<Self> {
        std::fs::create_dir_all(path).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        let options = Some(c"size=16m,mode=0700");
        if rustix::mount::mount("tmpfs", path, "tmpfs", flags, options).is_err() {
            println!("SKIPPED {test}: cannot mount a tmpfs");
            return None;
        }
        Some(Self(path))
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_create_without_space_makes_room_once() {
    let test = "a_create_without_space_makes_room_once";
    let Some((place, path)) = without_store(test) else {
        return;
    };
    let Some(disk) = Disk::small(test, &path) else {
        return;
    };
    for role in [Role::Server, Role::Tool] {
        let mut options = Place::options(&path);
        options.role = role;
        // By itself it would collect what is to be collected by the create.
        options.collect = None;
        let source = |name: &str, kilobytes: usize| {
            let tar = place.path(name);
            let text = "x".repeat(kilobytes * KB);
            std::fs::write(&tar, Tar::default().file(name, &text).done()).unwrap();
            ImageSource::Path(tar)
        };
        let store = Store::open(&options).unwrap();
        let small = store.import(&source("small", 1)).unwrap();
        let large = store.import(&source("large", 8 << 10)).unwrap();
        drop(store);
        let store = Store::open(&options).unwrap();
        let used = create(&store, "used", &small).unwrap();
        let fill = path.join("fill");
        let full = std::io::copy(&mut std::io::repeat(1), &mut File::create(&fill).unwrap());
        assert_eq!(full.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
        let rootfs = create(&store, "more", &small).unwrap();
        assert!(read(&rootfs.mount, "small").starts_with("xx"));
        assert!(
            !store
                .list_images()
                .unwrap()
                .iter()
                .any(|info| info.image == large)
        );
        let full = std::io::copy(&mut std::io::repeat(1), &mut File::create(&fill).unwrap());
        assert_eq!(full.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
        let mut last = None;
        for number in 0..100 {
            match create(&store, &format!("fail-{number}"), &small) {
                Ok(rootfs) => last = Some(rootfs),
                Err(error) => {
                    assert!(matches!(error, Error::StoreFull { .. }), "{error:?}");
                    assert!(error.to_string().contains("make room"), "{error}");
                    last = None;
                    break;
                }
            }
        }
        assert!(last.is_none(), "the disk was never full");
        std::fs::remove_file(&fill).unwrap();
        drop((used, rootfs));
        for rootfs in store.list().unwrap() {
            store.destroy(&rootfs.id).unwrap();
        }
        store.maintain().unwrap();
        assert!(store.wait_trash_empty(Duration::from_secs(60)));
    }
    drop(disk);
}

#[test]
fn an_import_without_space_makes_room_while_it_can() {
    let test = "an_import_without_space_makes_room_while_it_can";
    let Some((place, path)) = without_store(test) else {
        return;
    };
    let Some(disk) = Disk::small(test, &path) else {
        return;
    };
    let source = |name: &str, kilobytes: usize| {
        let tar = place.path(name);
        let text = name.repeat(kilobytes * KB / name.len());
        std::fs::write(&tar, Tar::default().file(name, &text).done()).unwrap();
        ImageSource::Path(tar)
    };
    for role in [Role::Server, Role::Tool] {
        let mut options = Place::options(&path);
        options.role = role;
        options.collect = None;
        let store = Store::open(&options).unwrap();
        let kept = store.import(&source("kept", 4 << 10)).unwrap();
        let used = create(&store, "used", &kept).unwrap();
        for number in 0..4 {
            store
                .import(&source(&format!("old-{number}"), 2 << 10))
                .unwrap();
        }
        // Nobody has just imported anything.
        drop(store);
        let store = Store::open(&options).unwrap();
        let large = store.import(&source("large", 9 << 10)).unwrap();
        let images = store.list_images().unwrap();
        assert!(images.iter().any(|info| info.image == large));
        assert!(images.iter().any(|info| info.image == kept));
        assert!(images.len() < 6, "{images:?}");
        let error = store.import(&source("larger", 14 << 10)).unwrap_err();
        assert!(matches!(error, Error::StoreFull { .. }), "{error:?}");
        assert!(read(&used.mount, "kept").starts_with("kept"));
        drop(used);
        assert!(store.destroy("used").unwrap());
        store.collect(&CollectPolicy::unused()).unwrap();
        store.maintain().unwrap();
        assert!(store.wait_trash_empty(Duration::from_secs(60)));
    }
    drop(disk);
}

#[test]
fn a_server_makes_room_by_itself() {
    let test = "a_server_makes_room_by_itself";
    let Some((place, path)) = without_store(test) else {
        return;
    };
    let Some(disk) = Disk::small(test, &path) else {
        return;
    };
    let mut options = Place::options(&path);
    options.role = Role::Tool;
    let store = Store::open(&options).unwrap();
    let tar = place.path("tar");
    std::fs::write(&tar, Tar::default().file("f", &"x".repeat(9 << 20)).done()).unwrap();
    store.import(&ImageSource::Path(tar)).unwrap();
    drop(store);
    options.role = Role::Server;
    options.collect = Some(CollectPolicy {
        free: Some(WaterMarks {
            low: Space::Percent(50),
            high: Space::Percent(60),
        }),
        min_age: Duration::ZERO,
        ..CollectPolicy::default()
    });
    let store = Store::open(&options).unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(120);
    while !(store.list_images().unwrap().is_empty() && store.list_layers().is_empty()) {
        assert!(std::time::Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(store.wait_trash_empty(Duration::from_secs(60)));
    drop(store);
    drop(disk);
}
