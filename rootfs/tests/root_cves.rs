//! What went wrong elsewhere, once for each: published faults of programs that unpack images, and
//! the test that ours does not have them. In the order of `rootfs.md`, 3.14.
//!
//! Not tested here, and why:
//!
//! - CVE-2019-14271 (a helper loads the container's libraries after chroot): nothing changes its
//!   root here, no program is started, and the library loads nothing at run time.
//! - CVE-2020-15157 (credentials sent to where a layer says): `root_registry.rs`.
//! - CVE-2022-23648 (an image's volume is a link to host files): volumes are not copied; the bundle
//!   only names them.
//! - CVE-2026-50195, -53488, -53489, -46680 (tag poisoning, label injection, reading through a link
//!   of a checkpoint): there are no labels and no checkpoints; documents are verified against what
//!   named them, whose tests are in `oci/documents`. The remaining one of that row is below.
//! - CVE-2021-3493, -3847, 2023-2640, -32629 are faults of kernels; what an image can contribute
//!   to them is filtered: see the last test.

#![allow(clippy::unwrap_used, reason = "only for tests")]

mod support;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use garden_rootfs::{CreateRequest, DiskLimit, Error, ImageSource, Mapping, Rule};
use support::{Entry, Layout, Outside, Place, Tar, names, read, stat};

/// The rule for which an image is refused.
fn rule(place: &Place, source: &ImageSource) -> Rule {
    match place.store().import(source).unwrap_err() {
        Error::ImageMalformed { rule, .. } => rule,
        other => panic!("{other:?}"),
    }
}

fn refused(place: &Place, tar: Tar) -> Rule {
    std::fs::write(place.path("bad.tar"), tar.done()).unwrap();
    rule(place, &ImageSource::Path(place.path("bad.tar")))
}

#[test]
fn cve_2014_6407_and_2014_9356_links_lead_nowhere_outside() {
    let Some(place) = Place::new("cve_2014_6407_and_2014_9356_links_lead_nowhere_outside") else {
        return;
    };
    let outside = Outside::new(&place);
    let inside = outside.text().trim_start_matches('/').to_owned();
    for target in [
        outside.text(),
        &format!("../../../../../../../..{}", outside.text()),
    ] {
        let tar = Tar::default()
            .symlink("l", target)
            .file("l/new", "in the layer");
        let image = place.import("a.tar", &tar.done()).unwrap();
        let root = File::open(place.only_tree(&image)).unwrap();
        // The way it would go with the layer as its root.
        assert_eq!(read(&root, &format!("{inside}/new")), "in the layer");
    }
    for target in [format!("{}/f", outside.text()), "l/f".to_owned()] {
        let tar = Tar::default()
            .symlink("l", outside.text())
            .hard_link("h", &target);
        assert!(matches!(refused(&place, tar), Rule::LinkTarget(_)));
    }
    outside.assert_untouched();
}

#[test]
fn cve_2014_9357_no_program_decompresses() {
    let Some(place) = Place::new("cve_2014_9357_no_program_decompresses") else {
        return;
    };
    // Formats that others hand to a program are not known at all.
    for head in [&b"\xfd7zXZ\0"[..], b"BZh9", b"LZIP", b"\x04\x22\x4d\x18"] {
        let mut blob = head.to_vec();
        blob.resize(4096, 0x31);
        std::fs::write(place.path("packed"), blob).unwrap();
        let rule = rule(&place, &ImageSource::Path(place.path("packed")));
        assert!(matches!(rule, Rule::Header(_)), "{rule:?}");
    }
}

#[test]
fn cve_2014_9358_names_from_outside_are_no_ways() {
    let Some(place) = Place::new("cve_2014_9358_names_from_outside_are_no_ways") else {
        return;
    };
    let mut image = place
        .import("a.tar", &Tar::default().file("f", "").done())
        .unwrap();
    let create = |id: &str, image: &garden_rootfs::Image| {
        let request = CreateRequest {
            id,
            image,
            mapping: Mapping::Host,
            read_only: false,
            limit: DiskLimit::default(),
        };
        place.store().create(&request).map(drop)
    };
    for id in ["../x", "..", "a/b", "", ".hidden", "a\0b"] {
        assert!(
            matches!(create(id, &image), Err(Error::InvalidId(_))),
            "{id:?}"
        );
    }
    std::fs::create_dir_all(place.path("outside/tree")).unwrap();
    for key in ["../../outside", "..", "", "/", "a\0b"] {
        key.clone_into(&mut image.layers[0].key);
        assert!(create("good", &image).is_err(), "{key:?}");
    }
}

