//! Finding the server that a verb speaks to.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use garden::client::Client;

/// Where the server is.
#[derive(Debug, Clone, Args)]
pub(crate) struct Target {
    /// Socket of the server
    #[arg(
        long,
        global = true,
        env = "GARDEN_SOCKET",
        value_name = "PATH",
        default_value = "/run/garden/garden.sock"
    )]
    pub(crate) socket: PathBuf,
}

impl Target {
    /// The server, if one answers.
    pub(crate) async fn find(&self) -> Option<Client> {
        let client = Client::new(&self.socket);
        client.is_there().await.then_some(client)
    }

    /// The server.
    pub(crate) async fn server(&self) -> Result<Client> {
        match self.find().await {
            Some(client) => Ok(client),
            None => bail!(
                "no server listens on {}: start one with `garden server`, or name its socket \
                 with --socket",
                self.socket.display()
            ),
        }
    }
}
