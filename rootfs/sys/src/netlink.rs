//! Options of netlink sockets, which rustix does not know.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Lets the kernel explain a refusal in words (`NETLINK_EXT_ACK`, Linux 4.12) and leave out the
/// request it refuses (`NETLINK_CAP_ACK`, Linux 4.3), so that an answer has a bound.
///
/// # Errors
/// The kernel's, for a descriptor that is no netlink socket.
pub fn explain_errors(socket: impl AsFd) -> io::Result<()> {
    let socket = socket.as_fd();
    switch_on(socket, libc::NETLINK_CAP_ACK)?;
    switch_on(socket, libc::NETLINK_EXT_ACK)
}

fn switch_on(socket: BorrowedFd<'_>, option: libc::c_int) -> io::Result<()> {
    let value: libc::c_int = 1;
    // SAFETY: the descriptor is open as long as it is borrowed; the kernel reads the 4 bytes of
    // `value`, which outlives the call, and keeps no pointer to them.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const value).cast(),
            4,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

    #[test]
    fn only_netlink_sockets_have_these_options() {
        let open =
            |family| socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None).unwrap();
        explain_errors(open(AddressFamily::NETLINK)).unwrap();
        assert!(explain_errors(open(AddressFamily::UNIX)).is_err());
    }
}
