//! Images: what is read once, what layers become together, and what is refused.

#![allow(clippy::unwrap_used, reason = "only for tests")]

mod support;

use std::fs::File;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use garden_rootfs::{CreateRequest, DiskLimit, Error, Image, ImageSource, Mapping, Rootfs, Rule};
use support::{Entry, Layout, Place, Tar, gzip, names, read, stat};

fn rootfs(place: &Place, id: &str, image: &Image) -> Rootfs {
    let request = CreateRequest {
        id,
        image,
        mapping: Mapping::Host,
        read_only: false,
        limit: DiskLimit::default(),
    };
    place.store().create(&request).unwrap()
}

fn is_whiteout(at: &File, name: &str) -> bool {
    stat(at, name).is_ok_and(|stat| stat.st_mode & 0o170_000 == 0o020_000 && stat.st_rdev == 0)
}

fn is_opaque(place: &Place, key: &str, name: &str) -> bool {
    let directory = File::open(place.tree(key).join(name)).unwrap();
    garden_sys::xattr::get(&directory, "trusted.overlay.opaque")
        .unwrap()
        .is_some()
}

#[test]
fn whiteouts_hide_what_is_below_in_any_order() {
    let Some(place) = Place::with_mounts("whiteouts_hide_what_is_below_in_any_order") else {
        return;
    };
    let base = [
        "a",
        "b",
        "c",
        "d/old",
        "e/old",
        "e/sub/old",
        "f/old",
        "foo",
        "g/x/old",
    ]
    .iter()
    .fold(Tar::default(), |tar, name| tar.file(name, "base"));
    let upper = [
        ("", vec![".wh.a"]),
        // Named by this layer itself: only the lower one is hidden.
        ("", vec!["b", ".wh.b"]),
        ("", vec![".wh.c", "c/new"]),
        ("", vec!["d/new", ".wh.d"]),
        (
            "",
            vec!["e/.wh..wh..opq", "e/new", "e/.wh.old", "e/sub/.wh.old"],
        ),
        ("", vec!["f/new", "f/.wh..wh..opq"]),
        ("", vec![".wh..wh.plnk", ".wh..wh.aufs"]),
        ("", vec!["foo.wh.bar"]),
        ("", vec![".wh.g", "g/x/.wh.old"]),
    ];
    let mut orders: Vec<Vec<&str>> = Vec::new();
    let all: Vec<&str> = upper.iter().flat_map(|(_, names)| names.clone()).collect();
    orders.push(all.clone());
    orders.push(all.into_iter().rev().collect());
    let mut trees = Vec::new();
    for (number, order) in orders.iter().enumerate() {
        let top = order
            .iter()
            .fold(Tar::default(), |tar, name| tar.file(name, "top"));
        let layout = Layout::new(place.path(&format!("layout{number}")));
        let source = layout.layer(&base_of(&base)).layer(&top.done()).done();
        let image = place.store().import(&source).unwrap();
        let made = rootfs(&place, &format!("r{number}"), &image);
        let seen: Vec<_> = ["", "c", "d", "e", "f"]
            .iter()
            .map(|name| names(&made.mount, &format!("./{name}")))
            .collect();
        let key = &image.layers[1].key;
        let tree = File::open(place.tree(key)).unwrap();
        assert!(is_whiteout(&tree, "a"));
        assert!(is_whiteout(&tree, "g"));
        assert!(is_opaque(&place, key, "e"));
        assert!(is_opaque(&place, key, "d"));
        assert_eq!(names(&tree, "e"), ["new"]);
        trees.push(seen);
    }
    assert_eq!(trees[0], trees[1]);
    assert_eq!(trees[0][0], ["b", "c", "d", "e", "f", "foo", "foo.wh.bar"]);
    assert!(trees[0][1..].iter().all(|names| *names == ["new"]));
}

fn base_of(tar: &Tar) -> Vec<u8> {
    [tar.bytes(), &[0; 1024]].concat()
}

