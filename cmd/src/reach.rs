//! Finding the server that a verb speaks to.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use garden::client::Client;
use garden::connection::Address;
use garden::connection::tls::{Connecting, Files};

/// Where the server is.
#[derive(Debug, Clone, Args)]
pub(crate) struct Target {
    /// Socket of the server: a path, or tcp://HOST:PORT
    #[arg(
        long,
        global = true,
        env = "GARDEN_SOCKET",
        value_name = "PATH",
        default_value = "/run/garden/garden.sock"
    )]
    pub(crate) socket: PathBuf,
    #[command(flatten)]
    pub(crate) tls: TlsArgs,
    /// What was read of them.
    #[arg(skip)]
    connecting: Option<Connecting>,
}

/// Certificates for TCP: ours, and whose we take. They mean the same to a server and to its clients.
#[derive(Debug, Clone, Default, Args)]
#[group(multiple = true)]
pub(crate) struct TlsArgs {
    /// Over TCP: our certificate, a PEM file
    #[arg(
        long,
        global = true,
        hide_short_help = true,
        env = "GARDEN_TLS_CERT",
        value_name = "FILE"
    )]
    tls_cert: Option<PathBuf>,
    /// Over TCP: the private key of it
    #[arg(
        long,
        global = true,
        hide_short_help = true,
        env = "GARDEN_TLS_KEY",
        value_name = "FILE"
    )]
    tls_key: Option<PathBuf>,
    /// Over TCP: the authorities whose certificates the other side must have
    #[arg(
        long,
        global = true,
        hide_short_help = true,
        env = "GARDEN_TLS_CA",
        value_name = "FILE"
    )]
    tls_ca: Option<PathBuf>,
}

impl TlsArgs {
    /// The files, if TLS is wanted.
    ///
    /// # Errors
    /// When some are named and some are not.
    pub(crate) fn files(&self) -> Result<Option<Files>> {
        match (&self.tls_cert, &self.tls_key, &self.tls_ca) {
            (None, None, None) => Ok(None),
            (Some(certificate), Some(key), Some(authorities)) => Ok(Some(Files {
                certificate: certificate.clone(),
                key: key.clone(),
                authorities: authorities.clone(),
            })),
            _ => bail!("TLS needs all of --tls-cert, --tls-key and --tls-ca"),
        }
    }
}

impl Target {
    /// Reads what is needed to speak to the server.
    ///
    /// # Errors
    /// When the address or a file with certificates cannot be used.
    pub(crate) fn prepare(&mut self) -> Result<()> {
        let address = Address::parse(self.socket.as_os_str())?;
        if let (Address::Tcp { .. }, Some(files)) = (address, self.tls.files()?) {
            self.connecting = Some(files.connecting()?);
        }
        Ok(())
    }

    /// A client of the server, whether or not there is one.
    fn client(&self) -> Result<Client> {
        let client = Client::new(Address::parse(self.socket.as_os_str())?);
        Ok(match &self.connecting {
            Some(tls) => client.with_tls(tls.clone()),
            None => client,
        })
    }

    /// The server, if one answers.
    pub(crate) async fn find(&self) -> Option<Client> {
        let client = self.client().ok()?;
        client.is_there().await.then_some(client)
    }

    /// The server.
    pub(crate) async fn server(&self) -> Result<Client> {
        let client = self.client()?;
        if client.is_there().await {
            return Ok(client);
        }
        if let Address::Tcp { .. } = client.address() {
            // With what stands in the way: a name, a certificate, a firewall.
            client.ping().await?;
            return Ok(client);
        }
        bail!(
            "no server listens on {}: start one with `garden server`, or name its socket with \
             --socket",
            self.socket.display()
        )
    }
}
