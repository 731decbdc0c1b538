//! What archives become: the rules that keep an image inside its layer, and the ones that make the
//! layer look as the image meant it.

#![allow(clippy::unwrap_used, reason = "only for tests")]

mod support;

use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use garden_rootfs::{Error, ImageSource, Limits, Rule, Store, StoreOptions};
use support::{Entry, Place, Tar, gzip, names, read, stat};

/// Imports an archive that must be refused; gives the entry it was refused for, and the rule.
fn refused(place: &Place, tar: &[u8]) -> (Option<String>, Rule) {
    match place.import("bad.tar", tar).unwrap_err() {
        Error::ImageMalformed { entry, rule, .. } => (entry, rule),
        other => panic!("{other:?}"),
    }
}

#[test]
fn names_that_lead_out_are_refused_by_name() {
    let Some(place) = Place::new("names_that_lead_out_are_refused_by_name") else {
        return;
    };
    let cases = [
        (Tar::default().file("../x", ""), "../x"),
        (Tar::default().file("a/../../x", ""), "a/../../x"),
        (Tar::default().hard_link("x", "../../etc/passwd"), "x"),
        (Tar::default().hard_link("x", "/etc/passwd"), "x"),
        (Tar::default().hard_link("x", "not/there"), "x"),
        (
            Tar::default().dir("d", 0o755, (0, 0)).hard_link("x", "d"),
            "x",
        ),
        (Tar::default().symlink("l", "l").file("l/x", ""), "l/x"),
        (
            Tar::default()
                .symlink("l", "/etc")
                .hard_link("x", "l/passwd"),
            "x",
        ),
        (Tar::default().file(".wh...", ""), ".wh..."),
        (Tar::default().file("d/.wh.", ""), "d/.wh."),
        (Tar::default().symlink("./", "/"), "./"),
        (Tar::default().symlink("x", ""), "x"),
    ];
    for (tar, name) in cases {
        // Something good comes first: it must not stay either.
        let tar = [Tar::default().file("good", "x").open(), tar.done()].concat();
        let (entry, rule) = refused(&place, &tar);
        assert_eq!(entry.as_deref(), Some(name), "{rule:?}");
    }
    place.assert_nothing_left(0);
}

#[test]
fn a_link_is_replaced_and_never_written_through() {
    let Some(place) = Place::new("a_link_is_replaced_and_never_written_through") else {
        return;
    };
    let outside = place.path("outside");
    std::fs::write(&outside, "safe").unwrap();
    let tar = Tar::default()
        .symlink("f", &outside.to_string_lossy())
        .file("f", "inside")
        .symlink("d", &place.dir.path().to_string_lossy())
        .dir("d", 0o700, (7, 8))
        .file("d/x", "x")
        .file("a", "shared")
        .hard_link("b", "a")
        .file("a", "alone")
        .dir("x", 0o755, (0, 0))
        .file("x/deep/y", "")
        .file("x", "a file now")
        .file("y", "")
        .file("y/z", "a directory now")
        .hard_link("a", "a");
    let image = place.import("a.tar", &tar.done()).unwrap();
    let tree = place.only_tree(&image);
    assert_eq!(std::fs::read_to_string(&outside).unwrap(), "safe");
    assert!(!place.path("x").exists());
    let root = File::open(&tree).unwrap();
    assert_eq!(read(&root, "f"), "inside");
    assert_eq!(stat(&root, "d").unwrap().st_uid, 7);
    assert_eq!(
        (read(&root, "a"), read(&root, "b")),
        ("alone".into(), "shared".into())
    );
    assert_eq!(read(&root, "x"), "a file now");
    assert_eq!(read(&root, "y/z"), "a directory now");
    place.assert_nothing_left(1);
}

#[test]
fn links_inside_a_layer_are_followed() {
    let Some(place) = Place::new("links_inside_a_layer_are_followed") else {
        return;
    };
    let tar = Tar::default()
        .file("usr/lib/a", "a")
        .symlink("lib", "usr/lib")
        .file("lib/b", "b")
        .hard_link("c", "lib/b")
        .hard_link("l2", "lib");
    let image = place.import("a.tar", &tar.done()).unwrap();
    let root = File::open(place.only_tree(&image)).unwrap();
    assert_eq!(names(&root, "usr/lib"), ["a", "b"]);
    assert_eq!(read(&root, "c"), "b");
    // A link to a link is another name of the link itself.
    assert_eq!(stat(&root, "l2").unwrap().st_nlink, 2);
}

