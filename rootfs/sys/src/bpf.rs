//! Programs that decide which devices the processes of a cgroup v2 group may use.
//!
//! Called by whoever makes such groups. It loads, attaches and replaces; what a program says is
//! the caller's. Nothing here pins a program: it lives as long as a descriptor or a group has it.
//! Needs `CAP_BPF` and `CAP_NET_ADMIN` (before Linux 5.8 `CAP_SYS_ADMIN`) of the first user namespace.
//! Sources: bpf(2), linux/bpf.h; docs.kernel.org/bpf/instruction-set.

use std::ffi::CStr;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const PROG_QUERY: libc::c_int = 16;

const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;

/// What groups above and below have attached is asked too, and all must agree.
const ALLOW_MULTI: u32 = 1 << 1;
/// The program takes another's place (Linux 5.6).
const REPLACE: u32 = 1 << 2;

/// How many programs the kernel attaches to one group.
const MAX_ATTACHED: usize = 64;
/// Bytes of the verifier's words that an error tells.
const LOG_BYTES: usize = 16 << 10;
/// Bytes of a program's name, with the zero behind it.
const NAME_BYTES: usize = 16;

/// One instruction (`struct bpf_insn`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// What is done.
    pub code: u8,
    /// The destination's register in the lower half, the source's in the upper one.
    pub registers: u8,
    /// Instructions to jump over, or bytes from an address.
    pub offset: i16,
    /// A value.
    pub immediate: i32,
}

/// Why a program was not loaded.
#[derive(Debug, thiserror::Error)]
#[error("the kernel does not load the device program{}{log}", if log.is_empty() { "" } else { ": " })]
pub struct LoadError {
    /// What the verifier said, if it said anything.
    pub log: String,
    /// The kernel's error.
    #[source]
    pub source: io::Error,
}

#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; NAME_BYTES],
}

#[repr(C)]
struct Attach {
    target: RawFd,
    program: RawFd,
    kind: u32,
    flags: u32,
    replaced: RawFd,
}

#[repr(C)]
#[derive(Default)]
struct Query {
    target: RawFd,
    kind: u32,
    flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
}

#[repr(C)]
#[derive(Default)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

#[repr(C)]
struct InfoOf {
    object: RawFd,
    length: u32,
    info: u64,
}

/// The beginning of `struct bpf_prog_info`, up to the name.
#[repr(C)]
#[derive(Default)]
struct Info {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    lengths: [u32; 2],
    code: [u64; 2],
    load_time: u64,
    user: u32,
    map_count: u32,
    maps: u64,
    name: [u8; NAME_BYTES],
}

fn address<T>(of: *const T) -> u64 {
    of as usize as u64
}

/// Calls bpf(2) with one of the structures above; those behind its addresses must live.
fn call<T>(command: libc::c_int, attributes: &mut T) -> io::Result<RawFd> {
    loop {
        // SAFETY: the size is that of the structure; every caller below fills addresses in it from
        // values that live until this returns, with their lengths.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                command,
                std::ptr::from_mut(attributes),
                size_of::<T>(),
            )
        };
        if result >= 0 {
            return RawFd::try_from(result)
                .map_err(|_| io::Error::from(io::ErrorKind::InvalidData));
        }
        let error = io::Error::last_os_error();
        // The verifier gives up when a signal comes.
        if !matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) {
            return Err(error);
        }
    }
}

fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made it for this call, so that nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Loads a program that is asked about devices (Linux 4.15). `name` has at most 15 letters, digits,
/// dots and underscores, by which tools show it.
///
/// # Errors
/// The kernel's, with what its verifier said.
pub fn load_device_program(
    instructions: &[Instruction],
    name: &CStr,
) -> Result<OwnedFd, LoadError> {
    let license = c"Apache-2.0";
    let mut attributes = Load {
        kind: TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(instructions.len()).unwrap_or(u32::MAX),
        instructions: address(instructions.as_ptr()),
        license: address(license.as_ptr()),
        ..Load::default()
    };
    let name = name.to_bytes().iter().take(NAME_BYTES - 1);
    for (place, byte) in attributes.name.iter_mut().zip(name) {
        *place = *byte;
    }
    let source = match call(PROG_LOAD, &mut attributes) {
        Ok(fd) => return Ok(owned(fd)),
        Err(error) => error,
    };
    // Only what the verifier refuses is worth a second try, which costs a buffer.
    let mut log = vec![0_u8; LOG_BYTES];
    attributes.log_level = 1;
    attributes.log_size = u32::try_from(log.len()).unwrap_or(u32::MAX);
    attributes.log = address(log.as_mut_ptr());
    match call(PROG_LOAD, &mut attributes) {
        // It was short of something for a moment.
        Ok(fd) => Ok(owned(fd)),
        Err(_) => Err(LoadError {
            log: text(&log),
            source,
        }),
    }
}

