//! Open descriptors of the whole process.

use std::io;

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
