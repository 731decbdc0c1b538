//! Writes an image as an OCI image layout (OCI image specification, "Image Layout").
//!
//! Used by [`crate::Images`] alone. Layers are given as tars; every second one is stored gzipped,
//! so that a digest of the blob and a diff ID differ.

use std::fs;
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::images::gzip;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Writes a layout with one image of these layers, base first.
pub(crate) fn write(path: &Path, layers: &[Vec<u8>], env: &[&str]) -> Result<()> {
    let blobs = path.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let mut diff_ids = Vec::new();
    let mut descriptors = Vec::new();
    for (index, tar) in layers.iter().enumerate() {
        diff_ids.push(format!("sha256:{}", digest(tar)));
        descriptors.push(if index % 2 == 1 {
            blob(&blobs, &format!("{LAYER}+gzip"), &gzip(tar)?)?
        } else {
            blob(&blobs, LAYER, tar)?
        });
    }
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": { "Env": env },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = blob(&blobs, CONFIG, &serde_json::to_vec(&config)?)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config,
        "layers": descriptors,
    });
    let mut manifest = blob(&blobs, MANIFEST, &serde_json::to_vec(&manifest)?)?;
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(path.join("index.json"), serde_json::to_vec(&index)?)?;
    fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(())
}

/// Stores a blob and returns its descriptor.
fn blob(blobs: &Path, media_type: &str, content: &[u8]) -> Result<Value> {
    let digest = digest(content);
    fs::write(blobs.join(&digest), content)?;
    Ok(json!({
        "mediaType": media_type,
        "digest": format!("sha256:{digest}"),
        "size": content.len(),
    }))
}

/// This machine's name in the words of OCI, which are those of Go.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn digest(content: &[u8]) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(content) {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}