#[test]
fn a_whiteout_of_nothing_is_not_seen() {
    let Some(place) = Place::with_mounts("a_whiteout_of_nothing_is_not_seen") else {
        return;
    };
    let tar = Tar::default()
        .dir("d", 0o755, (0, 0))
        .file("d/y", "")
        .file("d/.wh.x", "")
        .file(".wh.z", "")
        .done();
    let alone = place.import("alone.tar", &tar).unwrap();
    assert_eq!(names(&rootfs(&place, "alone", &alone).mount, "d"), ["y"]);
    let tree = File::open(place.only_tree(&alone)).unwrap();
    assert!(!is_whiteout(&tree, "d/x"));
    assert_eq!(stat(&tree, "d").unwrap().st_mtime, 1_000_000_000);

    // Where there is something to hide, the same layer does hide it.
    let base = Tar::default().file("d/x", "").file("z", "").done();
    let source = Layout::new(place.path("layout"))
        .layer(&base)
        .layer(&tar)
        .done();
    let above = place.store().import(&source).unwrap();
    assert_ne!(above.layers[1].key, alone.layers[0].key);
    let made = rootfs(&place, "above", &above);
    assert_eq!(
        (names(&made.mount, "."), names(&made.mount, "d")),
        (vec!["d".into()], vec!["y".into()])
    );
    let tree = File::open(place.tree(&above.layers[1].key)).unwrap();
    assert!(is_whiteout(&tree, "d/x"));
    place.assert_nothing_left(3);
}

#[test]
fn a_layer_can_hide_everything() {
    let Some(place) = Place::with_mounts("a_layer_can_hide_everything") else {
        return;
    };
    let source = Layout::new(place.path("layout"))
        .layer(&Tar::default().dir("./", 0o711, (0, 0)).file("a", "").done())
        .layer(
            &Tar::default()
                .file("b", "")
                .file(".wh..wh..opq", "")
                .file(".wh.a", "")
                .done(),
        )
        .layer(&Tar::default().file("c", "").done())
        .done();
    let image = place.store().import(&source).unwrap();
    assert_eq!(names(&rootfs(&place, "r", &image).mount, "."), ["b", "c"]);
}

#[test]
fn directories_on_the_way_look_like_the_lower_ones() {
    let Some(place) = Place::with_mounts("directories_on_the_way_look_like_the_lower_ones") else {
        return;
    };
    let base = Tar::default()
        .dir("./", 0o750, (9, 9))
        .dir("srv", 0o700, (1, 2))
        .dir("srv/app", 0o2770, (3, 4))
        .dir("gone", 0o700, (5, 5))
        .done();
    let middle = Tar::default()
        .file("other", "")
        .file("gone/.wh.x", "")
        .file(".wh.gone", "");
    let app = Tar::default()
        .file("srv/app/bin", "x")
        .file("gone/y", "")
        .done();
    let first = Layout::new(place.path("first"))
        .layer(&base)
        .layer(&middle.done())
        .layer(&app);
    let image = place.store().import(&first.done()).unwrap();
    assert_eq!(image.root.mode, 0o750);
    let made = rootfs(&place, "first", &image);
    let seen = |name| {
        let stat = stat(&made.mount, name).unwrap();
        (
            stat.st_mode & 0o7777,
            stat.st_uid,
            stat.st_gid,
            stat.st_mtime,
        )
    };
    assert_eq!(
        seen("."),
        (0o750, 9, 9, stat(&made.mount, ".").unwrap().st_mtime)
    );
    assert_eq!(seen("srv"), (0o700, 1, 2, 1_000_000_000));
    assert_eq!(seen("srv/app"), (0o2770, 3, 4, 1_000_000_000));
    // What a layer between them took away says nothing any more.
    assert_eq!(seen("gone"), (0o755, 0, 0, 0));

    // The same layer above another base is another layer, and the base is shared.
    let other = Tar::default().dir("srv", 0o711, (0, 0)).done();
    let second = Layout::new(place.path("second")).layer(&other).layer(&app);
    let image2 = place.store().import(&second.done()).unwrap();
    assert_ne!(image.layers[2].key, image2.layers[1].key);
    assert_eq!(image.layers[2].diff_id, image2.layers[1].diff_id);
    let made2 = rootfs(&place, "second", &image2);
    assert_eq!(stat(&made2.mount, "srv").unwrap().st_mode & 0o7777, 0o711);
    // And above the first again it is the first.
    let third = Layout::new(place.path("third")).layer(&base).layer(&app);
    let image3 = place.store().import(&third.done()).unwrap();
    let keys: Vec<_> = place
        .store()
        .list_layers()
        .into_iter()
        .map(|layer| layer.key)
        .collect();
    assert!(keys.contains(&image3.layers[1].key));
    place.assert_nothing_left(keys.len());
}

