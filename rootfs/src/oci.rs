//! OCI image layouts on disk: from a reference to layers and a configuration.
//!
//! Used by the importer (OCI image specification: image-layout.md, image-index.md, manifest.md,
//! config.md, and the media types of Docker's second schema). Reads small documents only, each
//! bounded and checked against the digest that named it; layers are opened, not read.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest};
use serde::de::DeserializeOwned;

use crate::digest::Digest;
use crate::error::{Error, Result, Rule};
use crate::image::ImageConfig;
use crate::import::fetch::Fetch;
use crate::unpack::Limits;
use crate::unpack::name::Name;

/// The most bytes of a document, as registries limit it.
const DOCUMENT: u64 = 4 << 20;
/// How many indexes may point at each other.
const NESTED: usize = 3;

const INDEXES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
const MANIFESTS: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
/// Layers that are a tar; which compression they have shows in their bytes.
const LAYERS: [&str; 9] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];

/// An image of a layout, read but not imported.
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
    /// What it claims to be. Which compression it has shows in its bytes.
    pub(crate) media_type: String,
    /// Other places to read it from; tried before the image's own.
    pub(crate) urls: Vec<String>,
    /// The directory beneath which it is unpacked (the annotation [`BASE_DIRECTORY`]).
    pub(crate) base_directory: Option<Name>,
}

/// Where in an image a layer is to be unpacked; how Guardian places an app in its base image.
pub(crate) const BASE_DIRECTORY: &str = "org.cloudfoundry.experimental.image.base-directory";

/// An OCI image layout.
#[derive(Debug)]
pub(crate) struct Layout<'a> {
    pub(crate) path: &'a Path,
    /// The image to take; without one, the only image, or `latest`.
    pub(crate) reference: Option<&'a str>,
    /// The source as it was given, for errors.
    pub(crate) image: &'a str,
}

impl Fetch for Layout<'_> {
    fn manifest(&self) -> Result<Manifest> {
        let bytes = self.bounded(&self.path.join("index.json"), "index.json")?;
        let index: ImageIndex = self.decode(&bytes, "index.json")?;
        let chosen = self.choose(&index, self.reference)?;
        let (digest, manifest) = self.resolve(chosen)?;
        let name = digest.to_string();
        if manifest.config().media_type().to_string() == "application/vnd.oci.empty.v1+json" {
            return Err(self.wrong(&name, "it is an artifact, not an image"));
        }
        let config_name = manifest.config().digest().to_string();
        let bytes = self.document(manifest.config())?;
        let config: ImageConfiguration = self.decode(&bytes, &config_name)?;
        let layers = self.layers(&name, &manifest, &config)?;
        Ok(Manifest {
            digest,
            layers,
            config: config_of(&config),
        })
    }

    fn open(&self, blob: &Blob) -> Result<Box<dyn Read + Send>> {
        let file = self.file(&self.blob_path(blob.digest))?;
        let actual = file.metadata().map_err(|e| self.unreadable(e))?.len();
        if actual != blob.size {
            let expected = blob.size;
            let rule = Rule::Size { expected, actual };
            return Err(Error::image(
                self.image,
                Some(&blob.digest.to_string()),
                rule,
            ));
        }
        Ok(Box::new(file))
    }
}

