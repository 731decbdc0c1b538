//! An app's layer above a base image that lies on this machine: what Guardian calls OCI mode.
//!
//! The base is a tar, known by its inode, size and times, so that it is read once. The layer is
//! known by the digest of its packed bytes, which is what the caller gives and what is verified;
//! a layer that was imported before is not fetched again, above whatever it was. Guardian itself
//! writes a layout for other programs whose claims are all false but for that digest: here it is
//! read for what it says truly.

use std::fs::File;
use std::sync::Arc;

use super::Import;
use super::fetch::Fetch;
use super::pipeline::{Claim, Job};
use crate::digest::Digest;
use crate::error::Result;
use crate::image::Image;
use crate::oci::Layout;

impl Import<'_> {
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
                    open: Box::new(|| layout.open(blob)),
                },
            };
            known_by += &format!(" {}", job.name);
            let base = blob.base_directory.clone();
            jobs.push(Job { base, ..job });
        }
        self.layered(Digest::of(known_by.as_bytes()), &jobs, manifest.config)
    }
}