#[test]
fn a_layer_that_is_there_twice_is_stacked_once() {
    let Some(place) = Place::with_mounts("a_layer_that_is_there_twice_is_stacked_once") else {
        return;
    };
    let one = Tar::default().file("a", "1").file("b", "1").done();
    let two = Tar::default().file("a", "2").file(".wh.b", "").done();
    let source = Layout::new(place.path("layout"))
        .layer(&one)
        .layer(&two)
        .layer(&one)
        .done();
    let image = place.store().import(&source).unwrap();
    assert_eq!(image.layers.len(), 2);
    let made = rootfs(&place, "r", &image);
    assert_eq!(
        (read(&made.mount, "a"), read(&made.mount, "b")),
        ("1".into(), "1".into())
    );
}

#[test]
fn an_image_is_read_once() {
    let Some(mut place) = Place::new("an_image_is_read_once") else {
        return;
    };
    let tar = gzip(&Tar::default().file("a", "1").done());
    let path = place.path("a.tar.gz");
    std::fs::write(&path, &tar).unwrap();
    let source = ImageSource::parse(&format!("file://{}", path.display())).unwrap();
    let images: Vec<_> = std::thread::scope(|scope| {
        let import = || place.store().import(&source).unwrap();
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(import)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(images.iter().all(|image| *image == images[0]));
    let inode = |place: &Place| {
        std::fs::metadata(place.only_tree(&images[0]))
            .unwrap()
            .ino()
    };
    let before = inode(&place);
    place.reopen();
    assert_eq!(place.store().import(&source).unwrap(), images[0]);
    assert_eq!(inode(&place), before);
    // Other content under the same name is another image.
    std::fs::write(&path, Tar::default().file("a", "2").done()).unwrap();
    let other = place.store().import(&source).unwrap();
    assert_ne!(other.layers, images[0].layers);
    assert_eq!(place.store().list_images().unwrap().len(), 2);
    place.assert_nothing_left(2);
}

#[test]
fn a_directory_is_copied_until_it_changes() {
    let Some(place) = Place::new("a_directory_is_copied_until_it_changes") else {
        return;
    };
    let dir = place.path("dir");
    std::fs::create_dir_all(dir.join("sub/empty")).unwrap();
    std::fs::write(dir.join("sub/file"), "content").unwrap();
    std::fs::write(dir.join(".wh.plain"), "").unwrap();
    std::fs::hard_link(dir.join("sub/file"), dir.join("sub/link")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.join("sym")).unwrap();
    std::os::unix::fs::chown(dir.join("sub"), Some(11), Some(12)).unwrap();
    std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o711)).unwrap();
    let inside = dir.join("mounted");
    std::fs::create_dir(&inside).unwrap();
    rustix::mount::mount_bind("/proc/self/ns", &inside).unwrap();
    let source = ImageSource::Path(dir.clone());
    let first = place.store().import(&source);
    let again = place.store().import(&source);
    rustix::mount::unmount(&inside, rustix::mount::UnmountFlags::DETACH).unwrap();
    let image = first.unwrap();
    assert_eq!(again.unwrap(), image);
    assert_eq!(image.root.mode, 0o711);
    let tree = File::open(place.only_tree(&image)).unwrap();
    assert_eq!(names(&tree, "."), [".wh.plain", "mounted", "sub", "sym"]);
    assert_eq!(names(&tree, "mounted"), [""; 0]);
    assert_eq!(names(&tree, "sub"), ["empty", "file", "link"]);
    assert_eq!(read(&tree, "sub/link"), "content");
    assert_eq!(stat(&tree, "sub/file").unwrap().st_nlink, 2);
    let sub = stat(&tree, "sub").unwrap();
    assert_eq!((sub.st_uid, sub.st_gid), (11, 12));
    let original = std::fs::metadata(dir.join("sub")).unwrap();
    assert_eq!(
        (sub.st_mtime, sub.st_mtime_nsec as i64),
        (original.mtime(), original.mtime_nsec())
    );
    std::fs::write(dir.join("sub/file"), "changed").unwrap();
    assert_ne!(place.store().import(&source).unwrap().layers, image.layers);
    place.assert_nothing_left(2);
}

