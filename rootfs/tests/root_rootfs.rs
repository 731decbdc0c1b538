//! Root filesystems on the real kernel: what is seen inside, whose files they are, what is left.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "only for tests")]

mod support;

use std::io::Write;
use std::os::fd::AsFd;
use std::time::Duration;

use garden_rootfs::{
    CreateRequest, DiskLimit, Error, IdRange, Image, Mapping, Rootfs, Store, StoreOptions, Unmount,
};
use rustix::fs::{AtFlags, Mode, OFlags};
use support::{Entry, Layout, Place, Tar, names, open, read, stat};

fn base() -> Vec<u8> {
    Tar::default()
        .dir("./", 0o751, (0, 0))
        .dir("etc", 0o755, (0, 0))
        .file("etc/hostname", "image")
        .entry(&Entry {
            name: b"bin/su",
            content: b"x",
            mode: 0o4755,
            ..Entry::default()
        })
        .entry(&Entry {
            name: b"home/me",
            content: b"mine",
            owner: (1000, 1001),
            ..Entry::default()
        })
        .done()
}

fn request<'a>(id: &'a str, image: &'a Image) -> CreateRequest<'a> {
    CreateRequest {
        id,
        image,
        mapping: Mapping::Host,
        read_only: false,
        limit: DiskLimit::default(),
    }
}

fn mapped() -> Mapping {
    let map = vec![IdRange {
        inside: 0,
        host: 100_000,
        size: 65536,
    }];
    Mapping::Mapped {
        uid: map.clone(),
        gid: map,
    }
}

fn write(rootfs: &Rootfs, name: &str, text: &str) {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
    let file = open(&rootfs.mount, name, flags).unwrap();
    std::fs::File::from(file)
        .write_all(text.as_bytes())
        .unwrap();
}

fn owner(at: impl AsFd, name: &str) -> (u32, u32) {
    let stat = stat(at, name).unwrap();
    (stat.st_uid, stat.st_gid)
}

#[test]
fn what_is_written_is_private_to_a_root_filesystem() {
    let Some(place) = Place::with_mounts("what_is_written_is_private_to_a_root_filesystem") else {
        return;
    };
    let image = place.import("base.tar", &base()).unwrap();
    let one = place.store().create(&request("one", &image)).unwrap();
    let two = place.store().create(&request("two", &image)).unwrap();
    assert_eq!(one.volatile, place.is_volatile());
    write(&one, "etc/hostname", "one");
    write(&one, "new", "one");
    assert_eq!(read(&one.mount, "etc/hostname"), "one");
    assert_eq!(read(&two.mount, "etc/hostname"), "image");
    assert_eq!(names(&two.mount, "."), ["bin", "etc", "home"]);
    assert_eq!(stat(&one.mount, ".").unwrap().st_mode & 0o7777, 0o751);
    assert_eq!(stat(&one.mount, "bin/su").unwrap().st_mode & 0o7777, 0o4755);
    let ids: Vec<_> = place
        .store()
        .list()
        .unwrap()
        .into_iter()
        .map(|info| info.id)
        .collect();
    assert_eq!(ids, ["one", "two"]);

    assert!(place.store().destroy("one").unwrap());
    assert!(!place.store().destroy("one").unwrap());
    assert!(
        place
            .store()
            .destroy_holding("two", vec![two.mount])
            .unwrap()
    );
    drop(one);
    assert!(place.store().list().unwrap().is_empty());
    place.assert_nothing_left(1);
}

#[test]
fn the_host_sees_no_mount() {
    let Some(place) = Place::with_mounts("the_host_sees_no_mount") else {
        return;
    };
    let image = place.import("base.tar", &base()).unwrap();
    let table = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut held = Vec::new();
    for number in 0..10 {
        let id = format!("r{number}");
        held.push(place.store().create(&request(&id, &image)).unwrap());
    }
    let after = table();
    let store = place.path("store");
    assert!(!after.contains(&*store.to_string_lossy()), "{after}");
}

