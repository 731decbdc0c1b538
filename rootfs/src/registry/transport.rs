//! One request and its answer.
//!
//! Used by endpoints, by the token exchange and by layers that are named by URL. Follows
//! redirects, by itself, so that credentials and the identity of this host stay with the server
//! that they are for (CVE-2020-15157), and so that nothing leads from https back to http. Says
//! whom to trust for each server, goes through the proxy of the environment except to this host
//! itself, and bounds every silence. Never more than one request at a time on a connection: a
//! layer that is read slowly must not hold up another.

use std::collections::HashMap;
use std::error::Error as _;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use reqwest::header::{self, HeaderMap, HeaderName};
use reqwest::{Client, Response, StatusCode, redirect};
use url::{Host, Url};

use super::auth::Authorization;
use super::certificates::Certificates;
use super::error::{Failure, RegistryError, ServerStep};
use super::policy::{RegistryPolicy, Timeouts};
use super::retry::retry_after;
use crate::source::shown;

/// How many redirects lead to an answer.
const REDIRECTS: usize = 5;
/// The most bytes of an answer that is an error.
const ERROR: u64 = 64 * 1024;

/// How long certificates are used before they are read again: they are replaced now and then.
const FRESH: Duration = Duration::from_secs(600);

/// Whom to believe that it is the server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Trust {
    /// Who is certified by an authority of the system.
    System,
    /// The same, and the authorities of a directory; `identity`: and we show who we are.
    Directory { path: PathBuf, identity: bool },
    /// Whoever answers.
    Anybody,
}

/// A request to be made.
pub(super) struct Get<'a> {
    pub(super) url: Url,
    /// Whom to trust for the server of this URL; for others, the policy says it.
    pub(super) trust: &'a Trust,
    /// Who asks; told to the server of this URL alone.
    pub(super) authorization: Option<&'a Authorization>,
    pub(super) accept: Option<&'a str>,
    /// The first byte to send.
    pub(super) offset: u64,
}

/// An answer, whose body is still to come.
#[derive(Debug)]
pub(super) struct Answer {
    response: Response,
    idle: Duration,
}

/// Makes requests.
pub(super) struct Transport {
    policy: RegistryPolicy,
    clients: Mutex<HashMap<(Trust, bool), (Client, Instant)>>,
}

impl Transport {
    pub(super) fn new(policy: &RegistryPolicy) -> Self {
        Self {
            policy: policy.clone(),
            clients: Mutex::default(),
        }
    }

    /// Whom to trust for a server, by its name in a policy.
    pub(super) fn trust(&self, host: &str) -> Trust {
        if self.policy.is_insecure(host) {
            return Trust::Anybody;
        }
        match self.policy.certificates_of(host) {
            Some(path) => Trust::Directory {
                path,
                identity: true,
            },
            None => Trust::System,
        }
    }

    /// Makes a request and waits for the head of the answer, whatever its status is.
    pub(super) async fn get(&self, get: &Get<'_>) -> Result<Answer, Failure> {
        let mut url = get.url.clone();
        for _ in 0..=REDIRECTS {
            let same = url.origin() == get.url.origin();
            let trust = match get.trust {
                trust if same => trust.clone(),
                // What a layer's authorities are worth does not end with a redirect.
                Trust::Directory { path, .. } => Trust::Directory {
                    path: path.clone(),
                    identity: false,
                },
                _ => self.trust(&host_of(&url)),
            };
            let answer = self.send(get, url.clone(), &trust, same).await?;
            match answer.redirect()? {
                Some(next) => url = next,
                None => return Ok(answer),
            }
        }
        let what = format!("it redirects more than {REDIRECTS} times");
        Err(Failure::protocol(shown(get.url.as_str()), what))
    }

