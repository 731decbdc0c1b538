//! Whiteouts and opaque directories, as a container sees them: through the overlay mount. What
//! layers mean together is what a plain model says, which applies them one after the other to a
//! map, as the OCI image specification tells it (layer.md, applying changesets).

#![allow(clippy::unwrap_used, reason = "only for tests")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};

use garden_rootfs::{CreateRequest, DiskLimit, Image, Mapping};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rustix::fs::{Dir, FileType, OFlags};
use support::{Entry, Layout, Place, Tar, open, read, stat};

/// An entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Item {
    Directory(String, u32),
    File(String, String),
    Link(String, String),
    Whiteout(String),
    Opaque(String),
}

use Item::{Directory, File, Link, Opaque, Whiteout};

fn dir(name: &str) -> Item {
    Directory(name.to_owned(), 0o711)
}

fn file(name: &str, text: &str) -> Item {
    File(name.to_owned(), text.to_owned())
}

fn gone(name: &str) -> Item {
    Whiteout(name.to_owned())
}

fn opaque(name: &str) -> Item {
    Opaque(name.to_owned())
}

fn packed(items: &[Item]) -> Vec<u8> {
    let marker = |name: &str| match name.rsplit_once('/') {
        Some((directory, last)) => format!("{directory}/.wh.{last}"),
        None => format!(".wh.{name}"),
    };
    let tar = items.iter().fold(Tar::default(), |tar, item| match item {
        Directory(name, mode) => tar.entry(&Entry {
            kind: b'5',
            name: name.as_bytes(),
            mode: *mode,
            ..Entry::default()
        }),
        File(name, text) => tar.file(name, text),
        Link(name, target) => tar.symlink(name, target),
        Whiteout(name) => tar.file(&marker(name), ""),
        Opaque(name) => tar.file(&format!("{name}/.wh..wh..opq"), ""),
    });
    tar.done()
}

/// What is at a name: a directory with its mode, a file with its content, a link with its target.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Directory(u32),
    File(String),
    Link(String),
}

/// The reference: all layers so far, in a map.
#[derive(Default)]
struct Model {
    tree: BTreeMap<String, Seen>,
    /// What the layer that is being applied has brought itself.
    own: BTreeSet<String>,
    /// Directories of it that replaced something else of it: nothing of lower layers is in them.
    fresh: BTreeSet<String>,
}

fn is_below(name: &str, directory: &str) -> bool {
    (name.strip_prefix(directory)).is_some_and(|rest| rest.starts_with('/'))
}

fn ways(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices('/').map(|(at, _)| &name[..at])
}

impl Model {
    fn apply(&mut self, items: &[Item]) {
        self.own.clear();
        self.fresh.clear();
        for item in items {
            match item {
                Whiteout(name) => self.tree.retain(|at, _| at != name && !is_below(at, name)),
                Opaque(name) => self.tree.retain(|at, _| !is_below(at, name)),
                _ => {}
            }
        }
        for item in items {
            match item {
                Directory(name, mode) => self.put(name, Seen::Directory(*mode)),
                File(name, text) => self.put(name, Seen::File(text.clone())),
                Link(name, target) => self.put(name, Seen::Link(target.clone())),
                _ => {}
            }
        }
        // A marker lies in a directory, too; unless something hides where that would be.
        let hides = |name: &str| {
            (items.iter())
                .any(|item| matches!(item, Opaque(hidden) | Whiteout(hidden) if hidden == name))
        };
        for item in items {
            if let Opaque(name) = item {
                self.directory(name);
            }
        }
        for item in items {
            if let Whiteout(name) = item
                && !ways(name).any(|way| hides(way) || self.fresh.contains(way))
                && let Some((directory, _)) = name.rsplit_once('/')
            {
                self.directory(directory);
            }
        }
    }