#[test]
fn owners_are_mapped_in_and_out() {
    let Some(place) = Place::with_mounts("owners_are_mapped_in_and_out") else {
        return;
    };
    let image = place.import("base.tar", &base()).unwrap();
    let mut asked = request("mapped", &image);
    asked.mapping = mapped();
    let rootfs = place.store().create(&asked).unwrap();
    assert_eq!(owner(&rootfs.mount, "."), (100_000, 100_000));
    assert_eq!(owner(&rootfs.mount, "home/me"), (101_000, 101_001));
    // Copied up: upper has the owners of the host.
    write(&rootfs, "home/me", "changed");
    let upper = place.path("store/rootfs/mapped/upper/home/me");
    let upper = std::fs::metadata(upper).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!((upper.uid(), upper.gid()), (101_000, 101_001));
    let tree = std::fs::File::open(place.only_tree(&image)).unwrap();
    assert_eq!(owner(&tree, "home/me"), (1000, 1001));
    // Nobody can make a device and use it.
    let kind = rustix::fs::FileType::CharacterDevice;
    let null = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(&rootfs.mount, "null", kind, Mode::RWXU, null).unwrap();
    let opened = open(&rootfs.mount, "null", OFlags::RDONLY);
    assert_eq!(opened.unwrap_err(), rustix::io::Errno::ACCESS);
    // The same layer serves other mappings.
    let host = place.store().create(&request("host", &image)).unwrap();
    assert_eq!(owner(&host.mount, "home/me"), (1000, 1001));
}

#[test]
fn a_mapping_must_hold_the_owner_of_the_root() {
    let Some(place) = Place::with_mounts("a_mapping_must_hold_the_owner_of_the_root") else {
        return;
    };
    let tar = Tar::default().dir("./", 0o755, (70_000, 0)).done();
    let image = place.import("base.tar", &tar).unwrap();
    let mut asked = request("x", &image);
    asked.mapping = mapped();
    let error = place.store().create(&asked).unwrap_err();
    assert!(matches!(error, Error::InvalidMapping(_)), "{error}");
    let range = |inside, host| IdRange {
        inside,
        host,
        size: 10,
    };
    asked.mapping = Mapping::Mapped {
        uid: vec![range(0, 0), range(5, 100)],
        gid: vec![range(0, 0)],
    };
    let error = place.store().create(&asked).unwrap_err();
    assert!(matches!(error, Error::InvalidMapping(_)), "{error}");
    place.assert_nothing_left(1);
}

#[test]
fn an_id_is_given_once() {
    let Some(place) = Place::with_mounts("an_id_is_given_once") else {
        return;
    };
    let image = place.import("base.tar", &base()).unwrap();
    let made: Vec<_> = std::thread::scope(|scope| {
        let race = || place.store().create(&request("same", &image));
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(race)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let (won, lost): (Vec<_>, Vec<_>) = made.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1);
    for error in lost {
        assert!(matches!(error, Err(Error::IdInUse(id)) if id == "same"));
    }
    let winner = won.into_iter().next().unwrap().unwrap();
    write(&winner, "alive", "yes");
    assert!(place.path("store/rootfs/same/upper/alive").exists());
    for bad in ["", ".", "..", ".x", "a/b", &"x".repeat(256)] {
        let error = place.store().create(&request(bad, &image)).unwrap_err();
        assert!(matches!(error, Error::InvalidId(_)), "{bad}");
        assert!(!place.store().destroy(bad).unwrap());
    }
    place.assert_nothing_left(1);
}

#[test]
fn creating_and_destroying_one_id_may_race() {
    let Some(place) = Place::with_mounts("creating_and_destroying_one_id_may_race") else {
        return;
    };
    let image = place.import("base.tar", &base()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..30 {
                    match place.store().create(&request("same", &image)) {
                        // Another thread may destroy it at once: nothing can be said of it.
                        Ok(rootfs) => assert_eq!(rootfs.volatile, place.is_volatile()),
                        Err(Error::IdInUse(_)) => {}
                        Err(error) => panic!("{error}"),
                    }
                    place.store().destroy("same").unwrap();
                }
            });
        }
    });
    assert!(place.store().list().unwrap().is_empty());
    place.assert_nothing_left(1);
}

#[test]
fn a_read_only_one_cannot_be_written() {
    let Some(place) = Place::with_mounts("a_read_only_one_cannot_be_written") else {
        return;
    };
    let image = place.import("base.tar", &base()).unwrap();
    let mut asked = request("look", &image);
    (asked.read_only, asked.mapping) = (true, mapped());
    let rootfs = place.store().create(&asked).unwrap();
    assert_eq!(read(&rootfs.mount, "etc/hostname"), "image");
    assert_eq!(stat(&rootfs.mount, ".").unwrap().st_mode & 0o7777, 0o751);
    assert_eq!(owner(&rootfs.mount, "home/me"), (101_000, 101_001));
    let made = rustix::fs::mkdirat(&rootfs.mount, "x", Mode::RWXU);
    assert_eq!(made, Err(rustix::io::Errno::ROFS));
}

