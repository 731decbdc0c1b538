//! Processes that share a store and are killed at any instant: nothing is wrong afterwards, nothing
//! leaks, and while they live they are not in each other's way.
//!
//! The processes are this test program itself, told by its environment to be one of them.
//! `GARDEN_CRASH_ROUNDS` says how often they are killed; 200 is for a quiet hour.

#![allow(clippy::unwrap_used, reason = "only for tests")]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use garden_rootfs::{
    CollectPolicy, CreateRequest, DiskLimit, Error, ImageSource, Mapping, Repair, Role, Rootfs,
    Store, StoreOptions,
};
use support::{Layout, Place, Tar, read};

/// Says which directory a process is to work in, as what, from which seed, and how often.
const WORK: &str = "GARDEN_CRASH_WORK";
const IDS: u64 = 6;
const IMAGES: u64 = 5;

/// Numbers that look random, the same for the same seed (xorshift, Marsaglia 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

fn source(dir: &Path, number: u64) -> ImageSource {
    let path = dir.join(format!("image-{number}"));
    match number {
        0 => ImageSource::Path(path),
        _ => ImageSource::OciLayout {
            path,
            reference: None,
        },
    }
}

/// Images that share their lowest layer, and one that is a tar.
fn write_sources(dir: &Path) {
    let files = |mut tar: Tar, name: &str, count: usize| {
        for number in 0..count {
            tar = tar.file(&format!("{name}/{number}"), &"x".repeat(100 * number));
        }
        tar
    };
    let tar = files(Tar::default(), "tar", 50).file("whoami", "0").done();
    std::fs::write(dir.join("image-0"), tar).unwrap();
    let base = files(Tar::default().dir("base", 0o755, (0, 0)), "base", 100).done();
    for number in 1..IMAGES {
        // Directories on the way, so that lower layers matter.
        let own = files(Tar::default(), &format!("base/own-{number}"), 30);
        let own = own.file("whoami", &number.to_string()).done();
        let path = dir.join(format!("image-{number}"));
        Layout::new(path).layer(&base).layer(&own).done();
    }
}

fn options(dir: &Path, role: Role) -> StoreOptions {
    let mut options = StoreOptions::new(dir.join("store"));
    options.role = role;
    options
}

/// What a process does, until it is killed or has done enough.
fn work(dir: &Path, role: Role, seed: u64, times: u64) {
    let store = Store::open(&options(dir, role)).unwrap();
    let mut random = Random(seed | 1);
    let mut held: Vec<Rootfs> = Vec::new();
    for _ in 0..times {
        let number = random.below(IMAGES);
        let id = format!("r{}", random.below(IDS));
        match random.below(10) {
            0..2 => drop(store.import(&source(dir, number)).unwrap()),
            2..6 => match create(&store, dir, number, &id) {
                Ok(rootfs) => {
                    let text = read(&rootfs.mount, "whoami");
                    assert_eq!(text, number.to_string(), "{id}");
                    held.push(rootfs);
                }
                Err(Error::IdInUse(_)) => {}
                Err(error) => panic!("create: {error:?}"),
            },
            6..8 => drop(store.destroy(&id).unwrap()),
            8 => drop(store.collect(&CollectPolicy::unused()).unwrap()),
            _ if role == Role::Tool => drop(store.maintain().unwrap()),
            _ => held.clear(),
        }
        held.truncate(4);
    }
}

/// What the worst neighbour of a create does.
fn collect(dir: &Path, times: u64) {
    let store = Store::open(&options(dir, Role::Tool)).unwrap();
    for _ in 0..times {
        let report = store.collect(&CollectPolicy::unused()).unwrap();
        assert!(report.problems.is_empty(), "{report:?}");
    }
}

fn create(store: &Store, dir: &Path, number: u64, id: &str) -> garden_rootfs::Result<Rootfs> {
    let image = store.import(&source(dir, number))?;
    store.create(&CreateRequest {
        id,
        image: &image,
        mapping: Mapping::Host,
        read_only: false,
        limit: DiskLimit::default(),
    })
}

/// Is one of the processes, if it is told to.
#[test]
fn process() {
    let Ok(told) = std::env::var(WORK) else {
        return;
    };
    let told: Vec<_> = told.split(' ').collect();
    let [dir, role, seed, times] = told[..] else {
        panic!("{told:?}");
    };
    let role = match role {
        "server" => Role::Server,
        _ => Role::Tool,
    };
    let (dir, times) = (PathBuf::from(dir), times.parse().unwrap());
    match told[1] {
        "collector" => collect(&dir, times),
        _ => work(&dir, role, seed.parse().unwrap(), times),
    }
}

