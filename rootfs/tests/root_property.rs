//! Random trees, packed by GNU tar in each of its formats: what we unpack must look like what GNU
//! tar unpacks, and both like the tree itself, as far as the format can tell.

#![allow(clippy::unwrap_used, reason = "only for tests")]

mod support;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use support::{Place, gzip};

#[derive(Debug, Clone)]
enum Kind {
    Directory,
    File(Vec<u8>),
    /// A file of such a length with some bytes at some place.
    Sparse(u64, u64, Vec<u8>),
    Symlink(Vec<u8>),
    HardLink(usize),
    Pipe,
}

#[derive(Debug, Clone)]
struct Object {
    path: PathBuf,
    kind: Kind,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    comment: Option<(String, Vec<u8>)>,
}

/// How a tree is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Ustar,
    Gnu,
    Pax,
}

#[derive(Debug, Clone, Copy)]
struct Packing {
    format: Format,
    sparse: Option<&'static str>,
    gzip: bool,
}

fn part(long: bool) -> impl Strategy<Value = Vec<u8>> {
    let any_byte = any::<u8>().prop_filter("divides names", |byte| !matches!(byte, 0 | b'/'));
    let any_name = prop::collection::vec(any_byte, 1..12).prop_filter("means something", |part| {
        !matches!(&part[..], b"." | b"..") && !part.starts_with(b".wh.")
    });
    let length = if long { 90..255_usize } else { 20..40 };
    prop_oneof![
        4 => (b'a'..=b'c').prop_map(|byte| vec![byte]),
        2 => any_name,
        1 => length.prop_map(|length| vec![b'x'; length]),
        1 => Just(b"line\nbreak \\ \xe4".to_vec()),
        1 => Just("\u{e4}\u{df}".as_bytes().to_vec()),
    ]
}

fn path(long: bool) -> impl Strategy<Value = PathBuf> {
    let deep = if long { 12 } else { 4 };
    prop::collection::vec(part(long), 1..deep).prop_map(|parts| {
        let bytes = parts.join(&b'/');
        PathBuf::from(OsString::from_vec(bytes))
    })
}

fn object(format: Format) -> impl Strategy<Value = Object> {
    let content = prop::collection::vec(any::<u8>(), 0..1500);
    let some = prop::collection::vec(any::<u8>(), 1..9000);
    let long = format != Format::Ustar;
    let target = if long { 1..300_usize } else { 1..90 };
    let kind = prop_oneof![
        3 => Just(Kind::Directory),
        4 => content.prop_map(Kind::File),
        1 => (0_u64..300_000, 0_u64..200_000, some)
            .prop_map(|(length, at, bytes)| Kind::Sparse(length, at, bytes)),
        1 => prop::collection::vec(1_u8..=255, target).prop_map(Kind::Symlink),
        1 => any::<usize>().prop_map(Kind::HardLink),
        1 => Just(Kind::Pipe),
    ];
    let comment = ("[a-z=%. ]{1,9}", prop::collection::vec(any::<u8>(), 0..60));
    let times = match format {
        Format::Ustar => 0_i64..4_000_000_000,
        _ => -1_000_000_000..4_000_000_000,
    };
    (
        path(long),
        kind,
        0_u32..0o10000,
        (0_u32..2_000_000, 0_u32..2_000_000),
        (times, 0_i64..1_000_000_000),
        prop::option::weighted(0.2, comment),
    )
        .prop_map(|(path, kind, mode, owner, mtime, comment)| Object {
            path,
            kind,
            mode,
            owner,
            mtime,
            comment,
        })
}

/// Makes the tree; what conflicts with an earlier object is left out.
fn build(root: &Path, objects: &[Object]) {
    std::fs::create_dir(root).unwrap();
    let mut files: Vec<PathBuf> = Vec::new();
    let mut made: Vec<(&Object, PathBuf)> = Vec::new();
    for object in objects {
        let path = root.join(&object.path);
        if path
            .parent()
            .is_none_or(|parent| std::fs::create_dir_all(parent).is_err())
        {
            continue;
        }
        let done = match &object.kind {
            Kind::Directory => std::fs::create_dir(&path).is_ok(),
            Kind::File(content) => {
                let free = path.symlink_metadata().is_err();
                free && std::fs::write(&path, content).is_ok()
            }
            Kind::Sparse(length, at, bytes) => {
                let free = path.symlink_metadata().is_err();
                free && sparse(&path, *length, *at, bytes).is_ok()
            }
            Kind::Symlink(target) => {
                std::os::unix::fs::symlink(OsStr::from_bytes(target), &path).is_ok()
            }
            Kind::HardLink(number) => {
                let target = files.get(number % files.len().max(1));
                target.is_some_and(|target| std::fs::hard_link(target, &path).is_ok())
            }
            Kind::Pipe => rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).is_ok(),
        };
        if done {
            if matches!(object.kind, Kind::File(_) | Kind::Sparse(..)) {
                files.push(path.clone());
            }
            made.push((object, path));
        }
    }
    // Deepest first, because changing an object changes the time of its directory only.
    for (object, path) in made.iter().rev() {
        dress(object, path);
    }
}

fn sparse(path: &Path, length: u64, at: u64, bytes: &[u8]) -> std::io::Result<()> {
    let file = std::fs::File::create(path)?;
    file.set_len(length)?;
    file.write_all_at(bytes, at)
}