#[test]
fn five_hundred_layers_can_be_stacked() {
    let Some(place) = Place::with_mounts("five_hundred_layers_can_be_stacked") else {
        return;
    };
    let layout = (0..500).fold(Layout::new(place.path("many")), |layout, number| {
        let tar = Tar::default()
            .file(&format!("f{number}"), "x")
            .file("last", &number.to_string());
        layout.layer(&tar.done())
    });
    let image = place.store().import(&layout.done()).unwrap();
    assert_eq!(image.layers.len(), 500);
    let mut asked = request("many", &image);
    asked.mapping = mapped();
    let rootfs = place.store().create(&asked).unwrap();
    assert_eq!(read(&rootfs.mount, "last"), "499");
    assert_eq!(names(&rootfs.mount, ".").len(), 501);
    // One more directory than the kernel takes is refused before anything is made.
    asked.id = "look";
    asked.read_only = true;
    match place.store().create(&asked).unwrap_err() {
        Error::TooManyLayers { layers, .. } => assert_eq!(layers, 501),
        other => panic!("{other}"),
    }
    let layout = (0..501).fold(Layout::new(place.path("more")), |layout, number| {
        layout.layer(&Tar::default().file("f", &number.to_string()).done())
    });
    let error = place.store().import(&layout.done()).unwrap_err();
    assert!(error.to_string().contains("cannot be used"), "{error}");
    place.assert_nothing_left(500);
}

#[test]
fn data_is_gone_before_a_held_mount_is_closed() {
    let Some(place) = Place::with_mounts("data_is_gone_before_a_held_mount_is_closed") else {
        return;
    };
    let store = place.path("syncing");
    let options = StoreOptions {
        unmount: Unmount::Sync,
        pretend: support::pretend(),
        ..StoreOptions::new(&store)
    };
    let syncing = Store::open(&options).unwrap();
    std::fs::write(place.path("base.tar"), base()).unwrap();
    let source = garden_rootfs::ImageSource::Path(place.path("base.tar"));
    let image = syncing.import(&source).unwrap();
    let rootfs = syncing.create(&request("x", &image)).unwrap();
    assert!(!rootfs.volatile);
    write(&rootfs, "data", &"x".repeat(1 << 20));
    let inside = open(&rootfs.mount, "data", OFlags::RDONLY).unwrap();
    assert!(syncing.destroy_holding("x", vec![rootfs.mount]).unwrap());
    assert!(syncing.wait_trash_empty(Duration::from_secs(60)));
    // What somebody still has open is still there for them.
    assert_eq!(rustix::fs::fstat(&inside).unwrap().st_size, 1 << 20);
    assert_eq!(std::fs::read_dir(store.join("rootfs")).unwrap().count(), 0);
    assert_eq!(syncing.trash().items, 0);
}

#[test]
fn a_mount_left_inside_holds_up_only_itself() {
    let Some(place) = Place::with_mounts("a_mount_left_inside_holds_up_only_itself") else {
        return;
    };
    let image = place.import("base.tar", &base()).unwrap();
    for id in ["stuck", "free"] {
        drop(place.store().create(&request(id, &image)).unwrap());
    }
    let kept = place.path("kept");
    std::fs::create_dir(&kept).unwrap();
    std::fs::write(kept.join("file"), "x").unwrap();
    let inside = place.path("store/rootfs/stuck/upper/mounted");
    std::fs::create_dir(&inside).unwrap();
    rustix::mount::mount_bind(&kept, &inside).unwrap();
    // By descriptor, because its path changes when the tree goes to the trash.
    let mounted = rustix::fs::open(&inside, OFlags::PATH, Mode::empty()).unwrap();

    let destroyed = ["stuck", "free"].map(|id| place.store().destroy(id));
    let mut stats = place.store().trash();
    for _ in 0..600 {
        if (stats.items, stats.failing) == (1, 1) {
            break;
        }
        place.store().wait_trash_empty(Duration::from_millis(100));
        stats = place.store().trash();
    }
    let detach = rustix::mount::UnmountFlags::DETACH;
    use std::os::fd::AsRawFd;
    let path = std::fs::read_link(format!("/proc/self/fd/{}", mounted.as_raw_fd()));
    rustix::mount::unmount(path.unwrap(), detach).unwrap();
    assert!(destroyed.into_iter().all(|destroyed| destroyed.unwrap()));
    assert_eq!((stats.items, stats.failing), (1, 1));
    assert!(stats.oldest_age.is_some());
    assert!(kept.join("file").exists());
    place.assert_nothing_left(1);
    assert!(kept.join("file").exists());
}

