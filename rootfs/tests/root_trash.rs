//! The end of root filesystems, in whatever process and on whatever disk.

#![allow(clippy::unwrap_used, reason = "only for tests")]

mod support;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use garden_rootfs::{CreateRequest, DiskLimit, Maintenance, Mapping, Role, Store};
use support::Place;

fn count(path: &Path) -> usize {
    std::fs::read_dir(path).unwrap().count()
}

/// Something with an id, as a create leaves it.
fn rootfs(place: &Place, store: &Path, id: &str) -> PathBuf {
    let made = place.path("made");
    std::fs::create_dir_all(made.join("upper/a/b")).unwrap();
    std::fs::write(made.join("upper/a/b/c"), "x").unwrap();
    std::fs::write(made.join("record.json"), "{}").unwrap();
    let path = store.join("rootfs").join(id);
    std::fs::rename(made, &path).unwrap();
    path
}

#[test]
fn a_server_empties_what_tools_leave() {
    let Some(place) = Place::new("a_server_empties_what_tools_leave") else {
        return;
    };
    let mut options = Place::options(place.dir.path());
    options.role = Role::Tool;
    let store = place.path("store");
    for id in ["one", "two"] {
        rootfs(&place, &store, id);
        let tool = Store::open(&options).unwrap();
        assert!(tool.destroy(id).unwrap());
        assert!(!tool.destroy(id).unwrap());
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while count(&store.join("trash")) > 0 {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn one_tool_at_a_time_clears_up() {
    let Some(mut place) = Place::new("one_tool_at_a_time_clears_up") else {
        return;
    };
    place.store = None;
    let mut options = Place::options(place.dir.path());
    options.role = Role::Tool;
    let store = place.path("store");
    let tool = Store::open(&options).unwrap();
    rootfs(&place, &store, "one");
    tool.destroy("one").unwrap();
    assert_eq!(tool.trash().items, 1);
    let locked = File::create(store.join("maintenance.lock")).unwrap();
    locked.lock().unwrap();
    assert_eq!(tool.maintain().unwrap(), Maintenance::ByAnother);
    locked.unlock().unwrap();
    let Maintenance::Done { left, .. } = tool.maintain().unwrap() else {
        panic!("nobody else clears up");
    };
    assert_eq!((left.items, count(&store.join("trash"))), (0, 0));
}

#[test]
fn an_owner_keeps_what_it_knows() {
    let Some(place) = Place::with_mounts("an_owner_keeps_what_it_knows") else {
        return;
    };
    let image = place
        .import("tar", &support::Tar::default().file("f", "f").done())
        .unwrap();
    for id in ["known", "orphan-1", "orphan-2"] {
        let request = CreateRequest {
            id,
            image: &image,
            mapping: Mapping::Host,
            read_only: false,
            limit: DiskLimit::default(),
        };
        place.store().create(&request).unwrap();
    }
    let ids = place.store().ids().unwrap();
    let destroyed = place.store().retain(&ids, |id| id == "known").unwrap();
    assert_eq!(destroyed, ["orphan-1", "orphan-2"]);
    let left: Vec<_> = (place.store().list().unwrap().into_iter())
        .map(|rootfs| rootfs.id)
        .collect();
    assert_eq!(left, ["known"]);
}

/// A btrfs of its own in a file, gone when dropped.
struct Btrfs(PathBuf);

impl Btrfs {
    fn mount(place: &Place) -> Result<Self, String> {
        let (image, path) = (place.path("btrfs.img"), place.path("btrfs"));
        File::create(&image).unwrap().set_len(256 << 20).unwrap();
        std::fs::create_dir(&path).unwrap();
        run(Command::new("mkfs.btrfs").arg("-q").arg(&image))?;
        run(Command::new("mount")
            .args(["-o", "loop"])
            .args([&image, &path]))?;
        Ok(Self(path))
    }
}

impl Drop for Btrfs {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

#[test]
fn subvolumes_go_as_directories_do() {
    let test = "subvolumes_go_as_directories_do";
    let Some(place) = Place::new(test) else {
        return;
    };
    let disk = match Btrfs::mount(&place) {
        Ok(disk) => disk,
        Err(why) => {
            println!("SKIPPED {test}: {why}");
            return;
        }
    };
    let mut options = Place::options(&disk.0);
    options.collect = None;
    let store = Store::open(&options).unwrap();
    let rootfs = disk.0.join("store/rootfs");
    let subvolume = |path: &Path| {
        run(Command::new("btrfs")
            .args(["subvolume", "create"])
            .arg(path))
    };
    subvolume(&rootfs.join("one")).unwrap();
    std::fs::create_dir_all(rootfs.join("one/upper/deep")).unwrap();
    std::fs::write(rootfs.join("one/upper/deep/file"), "x").unwrap();
    std::fs::write(rootfs.join("one/record.json"), "{}").unwrap();
    // As a privileged container may make one.
    subvolume(&rootfs.join("one/upper/inner")).unwrap();
    std::fs::write(rootfs.join("one/upper/inner/file"), "x").unwrap();
    assert!(store.destroy("one").unwrap());
    assert!(!rootfs.join("one").exists());
    assert!(
        store.wait_trash_empty(Duration::from_secs(120)),
        "{:?}",
        store.trash()
    );
    assert_eq!(count(&disk.0.join("store/trash")), 0);
    drop(store);
    drop(disk);
}