#[test]
fn cve_2017_14992_padding_needs_no_memory() {
    let Some(place) = Place::new("cve_2017_14992_padding_needs_no_memory") else {
        return;
    };
    let tar = Tar::default().file("f", "x").done();
    let mut packed = zstd::encode_all(&tar[..], 1).unwrap();
    let zeros = zstd::encode_all(&vec![0; 8 << 20][..], 1).unwrap();
    for _ in 0..8 {
        packed.extend_from_slice(&zeros);
    }
    let before = peak();
    let image = place.import("a.tar", &packed).unwrap();
    assert_eq!(
        names(File::open(place.only_tree(&image)).unwrap(), "."),
        ["f"]
    );
    let grown = peak().saturating_sub(before);
    assert!(grown < 48 << 10, "64 MiB of padding took {grown} KiB");
}

/// The most memory that this process ever had, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Somebody swaps directories of the tree for links while it is unpacked.
#[test]
fn cve_2018_15664_a_swapped_directory_is_not_followed() {
    let Some(place) = Place::new("cve_2018_15664_a_swapped_directory_is_not_followed") else {
        return;
    };
    let outside = Outside::new(&place);
    let tar = (0..300).fold(Tar::default(), |tar, number| {
        tar.file(&format!("d/e{}/f{number}", number % 7), "x").dir(
            &format!("d/e{}", number % 5),
            0o777,
            (1, 1),
        )
    });
    let tar = tar.done();
    let staging = place.path("store/tmp");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for entry in staging.read_dir().into_iter().flatten().flatten() {
                    for name in ["tree/d", "tree/d/e1", "tree/d/e2"] {
                        let path = entry.path().join(name);
                        let aside = entry.path().join("aside");
                        if std::fs::rename(&path, &aside).is_ok() {
                            let _ = symlink(&outside.path, &path);
                            let _ = std::fs::remove_file(&path);
                            let _ = std::fs::rename(&aside, &path);
                        }
                    }
                }
            }
        });
        for _ in 0..5 {
            // It may fail, for nobody else should be there; it must not go astray.
            let path = place.path("a.tar");
            std::fs::write(&path, &tar).unwrap();
            let _ = place.store().import(&ImageSource::Path(path));
        }
        done.store(true, Ordering::Relaxed);
    });
    outside.assert_untouched();
}

#[test]
fn cve_2021_20291_a_bad_layer_holds_no_lock() {
    let Some(place) = Place::new("cve_2021_20291_a_bad_layer_holds_no_lock") else {
        return;
    };
    let good = Tar::default().file("f", &"x".repeat(10_000)).done();
    let bad = &good[..5000];
    let layout = Layout::new(place.path("bad"))
        .layer(&good)
        .layer(bad)
        .layer(&good);
    let source = layout.done();
    let other = Layout::new(place.path("good")).layer(&good).done();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert!(matches!(rule(&place, &source), Rule::Stream(_))));
            scope.spawn(|| place.store().import(&other).unwrap());
        }
    });
    assert_eq!(place.store().import(&other).unwrap().layers.len(), 1);
}

#[test]
fn cve_2021_21284_41089_41091_41103_nobody_else_can_look_in() {
    let Some(place) = Place::new("cve_2021_21284_41089_41091_41103_nobody_else_can_look_in") else {
        return;
    };
    place
        .import("a.tar", &Tar::default().dir("./", 0o777, (0, 0)).done())
        .unwrap();
    let mode = place.path("store").metadata().unwrap().mode();
    assert_eq!(mode & 0o7777, 0o700);
}

#[test]
fn cve_2021_29136_the_root_stays_a_directory() {
    let Some(place) = Place::new("cve_2021_29136_the_root_stays_a_directory") else {
        return;
    };
    for name in ["/.", ".", "./", "/", "//./"] {
        for tar in [
            Tar::default().symlink(name, "/etc"),
            Tar::default().file("f", "").hard_link(name, "f"),
            Tar::default().file(name.trim_end_matches('/'), "x"),
            Tar::default().kind(b'6', name, ""),
        ] {
            let rule = refused(&place, tar);
            assert!(
                matches!(rule, Rule::RootNotDirectory | Rule::Name),
                "{name}: {rule:?}"
            );
        }
    }
    // A marker that would hide the root hides what is below it, and nothing more.
    let image = place
        .import("o.tar", &Tar::default().file(".wh..wh..opq", "").done())
        .unwrap();
    assert!(place.only_tree(&image).is_dir());
}

