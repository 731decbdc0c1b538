//! `preloaded+layer` for plugins: an OCI image layout that says the same.
//!
//! A plugin knows no such scheme. As Guardian does, its caller writes a layout of two layers whose
//! bytes are elsewhere: the base image as a file on this host, and the layer at its URL with the
//! directory that it goes beneath. Their digests are what the plugin caches them by; the base
//! image's is made of its path and time, so it is none, and plugins are configured not to verify.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::json;
use url::Url;

use super::error::{Error, Result};
use crate::digest::Digest;
use crate::source::ImageSource;

const SCHEME: &str = "preloaded+layer:";
/// Under the name that GrootFS reads.
const BASE_DIRECTORY: &str = "org.cloudfoundry.experimental.image.base-directory";

/// Writes a layout to `directory` if the image is of this scheme, and returns its URI.
pub fn layout(uri: &str, directory: &Path) -> Result<Option<String>> {
    if !uri.starts_with(SCHEME) {
        return Ok(None);
    }
    let source = ImageSource::parse(uri).map_err(|error| Error::Layout(Box::new(error)))?;
    let ImageSource::Preloaded {
        base,
        layer,
        layer_path,
        layer_digest,
    } = source
    else {
        return Ok(None);
    };
    let parts = Parts {
        base,
        layer,
        layer_path,
        layer_digest,
    };
    parts.write(directory).map_err(|source| {
        // Half a layout is of no use to anybody.
        let _ = fs::remove_dir_all(directory);
        Error::LayoutFile {
            directory: directory.to_owned(),
            source,
        }
    })?;
    Ok(Some(format!("oci://{}", directory.display())))
}

struct Parts {
    base: PathBuf,
    layer: Url,
    layer_path: PathBuf,
    layer_digest: Digest,
}

impl Parts {
    fn write(&self, directory: &Path) -> io::Result<()> {
        let meta = fs::metadata(&self.base)?;
        let age = format!(
            "{}-{}{:09}",
            self.base.display(),
            meta.mtime(),
            meta.mtime_nsec()
        );
        let base = Digest::of(age.as_bytes()).hex();
        let blobs = directory.join("blobs/sha256");
        fs::create_dir_all(&blobs)?;
        let store = |content: &serde_json::Value| {
            let bytes = serde_json::to_vec(content)?;
            let digest = Digest::of(&bytes);
            fs::write(blobs.join(digest.hex()), &bytes)?;
            Ok::<_, io::Error>((digest.to_string(), bytes.len()))
        };
        std::os::unix::fs::symlink(&self.base, blobs.join(&base))?;
        let (base, layer) = (format!("sha256:{base}"), self.layer_digest.to_string());
        let (config, size) = store(&json!({
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [base, layer]},
        }))?;
        let (manifest, manifest_size) = store(&json!({
            "schemaVersion": 2,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config,
                "size": size,
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": base,
                "size": meta.len(),
            }, {
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": layer,
                "size": 0,
                "urls": [self.layer.as_str()],
                "annotations": {BASE_DIRECTORY: self.layer_path},
            }],
        }))?;
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": manifest,
                "size": manifest_size,
            }],
        });
        fs::write(directory.join("index.json"), serde_json::to_vec(&index)?)?;
        fs::write(
            directory.join("oci-layout"),
            br#"{"imageLayoutVersion":"1.0.0"}"#,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    fn uri(base: &Path) -> String {
        format!(
            "preloaded+layer://{}?layer=https://blobs/x%3Fa=b&layer_path=/home/vcap&layer_digest={DIGEST}",
            base.display()
        )
    }

    #[test]
    fn a_layout_says_the_same() {
        let top = tempfile::tempdir().unwrap();
        let base = top.path().join("base.tar");
        fs::write(&base, "tar").unwrap();
        let directory = top.path().join("layout");
        let written = layout(&uri(&base), &directory).unwrap().unwrap();
        assert_eq!(written, format!("oci://{}", directory.display()));
        let read = |path: &Path| -> serde_json::Value {
            serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
        };
        let blob = |digest: &serde_json::Value| {
            let hex = digest
                .as_str()
                .unwrap()
                .strip_prefix("sha256:")
                .unwrap()
                .to_owned();
            directory.join("blobs/sha256").join(hex)
        };
        let index = read(&directory.join("index.json"));
        let manifest = read(&blob(&index["manifests"][0]["digest"]));
        assert_eq!(
            fs::read(blob(&manifest["layers"][0]["digest"])).unwrap(),
            b"tar"
        );
        let layer = &manifest["layers"][1];
        assert_eq!(layer["digest"], format!("sha256:{DIGEST}"));
        assert_eq!(layer["urls"][0], "https://blobs/x?a=b");
        assert_eq!(layer["annotations"][BASE_DIRECTORY], "/home/vcap");
        let config = read(&blob(&manifest["config"]["digest"]));
        assert_eq!(config["rootfs"]["diff_ids"][1], layer["digest"]);
    }

    #[test]
    fn other_images_are_left_alone() {
        let directory = Path::new("/nowhere");
        assert_eq!(layout("docker:///x", directory).unwrap(), None);
        assert_eq!(layout("/preloaded+layer:x", directory).unwrap(), None);
    }

    #[test]
    fn what_is_missing_is_told_and_nothing_is_left() {
        let top = tempfile::tempdir().unwrap();
        let directory = top.path().join("layout");
        let text = format!("preloaded+layer:///b?layer=http://x&layer_digest={DIGEST}");
        let error = layout(&text, &directory).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.starts_with("no query parameter 'layer_path' found in URL "));
        layout(&uri(&top.path().join("missing")), &directory).unwrap_err();
        assert!(!directory.exists());
    }
}
