//! TLS with certificates on both sides.
//!
//! Who may speak to a server may do anything on its host, so a server takes nobody without a
//! certificate of the authority it was given, and a client no server without one. The same three
//! files configure either side: who we are, its key, and whose word counts. They are read once; a
//! server is started anew for new ones (its containers live on).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

/// The most bytes of a file with certificates; a bundle of all authorities has a quarter of it.
const MAX_FILE: u64 = 1 << 20;

/// The files of one side, all PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// Our certificate, and those between it and the authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities whose certificates the other side may show.
    pub authorities: PathBuf,
}

/// Why TLS cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that cannot be read.
    #[error("the TLS {what} cannot be read from {}", path.display())]
    Read {
        /// `certificate`, `key` or `authorities`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file without what it should hold.
    #[error(
        "{} is not usable as TLS {what}: it must be PEM, with at least one {what} in it",
        path.display()
    )]
    Content {
        /// `certificate`, `key` or `authorities`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong, where something is.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// Files that do not fit each other.
    #[error(
        "the TLS certificate {} and the key {} cannot be used together",
        certificate.display(), key.display()
    )]
    Pair {
        /// The file with the certificate.
        certificate: PathBuf,
        /// The file with the key.
        key: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What a server shows and asks for.
#[derive(Clone)]
pub struct Accepting(TlsAcceptor);

/// What a client shows and asks for.
#[derive(Clone)]
pub struct Connecting(TlsConnector);

impl std::fmt::Debug for Accepting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Accepting").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Connecting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connecting").finish_non_exhaustive()
    }
}

impl Files {
    /// For a server. Blocks.
    ///
    /// # Errors
    /// When a file cannot be read, or does not hold what it should.
    pub fn accepting(&self) -> Result<Accepting, TlsError> {
        let roots = Arc::new(self.roots()?);
        let provider = provider();
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
        let verifier = verifier
            .build()
            .map_err(|error| content("authorities", &self.authorities, error))?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| self.mismatch(error))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain()?, self.private_key()?)
            .map_err(|error| self.mismatch(error))?;
        Ok(Accepting(TlsAcceptor::from(Arc::new(config))))
    }

    /// For a client. Blocks.
    ///
    /// # Errors
    /// As [`Files::accepting`].
    pub fn connecting(&self) -> Result<Connecting, TlsError> {
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| self.mismatch(error))?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(self.chain()?, self.private_key()?)
            .map_err(|error| self.mismatch(error))?;
        Ok(Connecting(TlsConnector::from(Arc::new(config))))
    }

    fn chain(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        certificates("certificate", &self.certificate)
    }

    fn roots(&self) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        for authority in certificates("authorities", &self.authorities)? {
            let added = roots.add(authority);
            added.map_err(|error| content("authorities", &self.authorities, error))?;
        }
        Ok(roots)
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        let pem = read("key", &self.key)?;
        PrivateKeyDer::from_pem_slice(&pem).map_err(|error| content("key", &self.key, error))
    }

    fn mismatch(&self, error: rustls::Error) -> TlsError {
        TlsError::Pair {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            source: Box::new(error),
        }
    }
}

impl Accepting {
    /// The server's part of a handshake.
    ///
    /// # Errors
    /// When the other side shows no certificate that counts, or does not speak TLS.
    pub(crate) async fn establish(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.0.accept(stream).await.map(TlsStream::Server)
    }
}

impl Connecting {
    /// The client's part of a handshake with a host that must be able to show that it is `host`.
    ///
    /// # Errors
    /// When it cannot, or does not speak TLS.
    pub(crate) async fn establish(
        &self,
        host: &str,
        stream: TcpStream,
    ) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        self.0.connect(name, stream).await.map(TlsStream::Client)
    }
}

/// The one provider of cryptography, named: the process's default is whoever sets it first.
fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(what, path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let all = all.map_err(|error| content(what, path, error))?;
    if all.is_empty() {
        return Err(TlsError::Content {
            what,
            path: path.to_owned(),
            source: None,
        });
    }
    Ok(all)
}

fn content(
    what: &'static str,
    path: &Path,
    error: impl std::error::Error + Send + Sync + 'static,
) -> TlsError {
    TlsError::Content {
        what,
        path: path.to_owned(),
        source: Some(Box::new(error)),
    }
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let bounded = || {
        use io::Read as _;
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path)?;
        file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
        match bytes.len() as u64 > MAX_FILE {
            true => Err(io::Error::other("it is larger than 1 MiB")),
            false => Ok(bytes),
        }
    };
    bounded().map_err(|source| TlsError::Read {
        what,
        path: path.to_owned(),
        source,
    })
}