fn dress(object: &Object, path: &Path) {
    std::os::unix::fs::lchown(path, Some(object.owner.0), Some(object.owner.1)).unwrap();
    if !path.is_symlink() {
        std::fs::set_permissions(path, PermissionsExt::from_mode(object.mode)).unwrap();
        if let (Some((name, value)), true) = (&object.comment, path.is_file() || path.is_dir()) {
            let name = format!("user.{name}");
            rustix::fs::setxattr(path, name, value, XattrFlags::empty()).unwrap();
        }
    }
    let time = Timespec {
        tv_sec: object.mtime.0,
        tv_nsec: object.mtime.1,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

#[derive(Debug, PartialEq, Eq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    content: Vec<u8>,
    first_name: PathBuf,
    xattrs: Vec<(String, Vec<u8>)>,
}

fn look(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    let mut inodes: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let mut left = vec![PathBuf::new()];
    while let Some(name) = left.pop() {
        let path = root.join(&name);
        let stat = path.symlink_metadata().unwrap();
        let mut xattrs = Vec::new();
        let content = if stat.is_symlink() {
            let target: OsString = path.read_link().unwrap().into();
            target.into_encoded_bytes()
        } else if stat.is_file() {
            std::fs::read(&path).unwrap()
        } else {
            Vec::new()
        };
        if stat.is_file() || stat.is_dir() {
            let file = std::fs::File::open(&path).unwrap();
            for name in garden_sys::xattr::names(&file).unwrap() {
                let value = garden_sys::xattr::get(&file, &name).unwrap();
                xattrs.push((name, value.unwrap()));
            }
            xattrs.sort();
        }
        if stat.is_dir() {
            let mut inside: Vec<_> = (path.read_dir().unwrap())
                .map(|entry| name.join(entry.unwrap().file_name()))
                .collect();
            inside.sort();
            left.extend(inside.into_iter().rev());
        }
        let first_name = inodes
            .entry(stat.ino())
            .or_insert_with(|| name.clone())
            .clone();
        let it = Seen {
            mode: stat.mode(),
            owner: (stat.uid(), stat.gid()),
            mtime: (stat.mtime(), stat.mtime_nsec()),
            content,
            first_name,
            xattrs,
        };
        seen.insert(name, it);
    }
    seen
}

fn tar(arguments: &[&str], format: Format, directory: &Path) {
    let mut command = Command::new("tar");
    command.arg("--numeric-owner");
    // The other formats have no place for them.
    if format == Format::Pax {
        command.args(["--xattrs", "--xattrs-include=user.*"]);
    }
    let output = command
        .args(arguments)
        .arg("-C")
        .arg(directory)
        .arg(".")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "tar {arguments:?}: {errors}");
}

/// What of a tree a format can tell.
fn told(mut tree: BTreeMap<PathBuf, Seen>, format: Format) -> BTreeMap<PathBuf, Seen> {
    if format != Format::Pax {
        for seen in tree.values_mut() {
            seen.mtime.1 = 0;
            seen.xattrs.clear();
        }
    }
    tree
}

fn packings() -> impl Strategy<Value = (Packing, Vec<Object>)> {
    let format = prop_oneof![Just(Format::Ustar), Just(Format::Gnu), Just(Format::Pax)];
    let sparse = prop::option::of(prop_oneof![Just("0.0"), Just("0.1"), Just("1.0")]);
    (format, sparse, any::<bool>()).prop_flat_map(|(format, sparse, gzip)| {
        let sparse = sparse.filter(|_| format != Format::Ustar);
        let packing = Packing {
            format,
            sparse,
            gzip,
        };
        (Just(packing), prop::collection::vec(object(format), 0..25))
    })
}

#[test]
fn unpacked_trees_look_like_those_of_gnu_tar() {
    let test = "unpacked_trees_look_like_those_of_gnu_tar";
    let Some(place) = Place::new(test) else {
        return;
    };
    let version = Command::new("tar").arg("--version").output();
    if !version.is_ok_and(|output| output.stdout.starts_with(b"tar (GNU tar)")) {
        println!("SKIPPED {test}: there is no GNU tar");
        return;
    }
    let cases = std::env::var("PROPTEST_CASES").map_or(32, |cases| cases.parse().unwrap());
    let mut runner = TestRunner::new(Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    });
    let result = runner.run(&packings(), |(packing, objects)| {
        let work = tempfile::tempdir_in(place.dir.path()).unwrap();
        let source = work.path().join("tree");
        build(&source, &objects);
        let archive = work.path().join("a.tar");
        let text = archive.to_string_lossy();
        let format = match packing.format {
            Format::Ustar => "--format=ustar",
            Format::Gnu => "--format=gnu",
            Format::Pax => "--format=posix",
        };
        let mut arguments = vec![format, "-cf", &text];
        let version = packing
            .sparse
            .map(|version| format!("--sparse-version={version}"));
        if let Some(version) = &version {
            arguments.extend(["--sparse", version]);
        }
        let before = look(&source);
        tar(&arguments, packing.format, &source);
        let theirs = work.path().join("theirs");
        std::fs::create_dir(&theirs).unwrap();
        tar(&["--same-owner", "-xpf", &text], packing.format, &theirs);
        let mut bytes = std::fs::read(&archive).unwrap();
        if packing.gzip {
            bytes = gzip(&bytes);
        }
        let image = place.import("a.tar", &bytes).unwrap();
        let ours = look(&place.only_tree(&image));
        prop_assert_eq!(&ours, &look(&theirs));
        prop_assert_eq!(&ours, &told(before, packing.format));
        Ok(())
    });
    result.unwrap();
}
