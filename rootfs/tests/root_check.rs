//! Checking and repairing stores with something wrong in each place.

#![allow(clippy::unwrap_used, reason = "only for tests")]

mod support;

use std::fs::File;
use std::time::Duration;

use garden_rootfs::{
    CreateRequest, DiskLimit, FindingKind, Image, Mapping, Repair, Repaired, Role, Rootfs, Store,
};
use rustix::fs::FlockOperation;
use support::{Layout, Place, Tar, read};

fn image(place: &Place, name: &str) -> Image {
    let common = Tar::default()
        .dir("etc", 0o755, (0, 0))
        .file("etc/common", "c")
        .done();
    let own = Tar::default().file(name, "own").done();
    let layout = Layout::new(place.path(name)).layer(&common).layer(&own);
    place.store().import(&layout.done()).unwrap()
}

fn create(place: &Place, id: &str, image: &Image) -> Rootfs {
    let request = CreateRequest {
        id,
        image,
        mapping: Mapping::Host,
        read_only: false,
        limit: DiskLimit::default(),
    };
    place.store().create(&request).unwrap()
}

/// What a check finds: kinds and objects, sorted by object.
fn found(store: &Store, repair: Repair) -> Vec<(FindingKind, String, Repaired)> {
    let report = store.check(repair).unwrap();
    let mut found: Vec<_> = (report.findings.into_iter())
        .map(|finding| {
            assert!(!finding.text.is_empty());
            (finding.kind, finding.object, finding.repaired)
        })
        .collect();
    found.sort_by(|a, b| a.1.cmp(&b.1));
    found
}

/// Asserts that a check finds these things, mends all of them, and then finds nothing.
fn assert_mended(place: &mut Place, expected: &[(FindingKind, String)]) {
    // Whoever imported just now still holds what it imported.
    place.reopen();
    assert!(place.store().wait_trash_empty(Duration::from_secs(60)));
    let told = found(place.store(), Repair::No);
    let kinds: Vec<_> = told
        .iter()
        .map(|found| (found.0, found.1.clone()))
        .collect();
    assert_eq!(kinds, expected);
    assert!(
        told.iter().all(|found| found.2 == Repaired::NotAsked),
        "{told:?}"
    );
    let mended = found(place.store(), Repair::Yes);
    for (_, object, repaired) in &mended {
        assert!(
            matches!(repaired, Repaired::Done(_)),
            "{object}: {repaired:?}"
        );
    }
    assert_eq!(found(place.store(), Repair::No), []);
    assert!(place.store().wait_trash_empty(Duration::from_secs(60)));
}

#[test]
fn a_sound_store_has_no_findings() {
    let Some(mut place) = Place::with_mounts("a_sound_store_has_no_findings") else {
        return;
    };
    let (one, _) = (image(&place, "one"), image(&place, "two"));
    let _rootfs = create(&place, "r", &one);
    let report = place.store().check(Repair::Yes).unwrap();
    assert!(
        report.is_sound() && report.findings.is_empty(),
        "{report:?}"
    );
    assert_eq!((report.layers, report.images, report.rootfs), (3, 2, 1));
    assert_mended(&mut place, &[]);
}

