//! How long the end of a root filesystem keeps its caller waiting, on a slow disk.
//!
//! `cargo bench -p garden-rootfs --bench delete` (root). Makes a disk of its own, an ext4 image on a
//! loop device whose writes are limited to 100 MB/s, in a mount namespace of its own, so that it
//! goes with the process. On it, beside each other: `Store::destroy_holding`, and the order of
//! GrootFS (unmount the overlay, then remove its directories). Both after the same writes, alone
//! and beside a neighbour that writes all the time. Also how long creates take while the trash is
//! emptied.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a table is what it is for, and a failure is its end"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use garden_rootfs::{
    CreateRequest, DiskLimit, Image, ImageSource, Mapping, Rootfs, Store, StoreOptions,
};
use rustix::fs::{Mode, OFlags};
use support::Tar;

const LIMIT: u64 = 100_000_000;
const DISK: u64 = 12 << 30;
const FEW: usize = 5;

/// What is written before a delete.
#[derive(Clone, Copy)]
struct Load {
    name: &'static str,
    megabytes: usize,
    files: usize,
    times: usize,
}

const LOADS: [Load; 4] = [
    load("nothing", 0, 0, 4 * FEW),
    load("100 MB", 100, 0, 2 * FEW),
    load("1 GB", 1000, 0, FEW),
    load("50 000 files of 2 KiB", 0, 50_000, FEW),
];

const fn load(name: &'static str, megabytes: usize, files: usize, times: usize) -> Load {
    Load {
        name,
        megabytes,
        files,
        times,
    }
}

fn main() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED delete: needs root");
        return;
    }
    support::own_mounts();
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::mount(dir.path());
    let options = StoreOptions::new(disk.path.join("store"));
    let store = Store::open(&options).unwrap();
    let tar = disk.path.join("image.tar");
    std::fs::write(&tar, Tar::default().file("f", "f").done()).unwrap();
    let image = store.import(&ImageSource::Path(tar)).unwrap();
    println!(
        "\n{:<24} {:<10} {:>32} {:>32}",
        "written", "neighbour", "garden: destroy", "GrootFS: umount + rm -r"
    );
    println!(
        "{:<35} {:>32} {:>32}",
        "", "median / worst", "median / worst"
    );
    // With arguments, only the loads that have one of them in their name.
    let told: Vec<_> = (std::env::args().skip(1))
        .filter(|told| !told.starts_with('-'))
        .collect();
    let wanted = |load: &Load| told.is_empty() || told.iter().any(|told| load.name.contains(told));
    for load in LOADS.into_iter().filter(wanted) {
        for busy in [false, true] {
            let neighbour = busy.then(|| Neighbour::start(&disk.path.join("neighbour")));
            let ours = Times::of(load.times, |number| ours(&store, &image, load, number));
            let baseline = Times::of(load.times.min(3), |number| {
                baseline(&disk.path.join("grootfs"), load, number)
            });
            drop(neighbour);
            let beside = if busy { "writes" } else { "-" };
            println!("{:<24} {beside:<10} {ours:>32} {baseline:>32}", load.name);
            store.wait_trash_empty(Duration::from_secs(600));
            rustix::fs::syncfs(File::open(&disk.path).unwrap()).unwrap();
        }
    }
    if told.is_empty() || told.iter().any(|told| told == "others") {
        others(&store, &image);
    }
    store.wait_trash_empty(Duration::from_secs(600));
}

/// The end of a root filesystem of ours.
fn ours(store: &Store, image: &Image, load: Load, number: usize) -> Duration {
    let id = format!("r{number}");
    let rootfs = create(store, image, &id);
    write(&rootfs.mount, load);
    let before = switches();
    let (since, busy) = (Instant::now(), on_processor());
    assert!(store.destroy_holding(&id, vec![rootfs.mount]).unwrap());
    let (took, busy) = (since.elapsed(), on_processor() - busy);
    let after = switches();
    if took > Duration::from_millis(1) {
        // A wait is ours; a lost processor is that of another program on a machine that is busy.
        let (waited, lost) = (after.0 - before.0, after.1 - before.1);
        println!(
            "  {took:.1?}: {busy:.0?} on the processor; waited {waited} times, lost the processor \
             {lost} times"
        );
    }
    store.wait_trash_empty(Duration::from_secs(600));
    took
}

/// How long this thread ran so far.
fn on_processor() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(
        time.tv_sec.try_into().unwrap(),
        time.tv_nsec.try_into().unwrap(),
    )
}

/// How often this thread waited for something, and how often others took its processor.
fn switches() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let number = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(key)).unwrap();
        line.rsplit('\t').next().unwrap().parse().unwrap()
    };
    (
        number("voluntary_ctxt_switches"),
        number("nonvoluntary_ctxt_switches"),
    )
}

fn create(store: &Store, image: &Image, id: &str) -> Rootfs {
    store
        .create(&CreateRequest {
            id,
            image,
            mapping: Mapping::Host,
            read_only: false,
            limit: DiskLimit::default(),
        })
        .unwrap()
}

/// The end of one as GrootFS does it: all of it while the caller waits.
fn baseline(dir: &Path, load: Load, number: usize) -> Duration {
    let dir = dir.join(number.to_string());
    for name in ["lower", "upper", "work", "rootfs"] {
        std::fs::create_dir_all(dir.join(name)).unwrap();
    }
    let part = |name| dir.join(name).display().to_string();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        part("lower"),
        part("upper"),
        part("work")
    );
    let mount = dir.join("rootfs");
    run(Command::new("mount")
        .args(["-t", "overlay", "overlay", "-o", &options])
        .arg(&mount));
    write(File::open(&mount).unwrap(), load);
    let since = Instant::now();
    rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::empty()).unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    since.elapsed()
}

