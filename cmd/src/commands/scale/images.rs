//! The images and files of a `scale` run, made of this host's static busybox and of noise.
//!
//! The base image is a small system with the users root and vcap; the app is files of noise (so
//! that nothing on the way can shorten them) and `start.txt`, which health checks ask for. The app
//! comes as a tar for streaming in, or as the upper layer of an OCI layout.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// Where the app is in its container.
pub(super) const APP: &str = "/home/vcap/app";

const BUSYBOX: [&str; 2] = ["/bin/busybox", "/usr/bin/busybox"];
const VCAP: u64 = 2000;
const MEGABYTE: usize = 1_000_000;

/// A tar of the base system.
pub(super) fn base_tar() -> Result<Vec<u8>> {
    let program = BUSYBOX.iter().find(|path| Path::new(path).exists());
    let program = program.context("no busybox on this host: ci/setup installs busybox-static")?;
    let listed = Command::new(program).arg("--list").output()?;
    ensure!(
        listed.status.success(),
        "busybox lists no applets: ci/setup installs busybox-static"
    );
    let mut tar = Builder::new(Vec::new());
    for directory in ["bin", "etc", "tmp"] {
        add(&mut tar, directory, EntryType::Directory, 0, &[])?;
    }
    let content = fs::read(program)?;
    add(&mut tar, "bin/busybox", EntryType::Regular, 0, &content)?;
    for applet in String::from_utf8_lossy(&listed.stdout).lines() {
        if applet != "busybox" {
            let mut header = header(EntryType::Symlink, 0, 0);
            tar.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
        }
    }
    for directory in ["home", "home/vcap"] {
        add(&mut tar, directory, EntryType::Directory, VCAP, &[])?;
    }
    let passwd = b"root:x:0:0::/root:/bin/sh\nvcap:x:2000:2000::/home/vcap:/bin/sh\n";
    add(&mut tar, "etc/passwd", EntryType::Regular, 0, passwd)?;
    let group = b"root:x:0:\nvcap:x:2000:\n";
    add(&mut tar, "etc/group", EntryType::Regular, 0, group)?;
    Ok(tar.into_inner()?)
}

/// A tar of the app, so many MB (10^6 bytes) of it, below a path that ends in a slash or is empty.
pub(super) fn app_tar(below: &str, megabytes: usize) -> Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::with_capacity((megabytes + 1) * MEGABYTE));
    if !below.is_empty() {
        // Its directory is the user's, too.
        add(&mut tar, below, EntryType::Directory, VCAP, &[])?;
    }
    let start = format!("{below}start.txt");
    add(&mut tar, &start, EntryType::Regular, VCAP, b"started\n")?;
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    let mut content = vec![0; MEGABYTE];
    for number in 0..megabytes {
        noise.fill(&mut content);
        let name = format!("{below}part-{number}");
        add(&mut tar, &name, EntryType::Regular, VCAP, &content)?;
    }
    Ok(tar.into_inner()?)
}

/// Writes an OCI image layout (OCI image specification, "Image Layout") of the base system with
/// the app as a layer of its own.
pub(super) fn write_layout(path: &Path, base: &[u8], megabytes: usize) -> Result<()> {
    let app = app_tar(&format!("{}/", &APP[1..]), megabytes)?;
    let blobs = path.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let layers = [
        blob(&blobs, "layer.v1.tar", base)?,
        blob(&blobs, "layer.v1.tar", &app)?,
    ];
    let config = json!({
        "architecture": match std::env::consts::ARCH { "aarch64" => "arm64", _ => "amd64" },
        "os": "linux",
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": layers.each_ref().map(|layer| &layer["digest"]) },
    });
    let config = blob(&blobs, "config.v1+json", &serde_json::to_vec(&config)?)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": layers,
    });
    let manifest = blob(&blobs, "manifest.v1+json", &serde_json::to_vec(&manifest)?)?;
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(path.join("index.json"), serde_json::to_vec(&index)?)?;
    fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(())
}

/// Stores a blob and returns its descriptor.
fn blob(blobs: &Path, kind: &str, content: &[u8]) -> Result<Value> {
    let mut digest = String::new();
    for byte in Sha256::digest(content) {
        digest.push_str(&format!("{byte:02x}"));
    }
    fs::write(blobs.join(&digest), content)?;
    Ok(json!({
        "mediaType": format!("application/vnd.oci.image.{kind}"),
        "digest": format!("sha256:{digest}"),
        "size": content.len(),
    }))
}

fn header(kind: EntryType, owner: u64, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_uid(owner);
    header.set_gid(owner);
    header.set_mtime(1_700_000_000);
    header.set_size(size as u64);
    header
}

fn add(
    tar: &mut Builder<Vec<u8>>,
    path: &str,
    kind: EntryType,
    owner: u64,
    content: &[u8],
) -> Result<()> {
    let mut header = header(kind, owner, content.len());
    tar.append_data(&mut header, path, content)?;
    Ok(())
}

/// Noise that is the same in every run (xorshift64*).
struct Noise(u64);

impl Noise {
    fn fill(&mut self, content: &mut [u8]) {
        for chunk in content.chunks_mut(8) {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let value = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
            chunk.copy_from_slice(&value[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_app_is_as_large_as_asked_for() {
        let tar = app_tar("", 3).unwrap();
        let mut archive = tar::Archive::new(tar.as_slice());
        let sizes: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().size())
            .collect();
        assert_eq!(sizes, [8, 1_000_000, 1_000_000, 1_000_000]);
    }
}
