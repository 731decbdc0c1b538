//! From a name to an image: following manifests and indexes, wherever they lie.
//!
//! Used by layouts and by registries, which bring a way to read a document ([`Documents`]) and the
//! first one. Indexes may be nested a few times and be so wide; a document must be what named it
//! said in digest, size and media type, and must not be readable as two kinds (CVE-2021-41190).

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::{BASE_DIRECTORY, Blob, DOCUMENT, INDEXES, MANIFESTS, Manifest, platform};
use crate::digest::{Digest, NoDigest};
use crate::error::{Error, Result, Rule};
use crate::image::ImageConfig;
use crate::unpack::name::Name;

/// How many indexes may point at each other.
const NESTED: usize = 3;
/// How many images an index may list.
const WIDTH: usize = 1024;
/// How many places a layer may name.
const URLS: usize = 16;

/// Docker's first schema: signed, with the layers' history inside, gone since 2020.
const FIRST_SCHEMA: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
];
/// Configurations of images; anything else belongs to an artifact of another sort.
const CONFIGS: [&str; 3] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
    "application/octet-stream",
];
/// Layers that are a tar; which compression they have shows in their bytes.
const LAYERS: [&str; 10] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];

/// Where the documents of an image are read from.
pub(crate) trait Documents {
    /// The source as it was given, for errors.
    fn image(&self) -> &str;

    /// Reads at most `size` bytes of a document, and one more if there is one.
    fn read(&self, kind: Kind, digest: Digest, size: u64) -> Result<Vec<u8>>;
}

/// What a document is read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A manifest, or an index of them.
    Manifest,
    /// The configuration of an image.
    Config,
}

/// A manifest or an index, as it was read.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) digest: Digest,
    /// What it was said to be by whoever named or brought it, if anything of use.
    pub(crate) media_type: Option<String>,
    pub(crate) bytes: Vec<u8>,
}

/// The fields by which documents are told apart.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    schema_version: Option<u32>,
    media_type: Option<String>,
    layers: Option<IgnoredAny>,
    manifests: Option<IgnoredAny>,
}

/// Follows a document to the image for this machine.
pub(crate) fn resolve(documents: &dyn Documents, start: Document) -> Result<Manifest> {
    let image = documents.image();
    let mut document = start;
    for _ in 0..NESTED {
        let name = document.digest.to_string();
        if is_manifest(image, &document)? {
            let manifest: ImageManifest = decode(image, &name, &document.bytes)?;
            return complete(documents, document.digest, &manifest);
        }
        let index: ImageIndex = decode(image, &name, &document.bytes)?;
        if index.manifests().len() > WIDTH {
            let text = format!("an index must not list more than {WIDTH} images");
            return Err(wrong(image, &name, text));
        }
        let entry = platform::choose(index.manifests()).ok_or_else(|| {
            let text = format!("it has no image for this machine, {}", platform::here());
            wrong(image, &name, text)
        })?;
        document = fetch(documents, Kind::Manifest, entry)?;
    }
    Err(wrong(
        image,
        &document.digest.to_string(),
        format!("indexes must not be nested deeper than {NESTED}"),
    ))
}

/// Reads what a descriptor names.
pub(crate) fn fetch(
    documents: &dyn Documents,
    kind: Kind,
    descriptor: &Descriptor,
) -> Result<Document> {
    let image = documents.image();
    let digest = digest(image, descriptor.digest().as_ref())?;
    let name = digest.to_string();
    let expected = descriptor.size();
    if expected > DOCUMENT {
        return Err(Error::image(image, Some(&name), Rule::Bytes(DOCUMENT)));
    }
    // Guardian's layouts leave it out.
    let is_known = expected > 0;
    let most = if is_known { expected } else { DOCUMENT };
    let bytes = documents.read(kind, digest, most)?;
    let actual = bytes.len() as u64;
    if actual > most || (is_known && actual != expected) {
        let rule = match is_known {
            true => Rule::Size { expected, actual },
            false => Rule::Bytes(DOCUMENT),
        };
        return Err(Error::image(image, Some(&name), rule));
    }
    verify(image, digest, &bytes)?;
    Ok(Document {
        digest,
        media_type: Some(descriptor.media_type().to_string()),
        bytes,
    })
}

/// Checks bytes against the digest that named them.
pub(crate) fn verify(image: &str, expected: Digest, bytes: &[u8]) -> Result<()> {
    let actual = Digest::of(bytes);
    if actual == expected {
        return Ok(());
    }
    let rule = Rule::Digest {
        expected: expected.to_string(),
        actual: actual.to_string(),
    };
    Err(Error::image(image, Some(&expected.to_string()), rule))
}

