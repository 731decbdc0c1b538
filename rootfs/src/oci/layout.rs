//! OCI image layouts on disk (OCI image specification, image-layout.md).
//!
//! Used by the importer. Documents are read, layers are opened; a layer that is not in the layout
//! and names URLs is fetched from the first of them that has it.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use oci_spec::image::{Descriptor, ImageIndex};

use super::documents::{self, Documents, Kind};
use super::{Blob, DOCUMENT, Manifest, platform};
use crate::digest::Digest;
use crate::error::{Error, Result, Rule};
use crate::import::fetch::Fetch;
use crate::registry::Client;

const INDEX: &str = "index.json";

/// An OCI image layout.
#[derive(Debug)]
pub(crate) struct Layout<'a> {
    pub(crate) path: &'a Path,
    /// The image to take; without one, the only image for this machine, or `latest`.
    pub(crate) reference: Option<&'a str>,
    /// The source as it was given, for errors.
    pub(crate) image: &'a str,
    /// Fetches layers that name URLs.
    pub(crate) client: &'a Client,
}

impl Fetch for Layout<'_> {
    fn manifest(&self) -> Result<Manifest> {
        let bytes = self.bounded(&self.path.join(INDEX), INDEX, DOCUMENT)?;
        if bytes.len() as u64 > DOCUMENT {
            return Err(Error::image(self.image, Some(INDEX), Rule::Bytes(DOCUMENT)));
        }
        let index: ImageIndex = documents::decode(self.image, INDEX, &bytes)?;
        let chosen = self.choose(&index)?;
        let start = documents::fetch(self, Kind::Manifest, chosen)?;
        documents::resolve(self, start)
    }

    fn open(&self, blob: &Blob) -> Result<Box<dyn Read + Send>> {
        let Some(file) = self.local(blob)? else {
            return self.remote(blob, Some(blob.size));
        };
        let actual = file.metadata().map_err(|e| self.unreadable(e))?.len();
        if actual != blob.size {
            let expected = blob.size;
            let rule = Rule::Size { expected, actual };
            let name = blob.digest.to_string();
            return Err(Error::image(self.image, Some(&name), rule));
        }
        Ok(Box::new(file))
    }
}

impl Documents for Layout<'_> {
    fn image(&self) -> &str {
        self.image
    }

    fn read(&self, _: Kind, digest: Digest, size: u64) -> Result<Vec<u8>> {
        self.bounded(&self.blob_path(digest), &digest.to_string(), size)
    }
}

impl Layout<'_> {
    /// Opens a layer of which nothing but its digest is true.
    pub(crate) fn open_claimed(&self, blob: &Blob) -> Result<Box<dyn Read + Send>> {
        match self.local(blob)? {
            Some(file) => Ok(Box::new(file)),
            None => self.remote(blob, None),
        }
    }

    /// The file of a layer; none when it is missing and other places are named.
    fn local(&self, blob: &Blob) -> Result<Option<File>> {
        match self.file(&self.blob_path(blob.digest)) {
            Err(Error::ImageNotFound { .. }) if !blob.urls.is_empty() => Ok(None),
            file => file.map(Some),
        }
    }

    fn remote(&self, blob: &Blob, size: Option<u64>) -> Result<Box<dyn Read + Send>> {
        let remote = self.client.open_urls(&blob.urls, size, self.image)?;
        remote.ok_or_else(|| {
            let text = "it is missing, and what it names as other places is neither http nor https";
            documents::wrong(self.image, &blob.digest.to_string(), text)
        })
    }

    fn choose<'i>(&self, index: &'i ImageIndex) -> Result<&'i Descriptor> {
        let all = index.manifests().iter();
        if let Some(reference) = self.reference {
            let named: Vec<_> = all.filter(|entry| has_name(entry, reference)).collect();
            return (platform::choose(named.iter().copied()))
                .or(named.first().copied())
                .ok_or_else(|| Error::ImageNotFound {
                    image: self.image.to_owned(),
                    source: io::Error::new(
                        io::ErrorKind::NotFound,
                        format!("the layout has no reference {reference:?}"),
                    ),
                });
        }
        match index.manifests().as_slice() {
            [only] => Ok(only),
            _ => platform::choose(all.filter(|entry| has_name(entry, "latest"))).ok_or_else(|| {
                let text = "it has several images: name one with :REF";
                documents::wrong(self.image, INDEX, text)
            }),
        }
    }

    pub(crate) fn blob_path(&self, digest: Digest) -> PathBuf {
        self.path.join("blobs/sha256").join(digest.hex())
    }

    /// Reads a document; of one that is longer, a byte more than is allowed.
    fn bounded(&self, path: &Path, name: &str, most: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = self.file(path)?;
        let read = file.take(most.saturating_add(1)).read_to_end(&mut bytes);
        read.map_err(|error| {
            Error::host(format!("read {name} of the image {:?}", self.image), error)
        })?;
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

    fn unreadable(&self, error: io::Error) -> Error {
        Error::host(format!("read the image {:?}", self.image), error)
    }
}

fn has_name(descriptor: &Descriptor, wanted: &str) -> bool {
    let annotations = descriptor.annotations().as_ref();
    let name = annotations.and_then(|all| all.get("org.opencontainers.image.ref.name"));
    name.is_some_and(|name| name == wanted)
}