#[test]
fn what_a_killed_server_left_is_found() {
    let Some(mut place) = Place::with_mounts("what_a_killed_server_left_is_found") else {
        return;
    };
    let image = place.import("base.tar", &base()).unwrap();
    drop(place.store().create(&request("kept", &image)).unwrap());
    drop(place.store().create(&request("old", &image)).unwrap());
    let error = Store::open(&Place::options(place.dir.path())).unwrap_err();
    assert!(matches!(error, Error::StoreInUse(_)), "{error}");
    place.store = None;
    // As if it had been killed in the middle of things, and as if `old` were of another boot.
    let store = place.path("store");
    std::fs::create_dir_all(store.join("tmp/dead-1-1/tree/a/b")).unwrap();
    std::fs::create_dir_all(store.join("trash/half/a/b")).unwrap();
    std::fs::create_dir_all(store.join("layers/half/tree")).unwrap();
    std::fs::write(store.join("images/bad.json"), "{").unwrap();
    let record = store.join("rootfs/old/record.json");
    let text = std::fs::read_to_string(&record).unwrap();
    let mut info: serde_json::Value = serde_json::from_str(&text).unwrap();
    info["boot"] = "another".into();
    std::fs::write(&record, info.to_string()).unwrap();

    place.reopen();
    place.assert_nothing_left(1);
    let ids: Vec<_> = place
        .store()
        .list()
        .unwrap()
        .into_iter()
        .map(|info| info.id)
        .collect();
    assert_eq!(ids, ["kept"]);
    assert_eq!(place.store().list_images().unwrap().len(), 1);
    assert!(place.store().destroy("kept").unwrap());
    let again = place.store().create(&request("kept", &image)).unwrap();
    assert_eq!(read(&again.mount, "etc/hostname"), "image");
}

#[test]
fn layers_of_another_boot_count_only_when_durable() {
    let test = "layers_of_another_boot_count_only_when_durable";
    let Some(mut place) = Place::new(test) else {
        return;
    };
    let one = place
        .import("one.tar", &Tar::default().file("a", "1").done())
        .unwrap();
    let two = place
        .import("two.tar", &Tar::default().file("a", "2").done())
        .unwrap();
    place.store = None;
    for (image, durable) in [(&one, true), (&two, false)] {
        let layer = place.path("store/layers").join(&image.layers[0].key);
        let record = layer.join("record.json");
        let text = std::fs::read_to_string(&record).unwrap();
        let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
        value["boot"] = "another".into();
        std::fs::write(&record, value.to_string()).unwrap();
        if durable {
            std::fs::write(layer.join("durable"), "").unwrap();
        }
    }
    place.reopen();
    assert_eq!(place.store().list_layers(), one.layers);
    assert_eq!(place.store().list_images().unwrap()[0].image, one);
    place.assert_nothing_left(1);
}

#[test]
fn a_mount_can_be_attached() {
    let Some(place) = Place::with_mounts("a_mount_can_be_attached") else {
        return;
    };
    use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount, unmount};
    let image = place.import("base.tar", &base()).unwrap();
    let mut asked = request("x", &image);
    asked.mapping = mapped();
    let rootfs = place.store().create(&asked).unwrap();
    let target = place.path("target");
    std::fs::create_dir(&target).unwrap();
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&rootfs.mount, "", rustix::fs::CWD, &target, flags).unwrap();
    // The holder's descriptor may go: the mount is attached.
    drop(rootfs);
    let seen = std::fs::read_to_string(target.join("etc/hostname"));
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let destroyed = place.store().destroy("x");
    unmount(&target, UnmountFlags::DETACH).unwrap();
    assert_eq!(seen.unwrap(), "image");
    assert!(destroyed.unwrap());
    let target = target.to_string_lossy();
    let line = table.lines().find(|line| line.contains(&*target)).unwrap();
    assert!(
        line.contains("nodev") && line.contains(" overlay garden "),
        "{line}"
    );
    assert_eq!(line.contains("volatile"), place.is_volatile(), "{line}");
    place.assert_nothing_left(1);
}

