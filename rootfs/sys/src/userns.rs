//! A user namespace as a descriptor, for the owner translation of mounts.
//!
//! Called by the root filesystem backend, once for each distinct mapping: a namespace can only be
//! made around a process, so each costs one short-lived child. The child is a raw copy of a
//! process that may have many threads; until it is killed it makes system calls and nothing
//! else: no allocation, no lock, no destructor, no library code that keeps state.

use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::Signal;

/// A run of ids that have one meaning inside a user namespace and another on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IdRange {
    /// The first id inside.
    pub inside: u32,
    /// The first id on the host.
    pub host: u32,
    /// How many ids.
    pub size: u32,
}

/// Why no user namespace was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The child could not be started.
    #[error("cannot start a process in a new user namespace: check user.max_user_namespaces")]
    Start(#[source] io::Error),
    /// The kernel refused a map.
    #[error("cannot write the {file} {map:?}: ranges must not overlap, be empty or be over 340")]
    Map {
        /// `uid_map` or `gid_map`.
        file: &'static str,
        /// What was written.
        map: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The namespace could not be opened.
    #[error("cannot open the new user namespace: /proc must be mounted")]
    Open(#[source] io::Error),
}

/// Makes a user namespace with these maps (`clone3(2)` with `CLONE_CLEAR_SIGHAND`, Linux 5.5).
/// No process is left in it; it lives as long as the descriptor, and whatever was given it.
pub fn create(uid: &[IdRange], gid: &[IdRange]) -> Result<OwnedFd, Error> {
    let child = Child::start().map_err(Error::Start)?;
    child.write_map("uid_map", uid)?;
    child.write_map("gid_map", gid)?;
    let path = format!("/proc/{}/ns/user", child.pid);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|e| Error::Open(e.into()))
}

/// A process that does nothing in a user namespace of its own; killed and reaped when dropped.
struct Child {
    pid: libc::c_long,
    handle: OwnedFd,
}

impl Child {
    fn start() -> io::Result<Self> {
        let mut handle: libc::c_int = -1;
        // SAFETY: all-zero bytes are a valid clone_args: it has integer fields only, and zero
        // means "not used" in each.
        let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
        let clear_handlers = libc::c_ulonglong::from(CLONE_CLEAR_SIGHAND);
        arguments.flags = libc::CLONE_NEWUSER as libc::c_ulonglong
            | libc::CLONE_PIDFD as libc::c_ulonglong
            | clear_handlers;
        arguments.pidfd = (&raw mut handle).addr() as libc::c_ulonglong;
        // No exit signal: nobody's SIGCHLD handler hears of it, nobody's wait(-1) takes it.
        // SAFETY: clone3(2) reads `size_of::<clone_args>()` bytes at its first argument and
        // writes one int to `pidfd`; both outlive the call. Without CLONE_VM and with no stack
        // given the child goes on with its own copy of this one, as after fork(2).
        let pid = unsafe {
            libc::syscall(
                libc::SYS_clone3,
                &raw mut arguments,
                size_of::<libc::clone_args>(),
            )
        };
        match pid {
            0 => wait_to_be_killed(),
            pid if pid < 0 => Err(io::Error::last_os_error()),
            pid => Ok(Self {
                pid,
                // SAFETY: clone3 succeeded with CLONE_PIDFD, so `handle` is a new descriptor
                // (with close-on-exec) that nothing else owns.
                handle: unsafe { OwnedFd::from_raw_fd(handle) },
            }),
        }
    }

    fn write_map(&self, file: &'static str, ranges: &[IdRange]) -> Result<(), Error> {
        let mut map = String::new();
        for range in ranges {
            // Writing to a String cannot fail.
            let _ = writeln!(map, "{} {} {}", range.inside, range.host, range.size);
        }
        // The child cannot be reaped before `self` is dropped, so the pid is its.
        let path = format!("/proc/{}/{file}", self.pid);
        std::fs::write(path, &map).map_err(|source| Error::Map { file, map, source })
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Fails only when it is dead, which is what is wanted.
        let _ = rustix::process::pidfd_send_signal(&self.handle, Signal::KILL);
        loop {
            // SAFETY: waitid(2) accepts a null siginfo on Linux; the descriptor is open. __WALL
            // is needed because the child has no exit signal.
            let result = unsafe {
                libc::waitid(
                    libc::P_PIDFD,
                    self.handle.as_raw_fd().unsigned_abs(),
                    std::ptr::null_mut(),
                    libc::WEXITED | libc::__WALL,
                )
            };
            if result == 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                break;
            }
        }
    }
}

/// `CLONE_CLEAR_SIGHAND` of `linux/sched.h`; the constant of libc overflows its C type.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;

/// The whole life of the child. Only system calls: see the head of this file.
fn wait_to_be_killed() -> ! {
    // Dies with the thread that started it, so that a killed parent leaves nothing.
    // SAFETY: PR_SET_PDEATHSIG takes integers only.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
    // The parent's descriptors (locks, sockets, mounts) must not be kept open by this copy.
    // SAFETY: this process uses none of its descriptors and never returns to code that does.
    unsafe { libc::syscall(libc::SYS_close_range, 0_u32, u32::MAX, 0_u32) };
    loop {
        // SAFETY: takes nothing; returns only after a signal handler, and there are none.
        unsafe { libc::pause() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root_is_missing(test: &str) -> bool {
        let missing = !rustix::process::geteuid().is_root();
        if missing {
            println!("SKIPPED {test}: needs root");
        }
        missing
    }

    fn range(inside: u32, host: u32, size: u32) -> IdRange {
        IdRange { inside, host, size }
    }

    fn owner_of(namespace: &OwnedFd) -> u64 {
        rustix::fs::fstat(namespace).unwrap().st_ino
    }

    #[test]
    fn root_each_namespace_is_a_new_one() {
        if root_is_missing("root_each_namespace_is_a_new_one") {
            return;
        }
        let map = [range(0, 4_294_967_294, 1), range(1, 1, 4_294_967_293)];
        let first = create(&map, &map).unwrap();
        let second = create(&map, &map).unwrap();
        assert_ne!(owner_of(&first), owner_of(&second));
        let ours = std::fs::File::open("/proc/self/ns/user").unwrap();
        assert_ne!(owner_of(&first), owner_of(&ours.into()));
    }

    #[test]
    fn root_many_threads_may_ask_at_once() {
        if root_is_missing("root_many_threads_may_ask_at_once") {
            return;
        }
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    create(&[range(0, 100_000, 65536)], &[range(0, 200_000, 1)]).unwrap()
                });
            }
        });
    }

    #[test]
    fn root_a_map_that_overlaps_is_named() {
        if root_is_missing("root_a_map_that_overlaps_is_named") {
            return;
        }
        let bad = [range(0, 100, 10), range(5, 200, 10)];
        let error = create(&[range(0, 0, 1)], &bad).unwrap_err();
        assert!(matches!(
            error,
            Error::Map {
                file: "gid_map",
                ..
            }
        ));
        assert!(error.to_string().contains("5 200 10"), "{error}");
    }

    #[test]
    fn root_no_child_is_left() {
        if root_is_missing("root_no_child_is_left") {
            return;
        }
        let child = Child::start().unwrap();
        let status = format!("/proc/{}/stat", child.pid);
        let is_ours = |text: String| text.contains(&format!(") S {} ", std::process::id()));
        let mine = |path: &str| std::fs::read_to_string(path).is_ok_and(is_ours);
        // It may not have reached its pause yet, but it is there and is our child.
        assert!(std::path::Path::new(&status).exists());
        drop(child);
        assert!(!mine(&status));
    }
}
