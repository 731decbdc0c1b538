//! The priority of a thread, on the disk and on the processor.
//!
//! Called by background threads on themselves, before their first work, so that clearing up
//! waits for everybody else where the disk's scheduler knows priorities, and takes the processor
//! from nobody when it is woken.

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

/// Says that the calling thread may wait for the processor: waking it does not take it from the
/// thread that runs (`SCHED_BATCH`, sched(7), Linux 2.6.16). Its share stays that of everybody, so
/// that nobody who waits for a lock of it waits longer.
pub fn make_batch() -> io::Result<()> {
    // SAFETY: sched_param is plain data, for which zeroes are valid; its priority must be 0 here.
    let parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: reads one sched_param that lives until the call returns; 0 names the calling thread.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameters) };
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
    fn a_batch_thread_is_one_of_many() {
        // SAFETY: sched_getscheduler(2) takes an integer and no memory.
        let policy = || unsafe { libc::sched_getscheduler(0) };
        let before = policy();
        std::thread::spawn(move || {
            make_batch().unwrap();
            assert_eq!(policy(), libc::SCHED_BATCH);
        })
        .join()
        .unwrap();
        assert_eq!(policy(), before);
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