    async fn send(
        &self,
        get: &Get<'_>,
        url: Url,
        trust: &Trust,
        same: bool,
    ) -> Result<Answer, Failure> {
        let client = self.client(trust, &url).map_err(Failure::lasting)?;
        let mut request = client
            .get(url.clone())
            // Blobs are what their digest says only as they are.
            .header(header::ACCEPT_ENCODING, "identity")
            .header(header::ACCEPT, get.accept.unwrap_or("*/*"));
        if get.offset > 0 {
            request = request.header(header::RANGE, format!("bytes={}-", get.offset));
        }
        match get.authorization.filter(|_| same) {
            Some(Authorization::Bearer(token)) => request = request.bearer_auth(token),
            Some(Authorization::Basic(who)) => {
                request = request.basic_auth(&who.username, Some(&who.password));
            }
            None => {}
        }
        let Timeouts { answer, idle, .. } = self.policy.timeouts;
        let response = within(answer, request.send()).await;
        match response {
            None => Err(silent(&url, ServerStep::Answer, answer)),
            Some(Err(error)) => Err(self.unanswered(&url, error)),
            Some(Ok(response)) => Ok(Answer { response, idle }),
        }
    }

    fn client(&self, trust: &Trust, url: &Url) -> Result<Client, RegistryError> {
        // Without https there is nobody to trust, and no reason to read the system's authorities.
        let trust = match url.scheme() {
            "https" => trust.clone(),
            _ => Trust::Anybody,
        };
        let direct = is_this_host(url);
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (trust, direct);
        match clients.get(&key) {
            Some((client, since)) if since.elapsed() < FRESH => return Ok(client.clone()),
            _ => {}
        }
        let client = self.build(&key.0, direct)?;
        clients.insert(key, (client.clone(), Instant::now()));
        Ok(client)
    }

    fn build(&self, trust: &Trust, direct: bool) -> Result<Client, RegistryError> {
        static CRYPTOGRAPHY: Once = Once::new();
        CRYPTOGRAPHY.call_once(|| {
            // An error means that the process has chosen another one before: that is as good.
            let _ = rustls::crypto::ring::default_provider().install_default();
        });
        let mut builder = Client::builder()
            .user_agent(concat!("garden/", env!("CARGO_PKG_VERSION")))
            .http1_only()
            .referer(false)
            .redirect(redirect::Policy::none())
            .connect_timeout(self.policy.timeouts.connect)
            .pool_idle_timeout(Duration::from_secs(30));
        if direct {
            builder = builder.no_proxy();
        }
        let place = match trust {
            Trust::System => "the system's store of authorities".to_owned(),
            Trust::Anybody => {
                builder = builder.tls_danger_accept_invalid_certs(true);
                String::new()
            }
            Trust::Directory { path, identity } => {
                let found = Certificates::load(path)?;
                builder = builder.tls_certs_merge(found.authorities);
                if let Some(who) = found.identity.filter(|_| *identity) {
                    builder = builder.identity(who);
                }
                path.display().to_string()
            }
        };
        (builder.build()).map_err(|error| RegistryError::Certificates {
            place,
            source: error.into(),
        })
    }

    fn unanswered(&self, url: &Url, error: reqwest::Error) -> Failure {
        let host = host_of(url);
        if error.is_timeout() {
            return silent(url, ServerStep::Connect, self.policy.timeouts.connect);
        }
        if error.is_builder() {
            return Failure::protocol(shown(url.as_str()), "its token is no text for a header");
        }
        let certificate = is_about_certificate(&error);
        let source = error.without_url().into();
        match certificate {
            true => Failure::lasting(RegistryError::Insecure { host, source }),
            false => Failure::passing(RegistryError::Unreachable { host, source }),
        }
    }
}

