//! The terminal of a process: its size, and whose it is.
//!
//! The executor calls this for a new process before it becomes the user's program, the supervisor
//! later when the size changes.

use std::os::fd::AsFd;

use rustix::fs::Uid;

/// Sets a terminal's size; 0 stands for the default of 80 by 24.
pub(crate) fn set_size(terminal: impl AsFd, columns: u16, rows: u16) -> rustix::io::Result<()> {
    let size = rustix::termios::Winsize {
        ws_col: if columns == 0 { 80 } else { columns },
        ws_row: if rows == 0 { 24 } else { rows },
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(terminal, size)
}

/// Makes standard input, a terminal that root has opened, the process's own: it may open it again
/// by its path. The size is there before the program asks.
pub(crate) fn hand_over((columns, rows): (u16, u16), user: u32) -> rustix::io::Result<()> {
    let terminal = rustix::stdio::stdin();
    set_size(terminal, columns, rows)?;
    // The group stays: it is the one that may write to terminals.
    rustix::fs::fchown(terminal, Some(Uid::from_raw(user)), None)
}
