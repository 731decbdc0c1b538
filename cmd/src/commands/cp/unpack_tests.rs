//! Archives as a container might send them to get out.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use tar::{Builder, EntryType, Header};

use super::*;

/// Puts entries into a tar as they are: the library's own checks are not asked.
struct Archive(Builder<Vec<u8>>);

impl Archive {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn add(mut self, kind: EntryType, name: &str, link: &str, content: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o4755);
        header.set_size(content.len() as u64);
        header.set_mtime(1000);
        let fields = header.as_gnu_mut().unwrap();
        fields.name[..name.len()].copy_from_slice(name.as_bytes());
        fields.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn unpack(self, at: &Path) -> Result<Vec<String>> {
        let how = How {
            root: Some("it".to_owned()),
            name: Some("got".to_owned()),
            owners: false,
        };
        let directory = File::open(at).unwrap();
        unpack(&self.0.into_inner().unwrap()[..], directory.into(), how)
    }
}

/// A directory to unpack into, beside one that must not be touched.
fn ground() -> (tempfile::TempDir, std::path::PathBuf, std::path::PathBuf) {
    let all = tempfile::tempdir().unwrap();
    let (at, outside) = (all.path().join("at"), all.path().join("outside"));
    fs::create_dir(&at).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("kept"), "kept").unwrap();
    (all, at, outside)
}

fn untouched(outside: &Path) {
    assert_eq!(fs::read_dir(outside).unwrap().count(), 1);
    assert_eq!(fs::read(outside.join("kept")).unwrap(), b"kept");
    let stat = fs::metadata(outside.join("kept")).unwrap();
    assert_ne!((stat.mtime(), stat.mode() & 0o7777), (1000, 0o755));
}

#[test]
fn a_tree_is_unpacked_under_its_new_name() {
    let (_all, at, _) = ground();
    let left_out = Archive::new()
        .add(EntryType::Directory, "it/", "", b"")
        .add(EntryType::Regular, "it/file", "", b"content")
        .add(EntryType::Link, "it/second", "it/file", b"")
        .add(EntryType::Symlink, "it/link", "/anywhere", b"")
        .add(EntryType::Fifo, "it/pipe", "", b"")
        .add(EntryType::Char, "it/device", "", b"")
        .unpack(&at)
        .unwrap();
    assert_eq!(left_out, ["it/device"]);
    let file = fs::metadata(at.join("got/file")).unwrap();
    // Set-id bits mean another user here.
    assert_eq!(
        (file.mode() & 0o7777, file.mtime(), file.nlink()),
        (0o755, 1000, 2)
    );
    assert_eq!(fs::read(at.join("got/second")).unwrap(), b"content");
    assert_eq!(
        fs::read_link(at.join("got/link")).unwrap(),
        Path::new("/anywhere")
    );
    assert_eq!(fs::metadata(at.join("got")).unwrap().mtime(), 1000);
    assert!(!at.join("got/device").exists());
}

#[test]
fn names_that_lead_out_are_refused() {
    for name in [
        "../outside/new",
        "it/../../outside/new",
        "/it/../../x",
        "other/file",
        "/etc/x",
    ] {
        let (_all, at, outside) = ground();
        let done = Archive::new()
            .add(EntryType::Regular, name, "", b"x")
            .unpack(&at);
        assert!(done.is_err(), "{name}");
        untouched(&outside);
        assert_eq!(fs::read_dir(&at).unwrap().count(), 0, "{name}");
    }
}

#[test]
fn links_of_the_archive_are_not_followed() {
    for (target, next) in [
        ("../outside", "it/kept"),
        ("../outside", "it/new/deeper"),
        ("/tmp", "it/x"),
        (".", "it/x"),
    ] {
        let (_all, at, outside) = ground();
        let done = Archive::new()
            .add(EntryType::Symlink, "it", target, b"")
            .add(EntryType::Regular, next, "", b"taken over")
            .unpack(&at);
        let error = format!("{:#}", done.unwrap_err());
        assert!(error.contains("links are not followed"), "{error}");
        untouched(&outside);
    }
    // A directory in the place of a link: its mode and time are not the link's target's.
    let (_all, at, outside) = ground();
    let done = Archive::new()
        .add(EntryType::Symlink, "it", "../outside", b"")
        .add(EntryType::Directory, "it/", "", b"")
        .unpack(&at);
    assert!(done.is_err());
    untouched(&outside);
    // A file in the place of a link to one replaces the link.
    let (_all, at, outside) = ground();
    Archive::new()
        .add(EntryType::Symlink, "it", "../outside/kept", b"")
        .add(EntryType::Regular, "it", "", b"mine")
        .unpack(&at)
        .unwrap();
    untouched(&outside);
    assert_eq!(fs::read(at.join("got")).unwrap(), b"mine");
}

#[test]
fn hard_links_stay_inside() {
    for target in [
        "it/../../outside/kept",
        "/etc/passwd",
        "outside/kept",
        "it/way/kept",
    ] {
        let (_all, at, outside) = ground();
        let done = Archive::new()
            .add(EntryType::Symlink, "it/way", "../../outside", b"")
            .add(EntryType::Link, "it/second", target, b"")
            .unpack(&at);
        assert!(done.is_err(), "{target}");
        assert_eq!(fs::metadata(outside.join("kept")).unwrap().nlink(), 1);
    }
}

#[test]
fn what_was_there_is_replaced_or_stays() {
    let (_all, at, outside) = ground();
    fs::create_dir(at.join("got")).unwrap();
    fs::set_permissions(at.join("got"), fs::Permissions::from_mode(0o711)).unwrap();
    fs::hard_link(outside.join("kept"), at.join("got/file")).unwrap();
    Archive::new()
        .add(EntryType::Directory, "it/", "", b"")
        .add(EntryType::Regular, "it/file", "", b"new")
        .unpack(&at)
        .unwrap();
    // Made anew, so its other name is not written through.
    untouched(&outside);
    assert_eq!(fs::read(at.join("got/file")).unwrap(), b"new");
    assert_eq!(fs::metadata(at.join("got")).unwrap().mode() & 0o7777, 0o711);
    let (_all, at, outside) = ground();
    symlink(&outside, at.join("got")).unwrap();
    let done = Archive::new()
        .add(EntryType::Directory, "it/", "", b"")
        .add(EntryType::Regular, "it/kept", "", b"new")
        .unpack(&at);
    assert!(done.is_err());
    untouched(&outside);
}
