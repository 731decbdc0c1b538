//! Registries, and other servers that layers come from (OCI distribution specification).
//!
//! Used by the importer: [`Client`] gives images whose documents are read and whose layers are
//! streamed, blocking. Inside, one named thread per store runs all requests; it is started with
//! the first of them. The grammar of names and of error documents is that of the crate
//! `oci-client`; its requests are not used, because they read answers of any length into memory
//! and do not tell what a server wrote about coming back later.
//!
//! ```text
//! image      which documents and layers, from which endpoints        (blocking)
//! download   one layer: resumes, changes places, a bounded window    (thread | caller)
//! endpoint   one registry or mirror: http or https, who asks
//! auth       challenges, tokens
//! transport  one request: redirects, trust, proxies, time limits
//! ```
//!
//! What a server says is never believed: documents are bounded and checked against their digests
//! here, layers by whoever reads them. Credentials go to the registry they are for and to the
//! token service that it names, and to nobody that either of them redirects to.

mod auth;
mod certificates;
mod download;
mod endpoint;
mod error;
mod image;
mod policy;
mod retry;
mod runtime;
mod transport;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io::Read;
use std::sync::Arc;

use url::Url;

pub use error::{RegistryError, ServerStep};
pub use policy::{RegistryPolicy, Timeouts};

pub(crate) use image::Image;

use crate::error::Result;
use crate::import::options::Credentials;
use crate::source::RegistryReference;
use download::{Download, Source};
use runtime::Runtime;

/// Fetches images and layers as a policy says. Cheap to clone; does nothing until it is used.
#[derive(Clone)]
pub(crate) struct Client {
    shared: Arc<Shared>,
}

/// What all requests of a client share.
struct Shared {
    policy: RegistryPolicy,
    transport: transport::Transport,
    tokens: auth::Tokens,
    schemes: endpoint::Schemes,
    runtime: Runtime,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policy = &self.shared.policy;
        f.debug_struct("Client").field("policy", policy).finish()
    }
}

impl Client {
    pub(crate) fn new(policy: RegistryPolicy) -> Self {
        let shared = Shared {
            transport: transport::Transport::new(&policy),
            policy,
            tokens: auth::Tokens::default(),
            schemes: endpoint::Schemes::default(),
            runtime: Runtime::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// An image of a registry. `image` is the source as it was given, for errors.
    pub(crate) fn image(
        &self,
        reference: &RegistryReference,
        credentials: Option<&Credentials>,
        image: &str,
    ) -> Image {
        Image::new(&self.shared, reference, credentials, image)
    }

    /// Streams a layer from the first of the URLs in an image that has it. `None` when none of
    /// them is of a kind that an image may name: http and https, never a file of this host.
    pub(crate) fn open_urls(
        &self,
        urls: &[String],
        size: Option<u64>,
        image: &str,
    ) -> Result<Option<Box<dyn Read + Send>>> {
        let sources = Source::of_urls(&self.shared, urls);
        if sources.is_empty() {
            return Ok(None);
        }
        let download = Download::new(&self.shared, sources, size, image);
        Ok(Some(Box::new(download.start()?)))
    }

    /// Streams a layer from a URL that the user gave: http, https, or a file.
    pub(crate) fn open_url(&self, url: &Url) -> Result<Box<dyn Read + Send>> {
        if url.scheme() == "file" {
            return download::open_file(url);
        }
        let image = crate::source::shown(url.as_str());
        let remote = self.open_urls(&[url.as_str().to_owned()], None, &image)?;
        remote.ok_or_else(|| {
            let what = "only http, https and file are supported".to_owned();
            RegistryError::Protocol { url: image, what }.into()
        })
    }
}
