//! Exit records: the file that makes an exit survive the server.
//!
//! Written by the supervisor before anybody is told of an exit, into the container's record
//! directory (an open descriptor: the shim's mount namespace does not show the depot). On tmpfs,
//! so there is nothing to sync: what a power loss takes, it takes together with the processes.

use std::io;
use std::os::fd::BorrowedFd;

use garden_wire::ExitRecord;
use rustix::fs::{Mode, OFlags};

/// Writes a record: complete under its final name, or not there.
pub(crate) fn write(directory: BorrowedFd<'_>, record: &ExitRecord) -> io::Result<()> {
    let name = ExitRecord::file_name(&record.id);
    let temporary = format!(".{name}.new");
    let bytes = serde_json::to_vec(record)?;
    let file = rustix::fs::openat(
        directory,
        &temporary,
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::RUSR | Mode::WUSR,
    )?;
    let mut file = std::fs::File::from(file);
    io::Write::write_all(&mut file, &bytes)?;
    rustix::fs::renameat(directory, &temporary, directory, &name)?;
    Ok(())
}

/// Nanoseconds of `CLOCK_REALTIME`.
pub(crate) fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(nanoseconds)
}
