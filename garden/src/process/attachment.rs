//! One user's connection to one running process, as channels.
//!
//! The manager makes an [`Attachment`] for every run and attach; the API server (or a command
//! that hosts the manager in its own process) consumes it. Several may exist for one process:
//! each gets all output from the moment it was made, and the same exit.
//!
//! Dropping `control` is how a consumer detaches: the process runs on, and its standard input
//! must *not* end by it; only [`Control::CloseStdin`] ends it.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::model::{Exit, ProcessId, Signal, WindowSize};

/// A running process, from its user's side.
///
/// All channels are bounded: a full one makes the sender wait, nothing is ever dropped.
#[derive(Debug)]
pub struct Attachment {
    /// The name of the process.
    pub id: ProcessId,
    /// What it writes to standard output, or to its terminal. Ends at end of file, which may
    /// come after the exit when a grandchild holds the pipe.
    pub stdout: mpsc::Receiver<Bytes>,
    /// What it writes to standard error. Ends like `stdout`; at once for a process with a
    /// terminal.
    pub stderr: mpsc::Receiver<Bytes>,
    /// What its user wants of it. The receiver must keep taking: input that the process does not
    /// read must not hold back a signal or a resize that comes after it.
    pub control: mpsc::Sender<Control>,
    /// A permit for each byte of input that may wait for the process. Whoever sends input takes as
    /// many first and forgets them: they come back when the process has read. Closed when nothing is
    /// read any more.
    pub input_room: Arc<Semaphore>,
    /// How it ended. Set only after everything that was readable at the moment of the exit was
    /// put into the output channels. A sender that is dropped without having set it means that
    /// sight of the process was lost.
    pub exit: watch::Receiver<Option<Exit>>,
}

/// A wish of a process's user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// Bytes for standard input. Never empty.
    Stdin(Bytes),
    /// Standard input ends. Later input is ignored, later signals are not.
    CloseStdin,
    /// The terminal has a new size; ignored by a process without one.
    Resize(WindowSize),
    /// A signal to the process.
    Signal(Signal),
}