/// Bytes up to a zero.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0);
    let bytes = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
    String::from_utf8_lossy(bytes).trim().to_owned()
}

/// Attaches a program to a group, in addition to what others have attached; or, in one step, in
/// the place of one that is attached there.
///
/// # Errors
/// The kernel's: `EPERM`, too, when a group above has a program that forbids others below.
pub fn attach_device_program(
    group: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    replaced: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut attributes = Attach {
        target: group.as_raw_fd(),
        program: program.as_raw_fd(),
        kind: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI | replaced.map_or(0, |_| REPLACE),
        replaced: replaced.map_or(0, |fd| fd.as_raw_fd()),
    };
    call(PROG_ATTACH, &mut attributes).map(drop)
}

/// The programs for devices that are attached to a group itself, with their names.
///
/// # Errors
/// The kernel's.
pub fn device_programs(group: BorrowedFd<'_>) -> io::Result<Vec<(OwnedFd, String)>> {
    let mut ids = [0_u32; MAX_ATTACHED];
    let mut query = Query {
        target: group.as_raw_fd(),
        kind: ATTACH_CGROUP_DEVICE,
        ids: address(ids.as_mut_ptr()),
        count: u32::try_from(ids.len()).unwrap_or(0),
        ..Query::default()
    };
    call(PROG_QUERY, &mut query)?;
    let count = usize::try_from(query.count).unwrap_or(0);
    let mut programs = Vec::with_capacity(count.min(ids.len()));
    for id in ids.iter().take(count) {
        let mut by_id = ById {
            id: *id,
            ..ById::default()
        };
        let program = match call(PROG_GET_FD_BY_ID, &mut by_id) {
            Ok(fd) => owned(fd),
            // Detached since.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
            Err(error) => return Err(error),
        };
        let mut info = Info::default();
        let mut info_of = InfoOf {
            object: program.as_raw_fd(),
            length: u32::try_from(size_of::<Info>()).unwrap_or(0),
            info: address(std::ptr::from_mut(&mut info)),
        };
        call(OBJ_GET_INFO_BY_FD, &mut info_of)?;
        programs.push((program, text(&info.name)));
    }
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;

    /// `r0 = VALUE; exit`.
    fn constant(value: i32) -> [Instruction; 2] {
        let plain = |code, immediate| Instruction {
            code,
            registers: 0,
            offset: 0,
            immediate,
        };
        [plain(0xb7, value), plain(0x95, 0)]
    }

    struct Group(std::path::PathBuf);

    impl Drop for Group {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir(&self.0);
        }
    }

    /// A group of its own, where there is cgroup v2 and the right to load programs.
    fn group(test: &str) -> Option<(Group, std::fs::File)> {
        if let Err(error) = load_device_program(&constant(1), c"test") {
            println!("SKIPPED {test}: {error}: {}", error.source);
            return None;
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = mounts.lines().find(|line| line.contains(" - cgroup2 "));
        let Some(mount) = line.and_then(|line| line.split(' ').nth(4)) else {
            println!("SKIPPED {test}: no cgroup v2 is mounted");
            return None;
        };
        let name = format!("garden-sys-{test}-{}", std::process::id());
        let group = Group(std::path::Path::new(mount).join(name));
        std::fs::create_dir(&group.0).unwrap();
        let directory = std::fs::File::open(&group.0).unwrap();
        Some((group, directory))
    }

    #[test]
    fn root_a_program_takes_the_place_of_another_one() {
        let Some((_group, directory)) = group("replace") else {
            return;
        };
        let first = load_device_program(&constant(1), c"first").unwrap();
        let second = load_device_program(&constant(0), c"second").unwrap();
        let names = || -> Vec<String> {
            let programs = device_programs(directory.as_fd()).unwrap();
            programs.into_iter().map(|(_, name)| name).collect()
        };
        assert!(names().is_empty());
        attach_device_program(directory.as_fd(), first.as_fd(), None).unwrap();
        assert_eq!(names(), ["first"]);
        let there = device_programs(directory.as_fd()).unwrap();
        let replaced = Some(there[0].0.as_fd());
        attach_device_program(directory.as_fd(), second.as_fd(), replaced).unwrap();
        assert_eq!(names(), ["second"]);
    }

    #[test]
    fn root_a_refused_program_says_why() {
        if load_device_program(&constant(1), c"test").is_err() {
            println!("SKIPPED root_a_refused_program_says_why: no right to load programs");
            return;
        }
        let no_end = &constant(1)[..1];
        let error = load_device_program(no_end, c"broken").unwrap_err();
        assert!(!error.log.is_empty(), "{error:?}");
        assert!(error.to_string().contains(": "), "{error}");
    }
}