#[test]
fn attributes_are_what_the_archive_says() {
    let Some(place) = Place::new("attributes_are_what_the_archive_says") else {
        return;
    };
    let mut capability = vec![0x01, 0, 0, 0x02];
    capability.extend([0x0a; 4]);
    capability.extend([0; 12]);
    let tar = Tar::default()
        .entry(&Entry {
            kind: b'5',
            name: b"dir",
            mode: 0o2750,
            owner: (3, 4),
            mtime: 1234,
            ..Entry::default()
        })
        .pax(&[
            ("mtime", b"1234.25"),
            ("uid", b"77"),
            ("SCHILY.xattr.user.a", b"line\n11 size=99\nx"),
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.security.selinux", b"x"),
        ])
        .entry(&Entry {
            name: b"dir/file",
            content: b"content",
            mode: 0o6711,
            owner: (5, 6),
            ..Entry::default()
        })
        .kind(b'6', "dir/pipe", "")
        .kind(b'3', "dir/device", "")
        .kind(b'4', "dir/block", "");
    let image = place.import("a.tar", &tar.done()).unwrap();
    let tree = place.only_tree(&image);
    let dir = std::fs::metadata(tree.join("dir")).unwrap();
    assert_eq!((dir.mode() & 0o7777, dir.uid(), dir.gid()), (0o2750, 3, 4));
    assert_eq!(dir.mtime(), 1234);
    let file = File::open(tree.join("dir/file")).unwrap();
    let seen = file.metadata().unwrap();
    assert_eq!(
        (seen.mode() & 0o7777, seen.uid(), seen.gid()),
        (0o6711, 77, 6)
    );
    assert_eq!(
        (seen.mtime(), seen.mtime_nsec(), seen.size()),
        (1234, 250_000_000, 7)
    );
    let mut kept = garden_sys::xattr::names(&file).unwrap();
    kept.sort();
    assert_eq!(kept, ["security.capability", "user.a"]);
    let value = garden_sys::xattr::get(&file, "security.capability").unwrap();
    assert_eq!(value.unwrap(), capability);
    let pipe = std::fs::metadata(tree.join("dir/pipe")).unwrap();
    assert!(pipe.file_type().is_fifo());
    assert_eq!(names(File::open(&tree).unwrap(), "dir"), ["file", "pipe"]);
    // The root was not described; nothing in a layer depends on the clock.
    assert_eq!(std::fs::metadata(&tree).unwrap().mtime(), 0);
}

#[test]
fn limits_hold() {
    let Some(place) = Place::new("limits_hold") else {
        return;
    };
    let limits = Limits {
        entries: 3,
        bytes: 20_000,
        ratio: 500,
        name: 40,
        depth: 3,
        names: 60,
    };
    let options = StoreOptions {
        limits,
        ..StoreOptions::new(place.path("small"))
    };
    let store = Store::open(&options).unwrap();
    let rule = |tar: Vec<u8>| {
        let path = place.path("a.tar");
        std::fs::write(&path, tar).unwrap();
        match store.import(&ImageSource::Path(path)).unwrap_err() {
            Error::ImageMalformed { rule, .. } => rule,
            other => panic!("{other:?}"),
        }
    };
    let many = (0..4).fold(Tar::default(), |tar, n| tar.file(&format!("f{n}"), ""));
    assert!(matches!(rule(many.done()), Rule::Entries(3)));
    let big = Tar::default().file("big", &"x".repeat(20_001)).done();
    assert!(matches!(rule(big.clone()), Rule::Bytes(20_000)));
    assert!(matches!(rule(gzip(&big)), Rule::Bytes(20_000)));
    let bomb = gzip(&[Tar::default().done(), vec![0; 1 << 20]].concat());
    assert!(matches!(rule(bomb), Rule::Bytes(20_000)));
    let long = Tar::default().file(&"x".repeat(41), "").done();
    assert!(matches!(rule(long), Rule::Length(40)));
    let target = Tar::default().symlink("x", &"x".repeat(41)).done();
    assert!(matches!(rule(target), Rule::Length(40)));
    let deep = Tar::default().file("a/b/c/d", "").done();
    assert!(matches!(rule(deep), Rule::Depth(3)));
    let names = (0..3).fold(Tar::default(), |tar, n| tar.file(&format!("{n:030}"), ""));
    assert!(matches!(rule(names.done()), Rule::Names(60)));
    assert!(store.list_layers().is_empty());
    store.wait_trash_empty(std::time::Duration::from_secs(60));
}

