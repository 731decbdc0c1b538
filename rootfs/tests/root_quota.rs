//! Quota and usage on real file systems: what holds, what is told, what is left.
//!
//! Each check runs on every file system there is: btrfs, on a file of its own, with full and with
//! simple quotas; XFS and ext4 in the directories named by `GARDEN_TEST_XFS` and
//! `GARDEN_TEST_EXT4`, whose file systems must have been mounted with `prjquota`. Where
//! `GARDEN_TEST_BTRFS` is set, it names a directory on a btrfs with quota that is used instead.
//!
//! btrfs is mounted by a helper process in a mount namespace of its own (this program again, by
//! `unshare`), so that mount and loop device are gone with it, however it ends.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "only for tests")]

mod support;

use std::collections::BTreeSet;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use garden_rootfs::{
    AppliedLimit, CreateRequest, DiskLimit, Enforced, Error, Image, ImageSource, Mapping, Measured,
    NotCounted, QuotaKind, Rootfs, Scope, Store, StoreOptions, WithoutQuota,
};
use garden_sys::btrfs::{self, Switch};
use garden_sys::quota::{self, FileSystem, Project};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use support::{Tar, open};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
/// Size of the image's only large file.
const IMAGE: u64 = MIB;

/// Far above what anything needs, also in a guest without hardware help on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// Says to the helper process which quota its btrfs is to have.
const INSIDE: &str = "GARDEN_TEST_BTRFS_MODE";

/// A store on a file system that is looked at.
struct Disk {
    name: String,
    store: Option<Store>,
    image: Option<Image>,
    dir: tempfile::TempDir,
}

impl Disk {
    fn new(name: &str, parent: &Path) -> Self {
        let dir = tempfile::tempdir_in(parent).unwrap();
        let mut disk = Self {
            name: name.to_owned(),
            store: None,
            image: None,
            dir,
        };
        disk.open();
        let tar = Tar::default()
            .file("etc/hostname", "image")
            .file("big", &"x".repeat(IMAGE as usize))
            .done();
        let path = disk.dir.path().join("image.tar");
        std::fs::write(&path, tar).unwrap();
        disk.image = Some(disk.store().import(&ImageSource::Path(path)).unwrap());
        disk
    }

    fn options(&self) -> StoreOptions {
        StoreOptions::new(self.dir.path().join("store"))
    }

    fn open(&mut self) {
        self.store = None;
        self.store = Some(Store::open(&self.options()).unwrap());
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn kind(&self) -> QuotaKind {
        self.store().capabilities().quota
    }

    fn counts_inodes(&self) -> bool {
        matches!(self.kind(), QuotaKind::XfsProject | QuotaKind::Ext4Project)
    }

    /// What writing beyond a limit fails with.
    fn full(&self) -> Errno {
        match self.kind() {
            QuotaKind::XfsProject => Errno::NOSPC,
            _ => Errno::DQUOT,
        }
    }

    fn create(&self, id: &str, limit: DiskLimit) -> Rootfs {
        create(self.store(), self.image.as_ref().unwrap(), id, limit).unwrap()
    }

    fn path(&self, id: &str) -> PathBuf {
        self.dir.path().join("store/rootfs").join(id)
    }

    /// The number of a root filesystem's account: of its project, or of its subvolume.
    fn number(&self, id: &str) -> u64 {
        let top = std::fs::File::open(self.path(id)).unwrap();
        if self.counts_inodes() {
            let project = quota::project(&top).unwrap();
            assert!(project.inherit);
            let upper = std::fs::File::open(self.path(id).join("upper")).unwrap();
            assert_eq!(quota::project(&upper).unwrap(), project);
            project.id.into()
        } else {
            assert!(btrfs::is_subvolume(&top).unwrap());
            btrfs::subvolume(&top).unwrap()
        }
    }

    /// Lets the file system bring its numbers up to date, as it does by itself after a while.
    fn settle(&self) {
        let dir = std::fs::File::open(self.dir.path()).unwrap();
        rustix::fs::syncfs(dir).unwrap();
    }

    fn bytes(&self, id: &str) -> u64 {
        self.settle();
        self.store().usage(id).unwrap().exclusive_bytes
    }

    fn destroy(&self, id: &str, rootfs: Rootfs) {
        let mounts = vec![rootfs.mount];
        assert!(self.store().destroy_holding(id, mounts).unwrap());
        self.wait();
    }

    /// Asserts that there is no root filesystem, and nothing half-made.
    fn assert_empty(&self) {
        self.wait();
        for name in ["rootfs", "tmp", "trash"] {
            let directory = self.dir.path().join("store").join(name);
            assert_eq!(std::fs::read_dir(directory).unwrap().count(), 0, "{name}");
        }
    }

    fn wait(&self) {
        assert!(self.store().wait_trash_empty(PATIENCE));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Some(store) = self.store.take() {
            for info in store.list().unwrap_or_default() {
                let _ = store.destroy(&info.id);
            }
            store.wait_trash_empty(PATIENCE);
        }
        for _ in 0..1000 {
            match std::fs::remove_dir_all(self.dir.path()) {
                Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {}
                _ => break,
            }
        }
    }
}

fn create(store: &Store, image: &Image, id: &str, limit: DiskLimit) -> Result<Rootfs, Error> {
    store.create(&CreateRequest {
        id,
        image,
        mapping: Mapping::Host,
        read_only: false,
        limit,
    })
}

fn bytes(bytes: u64) -> DiskLimit {
    DiskLimit {
        bytes: Some(bytes),
        inodes: None,
        scope: Scope::Exclusive,
    }
}

/// Writes so many bytes; the error of what did not fit.
fn fill(rootfs: &Rootfs, name: &str, bytes: u64) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
    let mut file = std::fs::File::from(open(&rootfs.mount, name, flags)?);
    let block = vec![0x5a; 64 * KIB as usize];
    let mut left = bytes;
    while left > 0 {
        let piece = left.min(block.len() as u64);
        let written = file.write_all(&block[..piece as usize]);
        written.map_err(|error| Errno::from_io_error(&error).unwrap())?;
        left -= piece;
    }
    Ok(())
}

