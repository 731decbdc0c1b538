//! The disk priority of a thread.
//!
//! Called by background threads on themselves, before their first work, so that clearing up
//! waits for everybody else where the disk's scheduler knows priorities.

use std::io;

/// `ioprio_set(2)`: "which" is one thread or process.
const WHO_PROCESS: libc::c_int = 1;
/// The class that is served when nobody else wants the disk, above the 13 bits of data.
const CLASS_IDLE: libc::c_int = 3 << 13;

/// No class: what follows from the thread's share of the CPU, as for everybody.
const CLASS_NONE: libc::c_int = 0;

/// Puts the calling thread into the idle class of disk priority (`ioprio_set(2)`, Linux 2.6.13).
pub fn make_io_idle() -> io::Result<()> {
    set(CLASS_IDLE)
}

/// Gives the calling thread the disk priority of everybody else again.
pub fn make_io_normal() -> io::Result<()> {
    set(CLASS_NONE)
}

fn set(class: libc::c_int) -> io::Result<()> {
    // SAFETY: takes three integers and no memory; 0 names the calling thread, so that no other
    // thread can be changed by mistake.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, class) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn current() -> libc::c_long {
        // SAFETY: ioprio_get(2) takes two integers and no memory.
        unsafe { libc::syscall(libc::SYS_ioprio_get, WHO_PROCESS, 0) }
    }

    #[test]
    fn only_the_calling_thread_becomes_idle() {
        let before = current();
        std::thread::spawn(|| {
            make_io_idle().unwrap();
            assert_eq!(current() & !0x1fff, libc::c_long::from(CLASS_IDLE));
            make_io_normal().unwrap();
            assert_ne!(current() & !0x1fff, libc::c_long::from(CLASS_IDLE));
        })
        .join()
        .unwrap();
        assert_eq!(current(), before);
    }
}
