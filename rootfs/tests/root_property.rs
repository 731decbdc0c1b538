//! Random trees, packed by GNU tar: what we unpack must look like what GNU tar unpacks.

#![allow(clippy::unwrap_used, reason = "only for tests")]

mod support;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
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
    Symlink(String),
    HardLink(usize),
    Pipe,
}

#[derive(Debug, Clone)]
struct Object {
    path: String,
    kind: Kind,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    comment: Option<Vec<u8>>,
}

fn part() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[a-c]",
        1 => "[a-z .:,=%\\\\äß-]{1,12}".prop_filter("dots mean something", |part| {
            part != "." && part != ".." && !part.starts_with(".wh.")
        }),
        1 => "[xy]{90,120}",
        1 => Just("line\nbreak".to_owned()),
    ]
}

fn object() -> impl Strategy<Value = Object> {
    let content = prop::collection::vec(any::<u8>(), 0..1500);
    let kind = prop_oneof![
        3 => Just(Kind::Directory),
        4 => content.prop_map(Kind::File),
        1 => "[a-z/.]{1,150}".prop_map(Kind::Symlink),
        1 => any::<usize>().prop_map(Kind::HardLink),
        1 => Just(Kind::Pipe),
    ];
    let comment = prop::option::weighted(0.2, prop::collection::vec(any::<u8>(), 0..60));
    (
        prop::collection::vec(part(), 1..5),
        kind,
        0_u32..0o10000,
        (0_u32..3_000_000, 0_u32..70_000),
        (0_i64..4_000_000_000, 0_i64..1_000_000_000),
        comment,
    )
        .prop_map(|(parts, kind, mode, owner, mtime, comment)| Object {
            path: parts.join("/"),
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
            Kind::Symlink(target) => std::os::unix::fs::symlink(target, &path).is_ok(),
            Kind::HardLink(number) => {
                let target = files.get(number % files.len().max(1));
                target.is_some_and(|target| std::fs::hard_link(target, &path).is_ok())
            }
            Kind::Pipe => rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).is_ok(),
        };
        if done {
            if matches!(object.kind, Kind::File(_)) {
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

fn dress(object: &Object, path: &Path) {
    std::os::unix::fs::lchown(path, Some(object.owner.0), Some(object.owner.1)).unwrap();
    if !path.is_symlink() {
        std::fs::set_permissions(path, PermissionsExt::from_mode(object.mode)).unwrap();
        if let (Some(comment), true) = (&object.comment, path.is_file() || path.is_dir()) {
            rustix::fs::setxattr(path, "user.comment", comment, XattrFlags::empty()).unwrap();
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
    comment: Option<Vec<u8>>,
}

fn look(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    let mut inodes: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let mut left = vec![PathBuf::new()];
    while let Some(name) = left.pop() {
        let path = root.join(&name);
        let stat = path.symlink_metadata().unwrap();
        let mut comment = None;
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
            comment = garden_sys::xattr::get(&file, "user.comment").unwrap();
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
            comment,
        };
        seen.insert(name, it);
    }
    seen
}

fn tar(arguments: &[&str], directory: &Path) {
    let mut command = Command::new("tar");
    command.arg("--numeric-owner");
    // GNU tar's own format has no place for them.
    if !arguments.contains(&"--format=gnu") {
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

#[test]
fn unpacked_trees_look_like_those_of_gnu_tar() {
    let test = "unpacked_trees_look_like_those_of_gnu_tar";
    let Some(place) = Place::new(test) else {
        return;
    };
    if Command::new("tar").arg("--version").output().is_err() {
        println!("SKIPPED {test}: there is no GNU tar");
        return;
    }
    let mut runner = TestRunner::new(Config {
        cases: 32,
        failure_persistence: None,
        ..Config::default()
    });
    let format = prop_oneof![Just("--format=gnu"), Just("--format=posix")];
    let trees = (
        prop::collection::vec(object(), 0..25),
        format,
        any::<bool>(),
    );
    let result = runner.run(&trees, |(objects, format, packed)| {
        let work = tempfile::tempdir_in(place.dir.path()).unwrap();
        build(&work.path().join("tree"), &objects);
        let archive = work.path().join("a.tar");
        let text = archive.to_string_lossy();
        tar(&[format, "-cf", &text], &work.path().join("tree"));
        let theirs = work.path().join("theirs");
        std::fs::create_dir(&theirs).unwrap();
        tar(&["--same-owner", "-xpf", &text], &theirs);
        let mut bytes = std::fs::read(&archive).unwrap();
        if packed {
            bytes = gzip(&bytes);
        }
        let image = place.import("a.tar", &bytes).unwrap();
        prop_assert_eq!(look(&place.only_tree(&image)), look(&theirs));
        Ok(())
    });
    result.unwrap();
}