fn can_mount(store: &Store) -> bool {
    let host = store.capabilities();
    host.overlay && host.volatile.is_some()
}

/// Runs a check on every file system there is.
fn on_each_disk(test: &str, check: impl Fn(&mut Disk)) {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED {test}: needs root");
        return;
    }
    let run = |mut disk: Disk| {
        if can_mount(disk.store()) {
            println!("{test} on {}", disk.name);
            check(&mut disk);
        } else {
            println!("SKIPPED {test}: this kernel has no volatile overlays");
        }
    };
    if let Ok(mode) = std::env::var(INSIDE) {
        let Some(mount) = Btrfs::mount(test, &mode) else {
            return;
        };
        let disk = Disk::new(&format!("btrfs, {mode} quota"), &mount.path);
        if mode != "no" {
            assert_eq!(disk.kind(), QuotaKind::Btrfs);
        }
        run(disk);
        return;
    }
    for (name, kind) in [
        ("GARDEN_TEST_XFS", QuotaKind::XfsProject),
        ("GARDEN_TEST_EXT4", QuotaKind::Ext4Project),
    ] {
        match std::env::var(name) {
            Ok(path) => {
                let disk = Disk::new(&path, Path::new(&path));
                assert_eq!(disk.kind(), kind);
                assert!(disk.store().capabilities().quota_enforced);
                run(disk);
            }
            Err(_) => println!("SKIPPED {test}: {name} is not set"),
        }
    }
    match std::env::var("GARDEN_TEST_BTRFS") {
        Ok(path) => {
            let disk = Disk::new(&path, Path::new(&path));
            assert_eq!(disk.kind(), QuotaKind::Btrfs);
            run(disk);
        }
        Err(_) => ["full", "simple"]
            .iter()
            .for_each(|mode| in_namespace(test, mode)),
    }
}

/// Where programs are, also those that only root has in its path.
fn programs() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/sbin:/sbin")
}

/// Runs this test again in a mount namespace of its own.
fn in_namespace(test: &str, mode: &str) {
    let btrfs = std::fs::read_to_string("/proc/filesystems").unwrap();
    let path = programs();
    let mkfs = std::env::split_paths(&path).any(|dir| dir.join("mkfs.btrfs").exists());
    if !btrfs.contains("btrfs") || !mkfs {
        println!("SKIPPED {test}: no btrfs in this kernel, or no mkfs.btrfs");
        return;
    }
    let mut helper = Command::new("unshare");
    helper
        .args(["--mount", "--propagation", "private", "--"])
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            test,
            "--nocapture",
            "--test-threads=1",
            "--include-ignored",
        ])
        .env(INSIDE, mode)
        // Not a member of our group: a key press must not end it half-way.
        .process_group(0);
    let done = helper.output().unwrap();
    let told = String::from_utf8_lossy(&done.stdout);
    print!("{told}");
    assert!(
        done.status.success(),
        "on btrfs, {mode} quota:\n{}",
        String::from_utf8_lossy(&done.stderr)
    );
    assert!(
        told.contains("1 passed"),
        "the helper ran another test: {told}"
    );
}

