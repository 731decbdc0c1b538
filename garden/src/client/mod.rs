//! The Garden API from a client's side, over a unix socket.
//!
//! The command line uses it for everything. It speaks to any Garden server; what is of our own
//! (`ps`, `peas`, `teardown`, `pull`, `health`, `events`, `logs`, `timeline`) only to ours. Errors are the manager's own as far as the server
//! tells their kind, so callers decide on the same [`Error`] as inside the server.
//!
//! There are no timeouts after connecting: a create or a wait takes as long as it takes.

mod calls;
mod health;
mod info;
mod limits;
mod process;
mod pull;
mod story;
mod transport;

use std::path::{Path, PathBuf};

pub use calls::StreamOut;
pub use health::EventLines;
pub use info::Info;
pub use process::{Input, Output, Process, Wanted};
pub use story::LogLines;

use crate::error::Error;

/// A Garden server at a socket. Holds no connection: each call makes its own.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// The server that listens at this path.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
        }
    }

    /// Where the server listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Whether anything accepts connections there.
    pub async fn is_there(&self) -> bool {
        transport::connect(&self.socket).await.is_ok()
    }

    /// Asks whether the server can serve; waits while it starts.
    pub async fn ping(&self) -> Result<(), Error> {
        self.done(self.get("/ping")).await
    }
}
