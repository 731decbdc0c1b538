//! The images that tests run, made on the fly from this host's static busybox.
//!
//! Every image is a path or an URI that `--image` takes. Each world makes its own, below its own
//! directory, so that no test sees another's. What is made twice is written once.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::layout;
use crate::rootfs::Rootfs;

/// Makes images below a directory. Every function makes a new image of that name.
pub struct Images {
    directory: PathBuf,
}

impl Images {
    pub(crate) fn new(directory: PathBuf) -> Result<Self> {
        fs::create_dir_all(&directory)?;
        Ok(Self { directory })
    }

    /// The busybox system as a plain tar.
    pub fn tar(&self, name: &str) -> Result<String> {
        self.tar_of(name, &Rootfs::busybox(name)?)
    }

    /// Any content as a plain tar.
    pub fn tar_of(&self, name: &str, rootfs: &Rootfs) -> Result<String> {
        self.bytes(&format!("{name}.tar"), &rootfs.tar()?)
    }

    /// The busybox system as a gzipped tar, in two gzip members, as parallel packers make it.
    pub fn tar_gz(&self, name: &str) -> Result<String> {
        let tar = Rootfs::busybox(name)?.tar()?;
        let (first, second) = tar.split_at(tar.len() / 2);
        let packed = [gzip(first)?, gzip(second)?].concat();
        self.bytes(&format!("{name}.tar.gz"), &packed)
    }

    /// The busybox system as a tar compressed by zstd.
    pub fn tar_zst(&self, name: &str) -> Result<String> {
        let packed = zstd::encode_all(Rootfs::busybox(name)?.tar()?.as_slice(), 1)?;
        self.bytes(&format!("{name}.tar.zst"), &packed)
    }

    /// The busybox system as a directory.
    pub fn directory(&self, name: &str) -> Result<String> {
        let path = self.directory.join(name);
        Rootfs::busybox(name)?.unpack(&path)?;
        text(&path)
    }

    /// The busybox system as an OCI layout of two layers, plain and gzipped. The second one
    /// removes `/etc/gone` of the first, replaces `/etc/image`, and adds `/etc/second`. The
    /// configuration says `FROM_IMAGE=yes`.
    pub fn oci(&self, name: &str) -> Result<String> {
        let first = Rootfs::busybox("first layer")?
            .file("etc/gone", 0o644, b"still here")
            .tar()?;
        let second = Rootfs::empty()
            .directory("etc", 0o755, 0)
            .file("etc/.wh.gone", 0o644, b"")
            .file("etc/image", 0o644, name.as_bytes())
            .file("etc/second", 0o644, b"second layer")
            .tar()?;
        let path = self.directory.join(name);
        layout::write(&path, &[first, second], &["FROM_IMAGE=yes"])?;
        Ok(format!("oci://{}", text(&path)?))
    }

    /// A file of these bytes, whatever they are.
    pub fn bytes(&self, name: &str, content: &[u8]) -> Result<String> {
        let path = self.directory.join(name);
        if fs::read(&path).is_ok_and(|there| there == content) {
            // The same file: a store need not look at it again.
            return text(&path);
        }
        File::create(&path)
            .and_then(|mut file| file.write_all(content))
            .with_context(|| format!("writing {}", path.display()))?;
        text(&path)
    }

    /// The path at which nothing is.
    pub fn missing(&self) -> Result<String> {
        text(&self.directory.join("nothing.tar"))
    }
}

pub(crate) fn gzip(content: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(content)?;
    encoder.finish().context("packing with gzip")
}

fn text(path: &Path) -> Result<String> {
    let text = path.to_str().context("a path that is no UTF-8")?;
    Ok(text.to_owned())
}