#[test]
fn a_layout_is_read_with_its_configuration() {
    let Some(place) = Place::new("a_layout_is_read_with_its_configuration") else {
        return;
    };
    let (one, two) = (
        Tar::default().file("a", "1").done(),
        Tar::default().file("b", "2").done(),
    );
    let zstd = zstd::encode_all(&two[..], 1).unwrap();
    let mut layout = Layout::new(place.path("layout"))
        .packed(
            &one,
            &gzip(&one),
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        )
        .packed(&two, &zstd, "application/vnd.oci.image.layer.v1.tar+zstd");
    layout.config = serde_json::json!({
        "Env": ["A=b"], "User": "me:us", "WorkingDir": "/w", "Entrypoint": ["e"], "Cmd": ["c"],
        "ExposedPorts": {"80/tcp": {}}, "Volumes": {"/data": {}}, "Labels": {"k": "v"},
        "StopSignal": "SIGINT",
    });
    layout.done();
    let uri = format!("oci://{}:v1", place.path("layout").display());
    let image = place
        .store()
        .import(&ImageSource::parse(&uri).unwrap())
        .unwrap();
    assert_eq!(image.layers.len(), 2);
    assert_eq!(image.size(), 2);
    let config = &image.config;
    assert_eq!(config.env, ["A=b"]);
    assert!(!format!("{image:?}").contains("A=b"));
    assert_eq!(config.user.as_deref(), Some("me:us"));
    assert_eq!(config.working_dir.as_deref(), Some("/w"));
    assert_eq!(
        (&config.entrypoint[..], &config.cmd[..]),
        (&["e".into()][..], &["c".into()][..])
    );
    assert_eq!(config.exposed_ports, ["80/tcp"]);
    assert_eq!(config.volumes, ["/data"]);
    assert_eq!(config.labels["k"], "v");
    assert_eq!(config.stop_signal.as_deref(), Some("SIGINT"));
    // A layer of its own, and one that another image shares.
    let shared = Layout::new(place.path("shared")).layer(&one).done();
    let shared = place.store().import(&shared).unwrap();
    assert_eq!(shared.layers[0], image.layers[0]);
    place.assert_nothing_left(2);
    let missing = ImageSource::parse(&uri.replace(":v1", ":v2")).unwrap();
    let error = place.store().import(&missing).unwrap_err();
    assert!(matches!(error, Error::ImageNotFound { .. }), "{error}");
}

#[test]
fn what_is_not_there_is_not_found() {
    let Some(place) = Place::new("what_is_not_there_is_not_found") else {
        return;
    };
    for text in ["/not/there.tar", "oci:///not/there:x"] {
        let source = ImageSource::parse(text).unwrap();
        let error = place.store().import(&source).unwrap_err();
        assert!(matches!(&error, Error::ImageNotFound { image, .. } if image == text));
    }
    let pipe = place.path("pipe");
    let mode = rustix::fs::Mode::RWXU;
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let error = place.store().import(&ImageSource::Path(pipe)).unwrap_err();
    assert!(matches!(error, Error::ImageMalformed { .. }), "{error}");
}