/// Tells a manifest from an index, and refuses whatever is neither or both.
fn is_manifest(image: &str, document: &Document) -> Result<bool> {
    let name = document.digest.to_string();
    let head: Head = decode(image, &name, &document.bytes)?;
    let said = document.media_type.as_deref();
    let first = |kind: &str| FIRST_SCHEMA.contains(&kind);
    if head.schema_version == Some(1) || said.is_some_and(first) {
        let text = "it is of Docker's first schema, which is not supported: push the image again \
                    with a tool of today, or copy it with `skopeo copy --format v2s2`";
        return Err(wrong(image, &name, text));
    }
    let unclear = || wrong(image, &name, "it is not what its media type says");
    if head.layers.is_some() && head.manifests.is_some() {
        return Err(unclear());
    }
    let kind = match (said, head.media_type.as_deref()) {
        (Some(said), Some(own)) if said != own => {
            let text = format!("it was named as {said}, and calls itself {own}");
            return Err(wrong(image, &name, text));
        }
        (said, own) => said.or(own),
    };
    let (is_manifest, is_index) = match kind {
        Some(kind) => (MANIFESTS.contains(&kind), INDEXES.contains(&kind)),
        None => (head.layers.is_some(), head.manifests.is_some()),
    };
    match (is_manifest, is_index) {
        (false, false) => {
            let text = match kind {
                Some(kind) => format!("the media type {kind} is not supported"),
                None => "it is neither a manifest nor an index".to_owned(),
            };
            Err(wrong(image, &name, text))
        }
        _ if head.layers.is_some() != is_manifest || head.manifests.is_some() != is_index => {
            Err(unclear())
        }
        _ => Ok(is_manifest),
    }
}

fn complete(documents: &dyn Documents, id: Digest, manifest: &ImageManifest) -> Result<Manifest> {
    let (image, name) = (documents.image(), id.to_string());
    let kind = manifest.config().media_type().to_string();
    if !CONFIGS.contains(&kind.as_str()) {
        let text = format!("it is an artifact with a configuration of type {kind}, not an image");
        return Err(wrong(image, &name, text));
    }
    let document = fetch(documents, Kind::Config, manifest.config())?;
    let config_name = document.digest.to_string();
    let config: ImageConfiguration = decode(image, &config_name, &document.bytes)?;
    let system = config.os().to_string();
    if system != "linux" {
        let text = format!("it is an image for {system}, not for linux");
        return Err(wrong(image, &config_name, text));
    }
    Ok(Manifest {
        digest: id,
        layers: layers(image, &name, manifest, &config)?,
        config: config_of(&config),
    })
}

fn layers(
    image: &str,
    name: &str,
    manifest: &ImageManifest,
    config: &ImageConfiguration,
) -> Result<Vec<Blob>> {
    let diff_ids = config.rootfs().diff_ids();
    let described = manifest.layers();
    if described.len() != diff_ids.len() {
        let text = format!(
            "it has {} layers, and its configuration names {}",
            described.len(),
            diff_ids.len()
        );
        return Err(wrong(image, name, text));
    }
    let pairs = described.iter().zip(diff_ids);
    pairs
        .map(|(layer, diff_id)| blob(image, name, layer, diff_id))
        .collect()
}

fn blob(image: &str, name: &str, layer: &Descriptor, diff_id: &str) -> Result<Blob> {
    let media_type = layer.media_type().to_string();
    if !LAYERS.contains(&media_type.as_str()) {
        let text = format!("the media type {media_type} of a layer is not supported");
        return Err(wrong(image, name, text));
    }
    let urls = layer.urls().clone().unwrap_or_default();
    if urls.len() > URLS {
        let text = format!("a layer must not name more than {URLS} places");
        return Err(wrong(image, name, text));
    }
    Ok(Blob {
        digest: digest(image, layer.digest().as_ref())?,
        size: layer.size(),
        diff_id: digest(image, diff_id)?,
        urls,
        base_directory: base_directory(image, name, layer)?,
    })
}

fn base_directory(image: &str, name: &str, layer: &Descriptor) -> Result<Option<Name>> {
    let annotations = layer.annotations().as_ref();
    let Some(text) = annotations.and_then(|all| all.get(BASE_DIRECTORY)) else {
        return Ok(None);
    };
    super::base_directory(text).map_err(|rule| {
        let text = format!("the base directory {text:?} of a layer cannot be used: {rule}");
        wrong(image, name, text)
    })
}

fn config_of(config: &ImageConfiguration) -> ImageConfig {
    let Some(config) = config.config() else {
        return ImageConfig::default();
    };
    let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let list = |all: &Option<Vec<String>>| all.clone().unwrap_or_default();
    ImageConfig {
        env: list(config.env()),
        user: filled(config.user()),
        working_dir: filled(config.working_dir()),
        entrypoint: list(config.entrypoint()),
        cmd: list(config.cmd()),
        exposed_ports: list(config.exposed_ports()),
        volumes: list(config.volumes()),
        labels: (config.labels().clone().unwrap_or_default())
            .into_iter()
            .collect(),
        stop_signal: filled(config.stop_signal()),
    }
}

pub(crate) fn decode<T: DeserializeOwned>(image: &str, name: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|error| wrong(image, name, format!("it is not what it should be: {error}")))
}

pub(crate) fn digest(image: &str, text: &str) -> Result<Digest> {
    text.parse()
        .map_err(|error: NoDigest| wrong(image, text, error.to_string()))
}

/// An image with a document that cannot be used.
pub(crate) fn wrong(image: &str, name: &str, text: impl Into<String>) -> Error {
    Error::image(image, Some(name), Rule::Layout(text.into()))
}

#[cfg(test)]
mod tests;
