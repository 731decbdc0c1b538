//! What the escape tests run inside containers and peas: system calls that a shell cannot make.
//!
//! Built by the build script of `integration`, static, so that it runs in any image; the tests embed
//! it. Each command prints one line for each attempt: `NAME done`, or `NAME ERRNO`. It only tries: no
//! command does anything to a host that lets it through, beyond what its name says.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, IntoRawFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::process::exit;
use std::time::{Duration, Instant};

unsafe extern "C" {
    fn syscall(number: i64, ...) -> i64;
    fn __errno_location() -> *mut i32;
}

/// One system call: its result, or its error's number.
fn call(number: i64, arguments: [usize; 6]) -> Result<i64, i32> {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: each caller gives integers and addresses of values that live until this returns.
    let result = unsafe { syscall(number, a, b, c, d, e, f) };
    if result != -1 {
        return Ok(result);
    }
    // SAFETY: the C library's own word for this thread.
    Err(unsafe { *__errno_location() })
}

fn call3(number: i64, a: usize, b: usize, c: usize) -> Result<i64, i32> {
    call(number, [a, b, c, 0, 0, 0])
}

fn text(value: &str) -> CString {
    CString::new(value).unwrap_or_default()
}

const NEW_NAMESPACES: [(&str, usize); 8] = [
    ("time", 0x80),
    ("mount", 0x0002_0000),
    ("cgroup", 0x0200_0000),
    ("uts", 0x0400_0000),
    ("ipc", 0x0800_0000),
    ("user", 0x1000_0000),
    ("pid", 0x2000_0000),
    ("net", 0x4000_0000),
];
const SIGCHLD: usize = 17;
const MINUS_1: usize = usize::MAX;

fn say(name: &str, result: Result<i64, i32>) {
    match result {
        Ok(_) => println!("{name} done"),
        Err(1) => println!("{name} EPERM"),
        Err(13) => println!("{name} EACCES"),
        Err(38) => println!("{name} ENOSYS"),
        Err(errno) => println!("{name} {errno}"),
    }
}

/// New namespaces by each of the calls that make them. A child that came to be ends at once.
fn namespaces() {
    for (name, flag) in NEW_NAMESPACES {
        say(&format!("unshare-{name}"), call3(272, flag, 0, 0));
        if name == "time" {
            // Its bit is another one's for clone(2).
            continue;
        }
        let child = call(56, [flag | SIGCHLD, 0, 0, 0, 0, 0]);
        if child == Ok(0) {
            exit(0);
        }
        say(&format!("clone-{name}"), child);
        let arguments: [u64; 8] = [flag as u64, 0, 0, 0, 17, 0, 0, 0];
        let child = call3(435, arguments.as_ptr() as usize, 64, 0);
        if child == Ok(0) {
            exit(0);
        }
        say(&format!("clone3-{name}"), child);
    }
}

/// Into each namespace of another process.
fn setns(pid: &str) {
    for kind in ["mnt", "user", "net", "pid", "ipc", "uts", "cgroup"] {
        let joined = match fs::File::open(format!("/proc/{pid}/ns/{kind}")) {
            Ok(file) => call3(308, file.as_raw_fd() as usize, 0, 0),
            Err(error) => Err(error.raw_os_error().unwrap_or(0)),
        };
        say(&format!("setns-{kind}"), joined);
    }
}

