//! What the tests of this package share: a store that cleans up after itself, and archives that
//! say exactly what a test wants, however wrong it is.

#![allow(
    dead_code,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "only for tests, and not every test uses all of it"
)]

pub(crate) mod web;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use garden_rootfs::{Digest, Image, ImageSource, Pretend, Result, Store, StoreOptions};
use rustix::fs::{AtFlags, Mode, OFlags, Stat};

/// Says that the process is in a mount namespace of its own.
const OWN_MOUNTS: &str = "GARDEN_BENCH_INSIDE";

/// Goes on in a mount namespace of its own, whose mounts go with the process. For benchmarks.
pub(crate) fn own_mounts() {
    if std::env::var_os(OWN_MOUNTS).is_some() {
        return;
    }
    let status = std::process::Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(std::env::args().skip(1))
        .env(OWN_MOUNTS, "1")
        .status()
        .unwrap();
    std::process::exit(status.code().unwrap_or(1));
}

/// A store in a directory of its own, empty again when dropped.
pub(crate) struct Place {
    pub(crate) store: Option<Store>,
    pub(crate) dir: tempfile::TempDir,
}

impl Place {
    /// `None`, with a message, when the test cannot run here.
    pub(crate) fn new(test: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED {test}: needs root");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&Self::options(dir.path())).unwrap();
        let place = Self {
            store: Some(store),
            dir,
        };
        Some(place)
    }

    /// The same, for tests that mount.
    pub(crate) fn with_mounts(test: &str) -> Option<Self> {
        let place = Self::new(test)?;
        if !place.store().capabilities().overlay {
            println!("SKIPPED {test}: this kernel has no overlay file system");
            return None;
        }
        Some(place)
    }

    /// Whether root filesystems never sync here.
    pub(crate) fn is_volatile(&self) -> bool {
        self.store().capabilities().volatile.is_some()
    }

    pub(crate) fn options(dir: &Path) -> StoreOptions {
        StoreOptions {
            pretend: pretend(),
            ..StoreOptions::new(dir.join("store"))
        }
    }

    pub(crate) fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes an archive and imports it.
    pub(crate) fn import(&self, name: &str, tar: &[u8]) -> Result<Image> {
        let path = self.path(name);
        std::fs::write(&path, tar).unwrap();
        let image = self.store().import(&ImageSource::Path(path))?;
        self.assert_listed(&image);
        Ok(image)
    }

    /// Asserts that the layers of an image are as their listings say.
    pub(crate) fn assert_listed(&self, image: &Image) {
        for layer in &image.layers {
            let damage = self.store().verify_layer(layer).unwrap();
            assert!(damage.is_empty(), "{damage:?}");
        }
    }

    /// The tree of a layer.
    pub(crate) fn tree(&self, key: &str) -> PathBuf {
        self.path("store/layers").join(key).join("tree")
    }

    /// The tree of an image with one layer.
    pub(crate) fn only_tree(&self, image: &Image) -> PathBuf {
        assert_eq!(image.layers.len(), 1);
        self.tree(&image.layers[0].key)
    }

    /// Closes the store and opens it again, as a restarted server does.
    pub(crate) fn reopen(&mut self) {
        self.store = None;
        self.store = Some(Store::open(&Self::options(self.dir.path())).unwrap());
    }

