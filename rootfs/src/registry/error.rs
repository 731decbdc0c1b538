//! What can go wrong with servers.
//!
//! Public, because callers answer differently: an image that is not there, a password that is
//! wrong, an authority that is unknown and a server that is slow each have a remedy of their own.
//! No text holds credentials, tokens, or the query of a URL.

use std::fmt;
use std::io;
use std::time::Duration;

/// The cause below an error: of the HTTP library.
pub(super) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// What can go wrong with a registry, or with the server of a layer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// There is no such image, or not for whoever asks: registries do not tell which.
    #[error(
        "{url} does not exist or you do not have permissions to see it: check its name, or give \
         credentials that may read it"
    )]
    Missing {
        /// What was asked for.
        url: String,
    },
    /// The credentials were refused.
    #[error("{host} refuses the credentials: check the user name and the password")]
    Credentials {
        /// Who refused them: the registry, or the token service that it names.
        host: String,
    },
    /// The server's certificate cannot be verified.
    #[error(
        "{host} cannot be trusted, its certificate is not valid here: add its authority to the \
         system's, or list the registry as an insecure one"
    )]
    Insecure {
        /// The server.
        host: String,
        /// What is wrong with the certificate.
        #[source]
        source: Cause,
    },
    /// The server was silent for too long.
    #[error("{host} did not {step} within {limit:?}: check the network, or try again later")]
    Timeout {
        /// The server.
        host: String,
        /// What it was to do.
        step: ServerStep,
        /// How long was waited for it.
        limit: Duration,
    },
    /// There is no way to the server.
    #[error("{host} cannot be reached: check its name, the network and the proxy")]
    Unreachable {
        /// The server.
        host: String,
        /// Why.
        #[source]
        source: Cause,
    },
    /// The server has too much to do, or does not want to do more for us.
    #[error(
        "{host} is too busy (status {status}){}: try again later, or give credentials",
        after.map(|after| format!(" and asks to wait {} s", after.as_secs())).unwrap_or_default()
    )]
    Busy {
        /// The server.
        host: String,
        /// The HTTP status: 429 or 503.
        status: u16,
        /// How long it asks to wait.
        after: Option<Duration>,
    },
    /// An answer that means failure.
    #[error("{url} was answered with status {status}{}", if message.is_empty() { String::new() } else { format!(": {message}") })]
    Status {
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What the server says about it.
        message: String,
    },
    /// A download broke off, again and again.
    #[error("the download of {url} broke off after {at} bytes: check the network, or try again")]
    Broken {
        /// What was fetched.
        url: String,
        /// How much of it had come.
        at: u64,
        /// Why, the last time.
        #[source]
        source: Cause,
    },
    /// An answer that makes no sense.
    #[error("{url} was answered in a way that cannot be used: {what}")]
    Protocol {
        /// What was asked for.
        url: String,
        /// What is wrong with the answer.
        what: String,
    },
    /// Certificates of this host that cannot be used.
    #[error("the certificates in {place} cannot be used")]
    Certificates {
        /// Where they are.
        place: String,
        /// What is wrong.
        #[source]
        source: Cause,
    },
    /// The thread for requests cannot be started, or ended.
    #[error("the thread for registries cannot run")]
    Thread(#[source] io::Error),
}

/// What a server was to do when it was silent for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServerStep {
    /// Accept a connection.
    Connect,
    /// Begin to answer.
    Answer,
    /// Go on with its answer.
    Body,
}

impl fmt::Display for ServerStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "accept a connection",
            Self::Answer => "answer",
            Self::Body => "go on with its answer",
        })
    }
}

/// A failure of one request, and whether another one may end better.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: RegistryError,
    pub(super) may_pass: bool,
}

impl Failure {
    /// One that will happen again.
    pub(super) fn lasting(error: RegistryError) -> Self {
        Self {
            error,
            may_pass: false,
        }
    }

    /// One that may be gone soon.
    pub(super) fn passing(error: RegistryError) -> Self {
        Self {
            error,
            may_pass: true,
        }
    }

    pub(super) fn protocol(url: impl Into<String>, what: impl Into<String>) -> Self {
        Self::lasting(RegistryError::Protocol {
            url: url.into(),
            what: what.into(),
        })
    }

    /// Whether there was nobody who could have answered.
    pub(super) fn is_unreachable(&self) -> bool {
        let step = ServerStep::Connect;
        match &self.error {
            RegistryError::Unreachable { .. } => true,
            RegistryError::Timeout { step: at, .. } => *at == step,
            _ => false,
        }
    }
}