#[test]
fn broken_archives_are_refused() {
    let Some(place) = Place::new("broken_archives_are_refused") else {
        return;
    };
    let good = Tar::default().file("f", &"x".repeat(600)).done();
    let (entry, rule) = refused(&place, &good[..900]);
    assert_eq!(entry.as_deref(), Some("f"));
    assert!(matches!(rule, Rule::Stream(_)), "{rule:?}");
    let (_, rule) = refused(&place, b"this is a text and not an archive");
    assert!(matches!(rule, Rule::Stream(_)), "{rule:?}");
    let (_, rule) = refused(&place, &[b'x'; 2048]);
    assert!(matches!(rule, Rule::Header(_)), "{rule:?}");
    let packed = gzip(&good);
    let (_, rule) = refused(&place, &packed[..packed.len() - 6]);
    assert!(matches!(rule, Rule::Stream(_)), "{rule:?}");
    let (_, rule) = refused(&place, &[&packed[..], b"tail"].concat());
    assert!(matches!(rule, Rule::Stream(_)), "{rule:?}");

    let headers: [Tar; 7] = [
        Tar::default().pax(&[("path", b"a")]),
        Tar::default().pax(&[("path", b"a")]).pax(&[]).file("f", ""),
        Tar::default().pax(&[("size", b"x")]).file("f", ""),
        Tar::default().entry(&Entry {
            kind: b'x',
            name: b"pax",
            content: b"9 path=a",
            ..Entry::default()
        }),
        Tar::default().entry(&Entry {
            kind: b'g',
            name: b"global",
            content: b"9 path=a\n",
            ..Entry::default()
        }),
        Tar::default().entry(&Entry {
            kind: b'L',
            name: b"long",
            content: &vec![b'x'; (1 << 20) + 1],
            ..Entry::default()
        }),
        Tar::default().kind(b'L', "long", ""),
    ];
    for tar in headers {
        let (_, rule) = refused(&place, &tar.done());
        assert!(matches!(rule, Rule::Header(_)), "{rule:?}");
    }
    let owner = Tar::default().dir("d", 0o755, (1 << 31, 0)).done();
    assert!(matches!(refused(&place, &owner).1, Rule::Owner(_)));
    let owner = Tar::default().pax(&[("gid", b"4294967296")]).file("f", "");
    assert!(matches!(refused(&place, &owner.done()).1, Rule::Owner(_)));
    place.assert_nothing_left(0);
}

#[test]
fn the_digest_covers_what_follows_the_end() {
    let Some(place) = Place::new("the_digest_covers_what_follows_the_end") else {
        return;
    };
    let tar = Tar::default().file("f", "x").done();
    let one = place.import("one.tar", &tar).unwrap();
    let longer = [&tar[..], b"more"].concat();
    let two = place.import("two.tar", &longer).unwrap();
    assert_eq!(one.layers[0].diff_id, garden_rootfs::Digest::of(&tar));
    assert_eq!(two.layers[0].diff_id, garden_rootfs::Digest::of(&longer));
}

#[test]
fn a_bomb_is_refused_before_it_is_unpacked() {
    let Some(place) = Place::new("a_bomb_is_refused_before_it_is_unpacked") else {
        return;
    };
    let store = |limits: Limits| {
        let options = StoreOptions {
            limits,
            ..StoreOptions::new(place.path("small"))
        };
        Store::open(&options).unwrap()
    };
    let rule = |limits: Limits, blob: &[u8]| {
        let path = place.path("bomb");
        std::fs::write(&path, blob).unwrap();
        match store(limits).import(&ImageSource::Path(path)).unwrap_err() {
            Error::ImageMalformed { rule, .. } => rule,
            other => panic!("{other:?}"),
        }
    };
    // One header that claims 60 GB, and 60 GB of frames of zeros, as far as anybody would read.
    let mut claim = Tar::default().file("big", "").open();
    claim[124..136].copy_from_slice(b"700000000000");
    support::checksum(&mut claim);
    let mut bomb = zstd::encode_all(&claim[..], 1).unwrap();
    let zeros = zstd::encode_all(&vec![0; 1 << 20][..], 1).unwrap();
    for _ in 0..1000 {
        bomb.extend_from_slice(&zeros);
    }
    let little = Limits {
        bytes: 8 << 20,
        ..Limits::default()
    };
    assert!(matches!(rule(little, &bomb), Rule::Bytes(8_388_608)));
    // Ten million entries, of which only the first are looked at.
    let entries = Tar::default().file(".wh..wh.plnk", "").open().repeat(4096);
    let frame = zstd::encode_all(&entries[..], 1).unwrap();
    let many = frame.repeat(10_000_000 / 4096);
    let few = Limits {
        entries: 10_000,
        ..Limits::default()
    };
    assert!(matches!(rule(few, &many), Rule::Entries(10_000)));
    // A sparse file that would be longer than all that may be.
    let sparse = Tar::default()
        .pax(&[
            ("GNU.sparse.size", b"9000000000000000000"),
            ("GNU.sparse.numblocks", b"0"),
        ])
        .file("f", "");
    assert!(matches!(
        rule(Limits::default(), &sparse.done()),
        Rule::Bytes(_)
    ));
    // Names that must be remembered.
    let long = "x".repeat(90);
    let whiteouts = (0..20).fold(Tar::default(), |tar, n| {
        tar.file(&format!(".wh.{n}{long}"), "")
    });
    let names = Limits {
        names: 12_000,
        ..Limits::default()
    };
    assert!(matches!(
        rule(names, &whiteouts.done()),
        Rule::Remembered(1500)
    ));
}