    fn put(&mut self, name: &str, what: Seen) {
        if let Some((directory, _)) = name.rsplit_once('/') {
            self.make_directory(directory);
        }
        let merges = matches!(what, Seen::Directory(_))
            && matches!(self.tree.get(name), Some(Seen::Directory(_)));
        if !merges {
            self.fresh.retain(|at| at != name && !is_below(at, name));
            if matches!(what, Seen::Directory(_)) && self.own.contains(name) {
                self.fresh.insert(name.to_owned());
            }
            self.tree.retain(|at, _| !is_below(at, name));
            self.own.retain(|at| !is_below(at, name));
        }
        self.tree.insert(name.to_owned(), what);
        self.own.insert(name.to_owned());
    }

    /// A directory that a marker needs, unless this layer has something else on the way.
    fn directory(&mut self, name: &str) {
        let blocked = ways(name).chain([name]).any(|way| {
            self.own.contains(way) && !matches!(self.tree.get(way), Some(Seen::Directory(_)))
        });
        if !blocked {
            self.make_directory(name);
        }
    }

    fn make_directory(&mut self, name: &str) {
        let ways: Vec<_> = ways(name).chain([name]).map(str::to_owned).collect();
        for way in ways {
            match self.tree.get(&way) {
                Some(Seen::Directory(_)) => {
                    self.own.insert(way);
                }
                _ => self.put(&way, Seen::Directory(0o755)),
            }
        }
    }
}

/// What a container would see.
fn look(root: OwnedFd) -> BTreeMap<String, Seen> {
    let mut seen = BTreeMap::new();
    let mut left = vec![(String::new(), root)];
    while let Some((around, directory)) = left.pop() {
        for entry in Dir::read_from(&directory).unwrap() {
            let entry = entry.unwrap();
            let last = entry.file_name().to_str().unwrap();
            if matches!(last, "." | "..") {
                continue;
            }
            let name = match around.as_str() {
                "" => last.to_owned(),
                around => format!("{around}/{last}"),
            };
            let found = stat(&directory, last).unwrap();
            let what = match FileType::from_raw_mode(found.st_mode) {
                FileType::Directory => {
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
                    left.push((name.clone(), open(&directory, last, flags).unwrap()));
                    Seen::Directory(found.st_mode & 0o7777)
                }
                FileType::Symlink => {
                    let target = rustix::fs::readlinkat(&directory, last, Vec::new()).unwrap();
                    Seen::Link(target.into_string().unwrap())
                }
                FileType::RegularFile => Seen::File(read(&directory, last)),
                other => panic!("{name} is a {other:?}"),
            };
            seen.insert(name, what);
        }
    }
    seen
}

fn mounted(place: &Place, image: &Image, id: &str) -> BTreeMap<String, Seen> {
    let rootfs = place
        .store()
        .create(&CreateRequest {
            id,
            image,
            mapping: Mapping::Host,
            read_only: false,
            limit: DiskLimit::default(),
        })
        .unwrap();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let seen = look(open(rootfs.mount.as_fd(), ".", flags).unwrap());
    place
        .store()
        .destroy_holding(id, vec![rootfs.mount])
        .unwrap();
    seen
}

/// Imports these layers and compares what is mounted with the model.
fn compare(place: &Place, layers: &[Vec<Item>], id: &str) -> Result<(), TestCaseError> {
    let path = place.path(&format!("layout-{id}"));
    let layout = (layers.iter()).fold(Layout::new(path.clone()), |layout, items| {
        layout.layer(&packed(items))
    });
    let image = place.store().import(&layout.done()).unwrap();
    place.assert_listed(&image);
    let mut model = Model::default();
    for items in layers {
        model.apply(items);
    }
    let seen = mounted(place, &image, id);
    std::fs::remove_dir_all(path).unwrap();
    prop_assert_eq!(seen, model.tree);
    Ok(())
}

fn base() -> Vec<Item> {
    vec![
        Directory("d".to_owned(), 0o750),
        file("d/a", "lower"),
        file("d/b", "lower"),
        Directory("d/sub".to_owned(), 0o700),
        file("d/sub/x", "lower"),
        file("f", "lower"),
        Link("l".to_owned(), "d".to_owned()),
        file("keep", "lower"),
    ]
}