/// Calls that no unprivileged container may make, with arguments that harm nobody.
fn calls() {
    let name = text("evil");
    let (none, path) = (text("none"), text("/tmp"));
    let (proc, tmpfs) = (text("proc"), text("tmpfs"));
    let at = |text: &CString| text.as_ptr() as usize;
    let (kind, masked) = (text("user"), text("/proc/kcore"));
    // Eight bytes of the first kind, which on most file systems is inode 2: the root of the disk.
    let mut handle = [0_u32; 34];
    handle[..3].copy_from_slice(&[8, 1, 2]);
    let zero = [0_u64; 16];
    let zeroes = zero.as_ptr() as usize;
    let root = fs::File::open("/")
        .map(IntoRawFd::into_raw_fd)
        .unwrap_or(-1) as usize;
    let attempts: [(&str, i64, [usize; 6]); 26] = [
        (
            "mount-proc",
            165,
            [at(&proc), at(&path), at(&proc), 0, 0, 0],
        ),
        (
            "mount-tmpfs",
            165,
            [at(&none), at(&path), at(&tmpfs), 0, 0, 0],
        ),
        ("umount", 166, [at(&masked), 2, 0, 0, 0, 0]),
        ("pivot-root", 155, [at(&path), at(&path), 0, 0, 0, 0]),
        ("open-tree", 428, [MINUS_1 - 99, at(&path), 1, 0, 0, 0]),
        ("fsopen", 430, [at(&tmpfs), 0, 0, 0, 0, 0]),
        (
            "mount-setattr",
            442,
            [MINUS_1 - 99, at(&path), 0, zeroes, 32, 0],
        ),
        (
            "open-by-handle",
            304,
            [root, handle.as_ptr() as usize, 0, 0, 0, 0],
        ),
        (
            "add-key",
            248,
            [at(&kind), at(&name), at(&name), 4, MINUS_1 - 2, 0],
        ),
        ("request-key", 249, [at(&kind), at(&name), 0, 0, 0, 0]),
        ("keyctl-session", 250, [0, MINUS_1 - 2, 0, 0, 0, 0]),
        ("keyctl-join", 250, [1, at(&name), 0, 0, 0, 0]),
        ("bpf", 321, [5, zeroes, 48, 0, 0, 0]),
        ("perf-event", 298, [zeroes, 0, MINUS_1, MINUS_1, 0, 0]),
        ("userfaultfd", 323, [0, 0, 0, 0, 0, 0]),
        ("io-uring", 425, [8, zeroes, 0, 0, 0, 0]),
        ("init-module", 175, [zeroes, 8, at(&name), 0, 0, 0]),
        ("finit-module", 313, [root, at(&name), 0, 0, 0, 0]),
        ("delete-module", 176, [at(&name), 0, 0, 0, 0, 0]),
        ("kexec-load", 246, [0, 0, 0, 0, 0, 0]),
        ("swapon", 167, [at(&path), 0, 0, 0, 0, 0]),
        ("iopl", 172, [3, 0, 0, 0, 0, 0]),
        ("quotactl", 179, [0x8000_0700, at(&path), 0, zeroes, 0, 0]),
        ("sethostname", 170, [at(&name), 4, 0, 0, 0, 0]),
        ("settimeofday", 164, [zeroes, 0, 0, 0, 0, 0]),
        ("acct", 163, [at(&path), 0, 0, 0, 0, 0]),
    ];
    for (name, number, arguments) in attempts {
        say(name, call(number, arguments));
    }
}

/// Whether another process can be traced, and its memory read.
fn trace(pid: usize) {
    let mut memory = [0_u64; 2];
    let local = [memory.as_mut_ptr() as usize, 8];
    let remote = [0x400000_usize, 8];
    let (local, remote) = (local.as_ptr() as usize, remote.as_ptr() as usize);
    let read = call(310, [pid, local, 1, remote, 1, 0]);
    // That an address holds nothing is said only to who may look.
    say("read-memory", if read == Err(14) { Ok(0) } else { read });
    let seized = call(101, [0x4206, pid, 0, 0, 0, 0]);
    say("trace", seized);
    if seized.is_ok() {
        let _ = call(101, [17, pid, 0, 0, 0, 0]);
    }
}

/// Exchanges two names until its standard input ends.
fn swap(one: &str, other: &str) {
    let done = std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
    });
    let (one, other) = (text(one), text(other));
    let (mut failed, mut swapped) = (0_u64, 0_u64);
    println!("swapping");
    while !done.is_finished() {
        match call(
            316,
            [
                MINUS_1 - 99,
                one.as_ptr() as usize,
                MINUS_1 - 99,
                other.as_ptr() as usize,
                2,
                0,
            ],
        ) {
            Ok(_) => swapped += 1,
            Err(_) => failed += 1,
        }
    }
    println!("swapped {swapped} failed {failed}");
}

/// Watches for processes that come to be, until its standard input ends, and tries to get hold of
/// what they have while they are set up: their program for writing, their root, directory and files.
/// Prints what it reached that is no file of this container; a marker in `/etc/image` tells that.
fn spy() {
    let done = std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
    });
    let mut seen = Seen::new();
    println!("spying");
    while !done.is_finished() {
        let Ok(entries) = fs::read_dir("/proc") else {
            break;
        };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.parse::<u32>().is_err() || name == std::process::id().to_string() {
                continue;
            }
            seen.look(&name);
        }
    }
    for (name, device) in &seen.reached {
        if !seen.homes.contains(device) {
            println!("reached {name}");
        }
    }
    // That there was something to see: roots of others, with the procfs in each.
    println!("saw others {}", seen.homes.len() > 2);
}