#[test]
fn sparse_files_have_their_holes() {
    let Some(place) = Place::new("sparse_files_have_their_holes") else {
        return;
    };
    let content = "x".repeat(512);
    let map = format!("2\n4096\n256\n1000000\n256\n{}", "\0".repeat(512 - 23));
    let tar = Tar::default()
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"one"),
            ("GNU.sparse.realsize", b"2000000"),
        ])
        .file("GNUSparseFile.0/one", &format!("{map}{content}"))
        .pax(&[
            ("GNU.sparse.size", b"2000000"),
            ("GNU.sparse.numblocks", b"2"),
            ("GNU.sparse.map", b"4096,256,1000000,256"),
        ])
        .file("two", &content)
        .pax(&[
            ("GNU.sparse.size", b"2000000"),
            ("GNU.sparse.offset", b"4096"),
            ("GNU.sparse.numbytes", b"256"),
            ("GNU.sparse.offset", b"1000000"),
            ("GNU.sparse.numbytes", b"256"),
        ])
        .file("three", &content);
    let image = place.import("a.tar", &tar.done()).unwrap();
    let tree = place.only_tree(&image);
    let mut expected = vec![0; 2_000_000];
    expected[4096..4096 + 256].fill(b'x');
    expected[1_000_000..1_000_256].fill(b'x');
    for name in ["one", "two", "three"] {
        let bytes = std::fs::read(tree.join(name)).unwrap();
        assert!(bytes == expected, "{name}");
        let blocks = tree.join(name).metadata().unwrap().blocks();
        assert!(blocks * 512 < 1_000_000, "{name}: {blocks}");
    }
    assert_eq!(
        names(File::open(&tree).unwrap(), "."),
        ["one", "three", "two"]
    );
    for bad in [
        [("GNU.sparse.size", &b"10"[..]), ("GNU.sparse.map", b"0,20")],
        [("GNU.sparse.size", b"100"), ("GNU.sparse.map", b"20,4,0,4")],
        [("GNU.sparse.size", b"100"), ("GNU.sparse.map", b"0,4,4")],
        [("GNU.sparse.size", b"100"), ("GNU.sparse.numbytes", b"4")],
        [("GNU.sparse.size", b"100"), ("GNU.sparse.map", b"0,-4")],
        [("GNU.sparse.major", b"2"), ("GNU.sparse.size", b"9")],
        [("GNU.sparse.map", b"0,4"), ("GNU.sparse.new", b"9")],
    ] {
        let tar = Tar::default().pax(&bad).file("f", "four").done();
        let (_, rule) = refused(&place, &tar);
        assert!(matches!(rule, Rule::Header(_)), "{bad:?}: {rule:?}");
    }
    let link = Tar::default()
        .pax(&[("GNU.sparse.size", b"0")])
        .symlink("l", "x");
    assert!(matches!(refused(&place, &link.done()).1, Rule::Header(_)));
}

