//! Documents of OCI images: what layouts on disk and registries have in common.
//!
//! OCI image specification (image-index.md, manifest.md, config.md) and the media types of
//! Docker's second schema. [`documents`] follows them from whatever names an image to its layers
//! and its configuration, [`platform`] picks the entry of an index that this machine can run,
//! [`layout`] reads image layouts. Nothing here trusts a document: each is bounded, checked against
//! what named it, and refused when it could be read in two ways.

pub(crate) mod documents;
pub(crate) mod layout;
pub(crate) mod platform;

use crate::digest::Digest;
use crate::error::Rule;
use crate::image::ImageConfig;
use crate::unpack::Limits;
use crate::unpack::name::Name;

pub(crate) use layout::Layout;

/// The most bytes of a document, as registries limit it.
pub(crate) const DOCUMENT: u64 = 4 << 20;

/// The media types of documents that list images.
pub(crate) const INDEXES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
/// The media types of documents that list layers.
pub(crate) const MANIFESTS: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// Where in an image a layer is to be unpacked; how Guardian places an app in its base image.
pub(crate) const BASE_DIRECTORY: &str = "org.cloudfoundry.experimental.image.base-directory";

/// An image somewhere else, read but not imported.
#[derive(Debug)]
pub(crate) struct Manifest {
    /// What names it: the digest of its manifest.
    pub(crate) digest: Digest,
    /// Its layers, the topmost last.
    pub(crate) layers: Vec<Blob>,
    pub(crate) config: ImageConfig,
}

/// A layer of an image, packed.
#[derive(Debug, Clone)]
pub(crate) struct Blob {
    /// The digest of its bytes.
    pub(crate) digest: Digest,
    /// Its size in bytes.
    pub(crate) size: u64,
    /// The digest of the tar in it.
    pub(crate) diff_id: Digest,
    /// Other places to read it from, in this order, when the image's own does not have it.
    pub(crate) urls: Vec<String>,
    /// The directory beneath which it is unpacked (the annotation [`BASE_DIRECTORY`]).
    pub(crate) base_directory: Option<Name>,
}

/// Reads the name of a base directory: from the root of the image, with or without a slash in
/// front. The root itself is none.
pub(crate) fn base_directory(text: &str) -> Result<Option<Name>, Rule> {
    let inside = text.trim_start_matches('/');
    if inside.is_empty() {
        return Ok(None);
    }
    let name = Name::parse(inside.as_bytes(), &Limits::default())?;
    Ok((!name.is_root()).then_some(name))
}