#[test]
fn bad_records_of_layers_and_images() {
    let Some(mut place) = Place::new("bad_records_of_layers_and_images") else {
        return;
    };
    let (one, two, three) = (
        image(&place, "one"),
        image(&place, "two"),
        image(&place, "three"),
    );
    place.reopen();
    assert!(place.store().wait_trash_empty(Duration::from_secs(60)));
    let layer = |image: &Image, at: usize| {
        let key = image.layers[at].key.clone();
        (
            place.path("store/layers").join(&key),
            format!("layers/{key}"),
        )
    };
    let record = |image: &Image| {
        let name = format!("{}.json", image.id.hex());
        (
            place.path("store/images").join(&name),
            format!("images/{name}"),
        )
    };
    // A layer without its record, one without its tree, an image that is no image.
    let (path, first) = layer(&one, 1);
    std::fs::write(path.join("record.json"), "").unwrap();
    let (path, second) = layer(&two, 1);
    std::fs::remove_dir_all(path.join("tree")).unwrap();
    let (path, third) = record(&three);
    std::fs::write(path, "[]").unwrap();
    let told = found(place.store(), Repair::No);
    let mut expected = vec![
        (FindingKind::BadLayer, first, Repaired::NotAsked),
        (FindingKind::BadLayer, second, Repaired::NotAsked),
        (
            FindingKind::IncompleteImage,
            record(&one).1,
            Repaired::NotAsked,
        ),
        (
            FindingKind::IncompleteImage,
            record(&two).1,
            Repaired::NotAsked,
        ),
        (FindingKind::BadImage, third, Repaired::NotAsked),
    ];
    expected.sort_by(|a, b| a.1.cmp(&b.1));
    assert_eq!(told, expected);
    let report = place.store().check(Repair::Yes).unwrap();
    assert!(report.is_sound(), "{report:?}");
    assert_mended(&mut place, &[]);
    // The next use makes them again.
    assert_eq!((image(&place, "one"), image(&place, "two")), (one, two));
    assert_eq!(image(&place, "three"), three);
    place.assert_nothing_left(4);
}

#[test]
fn a_damaged_layer_is_imported_again() {
    let Some(mut place) = Place::new("a_damaged_layer_is_imported_again") else {
        return;
    };
    let (one, two) = (image(&place, "one"), image(&place, "two"));
    let (common, own) = (&one.layers[0].key, &two.layers[1].key);
    // One byte, of the layer that both images have; and a file more in that of one of them.
    std::fs::write(place.tree(common).join("etc/common"), "d").unwrap();
    std::fs::write(place.tree(own).join("more"), "").unwrap();
    let mut expected =
        [common, own].map(|key| (FindingKind::DamagedLayer, format!("layers/{key}")));
    expected.sort_by(|a, b| a.1.cmp(&b.1));
    let report = place.store().check(Repair::No).unwrap();
    let texts: Vec<_> = report.findings.iter().map(|found| &*found.text).collect();
    assert!(
        texts.iter().any(|text| text.contains("etc/common")),
        "{texts:?}"
    );
    assert!(texts.iter().any(|text| text.contains("more")), "{texts:?}");
    assert_mended(&mut place, &expected);
    assert_eq!((image(&place, "one"), image(&place, "two")), (one, two));
    let report = place.store().check(Repair::No).unwrap();
    assert!(report.is_sound() && report.layers == 3, "{report:?}");
    place.assert_nothing_left(3);
}

#[test]
fn what_died_in_the_middle_is_found() {
    let Some(mut place) = Place::new("what_died_in_the_middle_is_found") else {
        return;
    };
    image(&place, "one");
    place.reopen();
    assert!(place.store().wait_trash_empty(Duration::from_secs(60)));
    for name in ["tmp/dead", "tmp/alive", "locks"] {
        std::fs::create_dir_all(place.path("store").join(name)).unwrap();
    }
    std::fs::write(place.path("store/locks/dead"), "").unwrap();
    std::fs::write(place.path("store/locks/alive"), "").unwrap();
    let held: Vec<_> = ["tmp/alive", "locks/alive"]
        .map(|name| File::open(place.path("store").join(name)).unwrap())
        .into();
    for file in &held {
        rustix::fs::flock(file, FlockOperation::LockExclusive).unwrap();
    }
    let expected = ["locks/dead", "tmp/dead"];
    let told = found(place.store(), Repair::No);
    let objects: Vec<_> = told.iter().map(|found| &*found.1).collect();
    assert_eq!(objects, expected);
    assert!(told.iter().all(|found| found.0 == FindingKind::Leftover));
    found(place.store(), Repair::Yes);
    assert_eq!(found(place.store(), Repair::No), []);
    assert!(place.path("store/tmp/alive").exists() && place.path("store/locks/alive").exists());
    drop(held);
    // A start finds the rest by itself.
    assert_mended(&mut place, &[]);
    place.assert_nothing_left(2);
}