    /// Asserts that nothing half-made is left.
    pub(crate) fn assert_nothing_left(&self, layers: usize) {
        let store = self.store();
        assert!(store.wait_trash_empty(Duration::from_secs(60)));
        assert_eq!(store.list_layers().len(), layers);
        for (name, count) in [("tmp", 0), ("trash", 0), ("layers", layers)] {
            let entries = std::fs::read_dir(self.path("store").join(name)).unwrap();
            assert_eq!(entries.count(), count, "{name}");
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(store) = self.store.take() {
            store.wait_trash_empty(Duration::from_secs(60));
        }
        // A background thread that was told to end may still mark a layer as durable; the mark
        // makes the removal of a directory fail, and is removed by the next try.
        for _ in 0..1000 {
            match std::fs::remove_dir_all(self.dir.path()) {
                Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {}
                _ => break,
            }
        }
    }
}

/// The variable by which a run of these tests is told what to do without.
pub(crate) const PRETEND: &str = "GARDEN_TEST_PRETEND";

/// What this run does without.
pub(crate) fn pretend() -> Pretend {
    let without = std::env::var(PRETEND).unwrap_or_default();
    let without = |what| without.split(' ').any(|word| word == what);
    Pretend {
        no_descriptors: without("descriptors"),
        no_mapped_owners: without("mapped-owners"),
        no_volatile: without("volatile"),
        no_mount_attributes: without("mount-attributes"),
        no_reflink: without("reflink"),
    }
}

/// Something outside that an image must not touch.
pub(crate) struct Outside {
    pub(crate) path: PathBuf,
}

impl Outside {
    pub(crate) fn new(place: &Place) -> Self {
        let path = place.path("outside");
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("f"), "safe").unwrap();
        std::fs::set_permissions(path.join("f"), PermissionsExt::from_mode(0o600)).unwrap();
        Self { path }
    }

    pub(crate) fn text(&self) -> &str {
        self.path.to_str().unwrap()
    }

    pub(crate) fn assert_untouched(&self) {
        let names: Vec<_> = (self.path.read_dir().unwrap())
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["f"]);
        let stat = self.path.join("f").metadata().unwrap();
        assert_eq!((stat.mode() & 0o7777, stat.nlink()), (0o600, 1));
        let text = std::fs::read_to_string(self.path.join("f")).unwrap();
        assert_eq!(text, "safe");
    }
}

/// An archive in the making.
#[derive(Default)]
pub(crate) struct Tar(Vec<u8>);

/// One entry of it.
pub(crate) struct Entry<'a> {
    pub(crate) kind: u8,
    pub(crate) name: &'a [u8],
    pub(crate) link: &'a [u8],
    pub(crate) content: &'a [u8],
    pub(crate) mode: u32,
    pub(crate) owner: (u64, u64),
    pub(crate) mtime: u64,
}

impl Default for Entry<'_> {
    fn default() -> Self {
        Self {
            kind: b'0',
            name: b"",
            link: b"",
            content: b"",
            mode: 0o644,
            owner: (0, 0),
            mtime: 1_000_000_000,
        }
    }
}