fn write(at: impl AsFd, load: Load) {
    let flags = OFlags::WRONLY | OFlags::CREATE;
    let open = |name: &str| File::from(support::open(&at, name, flags).unwrap());
    if load.megabytes > 0 {
        let block = vec![1; 1_000_000];
        let mut file = open("large");
        for _ in 0..load.megabytes {
            file.write_all(&block).unwrap();
        }
    }
    for number in 0..load.files {
        if number % 250 == 0 {
            let mode = Mode::from_raw_mode(0o755);
            rustix::fs::mkdirat(&at, format!("d{}", number / 250), mode).unwrap();
        }
        let name = format!("d{}/f{number}", number / 250);
        open(&name).write_all(&[1; 2048]).unwrap();
    }
}

/// What others notice of the trash being emptied.
fn others(store: &Store, image: &Image) {
    let creates = |count: usize, go_on: &dyn Fn() -> bool| {
        let mut times = Vec::new();
        while times.len() < count && go_on() {
            let id = format!("other-{}", times.len());
            let since = Instant::now();
            let rootfs = create(store, image, &id);
            times.push(since.elapsed());
            store.destroy_holding(&id, vec![rootfs.mount]).unwrap();
            std::thread::sleep(Duration::from_millis(2));
        }
        Times(times)
    };
    let idle = creates(300, &|| true);
    store.wait_trash_empty(Duration::from_secs(600));
    for number in 0..2 {
        let id = format!("large-{number}");
        let rootfs = create(store, image, &id);
        write(&rootfs.mount, load("", 500, 50_000, 1));
        store.destroy_holding(&id, vec![rootfs.mount]).unwrap();
    }
    let since = Instant::now();
    let busy = creates(10_000, &|| {
        let oldest = store.trash().oldest_age.unwrap_or_default();
        oldest > since.elapsed()
    });
    println!(
        "\na create, with nothing else to do:       {idle} of {}",
        idle.0.len()
    );
    println!(
        "a create, while the trash is emptied:    {busy} of {} (it took {:.1} s)",
        busy.0.len(),
        since.elapsed().as_secs_f64()
    );
}

/// Somebody who writes to the same disk all the time.
struct Neighbour {
    stop: std::sync::Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
    path: PathBuf,
}

impl Neighbour {
    fn start(path: &Path) -> Self {
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let (told, to) = (std::sync::Arc::clone(&stop), path.to_owned());
        let thread = std::thread::spawn(move || {
            let block = vec![2; 4 << 20];
            'all: loop {
                let mut file = File::create(&to).unwrap();
                for _ in 0..256 {
                    if told.load(Ordering::Relaxed) {
                        break 'all;
                    }
                    file.write_all(&block).unwrap();
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        });
        // Until there is something that is not written yet.
        std::thread::sleep(Duration::from_secs(1));
        Self {
            stop,
            thread: Some(thread),
            path: path.to_owned(),
        }
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        std::fs::remove_file(&self.path).unwrap();
    }
}

/// How long something took, several times.
struct Times(Vec<Duration>);

impl Times {
    fn of(times: usize, mut once: impl FnMut(usize) -> Duration) -> Self {
        Self((0..times).map(&mut once).collect())
    }
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut sorted = self.0.clone();
        sorted.sort();
        let (Some(middle), Some(worst)) = (sorted.get(sorted.len() / 2), sorted.last()) else {
            return f.pad("-");
        };
        let ms = |time: &Duration| time.as_secs_f64() * 1000.0;
        f.pad(&format!("{:.3} / {:.3} ms", ms(middle), ms(worst)))
    }
}

/// The disk, and the limit on its device.
struct Disk {
    path: PathBuf,
    limit: Option<(PathBuf, String)>,
}

impl Disk {
    fn mount(dir: &Path) -> Self {
        let (image, path) = (dir.join("image"), dir.join("disk"));
        File::create(&image).unwrap().set_len(DISK).unwrap();
        std::fs::create_dir(&path).unwrap();
        run(Command::new("mkfs.ext4")
            .args(["-q", "-F", "-E", "lazy_itable_init=1"])
            .arg(&image));
        run(Command::new("mount")
            .args(["-t", "ext4", "-o", "loop,noinit_itable"])
            .args([&image, &path]));
        let device = rustix::fs::stat(&path).unwrap().st_dev;
        let device = format!(
            "{}:{}",
            rustix::fs::major(device),
            rustix::fs::minor(device)
        );
        Self {
            path,
            limit: Self::limit(&device).map(|file| (file, device)),
        }
    }

    /// Limits its writes in the root group of the block controller of cgroup v1, where writeback
    /// is accounted.
    fn limit(device: &str) -> Option<PathBuf> {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = table.lines().find(|line| {
            let options = line.rsplit(' ').next().unwrap_or_default();
            line.contains(" - cgroup ") && options.split(',').any(|option| option == "blkio")
        });
        let group = line
            .and_then(|line| line.split(' ').nth(4))
            .map(PathBuf::from);
        let file = group.map(|group| group.join("blkio.throttle.write_bps_device"));
        let file = file.filter(|file| std::fs::write(file, format!("{device} {LIMIT}")).is_ok());
        match &file {
            Some(_) => println!(
                "the device {device} writes {} MB/s at most",
                LIMIT / 1_000_000
            ),
            None => println!("NO LIMIT on the device: there is no blkio controller of cgroup v1"),
        }
        file
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Some((file, device)) = &self.limit {
            let _ = std::fs::write(file, format!("{device} 0"));
        }
        let _ = rustix::mount::unmount(&self.path, rustix::mount::UnmountFlags::DETACH);
    }
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}