#[test]
fn what_runs_is_not_touched() {
    let Some(mut place) = Place::with_mounts("what_runs_is_not_touched") else {
        return;
    };
    let one = image(&place, "one");
    let rootfs = create(&place, "r", &one);
    let _other = create(&place, "s", &one);
    place.reopen();
    assert!(place.store().wait_trash_empty(Duration::from_secs(60)));
    let key = &one.layers[1].key;
    let layer = place.path("store/layers").join(key);
    std::fs::write(layer.join("record.json"), "{").unwrap();
    std::fs::write(place.path("store/rootfs/s/record.json"), "{").unwrap();
    let left = found(place.store(), Repair::Yes);
    let kinds: Vec<_> = left.iter().map(|found| found.0).collect();
    let layer_object = format!("layers/{key}");
    assert!(kinds.contains(&FindingKind::BadLayer) && kinds.contains(&FindingKind::BadRootfs));
    assert!(kinds.contains(&FindingKind::IncompleteRootfs), "{left:?}");
    for (kind, object, repaired) in &left {
        if *kind == FindingKind::IncompleteImage {
            continue;
        }
        let Repaired::Left(why) = repaired else {
            panic!("{object} was touched: {repaired:?}");
        };
        assert!(why.contains("destroy"), "{object}: {why}");
        if *object == layer_object {
            assert!(why.contains(" r"), "{why}");
        }
    }
    assert!(layer.join("tree/one").exists());
    assert_eq!(read(&rootfs.mount, "one"), "own");
    // When they are gone, it goes as well.
    place.store().destroy("r").unwrap();
    place.store().destroy("s").unwrap();
    let report = place.store().check(Repair::Yes).unwrap();
    assert!(report.is_sound(), "{report:?}");
    assert_mended(&mut place, &[]);
}

#[test]
fn mounts_that_belong_to_nothing_are_detached() {
    let test = "mounts_that_belong_to_nothing_are_detached";
    let Some(mut place) = Place::with_mounts(test) else {
        return;
    };
    let one = image(&place, "one");
    drop(create(&place, "live", &one));
    place.reopen();
    assert!(place.store().wait_trash_empty(Duration::from_secs(60)));
    let table = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let outside = place.path("outside");
    std::fs::create_dir_all(outside.join("inner")).unwrap();
    std::fs::write(outside.join("file"), "kept").unwrap();
    let mut paths = Vec::new();
    for name in ["tmp/dead", "rootfs/live/rootfs"] {
        let path = place.path("store").join(name).join("a mount");
        std::fs::create_dir_all(&path).unwrap();
        rustix::mount::mount_bind(&outside, &path).unwrap();
        rustix::mount::mount_bind(&outside, path.join("inner")).unwrap();
        paths.push(path);
    }
    // Escaped in the table, and the inner ones below the outer ones.
    let report = place.store().check(Repair::No).unwrap();
    let leaked = (report.findings.iter())
        .filter(|finding| finding.kind == FindingKind::LeakedMount)
        .count();
    assert_eq!(leaked, 2, "{report:?}");
    // The live one is its owner's.
    place.reopen();
    assert!(place.store().wait_trash_empty(Duration::from_secs(60)));
    assert!(!paths[0].exists() && paths[1].join("file").exists());
    // What is destroyed with a mount inside is told, not entered.
    place.store().destroy("live").unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    let stats = loop {
        let stats = place.store().trash();
        if stats.failing > 0 {
            break stats;
        }
        assert!(std::time::Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(stats.failures[0].reason.contains("mounted"), "{stats:?}");
    assert!(table().contains("trash"));
    // A tool that clears up detaches it as well.
    place.store = None;
    let mut options = Place::options(place.dir.path());
    options.role = Role::Tool;
    let tool = Store::open(&options).unwrap();
    tool.maintain().unwrap();
    assert!(tool.wait_trash_empty(Duration::ZERO));
    let store = place.path("store").display().to_string();
    assert!(!table().contains(&store), "{}", table());
    assert_eq!(
        std::fs::read_to_string(outside.join("file")).unwrap(),
        "kept"
    );
}
