//! The shim's fence: the calls that need `unsafe`, one a function.
//!
//! Used by the zygote, the supervisor and the executor. All of it relies on one fact: this
//! program never has a second thread.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

/// From linux/sched.h; the libc crate's constant is of a type too narrow for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Which side of a fork this is.
pub(crate) enum Fork {
    /// The new process.
    Child,
    /// The old one, and the new one's pid.
    Parent(rustix::process::Pid),
}

/// Forks. The child has every descriptor of the parent and must end by [`exit`].
pub(crate) fn fork() -> io::Result<Fork> {
    // SAFETY: the process has one thread, so the child's memory, allocator included, is in a
    // consistent state and any code may run in it.
    match unsafe { libc::fork() } {
        0 => Ok(Fork::Child),
        pid => rustix::process::Pid::from_raw(pid)
            .map(Fork::Parent)
            .ok_or_else(io::Error::last_os_error)
            .and_then(|fork| {
                if pid < 0 {
                    Err(io::Error::last_os_error())
                } else {
                    Ok(fork)
                }
            }),
    }
}

/// Forks a child into a cgroup v2 group, given by its directory (Linux 5.7).
///
/// Moving a process there later costs milliseconds on an idle host: it waits for an RCU grace
/// period, because every fork on the host must be kept away meanwhile.
pub(crate) fn fork_into(group: BorrowedFd<'_>) -> io::Result<Fork> {
    // SAFETY: an all-zero clone_args is a valid value of this plain C structure.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = CLONE_INTO_CGROUP;
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.cgroup = group.as_raw_fd().unsigned_abs().into();
    // SAFETY: without CLONE_VM and without a stack this is fork(2): the child returns from the
    // call in a copy of this memory. glibc's own bookkeeping of a fork concerns threads, of which
    // there are none, and the thread id that it caches, which nothing here uses.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            std::mem::size_of::<libc::clone_args>(),
        )
    };
    match i32::try_from(pid) {
        Ok(0) => Ok(Fork::Child),
        Ok(pid) if pid > 0 => rustix::process::Pid::from_raw(pid)
            .map(Fork::Parent)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EIO)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends the process at once: no destructors, no buffers of the parent flushed a second time.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: `_exit` takes any integer and does not return.
    unsafe { libc::_exit(code) }
}

/// Loads a seccomp program for this process and what it becomes.
///
/// Needs `no_new_privs` or `CAP_SYS_ADMIN` in the process's user namespace (seccomp(2)).
pub(crate) fn load_seccomp(program: &[libc::sock_filter]) -> io::Result<()> {
    let length =
        u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let description = libc::sock_fprog {
        len: length,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: `description` and the instructions that it points to outlive the call; the kernel
    // copies them and writes to neither.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            &raw const description,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings
        .iter()
        .map(|s| s.as_ptr())
        .chain([std::ptr::null()])
        .collect()
}

/// Becomes the program at `path`. Returns only when that failed.
pub(crate) fn execute(path: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    let arguments = pointers(arguments);
    let environment = pointers(environment);
    // SAFETY: both arrays end with a null pointer and point to strings that outlive the call.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// Becomes the program in the open file `program`. Returns only when that failed.
pub(crate) fn execute_file(
    program: BorrowedFd<'_>,
    arguments: &[CString],
    environment: &[CString],
) -> io::Error {
    let arguments = pointers(arguments);
    let environment = pointers(environment);
    // SAFETY: both arrays end with a null pointer and point to strings that outlive the call, as
    // does the empty path; the descriptor is open.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// A descriptor whose number was chosen in another process of the same descriptor table.
///
/// The worker passes numbers through libcontainer, which knows only raw ones.
pub(crate) fn borrow(number: i32) -> BorrowedFd<'static> {
    // SAFETY: called only with numbers of descriptors that the worker holds open until the
    // process ends or becomes another program, and never with -1.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// Writes one line to standard error, which is the server's log. Never fails, never panics.
pub(crate) fn log(line: &str) {
    let text = format!("{line}\n");
    let _ = rustix::io::write(rustix::stdio::stderr(), text.as_bytes());
}

/// Gives this process a mount namespace of its own, a copy of the current one.
pub(crate) fn unshare_mounts() -> io::Result<()> {
    // SAFETY: `unshare` takes flags only; nothing else runs in this process that could be
    // surprised by the change of namespace.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Moves this process into a new user namespace, as yet without id maps.
pub(crate) fn unshare_users() -> io::Result<()> {
    // SAFETY: `unshare` takes flags only, and the process has one thread, as this flag demands.
    if unsafe { libc::unshare(libc::CLONE_NEWUSER) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Moves this process into new network and IPC namespaces of its user namespace.
pub(crate) fn unshare_network_and_ipc() -> io::Result<()> {
    // SAFETY: `unshare` takes flags only; nothing else runs in this process.
    if unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWIPC) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Adds flags to a mount, and makes it follow its source without giving anything back
/// (Linux 5.12).
pub(crate) fn set_mount_attributes(
    mount: BorrowedFd<'_>,
    flags: rustix::mount::MountAttrFlags,
) -> io::Result<()> {
    let flags = u64::from(flags.bits());
    // Which of them holds is one choice of several: the old one is taken back first.
    let choice = libc::MOUNT_ATTR__ATIME & flags;
    let attributes = libc::mount_attr {
        attr_set: flags,
        attr_clr: if choice == 0 {
            0
        } else {
            libc::MOUNT_ATTR__ATIME
        },
        propagation: libc::MS_SLAVE,
        userns_fd: 0,
    };
    // SAFETY: the empty path and the structure outlive the call, which writes to neither; the
    // descriptor is open.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            std::mem::size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Makes orphans of this process's descendants its children.
pub(crate) fn become_subreaper() -> io::Result<()> {
    // SAFETY: this option takes one integer.
    if unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Closes a forked child's copy of a descriptor that its parent goes on using.
pub(crate) fn close_inherited(descriptor: &OwnedFd) {
    // SAFETY: the child never uses `descriptor` again: it does not return to the code that owns
    // it, and ends by `exit`, which runs no destructor.
    unsafe { libc::close(descriptor.as_raw_fd()) };
}

/// Closes every descriptor from `first` on. For the program's very start, when none is in use.
pub(crate) fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: takes three integers; called before this program has opened anything.
    if unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Brings `lo` up in the current network namespace; needs `CAP_NET_ADMIN` over it.
pub(crate) fn raise_loopback() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: an all-zero ifreq is a valid value of this plain C structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(*b"lo") {
        *place = byte.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which outlives the call; the descriptor is open.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