#[test]
fn a_mount_outlives_its_id() {
    let Some(place) = Place::with_mounts("a_mount_outlives_its_id") else {
        return;
    };
    let image = place.import("base.tar", &base()).unwrap();
    let rootfs = place.store().create(&request("x", &image)).unwrap();
    write(&rootfs, "file", "content");
    let open_file = open(&rootfs.mount, "file", OFlags::RDONLY).unwrap();
    assert!(place.store().destroy("x").unwrap());
    let again = place.store().create(&request("x", &image)).unwrap();
    assert!(stat(&again.mount, "file").is_err());
    place.assert_nothing_left(1);
    assert_eq!(rustix::fs::fstat(&open_file).unwrap().st_size, 7);
    rustix::fs::statat(&rootfs.mount, "etc/hostname", AtFlags::empty()).unwrap();
}

/// Runs the other tests of this file again, as on a host without something.
fn again_without(test: &str, what: &str, lacks: impl Fn(&garden_rootfs::Capabilities) -> bool) {
    // Not inside such a run.
    if std::env::var_os(support::PRETEND).is_some() {
        return;
    }
    if std::env::var_os("GARDEN_TEST_GUEST").is_some() {
        println!("SKIPPED {test}: an emulated kernel is slow, and others of them lack it in truth");
        return;
    }
    let Some(place) = Place::with_mounts(test) else {
        return;
    };
    if lacks(&place.store().capabilities()) {
        println!("SKIPPED {test}: this host lacks it anyway, so that every test here shows it");
        return;
    }
    let run = std::process::Command::new(std::env::current_exe().unwrap())
        .env(support::PRETEND, what)
        .args(["--skip", "again_without", "--color", "never"])
        // The stack's height has nothing to do with how it ends.
        .args(
            (what == "volatile")
                .then_some(["--skip", "five_hundred"])
                .into_iter()
                .flatten(),
        )
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "without {what}:\n{said}");
    assert!(!said.contains(" 0 passed"), "{said}");
}

#[test]
fn again_without_descriptors() {
    again_without("again_without_descriptors", "descriptors", |host| {
        !host.detached_layers
    });
}

#[test]
fn again_without_mapped_owners() {
    let what = "descriptors mapped-owners mount-attributes reflink";
    again_without("again_without_mapped_owners", what, |host| {
        !host.mapped_owners && !host.mount_attributes
    });
}

#[test]
fn again_without_volatile() {
    again_without("again_without_volatile", "volatile", |host| {
        host.volatile.is_none()
    });
}

#[test]
fn a_newer_kernel_uses_what_it_has() {
    let Some(place) = Place::with_mounts("a_newer_kernel_uses_what_it_has") else {
        return;
    };
    if std::env::var_os(support::PRETEND).is_some() {
        return;
    }
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let mut numbers = release.split(['.', '-', '+']).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        panic!("{release}");
    };
    let since = |version| (major, minor) >= version;
    let host = place.store().capabilities();
    assert!(
        host.openat2 && host.overlay && host.volatile.is_some(),
        "{host:?}"
    );
    assert_eq!(host.mount_attributes, since((5, 12)), "{host:?}");
    // Distributions take features back into older kernels, never out of newer ones.
    assert!(host.layers_one_by_one || !since((6, 8)), "{host:?}");
    assert!(host.layers_as_descriptors || !since((6, 13)), "{host:?}");
    assert!(host.detached_layers || !since((6, 15)), "{host:?}");
    // With file systems whose mounts map owners.
    use garden_rootfs::FileSystem::{Btrfs, Ext4, Xfs};
    let maps = matches!(host.file_system, Btrfs | Ext4 | Xfs);
    assert!(host.mapped_owners || !(since((5, 19)) && maps), "{host:?}");
}

