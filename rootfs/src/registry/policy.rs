//! How registries are spoken to: the part that an operator decides.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// How registries are spoken to.
///
/// Registries and mirrors are named as in an image's name, `HOST` or `HOST:PORT`, and a name means
/// exactly that host and that port. The proxy variables of the environment (`HTTPS_PROXY`,
/// `HTTP_PROXY`, `NO_PROXY`) are honoured, except for this host itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryPolicy {
    /// The registry of images that name none. Default: `docker.io`.
    pub default_registry: String,
    /// Registries whose certificate is not checked, and that are spoken to by plain http when they
    /// have no https.
    pub insecure: Vec<String>,
    /// Where to look first, in this order, for the images of a registry: `HOST[:PORT][/PREFIX]`.
    /// A mirror is never given credentials.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Directories in which a directory `HOST[:PORT]` may hold `*.crt`, authorities to trust for
    /// this host besides the system's, and `NAME.cert` with `NAME.key`, to show it. The first
    /// one found counts. Default: `/etc/containers/certs.d`, `/etc/docker/certs.d`.
    pub host_certificates: Vec<PathBuf>,
    /// A directory with the same files, for layers that an image or a user names by URL.
    pub layer_certificates: Option<PathBuf>,
    /// How long a server may be silent. There is no limit for the whole of a download.
    pub timeouts: Timeouts,
    /// How often a request is tried again, when it failed in a way that may pass; a download that
    /// moved on meanwhile starts counting anew. Default: 4.
    pub retries: u32,
    /// How long to wait before the first of these tries; each further wait is twice as long, and
    /// a part of it is random. Default: 200 ms.
    pub first_wait: Duration,
    /// The longest such wait, also when a server asks for a longer one: then the request fails.
    /// Default: 60 s.
    pub longest_wait: Duration,
}

/// How long a server may be silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Until there is a connection, its encryption included. Default: 10 s.
    pub connect: Duration,
    /// Until it begins to answer, the connection included. Default: 30 s.
    pub answer: Duration,
    /// Between two pieces of its answer. Default: 30 s.
    pub idle: Duration,
}

impl Default for RegistryPolicy {
    fn default() -> Self {
        Self {
            default_registry: "docker.io".to_owned(),
            insecure: Vec::new(),
            mirrors: BTreeMap::new(),
            host_certificates: ["/etc/containers/certs.d", "/etc/docker/certs.d"]
                .map(PathBuf::from)
                .to_vec(),
            layer_certificates: None,
            timeouts: Timeouts::default(),
            retries: 4,
            first_wait: Duration::from_millis(200),
            longest_wait: Duration::from_secs(60),
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(30),
            idle: Duration::from_secs(30),
        }
    }
}

impl RegistryPolicy {
    pub(super) fn is_insecure(&self, host: &str) -> bool {
        self.insecure.iter().any(|name| name == host)
    }

    /// The directory with certificates for a host, if there is one.
    pub(super) fn certificates_of(&self, host: &str) -> Option<PathBuf> {
        // A host is no path: what comes from a URL could still hold anything.
        if host.is_empty() || host.starts_with('.') || host.contains('/') {
            return None;
        }
        let mut places = self.host_certificates.iter().map(|place| place.join(host));
        places.find(|place| place.is_dir())
    }
}
