//! Which project id a tree gets.
//!
//! There is no table of ids that could be wrong after a crash or be written by two processes: the
//! kernel's own count of each project's inodes is the table. A tree takes an id in two steps, while
//! it is one empty directory: it carries the id, then looks at the count. Exactly one inode means
//! that nobody else has the id and that everybody who tries from now on will see more than one; then
//! it is its owner until its last inode is gone. Anything else means that somebody was there before,
//! or came at the same time; the tree goes on to another id. So ids are safe between threads,
//! processes, stores and foreign programs on one file system, and an id is not given again while
//! anything, be it a deleted file that is still open, belongs to it.
//!
//! Ids are kept close together (XFS never gives back the blocks of its table): they are drawn from
//! a window that grows only when it is crowded.

use std::io;
use std::ops::Range;

/// The first window, and after how many failures it doubles.
const FIRST_WINDOW: u32 = 32;
const PATIENCE: usize = 3;
/// The window covers every range long before; what is left fails by bad luck or by being full.
const ATTEMPTS: usize = 256;

/// What the kernel knows of projects on one file system.
pub(super) trait Ledger {
    /// A directory.
    type Tree: ?Sized;
    /// How many inodes belong to a project.
    fn inodes(&self, id: u32) -> io::Result<u64>;
    /// Gives an empty directory to a project, and with it whatever will be made in it.
    fn carry(&self, tree: &Self::Tree, id: u32) -> io::Result<()>;
    /// Lifts the limits of a project.
    fn lift(&self, id: u32) -> io::Result<()>;
}

/// Gives an empty directory an id that nobody else has; `None` when none can be found.
pub(super) fn claim<L: Ledger>(
    ledger: &L,
    range: &Range<u32>,
    tree: &L::Tree,
    mut random: impl FnMut() -> u32,
) -> io::Result<Option<u32>> {
    let mut window = FIRST_WINDOW.min(range.end - range.start);
    for attempt in 1..=ATTEMPTS {
        let id = range.start + random() % window;
        if ledger.inodes(id)? == 0 && claim_one(ledger, tree, id)? {
            return Ok(Some(id));
        }
        if attempt % PATIENCE == 0 {
            window = window.saturating_mul(2).min(range.end - range.start);
        }
    }
    Ok(None)
}

/// Tries to give an empty directory this very id.
pub(super) fn claim_one<L: Ledger>(ledger: &L, tree: &L::Tree, id: u32) -> io::Result<bool> {
    ledger.carry(tree, id)?;
    Ok(ledger.inodes(id)? == 1)
}

/// Lifts the limits of the project that an emptied tree carries, before its top directory goes,
/// which until then keeps everybody else away from the id.
///
/// `was_filled` says that something was in the tree: it got past its claim. If not, the id may be
/// another's, on which this one only happened to try its luck when its maker was killed.
pub(super) fn release<L: Ledger>(ledger: &L, id: u32, was_filled: bool) -> io::Result<()> {
    if was_filled || ledger.inodes(id)? == 1 {
        ledger.lift(id)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