#[test]
fn a_store_may_have_any_name() {
    let Some(place) = Place::with_mounts("a_store_may_have_any_name") else {
        return;
    };
    let path = place.path("a:b,c\\d\ne f");
    let options = StoreOptions {
        pretend: support::pretend(),
        ..StoreOptions::new(&path)
    };
    let store = Store::open(&options).unwrap();
    std::fs::write(place.path("base.tar"), base()).unwrap();
    let source = garden_rootfs::ImageSource::Path(place.path("base.tar"));
    let image = store.import(&source).unwrap();
    for (id, mapping) in [("host", Mapping::Host), ("mapped", mapped())] {
        let mut asked = request(id, &image);
        asked.mapping = mapping;
        let rootfs = store.create(&asked).unwrap();
        write(&rootfs, "new", id);
        assert_eq!(read(&rootfs.mount, "etc/hostname"), "image");
        let upper = path.join("rootfs").join(id).join("upper/new");
        assert_eq!(std::fs::read_to_string(upper).unwrap(), id);
        assert!(store.destroy_holding(id, vec![rootfs.mount]).unwrap());
    }
    assert!(store.wait_trash_empty(Duration::from_secs(60)));
}

#[test]
fn nobodys_files_are_not_given_to_anybody() {
    let Some(place) = Place::with_mounts("nobodys_files_are_not_given_to_anybody") else {
        return;
    };
    let tar = Tar::default()
        .entry(&Entry {
            name: b"theirs",
            content: b"x",
            owner: (70_000, 0),
            ..Entry::default()
        })
        .done();
    let image = place.import("base.tar", &tar).unwrap();
    let mut asked = request("x", &image);
    asked.mapping = mapped();
    match place.store().create(&asked) {
        // A mount that maps owners shows the owner that stands for none.
        Ok(rootfs) => assert_eq!(owner(&rootfs.mount, "theirs").0, 65534),
        Err(error) => {
            assert!(!place.store().capabilities().mapped_owners);
            assert!(matches!(error, Error::InvalidMapping(_)), "{error}");
        }
    }
    assert!(place.store().destroy("x").is_ok());
    place.assert_nothing_left(1);
}