impl Answer {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    pub(super) fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers().get(name)?.to_str().ok()
    }

    /// The length of the body, if the server says it.
    pub(super) fn length(&self) -> Option<u64> {
        self.response.content_length()
    }

    /// Where it came from, without what could be secret.
    pub(super) fn shown(&self) -> String {
        shown(self.response.url().as_str())
    }

    /// Whether the server of this URL sent it, and not one that it redirects to.
    pub(super) fn is_from(&self, url: &Url) -> bool {
        self.response.url().origin() == url.origin()
    }

    pub(super) fn host(&self) -> String {
        host_of(self.response.url())
    }

    /// The next piece of the body; `at` bytes came before. Nothing at its end.
    pub(super) async fn chunk(&mut self, at: u64) -> Result<Option<bytes::Bytes>, Failure> {
        match within(self.idle, self.response.chunk()).await {
            None => Err(silent(self.response.url(), ServerStep::Body, self.idle)),
            Some(Ok(chunk)) => Ok(chunk),
            Some(Err(error)) => Err(Failure::passing(RegistryError::Broken {
                url: self.shown(),
                at,
                source: error.without_url().into(),
            })),
        }
    }

    /// The whole body, which must not be longer than `most`.
    pub(super) async fn bytes(&mut self, most: u64) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        let mut length = self.length().unwrap_or_default();
        while length <= most {
            match self.chunk(bytes.len() as u64).await? {
                Some(chunk) => bytes.extend_from_slice(&chunk),
                None => return Ok(bytes),
            }
            length = bytes.len() as u64;
        }
        let what = format!("it is longer than {most} bytes");
        Err(Failure::protocol(self.shown(), what))
    }

    /// What an answer means that is not the one that was hoped for.
    pub(super) async fn failure(mut self) -> Failure {
        let status = self.status().as_u16();
        let url = self.shown();
        match status {
            401 | 403 | 404 => Failure::lasting(RegistryError::Missing { url }),
            429 | 503 => {
                let header = self.header(header::RETRY_AFTER);
                let after = header.and_then(|value| retry_after(value, SystemTime::now()));
                let host = self.host();
                Failure::passing(RegistryError::Busy {
                    host,
                    status,
                    after,
                })
            }
            _ => {
                let body = self.bytes(ERROR).await.unwrap_or_default();
                let message = message(&body);
                let may_pass = matches!(status, 408 | 425 | 500..);
                let error = RegistryError::Status {
                    url,
                    status,
                    message,
                };
                Failure { error, may_pass }
            }
        }
    }

    /// Where it redirects to.
    fn redirect(&self) -> Result<Option<Url>, Failure> {
        if !matches!(self.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Ok(None);
        }
        let here = self.response.url();
        let refused = |what: &str| Err(Failure::protocol(shown(here.as_str()), what));
        let target = self.header(header::LOCATION).map(|to| here.join(to));
        let Some(Ok(target)) = target else {
            return refused("it redirects to nowhere");
        };
        match (here.scheme(), target.scheme()) {
            ("http", "http" | "https") | ("https", "https") => Ok(Some(target)),
            ("https", "http") => refused("it redirects from https to http"),
            _ => refused("it redirects to something that is neither http nor https"),
        }
    }
}

/// The name of a server as policies have it: the port only if it is not the usual one.
pub(super) fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

fn is_this_host(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(limit, future).await.ok()
}

fn silent(url: &Url, step: ServerStep, limit: Duration) -> Failure {
    Failure::passing(RegistryError::Timeout {
        host: host_of(url),
        step,
        limit,
    })
}

/// Whether the reason for an error is the certificate of the server.
fn is_about_certificate(error: &reqwest::Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
            return true;
        }
        // An I/O error has its content inside, not as its source.
        let inner = error.downcast_ref().and_then(io::Error::get_ref);
        cause = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}

/// What a server says about an error (OCI distribution specification, error codes), on one line.
fn message(body: &[u8]) -> String {
    let Ok(envelope) = serde_json::from_slice::<oci_client::errors::OciEnvelope>(body) else {
        return String::new();
    };
    let texts: Vec<_> = (envelope.errors.iter())
        .map(|error| match error.message.is_empty() {
            true => format!("{:?}", error.code),
            false => error.message.clone(),
        })
        .collect();
    let joined = texts.join("; ");
    joined
        .chars()
        .map(|char| if char.is_control() { ' ' } else { char })
        .take(200)
        .collect()
}