/// A process, killed when it is dropped.
struct Process(Child);

impl Process {
    fn start(dir: &Path, role: &str, seed: u64, times: u64) -> Self {
        let told = format!("{} {role} {seed} {times}", dir.display());
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "process", "--nocapture"])
            .env(WORK, told)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// What it said, if it ended badly by itself.
    fn failure(mut self) -> Option<String> {
        let ended = self.0.try_wait().unwrap();
        if ended.is_none_or(|status| status.success()) {
            return None;
        }
        let mut text = String::new();
        use std::io::Read;
        for stream in [
            self.0
                .stdout
                .take()
                .map(|out| Box::new(out) as Box<dyn Read>),
            self.0
                .stderr
                .take()
                .map(|err| Box::new(err) as Box<dyn Read>),
        ] {
            stream.unwrap().read_to_string(&mut text).unwrap();
        }
        Some(text)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Opens the store as its server, and asserts that all is well.
fn assert_sound(dir: &Path, what: &str) {
    let store = Store::open(&options(dir, Role::Server)).unwrap();
    assert!(store.wait_trash_empty(Duration::from_secs(60)), "{what}");
    let report = store.check(Repair::No).unwrap();
    assert!(report.findings.is_empty(), "{what}: {report:#?}");
    for name in ["tmp", "trash", "locks"] {
        let left: Vec<_> = std::fs::read_dir(dir.join("store").join(name))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert!(left.is_empty(), "{what}: {name} has {left:?}");
    }
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(&*dir.to_string_lossy()), "{what}: {table}");
    // What was being made works when it is made again.
    for number in 0..IMAGES {
        let id = format!("after-{number}");
        let rootfs = create(&store, dir, number, &id).unwrap();
        assert_eq!(read(&rootfs.mount, "whoami"), number.to_string(), "{what}");
        assert!(store.destroy(&id).unwrap());
    }
    assert!(store.wait_trash_empty(Duration::from_secs(60)), "{what}");
}

fn rounds() -> u64 {
    let told = std::env::var("GARDEN_CRASH_ROUNDS").ok();
    told.and_then(|told| told.parse().ok()).unwrap_or(20)
}

#[test]
fn killed_at_any_instant() {
    let Some(mut place) = Place::with_mounts("killed_at_any_instant") else {
        return;
    };
    place.store = None;
    let dir = place.dir.path();
    write_sources(dir);
    let seed = std::process::id().into();
    let mut random = Random(seed);
    for round in 0..rounds() {
        let roles = ["server", "tool", "tool"];
        let mut running = Vec::new();
        for role in roles {
            running.push(Process::start(dir, role, random.below(1 << 40), u64::MAX));
        }
        // From before they begin to long after.
        std::thread::sleep(Duration::from_millis(random.below(250)));
        for mut process in running {
            let failure = process.0.try_wait().unwrap().map(|_| ());
            assert!(
                failure.is_none(),
                "seed {seed}, round {round}: {:?}",
                process.failure()
            );
        }
        assert_sound(dir, &format!("seed {seed}, round {round}"));
    }
    // And nothing is left when nothing is used.
    let store = Store::open(&options(dir, Role::Server)).unwrap();
    store.retain(&store.ids().unwrap(), |_| false).unwrap();
    store.collect(&CollectPolicy::unused()).unwrap();
    place.store = Some(store);
    place.assert_nothing_left(0);
}

#[test]
fn side_by_side() {
    let Some(mut place) = Place::with_mounts("side_by_side") else {
        return;
    };
    place.store = None;
    let dir = place.dir.path();
    write_sources(dir);
    let seed = u64::from(std::process::id());
    let mut running = Vec::new();
    for (number, role) in ["server", "tool", "tool"].into_iter().enumerate() {
        running.push(Process::start(dir, role, seed + number as u64, 150));
    }
    // Until it is killed, before the last look: what it throws away meanwhile is no fault.
    let collector = Process::start(dir, "collector", seed, u64::MAX);
    let deadline = Instant::now() + Duration::from_secs(300);
    for mut process in running {
        while process.0.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "seed {seed}");
            std::thread::sleep(Duration::from_millis(10));
        }
        let failure = process.failure();
        assert!(failure.is_none(), "seed {seed}: {}", failure.unwrap());
    }
    drop(collector);
    assert_sound(dir, &format!("seed {seed}"));
}