#[test]
fn layouts_that_lie_are_refused() {
    let Some(place) = Place::new("layouts_that_lie_are_refused") else {
        return;
    };
    let tar = Tar::default().file("a", "1").done();
    let other = Tar::default().file("a", "2").done();
    let layer = "application/vnd.oci.image.layer.v1.tar";
    let rule = |source: &ImageSource| match place.store().import(source).unwrap_err() {
        Error::ImageMalformed { rule, .. } => rule,
        other => panic!("{other:?}"),
    };
    // The tar is not the one that the configuration names.
    let source = Layout::new(place.path("diff"))
        .packed(&other, &tar, layer)
        .done();
    assert!(matches!(rule(&source), Rule::Digest { .. }));
    // Something behind a good layer is wrong: the good one may stay, the image does not.
    let layout = Layout::new(place.path("blob")).layer(&tar);
    let digest = layout.blob(&tar);
    let source = layout.done();
    std::fs::write(place.path("blob/blobs/sha256").join(digest.hex()), &other).unwrap();
    assert!(matches!(rule(&source), Rule::Digest { .. }));
    std::fs::write(
        place.path("blob/blobs/sha256").join(digest.hex()),
        &other[1..],
    )
    .unwrap();
    assert!(matches!(rule(&source), Rule::Size { .. }));
    let source = Layout::new(place.path("kind"))
        .packed(&tar, &tar, "text/plain")
        .done();
    assert!(matches!(rule(&source), Rule::Layout(_)));
    let both = r#"{"schemaVersion":2,"layers":[],"manifests":[]}"#;
    for kind in ["image.manifest", "image.index"] {
        let kind = format!("application/vnd.oci.{kind}.v1+json");
        let source = Layout::new(place.path(&kind)).index(both, &kind);
        assert!(matches!(rule(&source), Rule::Layout(_)));
    }
    let manifest = |digest: &str| {
        let config =
            r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
        let layout = Layout::new(place.path("digest"));
        let config = layout.blob(config.as_bytes());
        let text = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json",
            "digest":"{config}","size":1}},"layers":[{{"mediaType":"{layer}","digest":"{digest}","size":1}}]}}"#
        );
        layout.index(&text, "application/vnd.oci.image.manifest.v1+json")
    };
    // More layers than the configuration names, and a digest that is a way out.
    assert!(matches!(rule(&manifest("sha256:0")), Rule::Layout(_)));
    assert!(matches!(
        rule(&manifest("sha256:../../../etc/passwd")),
        Rule::Layout(_)
    ));
    place.assert_nothing_left(0);
}

#[test]
fn images_that_share_layers_may_be_imported_at_once() {
    let Some(place) = Place::new("images_that_share_layers_may_be_imported_at_once") else {
        return;
    };
    let tars: Vec<_> = (0..6)
        .map(|number| {
            let tar = Tar::default().dir("d", 0o700 + number, (0, 0));
            let tar = tar.entry(&Entry {
                name: format!("d/e{number}/f").as_bytes(),
                content: &vec![b'x'; 20_000],
                ..Entry::default()
            });
            tar.done()
        })
        .collect();
    let sources: Vec<_> = (0..6)
        .map(|turn| {
            // Each image has the layers in another order.
            let mut order = tars.clone();
            order.rotate_left(turn);
            let layout = Layout::new(place.path(&format!("layout{turn}")));
            order
                .iter()
                .fold(layout, |layout, tar| layout.layer(tar))
                .done()
        })
        .collect();
    std::thread::scope(|scope| {
        for source in sources.iter().chain(&sources) {
            scope.spawn(|| place.store().import(source).unwrap());
        }
    });
    for source in &sources {
        assert_eq!(place.store().import(source).unwrap().layers.len(), 6);
    }
    place.assert_nothing_left(place.store().list_layers().len());
}
