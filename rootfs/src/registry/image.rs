//! An image of a registry: which document or layer is asked for where.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use reqwest::header::{CONTENT_TYPE, HeaderName};

use super::Shared;
use super::download::{Download, Source};
use super::endpoint::Endpoint;
use super::error::{Failure, RegistryError};
use super::retry::Backoff;
use super::transport::Answer;
use crate::digest::Digest;
use crate::error::Result;
use crate::import::fetch::Fetch;
use crate::import::options::Credentials;
use crate::oci::documents::{self, Document, Documents, Kind};
use crate::oci::{Blob, DOCUMENT, INDEXES, MANIFESTS, Manifest};
use crate::source::{RegistryReference, TagOrDigest};

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// An image of a registry.
pub(crate) struct Image {
    shared: Arc<Shared>,
    /// Mirrors, and the registry at the end.
    endpoints: Arc<Vec<Arc<Endpoint>>>,
    /// Which of them answered: those before it are not asked again.
    answering: Arc<AtomicUsize>,
    reference: TagOrDigest,
    image: String,
}

/// A document as a server sent it.
struct Sent {
    bytes: Vec<u8>,
    media_type: Option<String>,
}

impl Image {
    pub(super) fn new(
        shared: &Arc<Shared>,
        reference: &RegistryReference,
        credentials: Option<&Credentials>,
        image: &str,
    ) -> Self {
        let endpoints = Endpoint::all(shared, reference, credentials, image);
        Self {
            shared: Arc::clone(shared),
            endpoints: Arc::new(endpoints.into_iter().map(Arc::new).collect()),
            answering: Arc::default(),
            reference: reference.reference.clone(),
            image: image.to_owned(),
        }
    }

    /// Fetches a document from the first place that has it as it must be.
    fn document(&self, kind: Kind, name: String, expected: Option<Digest>) -> Result<Sent> {
        let (path, accept) = match kind {
            Kind::Manifest => (format!("manifests/{name}"), Some(accept())),
            Kind::Config => (format!("blobs/{name}"), None),
        };
        let shared = Arc::clone(&self.shared);
        let (endpoints, answering) = (Arc::clone(&self.endpoints), Arc::clone(&self.answering));
        let sent = self.shared.runtime.run(async move {
            let first = answering.load(Ordering::Relaxed);
            let mut last = None;
            for (number, endpoint) in endpoints.iter().enumerate().skip(first) {
                let sent = ask(&shared, endpoint, &path, accept.as_deref(), expected).await;
                match sent {
                    Ok(sent) => {
                        answering.fetch_max(number, Ordering::Relaxed);
                        return Ok(sent);
                    }
                    Err(error) => {
                        let registry = endpoint.name();
                        tracing::debug!(registry, path, %error, "no document from there");
                        last = Some(error);
                    }
                }
            }
            Err(last)
        })?;
        sent.map_err(|error| match error {
            Some(error) => error.into(),
            None => documents::wrong(&self.image, &name, "no registry is left to ask"),
        })
    }
}

impl Fetch for Image {
    fn manifest(&self) -> Result<Manifest> {
        let expected = match &self.reference {
            TagOrDigest::Tag(_) => None,
            TagOrDigest::Digest(digest) => Some(*digest),
        };
        let name = self.reference.to_string();
        let sent = self.document(Kind::Manifest, name, expected)?;
        let digest = expected.unwrap_or_else(|| Digest::of(&sent.bytes));
        documents::verify(&self.image, digest, &sent.bytes)?;
        let start = Document {
            digest,
            media_type: sent.media_type,
            bytes: sent.bytes,
        };
        documents::resolve(self, start)
    }

    fn open(&self, blob: &Blob) -> Result<Box<dyn Read + Send>> {
        let first = self.answering.load(Ordering::Relaxed);
        let endpoints = self.endpoints.iter().skip(first);
        let mut sources: Vec<_> = endpoints
            .map(|endpoint| Source::Registry(Arc::clone(endpoint), blob.digest))
            .collect();
        sources.extend(Source::of_urls(&self.shared, &blob.urls));
        let download = Download::new(&self.shared, sources, Some(blob.size), &self.image);
        Ok(Box::new(download.start()?))
    }
}

impl Documents for Image {
    fn image(&self) -> &str {
        &self.image
    }

    fn read(&self, kind: Kind, digest: Digest, _: u64) -> Result<Vec<u8>> {
        let sent = self.document(kind, digest.to_string(), Some(digest))?;
        Ok(sent.bytes)
    }
}

fn accept() -> String {
    [MANIFESTS, INDEXES].concat().join(", ")
}

async fn ask(
    shared: &Shared,
    endpoint: &Endpoint,
    path: &str,
    accept: Option<&str>,
    expected: Option<Digest>,
) -> Result<Sent, RegistryError> {
    let mut backoff = match endpoint.is_mirror {
        true => Backoff::none(),
        false => Backoff::new(&shared.policy),
    };
    loop {
        let sent = match endpoint.get(shared, path, accept, 0).await {
            Ok(answer) => receive(answer, expected).await,
            Err(failure) => Err(failure),
        };
        match sent {
            Ok(sent) => return Ok(sent),
            Err(failure) => backoff.wait(failure).await?,
        }
    }
}

/// Reads a document, and checks it against what is known of its digest.
async fn receive(mut answer: Answer, expected: Option<Digest>) -> Result<Sent, Failure> {
    let bytes = answer.bytes(DOCUMENT).await?;
    let header = answer.header(CONTENT_DIGEST);
    let claimed = header.and_then(|digest| digest.parse().ok());
    let actual = Digest::of(&bytes);
    if let Some(expected) = expected.or(claimed)
        && expected != actual
    {
        let what = format!("its content has the digest {actual} instead of {expected}");
        return Err(Failure::protocol(answer.shown(), what));
    }
    let media_type = (answer.header(CONTENT_TYPE))
        .and_then(|value| value.split(';').next())
        .map(|kind| kind.trim().to_ascii_lowercase())
        // Anything else is what a server says that does not know.
        .filter(|kind| kind.starts_with("application/vnd."));
    Ok(Sent { bytes, media_type })
}