#[test]
fn cve_2021_32760_modes_are_not_set_through_links() {
    let Some(place) = Place::new("cve_2021_32760_modes_are_not_set_through_links") else {
        return;
    };
    let outside = Outside::new(&place);
    let target = format!("{}/f", outside.text());
    let tar = Tar::default()
        .symlink("a", &target)
        .entry(&Entry {
            kind: b'0',
            name: b"a",
            mode: 0o777,
            owner: (9, 9),
            ..Entry::default()
        })
        .symlink("b", &target)
        .hard_link("c", "b")
        .dir("b", 0o777, (9, 9))
        .entry(&Entry {
            kind: b'2',
            name: b"d",
            link: target.as_bytes(),
            mode: 0o777,
            owner: (9, 9),
            ..Entry::default()
        })
        .kind(b'6', "c", "");
    let image = place.import("a.tar", &tar.done()).unwrap();
    let root = File::open(place.only_tree(&image)).unwrap();
    assert_eq!(stat(&root, "d").unwrap().st_uid, 9);
    outside.assert_untouched();
}

#[test]
fn cve_2021_41190_a_document_is_one_thing() {
    let Some(place) = Place::new("cve_2021_41190_a_document_is_one_thing") else {
        return;
    };
    let both = r#"{"schemaVersion":2,"layers":[],"manifests":[]}"#;
    for kind in ["manifest", "index"] {
        let kind = format!("application/vnd.oci.image.{kind}.v1+json");
        let source = Layout::new(place.path("layout")).index(both, &kind);
        assert!(matches!(rule(&place, &source), Rule::Layout(_)));
    }
}