#[test]
fn a_layer_looks_the_same_whoever_maps_it() {
    let Some(place) = Place::with_mounts("a_layer_looks_the_same_whoever_maps_it") else {
        return;
    };
    let mut capability = vec![1, 0, 0, 2];
    capability.extend([0xff, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let lower = Tar::default().file("gone", "x").file("dir/old", "x");
    let upper = Tar::default()
        .file(".wh.gone", "")
        .dir("dir", 0o2750, (1, 2))
        .file("dir/.wh..wh..opq", "")
        .entry(&Entry {
            name: b"dir/file",
            content: b"content",
            mode: 0o4711,
            owner: (3, 4),
            ..Entry::default()
        })
        .hard_link("dir/same", "dir/file")
        .symlink("link", "dir/file")
        .pax(&[("SCHILY.xattr.security.capability", &capability)])
        .file("capable", "x");
    let layout = Layout::new(place.path("two"))
        .layer(&lower.done())
        .layer(&upper.done());
    let image = place.store().import(&layout.done()).unwrap();
    let mut asked = request("x", &image);
    asked.mapping = mapped();
    let rootfs = place.store().create(&asked).unwrap();
    let at = |name| stat(&rootfs.mount, name).unwrap();
    assert_eq!(names(&rootfs.mount, "."), ["capable", "dir", "link"]);
    assert_eq!(names(&rootfs.mount, "dir"), ["file", "same"]);
    assert_eq!(owner(&rootfs.mount, "dir"), (100_001, 100_002));
    assert_eq!(owner(&rootfs.mount, "dir/file"), (100_003, 100_004));
    assert_eq!(owner(&rootfs.mount, "link"), (100_000, 100_000));
    assert_eq!(at("dir").st_mode & 0o7777, 0o2750);
    assert_eq!(at("dir/file").st_mode & 0o7777, 0o4711);
    assert_eq!(at("dir/file").st_mtime, 1_000_000_000);
    assert_eq!(at("dir/file").st_ino, at("dir/same").st_ino);
    let file = open(&rootfs.mount, "capable", OFlags::RDONLY).unwrap();
    let mut value = [0; 24];
    // Seen from the host: a capability of the namespace whose root is 100000.
    let length = rustix::fs::fgetxattr(&file, "security.capability", &mut value[..]).unwrap();
    assert_eq!((length, value[3]), (24, 3));
    assert_eq!(value[20..], 100_000_u32.to_le_bytes());
    // Made once: the next one changes nothing on the disk.
    let layer = place.path("store/layers").join(&image.layers[0].key);
    let list = || std::fs::read_dir(&layer).unwrap().count();
    let before = list();
    asked.id = "y";
    place.store().create(&asked).unwrap();
    assert_eq!(list(), before);
}

#[test]
fn a_directory_of_the_host_is_left_as_it_is() {
    let Some(place) = Place::with_mounts("a_directory_of_the_host_is_left_as_it_is") else {
        return;
    };
    use garden_rootfs::BindRequest;
    let path = place.path("raw, with: names");
    std::fs::create_dir_all(path.join("inside")).unwrap();
    std::fs::write(path.join("file"), "mine").unwrap();
    rustix::mount::mount(
        "t",
        path.join("inside"),
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        None,
    )
    .unwrap();
    std::fs::write(path.join("inside/deep"), "deep").unwrap();
    let asked = |id, read_only| BindRequest {
        id,
        path: &path,
        read_only,
    };
    let made = [("rw", false), ("ro", true)]
        .map(|(id, read_only)| place.store().bind(&asked(id, read_only)));
    let seen = made.each_ref().map(|rootfs| {
        let rootfs = rootfs.as_ref().unwrap();
        let write = |name| open(&rootfs.mount, name, OFlags::WRONLY | OFlags::CREATE).map(drop);
        (
            read(&rootfs.mount, "inside/deep"),
            write("new"),
            write("inside/new"),
        )
    });
    let again = place.store().bind(&asked("rw", false));
    // Whoever unmounts on the host is not held up, and the clone follows.
    let unmounted =
        rustix::mount::unmount(path.join("inside"), rustix::mount::UnmountFlags::empty());
    let listed = place.store().list().unwrap();
    for id in ["rw", "ro"] {
        assert!(place.store().destroy(id).unwrap());
    }
    drop(made);
    let _ = rustix::mount::unmount(path.join("inside"), rustix::mount::UnmountFlags::DETACH);
    let readonly = Err(rustix::io::Errno::ROFS);
    assert_eq!(seen[0], ("deep".to_owned(), Ok(()), Ok(())));
    assert_eq!(seen[1], ("deep".to_owned(), readonly, readonly));
    assert!(matches!(again, Err(Error::IdInUse(_))));
    unmounted.unwrap();
    assert!(
        listed
            .iter()
            .all(|info| info.directory.as_ref() == Some(&path))
    );
    assert_eq!((listed.len(), listed[0].read_only), (2, true));
    place.assert_nothing_left(0);
    assert_eq!(std::fs::read_to_string(path.join("file")).unwrap(), "mine");
    assert!(path.join("new").exists());
    let missing = BindRequest {
        path: std::path::Path::new("/no/such/directory"),
        ..asked("z", false)
    };
    let error = place.store().bind(&missing).unwrap_err();
    assert!(matches!(error, Error::ImageNotFound { .. }), "{error}");
}

#[test]
fn a_disk_that_fails_is_noticed() {
    let test = "a_disk_that_fails_is_noticed";
    let Some(place) = Place::with_mounts(test) else {
        return;
    };
    if !place.is_volatile() {
        println!("SKIPPED {test}: without volatile mounts every fsync says it");
        return;
    }
    let Some(disk) = support::FullDisk::new(test) else {
        return;
    };
    let options = StoreOptions {
        pretend: support::pretend(),
        ..StoreOptions::new(disk.path().join("store"))
    };
    let store = Store::open(&options).unwrap();
    std::fs::write(place.path("base.tar"), base()).unwrap();
    let source = garden_rootfs::ImageSource::Path(place.path("base.tar"));
    let image = store.import(&source).unwrap();
    let before = store.create(&request("before", &image)).unwrap();
    assert_eq!(store.health(), garden_rootfs::Health::default());
    disk.lose_a_write();
    // Refused once, cured by a sync, and volatile again; or not volatile, and said so.
    let after = store.create(&request("after", &image)).unwrap();
    let health = store.health();
    assert_eq!(health.write_errors, 1);
    assert_eq!(after.volatile, health.not_volatile == 0);
    assert_eq!(store.health().write_errors, 1);
    let poisoned = open(&before.mount, ".", OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
    // The error is whatever the disk gave.
    rustix::fs::fsync(&poisoned).unwrap_err();
    for (id, rootfs) in [("before", before), ("after", after)] {
        assert!(store.destroy_holding(id, vec![rootfs.mount]).unwrap());
    }
    drop(poisoned);
    assert!(store.wait_trash_empty(Duration::from_secs(60)));
}