fn orders(items: &[Item]) -> Vec<Vec<Item>> {
    match items {
        [] => vec![Vec::new()],
        _ => (0..items.len())
            .flat_map(|first| {
                let mut rest = items.to_vec();
                let first = rest.remove(first);
                let with_first = move |mut order: Vec<Item>| {
                    order.insert(0, first.clone());
                    order
                };
                orders(&rest).into_iter().map(with_first)
            })
            .collect(),
    }
}

/// The entries of one layer mean the same in every order, as far as markers go.
#[test]
fn markers_mean_the_same_in_every_order() {
    let Some(place) = Place::with_mounts("markers_mean_the_same_in_every_order") else {
        return;
    };
    let cases: Vec<(Vec<Item>, &[&str])> = vec![
        (
            vec![gone("d"), dir("d"), file("d/new", "1")],
            &["d", "d/new", "f", "keep", "l"],
        ),
        (
            vec![opaque("d"), file("d/new", "2"), file("d/sub/y", "2")],
            &["d", "d/new", "d/sub", "d/sub/y", "f", "keep", "l"],
        ),
        (
            vec![gone("d/a"), file("d/a", "upper"), gone("d/b")],
            &["d", "d/a", "d/sub", "d/sub/x", "f", "keep", "l"],
        ),
        (
            vec![gone("d/sub/x"), gone("d/sub"), opaque("d")],
            &["d", "f", "keep", "l"],
        ),
        (
            vec![gone("f"), dir("f"), file("f/x", "3"), gone("l")],
            &["d", "d/a", "d/b", "d/sub", "d/sub/x", "f", "f/x", "keep"],
        ),
        (
            vec![gone("d"), gone("d/a"), file("d/sub/z", "4")],
            &["d", "d/sub", "d/sub/z", "f", "keep", "l"],
        ),
        (
            vec![file("foo.wh.bar", ""), gone("foobar"), gone("keep")],
            &[
                "d",
                "d/a",
                "d/b",
                "d/sub",
                "d/sub/x",
                "f",
                "foo.wh.bar",
                "l",
            ],
        ),
    ];
    for (number, (items, expected)) in cases.into_iter().enumerate() {
        for (order, items) in orders(&items).into_iter().enumerate() {
            let layers = [base(), items];
            compare(&place, &layers, &format!("o{number}-{order}")).unwrap();
            let mut model = Model::default();
            layers.iter().for_each(|items| model.apply(items));
            let names: Vec<_> = model.tree.keys().map(String::as_str).collect();
            assert_eq!(names, expected, "{layers:?}");
        }
    }
}

fn name() -> impl Strategy<Value = String> {
    prop::collection::vec("[a-c]", 1..4).prop_map(|parts| parts.join("/"))
}

fn item() -> impl Strategy<Value = Item> {
    let link = prop::collection::vec("[a-c]", 0..2).prop_map(|parts| parts.join("/"));
    prop_oneof![
        4 => (name(), 0o700_u32..=0o777).prop_map(|(name, mode)| Directory(name, mode)),
        6 => (name(), "[a-z]{0,3}").prop_map(|(name, text)| File(name, text)),
        // Their names are never ways: where a way through a link leads is tested elsewhere.
        1 => (link, "[a-c/.]{1,9}").prop_map(|(directory, target)| {
            Link(format!("{directory}/l").trim_start_matches('/').to_owned(), target)
        }),
        3 => name().prop_map(Whiteout),
        2 => name().prop_map(Opaque),
    ]
}

/// Whatever the layers are, the mount shows what the model has.
#[test]
fn random_layers_are_what_the_model_says() {
    let Some(place) = Place::with_mounts("random_layers_are_what_the_model_says") else {
        return;
    };
    let cases = std::env::var("PROPTEST_CASES").map_or(64, |cases| cases.parse().unwrap());
    let mut runner = TestRunner::new(Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    });
    let layers = prop::collection::vec(prop::collection::vec(item(), 1..9), 1..5);
    let number = std::cell::Cell::new(0);
    let result = runner.run(&layers, |layers| {
        number.set(number.get() + 1);
        compare(&place, &layers, &format!("r{}", number.get()))
    });
    result.unwrap();
}
