//! The Garden API from a client's side, over a unix socket or TCP, with TLS or without.
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

pub use calls::StreamOut;
pub use health::EventLines;
pub use info::Info;
pub use process::{Input, Output, Process, Wanted};
pub use story::LogLines;

use crate::connection::Address;
use crate::connection::tls::Connecting;
use crate::error::Error;

/// A Garden server at an address. Holds no connection: each call makes its own.
#[derive(Debug, Clone)]
pub struct Client {
    address: Address,
    tls: Option<Connecting>,
}

impl Client {
    /// The server that listens there: at the path of a unix socket, or an [`Address`].
    pub fn new(address: impl Into<Address>) -> Self {
        Self {
            address: address.into(),
            tls: None,
        }
    }

    /// The same with TLS, which is for TCP only.
    #[must_use]
    pub fn with_tls(self, tls: Connecting) -> Self {
        Self {
            tls: Some(tls),
            ..self
        }
    }

    /// Where the server listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Whether anything accepts connections there.
    pub async fn is_there(&self) -> bool {
        self.connect().await.is_ok()
    }

    /// Asks whether the server can serve; waits while it starts.
    pub async fn ping(&self) -> Result<(), Error> {
        self.done(self.get("/ping")).await
    }
}