/// A btrfs in a file; both are gone when it is dropped, the mount also when the process is.
struct Btrfs {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Btrfs {
    fn mount(test: &str, mode: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let (image, path) = (dir.path().join("disk"), dir.path().join("mount"));
        std::fs::File::create(&image)
            .and_then(|file| file.set_len(512 * MIB))
            .unwrap();
        std::fs::create_dir(&path).unwrap();
        let run = |program: &str, args: &[&std::ffi::OsStr]| {
            let done = Command::new(program)
                .args(args)
                .env("PATH", programs())
                .output()
                .unwrap();
            done.status
                .success()
                .then_some(())
                .ok_or_else(|| String::from_utf8_lossy(&done.stderr).into_owned())
        };
        run("mkfs.btrfs", &["-q".as_ref(), image.as_os_str()]).unwrap();
        let options = ["-o", "loop,commit=1"].map(std::ffi::OsStr::new);
        let args = [&options[..], &[image.as_os_str(), path.as_os_str()]].concat();
        if let Err(error) = run("mount", &args) {
            println!("SKIPPED {test}: cannot mount btrfs from a file: {error}");
            return None;
        }
        let mounted = Self { path, _dir: dir };
        let top = std::fs::File::open(&mounted.path).unwrap();
        match mode {
            "full" => btrfs::switch_quota(&top, Switch::Full).unwrap(),
            "simple" => {
                if let Err(error) = btrfs::switch_quota(&top, Switch::Simple) {
                    println!("SKIPPED {test}: no simple quotas (Linux 6.7): {error}");
                    return None;
                }
            }
            _ => {}
        }
        if let Some(status) = btrfs::quota_status(&top).unwrap() {
            assert_eq!(status.simple, mode == "simple");
        }
        Some(mounted)
    }
}

impl Drop for Btrfs {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.path, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_limit_on_bytes_holds() {
    on_each_disk("a_limit_on_bytes_holds", |disk| {
        let limited = disk.create("limited", bytes(8 * MIB));
        let free = disk.create("free", DiskLimit::default());
        let expected = AppliedLimit {
            bytes: Some(8 * MIB),
            inodes: None,
            enforced: Enforced::Kernel,
        };
        assert_eq!(limited.limit, expected);
        assert_eq!(free.limit, AppliedLimit::default());
        assert_eq!(fill(&limited, "a", 5 * MIB), Ok(()));
        assert_eq!(fill(&limited, "b", 5 * MIB), Err(disk.full()));
        // Nobody else is at their limit.
        assert_eq!(fill(&free, "a", 12 * MIB), Ok(()));
        let used = disk.bytes("limited");
        assert!((5 * MIB..=8 * MIB).contains(&used), "{used}");
        let usage = disk.store().usage("limited").unwrap();
        assert_eq!(usage.quota_bytes, 8 * MIB);
        assert_eq!(usage.committed_bytes(), usage.base_bytes + 8 * MIB);
        // There is room again when something is removed.
        for name in ["a", "b"] {
            rustix::fs::unlinkat(&limited.mount, name, rustix::fs::AtFlags::empty()).unwrap();
        }
        // A moment later on XFS and btrfs, which take things away in the background.
        wait_until(|| {
            disk.settle();
            fill(&limited, "c", 5 * MIB).is_ok()
        });
        let infos = disk.store().list().unwrap();
        let info = infos.iter().find(|info| info.id == "limited").unwrap();
        assert_eq!(info.limit, expected);
        disk.destroy("limited", limited);
        disk.destroy("free", free);
    });
}

#[test]
fn an_inclusive_limit_counts_the_image() {
    on_each_disk("an_inclusive_limit_counts_the_image", |disk| {
        let image = disk.image.clone().unwrap();
        let total = |bytes| DiskLimit {
            bytes: Some(bytes),
            ..DiskLimit::default()
        };
        let error = create(disk.store(), &image, "small", total(IMAGE)).unwrap_err();
        let Error::DiskLimitTooSmall { limit, volume } = error else {
            panic!("{error}");
        };
        assert_eq!((limit, volume), (IMAGE, image.size()));
        disk.assert_empty();
        let rootfs = disk.create("fits", total(image.size() + 4 * MIB));
        assert_eq!(rootfs.limit.bytes, Some(4 * MIB));
        assert_eq!(fill(&rootfs, "a", 3 * MIB), Ok(()));
        assert_eq!(fill(&rootfs, "b", 3 * MIB), Err(disk.full()));
        disk.destroy("fits", rootfs);
        let floor = disk.create("floor", total(image.size()));
        assert_eq!(floor.limit.bytes, Some(256 * KIB));
        disk.destroy("floor", floor);
    });
}

#[test]
fn a_limit_on_inodes_holds() {
    on_each_disk("a_limit_on_inodes_holds", |disk| {
        let limit = DiskLimit {
            inodes: Some(100),
            ..DiskLimit::default()
        };
        let rootfs = disk.create("inodes", limit);
        if !disk.counts_inodes() {
            assert!(matches!(rootfs.limit.enforced, Enforced::Accounted { .. }));
            let both = DiskLimit {
                bytes: Some(4 * MIB),
                scope: Scope::Exclusive,
                ..limit
            };
            let other = disk.create("both", both);
            assert!(matches!(other.limit.enforced, Enforced::BytesOnly { .. }));
            assert_eq!(fill(&other, "a", 8 * MIB), Err(disk.full()));
            disk.destroy("both", other);
            disk.destroy("inodes", rootfs);
            return;
        }
        assert_eq!(rootfs.limit.enforced, Enforced::Kernel);
        let make = |number: u32| fill(&rootfs, &format!("f{number}"), 1);
        let made = (0..200).take_while(|number| make(*number).is_ok()).count();
        assert!((85..100).contains(&made), "{made}");
        assert_eq!(make(1000), Err(disk.full()));
        let usage = disk.store().usage("inodes").unwrap();
        assert_eq!(usage.exclusive_inodes, 100);
        assert!(usage.base_inodes >= 2, "{usage:?}");
        disk.destroy("inodes", rootfs);
    });
}

#[test]
fn usage_is_true_without_a_limit() {
    on_each_disk("usage_is_true_without_a_limit", |disk| {
        let one = disk.create("one", DiskLimit::default());
        let two = disk.create("two", DiskLimit::default());
        let empty = disk.bytes("two");
        assert!(empty < 256 * KIB, "{empty}");
        assert_eq!(fill(&one, "data", 3 * MIB), Ok(()));
        // Copied up: it counts as written.
        assert_eq!(fill(&one, "big", 64 * KIB), Ok(()));
        let used = disk.bytes("one");
        assert!((3 * MIB..4 * MIB).contains(&used), "{used}");
        assert_eq!(disk.bytes("two"), empty);
        if !disk.counts_inodes() {
            assert_eq!(disk.store().count_usage(), 2);
        }
        let usage = disk.store().usage("one").unwrap();
        assert_eq!(usage.how, Measured::Kernel);
        assert_eq!(usage.base_bytes, disk.image.as_ref().unwrap().size());
        assert_eq!(
            usage.total_bytes(),
            usage.base_bytes + usage.exclusive_bytes
        );
        assert_eq!(usage.quota_bytes, 0);
        assert!((5..20).contains(&usage.exclusive_inodes), "{usage:?}");
        // What is removed is not used any more.
        rustix::fs::unlinkat(&one.mount, "data", rustix::fs::AtFlags::empty()).unwrap();
        wait_until(|| disk.bytes("one") < MIB);
        disk.destroy("one", one);
        disk.destroy("two", two);
        let gone = disk.store().usage("one").unwrap_err();
        assert!(matches!(gone, Error::NoSuchRootfs(_)), "{gone}");
    });
}

#[test]
fn a_read_only_one_has_nothing_of_its_own() {
    on_each_disk("a_read_only_one_has_nothing_of_its_own", |disk| {
        let rootfs = disk.store().create(&CreateRequest {
            id: "ro",
            image: disk.image.as_ref().unwrap(),
            mapping: Mapping::Host,
            read_only: true,
            limit: DiskLimit::default(),
        });
        let rootfs = rootfs.unwrap();
        assert!(disk.bytes("ro") < 256 * KIB);
        assert_eq!(disk.store().usage("ro").unwrap().base_bytes, IMAGE + 5);
        disk.destroy("ro", rootfs);
    });
}

fn wait_until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "it did not come true");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_account_starts_empty_again() {
    on_each_disk("an_account_starts_empty_again", |disk| {
        // So few ids that some are given again.
        let first = 0x5000_0000 + (std::process::id() % 0xffff) * 16;
        let mut options = disk.options();
        options.project_ids = first..first + 3;
        disk.store = None;
        disk.store = Some(Store::open(&options).unwrap());
        for round in 0..8 {
            let id = format!("r{round}");
            let limited = round % 2 == 0;
            let limit = if limited {
                bytes(MIB)
            } else {
                DiskLimit::default()
            };
            let rootfs = disk.create(&id, limit);
            let usage = disk.store().usage(&id).unwrap();
            assert!(usage.exclusive_bytes < 256 * KIB, "{usage:?}");
            // The limit of an earlier one does not hold.
            let written = fill(&rootfs, "data", 2 * MIB);
            assert_eq!(written.is_err(), limited, "{written:?}");
            let number = disk.number(&id);
            disk.destroy(&id, rootfs);
            if disk.counts_inodes() {
                assert!((u64::from(first)..u64::from(first) + 3).contains(&number));
                wait_until(|| account(disk, number) == quota::Account::default());
            }
        }
    });
}

/// What keeps a sweep from taking the account of a subvolume that is just being made.
#[test]
fn an_account_knows_its_transaction() {
    on_each_disk("an_account_knows_its_transaction", |disk| {
        if disk.kind() != QuotaKind::Btrfs {
            return;
        }
        let parent = std::fs::File::open(disk.dir.path()).unwrap();
        btrfs::create_subvolume(&parent, "made").unwrap();
        let made = std::fs::File::open(disk.dir.path().join("made")).unwrap();
        let number = btrfs::subvolume(&made).unwrap();
        let account = || btrfs::qgroup(&parent, number).unwrap().unwrap();
        let at_first = account().generation;
        assert!(at_first <= btrfs::generation(&parent).unwrap());
        // Older than what runs only when its own was committed: changes begin the next.
        rustix::fs::syncfs(&parent).unwrap();
        std::fs::File::create(disk.dir.path().join("file")).unwrap();
        assert!(account().generation < btrfs::generation(&parent).unwrap());
        assert!(account().generation >= at_first);
        drop(made);
        btrfs::destroy_subvolume(&parent, "made").unwrap();
    });
}

/// Hands the file system of a disk to a quota call, in the way that this kernel has.
fn on<T>(disk: &Disk, call: impl FnOnce(FileSystem<'_>) -> std::io::Result<T>) -> T {
    let dir = std::fs::File::open(disk.dir.path()).unwrap();
    let by_fd = FileSystem::Of(dir.as_fd());
    if quota::projects(by_fd).is_ok() {
        return call(by_fd).unwrap();
    }
    let device = quota::device(&dir).unwrap();
    call(FileSystem::On(&device)).unwrap()
}

fn account(disk: &Disk, id: u64) -> quota::Account {
    let id = u32::try_from(id).unwrap();
    on(disk, |at| quota::account(at, id))
}

#[test]
fn racing_creates_have_accounts_of_their_own() {
    on_each_disk("racing_creates_have_accounts_of_their_own", |disk| {
        let disk: &Disk = disk;
        let (image, store) = (disk.image.as_ref().unwrap(), disk.store());
        let all: Vec<_> = std::thread::scope(|scope| {
            let make = |number: u64| {
                let id = format!("r{number}");
                let rootfs = create(store, image, &id, bytes((number + 1) * MIB)).unwrap();
                (id, rootfs)
            };
            let threads: Vec<_> = (0..20).map(|n| scope.spawn(move || make(n))).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        let numbers: BTreeSet<_> = all.iter().map(|(id, _)| disk.number(id)).collect();
        assert_eq!(numbers.len(), 20);
        for (id, rootfs) in all {
            let limit = rootfs.limit.bytes.unwrap();
            if limit <= 3 * MIB {
                assert_eq!(fill(&rootfs, "data", limit + MIB), Err(disk.full()));
            }
            assert!(store.destroy_holding(&id, vec![rootfs.mount]).unwrap());
        }
        disk.wait();
    });
}

#[test]
fn two_stores_share_a_file_system() {
    on_each_disk("two_stores_share_a_file_system", |disk| {
        let other = Disk::new(&disk.name, disk.dir.path());
        let mut all = Vec::new();
        for number in 0..5 {
            let id = format!("r{number}");
            all.push((
                disk.create(&id, bytes(MIB)),
                other.create(&id, bytes(2 * MIB)),
            ));
        }
        let numbers: BTreeSet<_> = (0..5)
            .map(|number| format!("r{number}"))
            .flat_map(|id| [disk.number(&id), other.number(&id)])
            .collect();
        assert_eq!(numbers.len(), 10);
        // What one of them removes does not concern the other.
        let (mine, others): (Vec<_>, Vec<_>) = all.into_iter().unzip();
        for (number, rootfs) in mine.into_iter().enumerate() {
            disk.destroy(&format!("r{number}"), rootfs);
        }
        disk.open();
        for rootfs in others {
            assert_eq!(fill(&rootfs, "data", 3 * MIB), Err(other.full()));
            let id = rootfs.id.clone();
            other.destroy(&id, rootfs);
        }
    });
}

#[test]
fn a_restart_finds_what_a_crash_left() {
    on_each_disk("a_restart_finds_what_a_crash_left", |disk| {
        let kept = disk.create("kept", bytes(MIB));
        let kept_number = disk.number("kept");
        if disk.counts_inodes() {
            // Limits without anything that carries them, far from what others would take.
            let leaked = 0x6000_0000 + std::process::id() % 0xffff;
            on(disk, |at| quota::set_limits(at, leaked, MIB, 7));
            // A creation that was killed after it had limited its directory.
            let half = leaked + 0x10_0000;
            let tmp = disk.dir.path().join("store/tmp/left");
            std::fs::create_dir(&tmp).unwrap();
            let project = Project {
                id: half,
                inherit: true,
            };
            quota::set_project(std::fs::File::open(&tmp).unwrap(), project).unwrap();
            on(disk, |at| quota::set_limits(at, half, MIB, 7));
            std::fs::write(tmp.join("record.json"), "{}").unwrap();
            std::fs::create_dir(tmp.join("upper")).unwrap();
            // One that was killed while it tried an id that another had.
            let tried = disk.dir.path().join("store/tmp/tried");
            std::fs::create_dir(&tried).unwrap();
            let project = Project {
                id: u32::try_from(kept_number).unwrap(),
                inherit: true,
            };
            quota::set_project(std::fs::File::open(&tried).unwrap(), project).unwrap();
            disk.open();
            disk.wait();
            // XFS takes inodes away a moment later.
            for id in [leaked, half] {
                wait_until(|| account(disk, id.into()) == quota::Account::default());
            }
        } else {
            let tmp = std::fs::File::open(disk.dir.path().join("store/tmp")).unwrap();
            btrfs::create_subvolume(&tmp, "left").unwrap();
            std::fs::create_dir(disk.dir.path().join("store/tmp/left/upper")).unwrap();
            disk.open();
            disk.wait();
        }
        let names = std::fs::read_dir(disk.dir.path().join("store/tmp")).unwrap();
        assert_eq!(names.count(), 0);
        assert_eq!(fill(&kept, "data", 2 * MIB), Err(disk.full()));
        assert_eq!(disk.number("kept"), kept_number);
        disk.destroy("kept", kept);
    });
}

#[test]
fn usage_answers_while_the_trash_is_stuck() {
    on_each_disk("usage_answers_while_the_trash_is_stuck", |disk| {
        let stuck = disk.create("stuck", bytes(MIB));
        let other = disk.create("other", bytes(MIB));
        // A mount point cannot be removed.
        let mut inside = disk.path("stuck").join("upper");
        if !disk.counts_inodes() {
            // A subvolume goes with mount points and all, unless there is another in it.
            let upper = std::fs::File::open(&inside).unwrap();
            btrfs::create_subvolume(&upper, "nested").unwrap();
            inside.push("nested");
        }
        inside.push("m");
        std::fs::create_dir(&inside).unwrap();
        let held = std::fs::File::open(&inside).unwrap();
        rustix::mount::mount_bind(disk.dir.path(), &inside).unwrap();
        let undo = Unmounted(held);
        assert!(disk.store().destroy("stuck").unwrap());
        wait_until(|| disk.store().trash().failing > 0);
        assert_eq!(fill(&other, "data", 512 * KIB), Ok(()));
        let used = disk.bytes("other");
        assert!((512 * KIB..MIB).contains(&used), "{used}");
        let gone = disk.store().usage("stuck").unwrap_err();
        assert!(matches!(gone, Error::NoSuchRootfs(_)));
        drop(undo);
        drop(stuck);
        disk.destroy("other", other);
    });
}

/// Unmounts what is mounted on a directory, wherever that has been moved.
struct Unmounted(std::fs::File);

impl Drop for Unmounted {
    fn drop(&mut self) {
        use std::os::fd::AsRawFd;
        let link = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        if let Ok(path) = std::fs::read_link(link) {
            let _ = rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

#[test]
fn a_subvolume_and_its_account_are_gone_with_its_end() {
    on_each_disk(
        "a_subvolume_and_its_account_are_gone_with_its_end",
        |disk| {
            if disk.counts_inodes() {
                return;
            }
            let rootfs = disk.create("one", bytes(8 * MIB));
            assert_eq!(fill(&rootfs, "data", MIB), Ok(()));
            // What a privileged container may do: the removal has to go in, then.
            let upper: OwnedFd = std::fs::File::open(disk.path("one").join("upper"))
                .unwrap()
                .into();
            btrfs::create_subvolume(&upper, "nested").unwrap();
            rustix::fs::mkdirat(&upper, "nested/d", Mode::RWXU).unwrap();
            let number = disk.number("one");
            let top = std::fs::File::open(disk.dir.path()).unwrap();
            assert!(btrfs::qgroup(&top, number).unwrap().is_some());
            drop(upper);
            disk.destroy("one", rootfs);
            wait_until(|| {
                disk.settle();
                btrfs::qgroup(&top, number).unwrap().is_none()
            });
        },
    );
}

#[test]
fn without_quota_a_limit_is_refused_or_only_counted() {
    let test = "without_quota_a_limit_is_refused_or_only_counted";
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED {test}: needs root");
        return;
    }
    if std::env::var(INSIDE).is_err() {
        return in_namespace(test, "no");
    }
    on_each_disk(test, |disk| {
        let why = NotCounted::SwitchedOff;
        assert_eq!(disk.kind(), QuotaKind::None { why });
        let image = disk.image.clone().unwrap();
        let rootfs = disk.create("counted", bytes(MIB));
        let Enforced::Accounted { why } = &rootfs.limit.enforced else {
            panic!("{:?}", rootfs.limit);
        };
        assert!(why.contains("btrfs quota enable"), "{why}");
        assert_eq!(fill(&rootfs, "data", 3 * MIB), Ok(()));
        let before = disk.store().usage("counted").unwrap();
        assert_eq!(before.exclusive_bytes, 0);
        assert!(matches!(before.how, Measured::Walk { .. }));
        disk.settle();
        assert_eq!(disk.store().count_usage(), 1);
        let usage = disk.store().usage("counted").unwrap();
        assert!((3 * MIB..4 * MIB).contains(&usage.exclusive_bytes));
        assert!(usage.exclusive_inodes >= 5);
        assert!(matches!(usage.how, Measured::Walk { age } if age < Duration::from_secs(600)));
        // Known to a later server as well.
        disk.open();
        let again = disk.store().usage("counted").unwrap();
        assert_eq!(again.exclusive_bytes, usage.exclusive_bytes);
        disk.destroy("counted", rootfs);

        disk.store = None;
        let mut options = disk.options();
        options.without_quota = WithoutQuota::Refuse;
        disk.store = Some(Store::open(&options).unwrap());
        let error = create(disk.store(), &image, "refused", bytes(MIB)).unwrap_err();
        assert!(matches!(error, Error::NoQuota(_)), "{error}");
        disk.assert_empty();
        let free = disk.create("free", DiskLimit::default());
        disk.destroy("free", free);

        // A store may switch it on itself.
        disk.store = None;
        options.switch_quota_on = true;
        disk.store = Some(Store::open(&options).unwrap());
        assert_eq!(disk.kind(), QuotaKind::Btrfs);
        let rootfs = disk.create("limited", bytes(MIB));
        assert_eq!(fill(&rootfs, "data", 3 * MIB), Err(Errno::DQUOT));
        disk.destroy("limited", rootfs);
    });
}