#[test]
fn cve_2023_25153_documents_are_bounded() {
    let Some(place) = Place::new("cve_2023_25153_documents_are_bounded") else {
        return;
    };
    let text = format!(r#"{{"schemaVersion":2,"x":"{}"}}"#, "x".repeat(5 << 20));
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let source = Layout::new(place.path("layout")).index(&text, kind);
    let rule = rule(&place, &source);
    assert!(matches!(rule, Rule::Bytes(_)), "{rule:?}");
}

#[test]
fn cve_2024_3727_a_digest_is_no_way() {
    let Some(place) = Place::new("cve_2024_3727_a_digest_is_no_way") else {
        return;
    };
    let kind = "application/vnd.oci.image.manifest.v1+json";
    for digest in [
        "sha256:../../../../etc/passwd",
        "../x:y",
        "sha256:",
        "sha512:aa",
    ] {
        let layout = Layout::new(place.path("layout"));
        let path = layout.path.clone();
        let source = layout.index("{}", kind);
        let index = std::fs::read_to_string(path.join("index.json")).unwrap();
        let good = garden_rootfs::Digest::of(b"{}").to_string();
        std::fs::write(path.join("index.json"), index.replace(&good, digest)).unwrap();
        let rule = rule(&place, &source);
        assert!(matches!(rule, Rule::Layout(_)), "{digest}: {rule:?}");
    }
}

/// Nor are attributes of directories taken through a link of a lower layer.
#[test]
fn cve_2024_9676_1753_9407_9675_23651_23652_23653_lower_links_are_not_followed() {
    let test = "cve_2024_9676_1753_9407_9675_23651_23652_23653_lower_links_are_not_followed";
    let Some(place) = Place::new(test) else {
        return;
    };
    let outside = Outside::new(&place);
    std::fs::set_permissions(&outside.path, PermissionsExt::from_mode(0o2751)).unwrap();
    let lower = Tar::default()
        .symlink("etc", outside.text())
        .symlink("d", "..");
    let upper = Tar::default()
        .file("etc/x", "")
        .file("d/y/z", "")
        .file("etc/.wh.f", "");
    let layout = Layout::new(place.path("layout"));
    let source = layout.layer(&lower.done()).layer(&upper.done()).done();
    let image = place.store().import(&source).unwrap();
    let tree = place.tree(&image.layers[1].key);
    for name in ["etc", "d", "d/y"] {
        let stat = tree.join(name).symlink_metadata().unwrap();
        assert_eq!(stat.mode(), 0o040_755, "{name}");
    }
    outside.assert_untouched();
}

#[test]
fn cve_2024_40635_owners_do_not_wrap() {
    let Some(place) = Place::new("cve_2024_40635_owners_do_not_wrap") else {
        return;
    };
    for owner in [(1 << 31, 0), (0, 1 << 31)] {
        let rule = refused(&place, Tar::default().dir("d", 0o755, owner));
        assert!(matches!(rule, Rule::Owner(_)), "{rule:?}");
    }
    for (key, value) in [("uid", "4294967296"), ("gid", "2147483648"), ("uid", "-1")] {
        let tar = Tar::default().pax(&[(key, value.as_bytes())]).file("f", "");
        let rule = refused(&place, tar);
        assert!(matches!(rule, Rule::Owner(_) | Rule::Header(_)), "{rule:?}");
    }
    let last = Tar::default().pax(&[("uid", b"2147483647")]).file("f", "");
    place.import("a.tar", &last.done()).unwrap();
}

#[test]
fn cve_2025_47290_a_tree_has_no_name_before_it_is_verified() {
    let Some(place) = Place::new("cve_2025_47290_a_tree_has_no_name_before_it_is_verified") else {
        return;
    };
    let tar = Tar::default().file("f", "1").done();
    let claimed = Tar::default().file("f", "2").done();
    let kind = "application/vnd.oci.image.layer.v1.tar";
    let layout = Layout::new(place.path("layout")).packed(&claimed, &tar, kind);
    let source = layout.done();
    assert!(matches!(rule(&place, &source), Rule::Digest { .. }));
    place.assert_nothing_left(0);
    let staging = place.path("store/tmp").metadata().unwrap().mode();
    assert_eq!(staging & 0o077, 0);
}

#[test]
fn cve_2026_53493_indexes_are_bounded() {
    let Some(place) = Place::new("cve_2026_53493_indexes_are_bounded") else {
        return;
    };
    let kind = "application/vnd.oci.image.index.v1+json";
    let layout = Layout::new(place.path("deep"));
    let mut text = r#"{"schemaVersion":2,"manifests":[]}"#.to_owned();
    for _ in 0..5 {
        let (digest, size) = (layout.blob(text.as_bytes()), text.len());
        text = format!(
            r#"{{"schemaVersion":2,"mediaType":"{kind}","manifests":[{{"mediaType":"{kind}","digest":"{digest}","size":{size}}}]}}"#
        );
    }
    let source = layout.index(&text, kind);
    assert!(matches!(rule(&place, &source), Rule::Layout(_)));
    let entry = format!(
        r#"{{"mediaType":"{kind}","digest":"{}","size":2}}"#,
        garden_rootfs::Digest::of(b"{}")
    );
    let wide = vec![entry; 2000].join(",");
    let text = format!(r#"{{"schemaVersion":2,"mediaType":"{kind}","manifests":[{wide}]}}"#);
    let source = Layout::new(place.path("wide")).index(&text, kind);
    assert!(matches!(rule(&place, &source), Rule::Layout(_)));
}

#[test]
fn cve_2021_30465_2024_21626_and_later_no_descriptor_is_inherited() {
    let test = "cve_2021_30465_2024_21626_and_later_no_descriptor_is_inherited";
    let Some(place) = Place::with_mounts(test) else {
        return;
    };
    let image = place
        .import("a.tar", &Tar::default().file("f", "").done())
        .unwrap();
    let request = CreateRequest {
        id: "one",
        image: &image,
        mapping: Mapping::Host,
        read_only: false,
        limit: DiskLimit::default(),
    };
    let rootfs = place.store().create(&request).unwrap();
    let store = place.path("store");
    let mut seen = 0;
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let entry = entry.unwrap();
        let Ok(target) = entry.path().read_link() else {
            continue;
        };
        if !target.starts_with(&store) {
            continue;
        }
        let number = entry.file_name().into_string().unwrap();
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}"));
        let Ok(info) = info else { continue };
        let flags = info
            .lines()
            .find_map(|line| line.strip_prefix("flags:"))
            .unwrap();
        let flags = u32::from_str_radix(flags.trim(), 8).unwrap();
        assert!(
            flags & 0o2_000_000 != 0,
            "{} is inherited",
            target.display()
        );
        seen += 1;
    }
    assert!(seen > 0);
    assert!(
        rustix::io::fcntl_getfd(&rootfs.mount)
            .unwrap()
            .contains(rustix::io::FdFlags::CLOEXEC)
    );
    place
        .store()
        .destroy_holding("one", vec![rootfs.mount])
        .unwrap();
}

#[test]
fn cve_2018_20990_2021_38511_2026_33055_33056_the_tar_crate() {
    let Some(place) = Place::new("cve_2018_20990_2021_38511_2026_33055_33056_the_tar_crate") else {
        return;
    };
    let outside = Outside::new(&place);
    let target = format!("{}/f", outside.text());
    // A file over a hard link or a link that leads out, a directory over a link to a directory.
    let tar = Tar::default()
        .symlink("f", &target)
        .hard_link("g", "f")
        .file("g", "new")
        .symlink("d", outside.text())
        .dir("d", 0o777, (0, 0))
        .file("d/new", "x");
    let image = place.import("a.tar", &tar.done()).unwrap();
    let root = File::open(place.only_tree(&image)).unwrap();
    assert_eq!(
        (read(&root, "g"), read(&root, "d/new")),
        ("new".into(), "x".into())
    );
    outside.assert_untouched();
}