impl Layout<'_> {
    fn choose<'i>(&self, index: &'i ImageIndex, reference: Option<&str>) -> Result<&'i Descriptor> {
        let name = |descriptor: &Descriptor| {
            let annotations = descriptor.annotations().as_ref();
            annotations.and_then(|all| all.get("org.opencontainers.image.ref.name").cloned())
        };
        let named = |wanted: &str| {
            let mut all = index.manifests().iter();
            all.find(|descriptor| name(descriptor).as_deref() == Some(wanted))
        };
        if let Some(reference) = reference {
            return named(reference).ok_or_else(|| Error::ImageNotFound {
                image: self.image.to_owned(),
                source: io::Error::new(
                    io::ErrorKind::NotFound,
                    format!("the layout has no reference {reference:?}"),
                ),
            });
        }
        match index.manifests().as_slice() {
            [only] => Ok(only),
            _ => named("latest").ok_or_else(|| {
                self.wrong("index.json", "it has several images: name one with :REF")
            }),
        }
    }

    /// Follows indexes of platforms to a manifest.
    fn resolve(&self, start: &Descriptor) -> Result<(Digest, ImageManifest)> {
        let mut descriptor = start.clone();
        for _ in 0..NESTED {
            let name = descriptor.digest().to_string();
            let kind = descriptor.media_type().to_string();
            let bytes = self.document(&descriptor)?;
            if MANIFESTS.contains(&kind.as_str()) {
                self.check_kind(&bytes, &name, "layers")?;
                return Ok((self.digest(&name)?, self.decode(&bytes, &name)?));
            }
            if !INDEXES.contains(&kind.as_str()) {
                return Err(self.wrong(&name, &format!("the media type {kind} is not supported")));
            }
            self.check_kind(&bytes, &name, "manifests")?;
            let index: ImageIndex = self.decode(&bytes, &name)?;
            let ours = index.manifests().iter().find(|entry| is_ours(entry));
            let Some(next) = ours.cloned() else {
                return Err(self.wrong(&name, "it has no image for this machine"));
            };
            descriptor = next;
        }
        Err(self.wrong("index.json", "its indexes are nested too deeply"))
    }

    /// Refuses a document that can be read as a manifest and as an index (CVE-2021-41190).
    fn check_kind(&self, bytes: &[u8], name: &str, wanted: &str) -> Result<()> {
        let document: serde_json::Value = self.decode(bytes, name)?;
        let other = if wanted == "layers" {
            "manifests"
        } else {
            "layers"
        };
        if document.get(wanted).is_none() || document.get(other).is_some() {
            return Err(self.wrong(name, "it is not what its media type says"));
        }
        Ok(())
    }

    fn layers(
        &self,
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
            return Err(self.wrong(name, &text));
        }
        let pairs = described.iter().zip(diff_ids);
        pairs
            .map(|(layer, diff_id)| {
                let kind = layer.media_type().to_string();
                if !LAYERS.contains(&kind.as_str()) {
                    let text = format!("the media type {kind} of a layer is not supported");
                    return Err(self.wrong(name, &text));
                }
                Ok(Blob {
                    digest: self.digest(layer.digest().as_ref())?,
                    size: layer.size(),
                    diff_id: self.digest(diff_id)?,
                    media_type: kind,
                    urls: layer.urls().clone().unwrap_or_default(),
                    base_directory: self.base_directory(name, layer)?,
                })
            })
            .collect()
    }

    fn base_directory(&self, name: &str, layer: &Descriptor) -> Result<Option<Name>> {
        let annotations = layer.annotations().as_ref();
        let Some(text) = annotations.and_then(|all| all.get(BASE_DIRECTORY)) else {
            return Ok(None);
        };
        base_directory(text).map_err(|rule| {
            let text = format!("the base directory {text:?} of a layer cannot be used: {rule}");
            self.wrong(name, &text)
        })
    }

    fn digest(&self, text: &str) -> Result<Digest> {
        text.parse()
            .map_err(|error: crate::digest::NoDigest| self.wrong(text, &error.to_string()))
    }

    pub(crate) fn blob_path(&self, digest: Digest) -> PathBuf {
        self.path.join("blobs/sha256").join(digest.hex())
    }

    /// Reads a document and checks it against what named it.
    fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let name = descriptor.digest().to_string();
        let expected = self.digest(&name)?;
        let bytes = self.bounded(&self.blob_path(expected), &name)?;
        let actual = Digest::of(&bytes);
        if actual != expected {
            let rule = Rule::Digest {
                expected: expected.to_string(),
                actual: actual.to_string(),
            };
            return Err(Error::image(self.image, Some(&name), rule));
        }
        Ok(bytes)
    }

    fn bounded(&self, path: &Path, name: &str) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = self.file(path)?;
        let read = file.take(DOCUMENT + 1).read_to_end(&mut bytes);
        read.map_err(|error| self.unreadable(error))?;
        if bytes.len() as u64 > DOCUMENT {
            return Err(Error::image(self.image, Some(name), Rule::Bytes(DOCUMENT)));
        }
        Ok(bytes)
    }

    fn file(&self, path: &Path) -> Result<File> {
        File::open(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Error::ImageNotFound {
                image: self.image.to_owned(),
                source: io::Error::new(source.kind(), format!("{} is missing", path.display())),
            },
            _ => Error::host(format!("open {}", path.display()), source),
        })
    }

    fn decode<T: DeserializeOwned>(&self, bytes: &[u8], name: &str) -> Result<T> {
        serde_json::from_slice(bytes)
            .map_err(|error| self.wrong(name, &format!("it is not what it should be: {error}")))
    }

    fn wrong(&self, name: &str, text: &str) -> Error {
        Error::image(self.image, Some(name), Rule::Layout(text.to_owned()))
    }

    fn unreadable(&self, error: io::Error) -> Error {
        Error::host(format!("read the image {:?}", self.image), error)
    }
}

/// Reads the name of a base directory: from the root of the image, with or without a slash in
/// front. The root itself is none.
pub(crate) fn base_directory(text: &str) -> std::result::Result<Option<Name>, Rule> {
    let inside = text.trim_start_matches('/');
    if inside.is_empty() {
        return Ok(None);
    }
    let name = Name::parse(inside.as_bytes(), &Limits::default())?;
    Ok((!name.is_root()).then_some(name))
}

fn is_ours(descriptor: &Descriptor) -> bool {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    match descriptor.platform() {
        Some(platform) => {
            platform.os().to_string() == "linux"
                && platform.architecture().to_string() == architecture
        }
        None => true,
    }
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