impl Tar {
    pub(crate) fn entry(mut self, entry: &Entry<'_>) -> Self {
        let mut header = tar::Header::new_gnu();
        {
            let old = header.as_old_mut();
            old.name[..entry.name.len()].copy_from_slice(entry.name);
            old.linkname[..entry.link.len()].copy_from_slice(entry.link);
            old.linkflag[0] = entry.kind;
        }
        header.set_mode(entry.mode);
        header.set_uid(entry.owner.0);
        header.set_gid(entry.owner.1);
        header.set_mtime(entry.mtime);
        header.set_size(entry.content.len() as u64);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(entry.content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn kind(self, kind: u8, name: &str, link: &str) -> Self {
        self.entry(&Entry {
            kind,
            name: name.as_bytes(),
            link: link.as_bytes(),
            ..Entry::default()
        })
    }

    pub(crate) fn file(self, name: &str, content: &str) -> Self {
        self.entry(&Entry {
            name: name.as_bytes(),
            content: content.as_bytes(),
            ..Entry::default()
        })
    }

    pub(crate) fn dir(self, name: &str, mode: u32, owner: (u64, u64)) -> Self {
        self.entry(&Entry {
            kind: b'5',
            name: name.as_bytes(),
            mode,
            owner,
            ..Entry::default()
        })
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.kind(b'2', name, target)
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> Self {
        self.kind(b'1', name, target)
    }

    /// Records for the entry that follows.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut content = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            content.extend_from_slice(format!("{length} {key}=").as_bytes());
            content.extend_from_slice(value);
            content.push(b'\n');
        }
        self.entry(&Entry {
            kind: b'x',
            name: b"pax",
            content: &content,
            ..Entry::default()
        })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes so far, without an end marker.
    pub(crate) fn open(self) -> Vec<u8> {
        self.0
    }

    pub(crate) fn done(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// Makes the checksum of the first header right.
pub(crate) fn checksum(tar: &mut [u8]) {
    tar[148..156].fill(b' ');
    let sum: u32 = tar[..512].iter().copied().map(u32::from).sum();
    tar[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// An OCI image layout in the making; one image.
pub(crate) struct Layout {
    pub(crate) path: PathBuf,
    layers: Vec<(String, u64, Digest, String)>,
    /// What else the descriptor of a layer says.
    extra: Vec<(usize, &'static str, serde_json::Value)>,
    pub(crate) config: serde_json::Value,
    /// Other places of all its layers.
    pub(crate) urls: Vec<String>,
}

impl Layout {
    pub(crate) fn new(path: PathBuf) -> Self {
        std::fs::create_dir_all(path.join("blobs/sha256")).unwrap();
        std::fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self {
            path,
            layers: Vec::new(),
            extra: Vec::new(),
            config: serde_json::json!({}),
            urls: Vec::new(),
        }
    }

    pub(crate) fn blob(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        std::fs::write(self.path.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        digest
    }

    pub(crate) fn layer(self, tar: &[u8]) -> Self {
        self.packed(tar, tar, "application/vnd.oci.image.layer.v1.tar")
    }

    pub(crate) fn packed(mut self, tar: &[u8], packed: &[u8], kind: &str) -> Self {
        let digest = self.blob(packed);
        let size = packed.len() as u64;
        let diff_id = Digest::of(tar);
        self.layers
            .push((digest.to_string(), size, diff_id, kind.to_owned()));
        self
    }

    /// Something that the descriptor of the last layer says besides.
    pub(crate) fn says(mut self, key: &'static str, value: serde_json::Value) -> Self {
        self.extra.push((self.layers.len() - 1, key, value));
        self
    }

    /// Unpacks the last layer beneath a directory, as Guardian asks for it.
    pub(crate) fn beneath(self, directory: &str) -> Self {
        let key = "org.cloudfoundry.experimental.image.base-directory";
        self.says("annotations", serde_json::json!({ key: directory }))
    }

    /// A layer that is not in the layout, called by this digest, of size 0 and, falsely, with the
    /// same diff id: as Guardian writes them.
    pub(crate) fn claimed(mut self, digest: Digest, kind: &str) -> Self {
        self.layers
            .push((digest.to_string(), 0, digest, kind.to_owned()));
        self
    }

    /// Writes manifest and index; gives the source.
    pub(crate) fn done(self) -> ImageSource {
        let diff_ids: Vec<_> = self
            .layers
            .iter()
            .map(|layer| layer.2.to_string())
            .collect();
        let config = serde_json::json!({
            "architecture": "amd64",
            "os": "linux",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = config.to_string();
        let mut layers: Vec<_> = (self.layers.iter())
            .map(|(digest, size, _, kind)| {
                let urls = &self.urls;
                serde_json::json!({"mediaType": kind, "digest": digest, "size": size, "urls": urls})
            })
            .collect();
        for (at, key, value) in &self.extra {
            layers[*at][*key] = value.clone();
        }
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": self.blob(config.as_bytes()).to_string(),
                "size": config.len(),
            },
            "layers": layers,
        });
        self.index(
            &manifest.to_string(),
            "application/vnd.oci.image.manifest.v1+json",
        )
    }

    pub(crate) fn index(self, document: &str, kind: &str) -> ImageSource {
        let index = serde_json::json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": kind,
                "digest": self.blob(document.as_bytes()).to_string(),
                "size": document.len(),
                "annotations": {"org.opencontainers.image.ref.name": "v1"},
            }],
        });
        std::fs::write(self.path.join("index.json"), index.to_string()).unwrap();
        ImageSource::OciLayout {
            path: self.path,
            reference: None,
        }
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Looks at something beneath a descriptor, following no link.
pub(crate) fn stat(at: impl AsFd, name: &str) -> rustix::io::Result<Stat> {
    rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW)
}

pub(crate) fn open(at: impl AsFd, name: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let mode = Mode::from_raw_mode(0o644);
    rustix::fs::openat(at, name, flags | OFlags::CLOEXEC, mode)
}

pub(crate) fn read(at: impl AsFd, name: &str) -> String {
    let mut text = String::new();
    let file = open(at, name, OFlags::RDONLY).unwrap();
    File::from(file).read_to_string(&mut text).unwrap();
    text
}

/// The names in a directory beneath a descriptor.
pub(crate) fn names(at: impl AsFd, name: &str) -> Vec<String> {
    let directory = open(at, name, OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
    let mut names: Vec<_> = (rustix::fs::Dir::new(directory).unwrap())
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name != "." && name != "..")
        .collect();
    names.sort();
    names
}

/// A file system on a disk that has less space than it says: a loop device on a small tmpfs.
pub(crate) struct FullDisk {
    dir: tempfile::TempDir,
    device: String,
}

impl FullDisk {
    /// `None`, with a message, when this host cannot have one.
    pub(crate) fn new(test: &str) -> Option<Self> {
        let run = |program: &str, arguments: &[&str]| {
            let done = std::process::Command::new(program).args(arguments).output();
            let done = done.ok().filter(|done| done.status.success())?;
            Some(String::from_utf8_lossy(&done.stdout).trim().to_owned())
        };
        let dir = tempfile::tempdir().unwrap();
        let (small, disk) = (dir.path().join("small"), dir.path().join("disk"));
        for path in [&small, &disk] {
            std::fs::create_dir(path).unwrap();
        }
        let image = small.join("image").to_string_lossy().into_owned();
        let none = rustix::mount::MountFlags::empty();
        let size = c"size=24m";
        rustix::mount::mount("small", &small, "tmpfs", none, Some(size)).unwrap();
        let mut full = Self {
            dir,
            device: String::new(),
        };
        File::create(&image).unwrap().set_len(256 << 20).unwrap();
        // Without a journal, so that a lost write of data stays just that.
        let arguments = ["-q", "-F", "-O", "^has_journal", "-E", "nodiscard", &image];
        if run("mkfs.ext4", &arguments).is_none() {
            println!("SKIPPED {test}: mkfs.ext4 is missing");
            return None;
        }
        let Some(device) = run("losetup", &["--find", "--show", &image]) else {
            println!("SKIPPED {test}: there are no loop devices");
            return None;
        };
        full.device = device;
        rustix::mount::mount(&full.device, &disk, "ext4", none, None).unwrap();
        Some(full)
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    /// Writes more than there is space for, and makes the kernel notice that nobody kept it.
    pub(crate) fn lose_a_write(&self) {
        let file = File::create(self.path().join("lost")).unwrap();
        let block = vec![7; 1 << 20];
        for _ in 0..64 {
            if std::io::Write::write_all(&mut &file, &block).is_err() {
                break;
            }
        }
        // Seen for the file, and not yet for its file system.
        rustix::fs::fsync(&file).unwrap_err();
    }
}

impl Drop for FullDisk {
    fn drop(&mut self) {
        let detach = rustix::mount::UnmountFlags::DETACH;
        let _ = rustix::mount::unmount(self.path(), detach);
        if !self.device.is_empty() {
            let _ = std::process::Command::new("losetup")
                .args(["--detach", &self.device])
                .output();
        }
        let _ = rustix::mount::unmount(self.dir.path().join("small"), detach);
    }
}