/// What a spy has seen: file systems that are the pod's own, and what lies on which.
struct Seen {
    marker: Vec<u8>,
    homes: BTreeSet<u64>,
    reached: BTreeSet<(String, u64)>,
}

impl Seen {
    fn new() -> Self {
        let homes = ["/", "/proc"].map(fs::metadata);
        Self {
            marker: fs::read("/etc/image").unwrap_or_default(),
            homes: homes.iter().flatten().map(|about| about.dev()).collect(),
            reached: BTreeSet::new(),
        }
    }

    /// Looks at one process. What is found is opened first: its name may be another's a moment later.
    fn look(&mut self, pid: &str) {
        for way in ["root", "cwd"] {
            let base = format!("/proc/{pid}/{way}");
            let link = fs::read_link(&base).unwrap_or_default();
            let Ok(directory) = fs::File::open(&base) else {
                continue;
            };
            let held = format!("/proc/self/fd/{}/etc/image", directory.as_raw_fd());
            let Ok(about) = directory.metadata() else {
                continue;
            };
            if fs::read(held).is_ok_and(|marker| marker == self.marker) {
                self.homes.insert(about.dev());
                let procfs = format!("/proc/self/fd/{}/proc", directory.as_raw_fd());
                self.homes
                    .extend(fs::metadata(procfs).map(|about| about.dev()));
            }
            let name = format!("{way} {}", link.display());
            self.reached.insert((name, about.dev()));
        }
        let program = format!("/proc/{pid}/exe");
        if fs::OpenOptions::new().write(true).open(&program).is_ok() {
            let link = fs::read_link(&program).unwrap_or_default();
            self.reached
                .insert((format!("program {}", link.display()), 0));
        }
        let files = fs::read_dir(format!("/proc/{pid}/fd"));
        for entry in files.into_iter().flatten().flatten() {
            let Ok(link) = fs::read_link(entry.path()) else {
                continue;
            };
            let name = link.to_string_lossy().into_owned();
            // Streams, and what every container has.
            let plain = ["pipe:", "/dev/null", "/dev/pts/", "/dev/tty"];
            if plain.iter().any(|plain| name.starts_with(plain)) {
                continue;
            }
            let opened = fs::OpenOptions::new()
                .read(true)
                .custom_flags(0o4000)
                .open(entry.path());
            if let Ok(about) = opened.and_then(|file| file.metadata()) {
                self.reached.insert((format!("file {name}"), about.dev()));
            }
        }
    }
}

/// Forks until it cannot, holds all of them for a while, and says how many there were.
fn forks() {
    let mut count = 0;
    while count < 100_000 {
        match call(56, [SIGCHLD, 0, 0, 0, 0, 0]) {
            Ok(0) => {
                std::thread::sleep(Duration::from_secs(600));
                exit(0);
            }
            Ok(_) => count += 1,
            Err(_) => break,
        }
    }
    println!("forked {count}");
    let _ = std::io::stdin().read(&mut [0]);
}

/// Opens what it can, of several kinds, holds it until its standard input ends.
fn files() {
    let mut held = Vec::new();
    let mut pair = [0_i32; 2];
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        let made = match held.len() % 3 {
            0 => call3(293, pair.as_mut_ptr() as usize, 0, 0),
            1 => call(53, [1, 1, 0, pair.as_mut_ptr() as usize, 0, 0]),
            _ => call3(290, 0, 0, 0),
        };
        match made {
            Ok(number) => held.push(number),
            Err(errno) => {
                println!("full {errno}");
                break;
            }
        }
    }
    let _ = std::io::stdout().flush();
    let _ = std::io::stdin().read(&mut [0]);
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["namespaces"] => namespaces(),
        ["setns", pid] => setns(pid),
        ["calls"] => calls(),
        ["trace", pid] => trace(pid.parse().unwrap_or(0)),
        ["swap", one, other] => swap(one, other),
        ["spy"] => spy(),
        ["forks"] => forks(),
        ["files"] => files(),
        _ => {
            println!("unknown command");
            exit(2);
        }
    }
}