#[test]
fn numbers_and_names_have_one_reading() {
    let Some(place) = Place::new("numbers_and_names_have_one_reading") else {
        return;
    };
    let with = |at: std::ops::Range<usize>, value: &[u8]| {
        let mut tar = Tar::default().file("f", "").done();
        tar[at.clone()].fill(0);
        tar[at][..value.len()].copy_from_slice(value);
        support::checksum(&mut tar);
        tar
    };
    for (field, value) in [
        (124..136, &b"-1"[..]),
        (124..136, &[0xff; 12]),
        (124..136, b"\x80\x01\0\0\0\0\0\0\0\0\0\0"),
        (124..136, b"0 0"),
        (124..136, b"08"),
        (108..116, &[0xff; 8]),
        (100..108, b"u=rwx"),
    ] {
        let (_, rule) = refused(&place, &with(field, value));
        assert!(
            matches!(rule, Rule::Header(_)),
            "{}: {rule:?}",
            value.escape_ascii()
        );
    }
    // A time before 1970, as GNU tar writes it.
    let mut time = [0xff; 12];
    time[11] = 0xf6;
    let image = place.import("time.tar", &with(136..148, &time)).unwrap();
    let stat = place.only_tree(&image).join("f").metadata().unwrap();
    assert_eq!(stat.mtime(), -10);

    let long = |name: &[u8]| {
        let entry = Entry {
            kind: b'L',
            name: b"long",
            content: name,
            ..Entry::default()
        };
        Tar::default().entry(&entry).file("short", "").done()
    };
    for bad in [&b""[..], b"\0", b"a\0b\0", b"\0a"] {
        let (_, rule) = refused(&place, &long(bad));
        assert!(matches!(rule, Rule::Header(_)), "{}", bad.escape_ascii());
    }
    for good in [&b"a\nb\0"[..], b"a\nb", b"a\nb\0\0"] {
        let image = place.import("long.tar", &long(good)).unwrap();
        let root = File::open(place.only_tree(&image)).unwrap();
        assert_eq!(names(&root, "."), ["a\nb"]);
    }
}

#[test]
fn attributes_have_their_limits() {
    let Some(place) = Place::new("attributes_have_their_limits") else {
        return;
    };
    let long = vec![b'x'; 65_537];
    let records = [("SCHILY.xattr.user.a", &long[..])];
    let tar = Tar::default().pax(&records).file("f", "").done();
    let (entry, rule) = refused(&place, &tar);
    assert_eq!(entry.as_deref(), Some("f"));
    assert!(matches!(rule, Rule::Attribute(_, 65_537)), "{rule:?}");
    let names: Vec<_> = (0..300)
        .map(|n| format!("SCHILY.xattr.user.{n:0240}"))
        .collect();
    let records: Vec<_> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
    let tar = Tar::default().pax(&records).file("f", "").done();
    assert!(matches!(refused(&place, &tar).1, Rule::Attributes(_)));
    // Of several values of one name, the last counts.
    let records = [
        ("SCHILY.xattr.user.a", &b"2"[..]),
        ("SCHILY.xattr.user.a", b"1"),
    ];
    let tar = Tar::default().pax(&records).file("f", "").done();
    let image = place.import("a.tar", &tar).unwrap();
    let file = File::open(place.only_tree(&image).join("f")).unwrap();
    let value = garden_sys::xattr::get(&file, "user.a").unwrap();
    assert_eq!(value.as_deref(), Some(&b"1"[..]));
}

/// XFS keeps targets of 1023 bytes, Linux ways of 4095.
#[test]
fn long_targets_are_kept_or_named() {
    let Some(place) = Place::new("long_targets_are_kept_or_named") else {
        return;
    };
    let target = "x/".repeat(2047);
    let tar = |length: usize| {
        let records = [("linkpath", &target.as_bytes()[..length])];
        Tar::default().pax(&records).symlink("l", "").done()
    };
    match place.import("a.tar", &tar(4094)) {
        Ok(image) => {
            let link = place.only_tree(&image).join("l").read_link().unwrap();
            assert_eq!(link.as_os_str().len(), 4094);
        }
        Err(Error::ImageMalformed { entry, rule, .. }) => {
            assert_eq!(entry.as_deref(), Some("l"));
            assert!(
                matches!(rule, Rule::TargetLength { length: 4094, .. }),
                "{rule:?}"
            );
        }
        Err(other) => panic!("{other:?}"),
    }
    let path = "y".repeat(5000);
    let over = Tar::default()
        .pax(&[("linkpath", path.as_bytes())])
        .symlink("l", "");
    assert!(matches!(
        refused(&place, &over.done()).1,
        Rule::Length(4095)
    ));
}