#[test]
fn cve_2025_62518_a_size_is_one_size() {
    let Some(place) = Place::new("cve_2025_62518_a_size_is_one_size") else {
        return;
    };
    // The header of `f` says 0 bytes; whoever believes it reads its content as an entry.
    let smuggled = Tar::default().file("smuggled", "").open();
    let size = smuggled.len().to_string();
    let head = Tar::default()
        .pax(&[("size", size.as_bytes())])
        .file("f", "")
        .open();
    let tar = [head, smuggled.clone(), Tar::default().file("g", "").done()].concat();
    let image = place.import("a.tar", &tar).unwrap();
    let root = File::open(place.only_tree(&image)).unwrap();
    assert_eq!(names(&root, "."), ["f", "g"]);
    assert_eq!(stat(&root, "f").unwrap().st_size as usize, smuggled.len());
    // What has no content has none, whatever its size claims.
    let link = Tar::default()
        .pax(&[("size", b"512")])
        .symlink("l", "x")
        .file("g", "");
    let image = place.import("b.tar", &link.done()).unwrap();
    let root = File::open(place.only_tree(&image)).unwrap();
    assert_eq!(names(&root, "."), ["g", "l"]);
}

#[test]
fn cve_2025_58183_a_sparse_map_is_bounded() {
    let Some(place) = Place::new("cve_2025_58183_a_sparse_map_is_bounded") else {
        return;
    };
    let version: [(&str, &[u8]); 3] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.realsize", b"1000000"),
    ];
    let endless = format!("1000000000\n{}", "0\n1\n".repeat(70_000));
    for map in [
        endless.as_str(),
        "1\n0\n",
        "1\n0\n18446744073709551615\n",
        &"1".repeat(2000),
    ] {
        let tar = Tar::default().pax(&version).file("f", map);
        let rule = refused(&place, tar);
        assert!(
            matches!(rule, Rule::Header(_) | Rule::Stream(_)),
            "{rule:?}"
        );
    }
    // A long map in the header: blocks of segments that never end.
    let mut bytes = Tar::default().kind(b'S', "f", "").open();
    (bytes[482], bytes[483]) = (1, b'7');
    support::checksum(&mut bytes);
    let mut segment = [b'0'; 512];
    segment[504] = 1;
    let mut file = File::create(place.path("s.tar")).unwrap();
    file.write_all(&bytes).unwrap();
    for _ in 0..4000 {
        file.write_all(&segment).unwrap();
    }
    let rule = rule(&place, &ImageSource::Path(place.path("s.tar")));
    assert!(matches!(rule, Rule::Header(_)), "{rule:?}");
}

#[test]
fn cve_2023_0386_and_others_the_kernel_gets_nothing_to_act_upon() {
    let test = "cve_2023_0386_and_others_the_kernel_gets_nothing_to_act_upon";
    let Some(place) = Place::new(test) else {
        return;
    };
    let mut third = vec![0x01, 0, 0, 0x03];
    third.extend([0x0a; 4]);
    third.extend([0; 12]);
    third.extend(100_000_u32.to_le_bytes());
    let tar = Tar::default()
        .pax(&[
            ("SCHILY.xattr.security.capability", &third),
            ("SCHILY.xattr.trusted.overlay.metacopy", b""),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/x"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.security.ima", b"x"),
            ("SCHILY.xattr.system.posix_acl_access", b"x"),
        ])
        .file("f", "")
        .pax(&[("SCHILY.xattr.security.capability", &third[..9])])
        .file("g", "")
        // A device of number 0:0 is how overlay hides a name; it must not come from an image.
        .kind(b'3', "h", "");
    let image = place.import("a.tar", &tar.done()).unwrap();
    let tree = place.only_tree(&image);
    let file = File::open(tree.join("f")).unwrap();
    assert_eq!(
        garden_sys::xattr::names(&file).unwrap(),
        ["security.capability"]
    );
    // Of the form that names no user namespace.
    let value = garden_sys::xattr::get(&file, "security.capability")
        .unwrap()
        .unwrap();
    assert_eq!((value.len(), value[3]), (20, 2));
    let other = File::open(tree.join("g")).unwrap();
    assert!(garden_sys::xattr::names(&other).unwrap().is_empty());
    assert_eq!(names(File::open(&tree).unwrap(), "."), ["f", "g"]);
}
