//! An app's layer above a base image that lies on this machine: what Guardian calls OCI mode.
//!
//! The base is a tar, known by its inode, size and times, so that it is read once. The layer is
//! known by the digest of its packed bytes, which is what the caller gives and what is verified;
//! a layer that was imported before is not fetched again, above whatever it was. Guardian itself
//! writes a layout for other programs whose claims are all false but for that digest: here it is
//! read for what it says truly.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::FileType;
use url::Url;

use super::Import;
use super::fetch::Fetch;
use super::pipeline::{Claim, Job};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::image::{Image, ImageConfig};
use crate::oci::{self, Layout};

impl Import<'_> {
    /// The same without a layout: a base image, and where its app's layer is.
    pub(super) fn preloaded(
        &self,
        base: &Path,
        layer: &Url,
        layer_path: &Path,
        layer_digest: Digest,
    ) -> Result<Image> {
        let (fd, kind) = self.open_path(base)?;
        if kind != FileType::RegularFile {
            let reason = "its base image must be a tar, not a directory".to_owned();
            let image = self.image.to_owned();
            return Err(Error::InvalidSource { image, reason });
        }
        let directory = layer_path.to_string_lossy();
        let directory = oci::base_directory(&directory)
            .map_err(|rule| Error::image(self.image, Some(&directory), rule))?;
        let client = &self.store.inner.registry;
        let base = Job::file(Arc::new(File::from(fd)), base.display().to_string())?;
        let name = directory.as_ref().map(|name| name.bytes().to_vec());
        let mut known_by = format!("preloaded {} {layer_digest} ", base.name).into_bytes();
        known_by.extend(name.unwrap_or_default());
        let layer = Job {
            name: layer_digest,
            claim: Claim::Blob,
            size: None,
            base: directory,
            open: Box::new(|| client.open_url(layer)),
        };
        let config = ImageConfig::default();
        self.layered(Digest::of(&known_by), &[base, layer], config)
    }

    /// A layout whose names are not to be believed: its own files are known as files are, what it
    /// has elsewhere by the digest of the packed bytes.
    pub(super) fn unverified(&self, layout: &Layout<'_>) -> Result<Image> {
        let manifest = layout.manifest()?;
        let mut known_by = format!("unverified {}", manifest.digest);
        let mut jobs = Vec::new();
        for blob in &manifest.layers {
            let job = match blob.urls.as_slice() {
                [] => {
                    let path = layout.blob_path(blob.digest);
                    // The link that Guardian made of it says less than what it leads to.
                    let path = path.canonicalize().unwrap_or(path);
                    let (fd, _) = self.open_path(&path)?;
                    let file = Arc::new(File::from(fd));
                    Job::file(file, path.display().to_string())?
                }
                _ => Job {
                    name: blob.digest,
                    claim: Claim::Blob,
                    size: None,
                    base: None,
                    open: Box::new(|| layout.open_claimed(blob)),
                },
            };
            known_by += &format!(" {}", job.name);
            let base = blob.base_directory.clone();
            jobs.push(Job { base, ..job });
        }
        self.layered(Digest::of(known_by.as_bytes()), &jobs, manifest.config)
    }
}
