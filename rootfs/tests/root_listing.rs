//! The listing of a layer: it tells what was made, whatever way it was made, and what became of it.

#![allow(clippy::unwrap_used, reason = "only for tests")]

mod support;

use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::Path;

use garden_rootfs::Layer;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use support::{Entry, Layout, Place, Tar};

/// What is wrong with a layer, one line for each finding.
fn damage(place: &Place, layer: &Layer) -> Vec<String> {
    let found = place.store().verify_layer(layer).unwrap();
    found.iter().map(ToString::to_string).collect()
}

/// Gives an object back the time that a change took.
fn at(path: &Path, seconds: i64) {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

const MADE: i64 = 1_000_000_000;

fn everything() -> Tar {
    Tar::default()
        .dir("d", 0o750, (3, 4))
        .pax(&[("SCHILY.xattr.user.a", b"1")])
        .file("d/f", "content")
        .hard_link("h", "d/f")
        .symlink("l", "d")
        .kind(b'6', "p", "")
        .file("implied/f", "")
        .file(".wh.w", "")
        .file("o/.wh..wh..opq", "")
        .file("l/through", "x")
}

#[test]
fn every_kind_of_damage_is_found() {
    let Some(place) = Place::new("every_kind_of_damage_is_found") else {
        return;
    };
    let image = place.import("a.tar", &everything().done()).unwrap();
    let (layer, tree) = (&image.layers[0], place.only_tree(&image));
    assert!(damage(&place, layer).is_empty());
    let path = |name: &str| tree.join(name);

    std::fs::write(path("d/f"), "CONTENT").unwrap();
    at(&path("d/f"), MADE);
    assert_eq!(damage(&place, layer), [r#""d/f" has other content"#]);
    std::fs::write(path("d/f"), "content, longer").unwrap();
    at(&path("d/f"), MADE);
    assert_eq!(
        damage(&place, layer),
        [r#""d/f" has 15 bytes instead of 7"#]
    );
    std::fs::write(path("d/f"), "content").unwrap();
    assert_eq!(
        damage(&place, layer),
        [r#""d/f" has another modification time"#]
    );
    at(&path("d/f"), MADE);
    assert!(damage(&place, layer).is_empty());

    std::fs::set_permissions(path("d/f"), PermissionsExt::from_mode(0o4644)).unwrap();
    lchown(path("l"), Some(1), None).unwrap();
    assert_eq!(
        damage(&place, layer),
        [
            r#""d/f" has the mode 4644 instead of 644"#,
            r#""l" has another owner"#
        ]
    );
    std::fs::set_permissions(path("d/f"), PermissionsExt::from_mode(0o644)).unwrap();
    lchown(path("l"), Some(0), None).unwrap();

    rustix::fs::setxattr(path("d/f"), "user.a", b"2", XattrFlags::empty()).unwrap();
    rustix::fs::setxattr(
        path("d"),
        "trusted.overlay.opaque",
        b"y",
        XattrFlags::empty(),
    )
    .unwrap();
    assert_eq!(
        damage(&place, layer),
        [
            r#""d" has other extended attributes"#,
            r#""d/f" has other extended attributes"#
        ]
    );
    rustix::fs::setxattr(path("d/f"), "user.a", b"1", XattrFlags::empty()).unwrap();
    rustix::fs::removexattr(path("d"), "trusted.overlay.opaque").unwrap();

    // A name of its own instead of a second one of the same file; the root notices nothing.
    std::fs::remove_file(path("h")).unwrap();
    std::fs::write(path("h"), "content").unwrap();
    std::fs::remove_file(path("l")).unwrap();
    symlink("e", path("l")).unwrap();
    at(&path("l"), MADE);
    std::fs::remove_file(path("p")).unwrap();
    rustix::fs::mknodat(CWD, path("p"), FileType::Socket, Mode::RUSR, 0).unwrap();
    at(&tree, 0);
    assert_eq!(
        damage(&place, layer),
        [
            r#""h" is not the same file as "d/f" any more"#,
            r#""l" leads somewhere else"#,
            r#""p" has another type"#,
        ]
    );
    std::fs::remove_dir_all(path("implied")).unwrap();
    std::fs::create_dir(path("implied")).unwrap();
    std::fs::create_dir_all(path("o/new/below")).unwrap();
    std::fs::remove_file(path("w")).unwrap();
    at(&path("implied"), 0);
    at(&path("o"), 0);
    at(&tree, 0);
    assert_eq!(
        damage(&place, layer)[3..],
        [
            r#""implied/f" is missing"#,
            r#""w" is missing"#,
            r#""o/new" does not belong there"#,
        ]
    );
    let contents = tree.parent().unwrap().join("contents");
    let mut text = std::fs::read_to_string(&contents).unwrap();
    text.push_str("w x\n");
    std::fs::write(&contents, text).unwrap();
    let listing = ["the listing of the layer is damaged"];
    assert_eq!(damage(&place, layer), listing);
    std::fs::remove_file(&contents).unwrap();
    assert_eq!(damage(&place, layer), listing);
}

#[test]
fn a_ruin_is_not_told_line_by_line() {
    let Some(place) = Place::new("a_ruin_is_not_told_line_by_line") else {
        return;
    };
    let many = (0..300).fold(Tar::default(), |tar, n| tar.file(&format!("f{n}"), ""));
    let image = place.import("a.tar", &many.done()).unwrap();
    let tree = place.only_tree(&image);
    std::fs::remove_dir_all(&tree).unwrap();
    std::fs::create_dir(&tree).unwrap();
    at(&tree, 0);
    let found = damage(&place, &image.layers[0]);
    assert_eq!(found.len(), 201);
    assert_eq!(found[0], r#""f0" is missing"#);
    assert_eq!(found[200], "100 more");
}

/// However entries replace each other, what is listed at the end is what is there.
#[test]
fn only_the_last_of_a_name_is_listed() {
    let Some(place) = Place::new("only_the_last_of_a_name_is_listed") else {
        return;
    };
    let tar = |text| Tar::default().file("f", text);
    let attributed = |tar: Tar| {
        tar.pax(&[("SCHILY.xattr.user.a", b"1")])
            .dir("d", 0o700, (1, 1))
    };
    let cases = [
        tar("one").file("f", "two").symlink("f", "x").file("f", "3"),
        tar("one").file("f/x", "a directory now"),
        tar("one").hard_link("g", "f").file("f", "two"),
        tar("one").hard_link("g", "f").hard_link("g", "f"),
        tar("one").file("g", "two").hard_link("g", "f"),
        tar("d").file("d/x", "").file("d/y/z", "").file("d", "flat"),
        tar("d").file("d/x", "").file("d", "").file("d/y", "again"),
        tar("d")
            .dir("d", 0o755, (0, 0))
            .file("d", "")
            .dir("d", 0o700, (1, 1)),
        attributed(tar("d")).dir("d", 0o711, (2, 2)),
        attributed(attributed(tar("d")).file("d/x", "")),
        tar("d").file("d/x", "").dir("d", 0o711, (2, 2)),
        tar("d").dir("./", 0o711, (2, 2)).dir("./", 0o700, (3, 3)),
        tar("l")
            .file("usr/lib/a", "")
            .symlink("lib", "/usr/lib")
            .file("lib/b/c", "")
            .file("usr/lib/b/c", "again, by its real name"),
        tar("l")
            .dir("a", 0o755, (0, 0))
            .symlink("l", "a")
            .file("l/x", "")
            .file("l", "")
            .file("l/x", ""),
        tar("w")
            .file(".wh.d", "")
            .file("d/x", "")
            .file("d/.wh.y", ""),
        tar("w").file("f/.wh.x", "").file("f/.wh..wh..opq", ""),
        // Times that are odd for one file system or another.
        (0..4).fold(Tar::default(), |tar, n| {
            let time = [i64::from(i32::MIN) - 1, -1, 1 << 32, 1 << 40][n].to_string();
            let name = format!("t{n}");
            let records = [("mtime", time.as_bytes())];
            tar.pax(&records)
                .file(&name, "")
                .pax(&records)
                .symlink(&format!("l{n}"), "x")
                .pax(&records)
                .dir(&format!("d{n}"), 0o755, (0, 0))
        }),
    ];
    for (number, tar) in cases.into_iter().enumerate() {
        // This imports, and verifies what came out.
        let name = format!("{number}.tar");
        place.import(&name, &tar.done()).unwrap();
    }
    // A description takes the place of an earlier one, attributes included.
    let tar = attributed(Tar::default()).dir("d", 0o711, (2, 2)).done();
    let image = place.import("last.tar", &tar).unwrap();
    let directory = std::fs::File::open(place.only_tree(&image).join("d")).unwrap();
    assert!(garden_sys::xattr::names(&directory).unwrap().is_empty());
}

#[test]
fn what_lower_layers_change_is_listed() {
    let Some(place) = Place::new("what_lower_layers_change_is_listed") else {
        return;
    };
    let base = Tar::default().dir("etc", 0o2711, (7, 8)).file("etc/a", "");
    let above = Tar::default()
        .file("etc/b", "")
        .file("etc/.wh.a", "")
        .file("nowhere/.wh.x", "");
    let layout = Layout::new(place.path("layout"));
    let source = layout.layer(&base.done()).layer(&above.done()).done();
    let image = place.store().import(&source).unwrap();
    place.assert_listed(&image);
    let tree = place.tree(&image.layers[1].key);
    let listing = std::fs::read_to_string(tree.parent().unwrap().join("contents")).unwrap();
    assert!(listing.contains("\n+d etc 2711 7 8 1000000000.0\n"));
    assert!(listing.contains("\n+g nowhere/x\n"), "{listing}");
}

#[test]
fn a_listing_can_be_read() {
    let Some(place) = Place::new("a_listing_can_be_read") else {
        return;
    };
    let tar = Tar::default().entry(&Entry {
        name: b"a b\n\xff",
        content: b"content",
        mode: 0o4711,
        owner: (5, 6),
        ..Entry::default()
    });
    let image = place.import("a.tar", &tar.done()).unwrap();
    let contents = place.only_tree(&image).parent().unwrap().join("contents");
    let text = std::fs::read_to_string(contents).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "garden layer contents 1");
    let file = "f a%20b%0a%ff 4711 5 6 1000000000.0 7 ";
    assert!(lines[1].starts_with(file), "{text}");
    assert_eq!(lines[2], "+d . 755 0 0 0.0");
    assert_eq!(lines.len(), 3);
}
