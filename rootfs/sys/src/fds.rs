//! Open descriptors of the whole process.

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

/// Marks every descriptor but the standard three as closed by `execve(2)` (`close_range(2)`, the
/// flag since Linux 5.11). For short-lived commands that leave a process behind, which must not
/// keep open what whoever runs the command forgot to close.
pub fn close_on_exec() -> io::Result<()> {
    let flags = i32::try_from(libc::CLOSE_RANGE_CLOEXEC).unwrap_or(0);
    // SAFETY: with this flag close_range(2) closes nothing, so every owner of a descriptor still
    // owns an open one; it takes three integers and touches no memory.
    let result = unsafe { libc::close_range(3, libc::c_uint::MAX, flags) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Copies a descriptor that is known by its number only, like one that the environment tells of
/// (`fcntl(2)` with `F_DUPFD_CLOEXEC`). The original stays as it is, whoever owns it.
pub fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    let copy = fcntl_duplicate(number)?;
    // SAFETY: the descriptor was made by the call above, which succeeded, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

fn fcntl_duplicate(number: RawFd) -> io::Result<RawFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes an integer and touches no memory; a number that is not open is
    // refused with EBADF.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

    #[test]
    fn open_files_stay_open_but_are_not_inherited() {
        let file = std::fs::File::open("/dev/null").unwrap();
        fcntl_setfd(&file, FdFlags::empty()).unwrap();
        match close_on_exec() {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                println!("SKIPPED open_files_stay_open_but_are_not_inherited: needs Linux 5.11");
            }
            other => {
                other.unwrap();
                assert_eq!(fcntl_getfd(&file).unwrap(), FdFlags::CLOEXEC);
                file.metadata().unwrap();
            }
        }
    }
}
