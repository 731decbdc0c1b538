//! What the fuzz targets drive, and what must hold whatever they feed in.
//!
//! Called by `rootfs/fuzz/` (feature `fuzzing`) and by the test that replays its seeds. A broken
//! invariant is a panic. An input that is wrong must be refused for a rule: a failure of the host
//! that an image can cause at will is a finding, too.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "no part of the library: a panic is how a target reports"
)]

mod entries;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, Mode, OFlags};

use crate::digest::Digest;
use crate::error::Error;
use crate::oci::documents::{self, Document, Documents, Kind};
use crate::remove;
use crate::stream::{Allowed, Archive, Watch};
use crate::unpack::listing::{self, CONTENTS};
use crate::unpack::tree::Tree;
use crate::unpack::{Limits, archive};

/// Small enough for thousands of runs a second, large enough to be reached from both sides.
const LIMITS: Limits = Limits {
    entries: 200,
    bytes: 4 << 20,
    ratio: 500,
    name: 4095,
    depth: 40,
    names: 64 << 10,
};

/// A place to unpack in, beside something that nobody may touch.
#[derive(Debug)]
pub struct Ground {
    path: PathBuf,
    fd: OwnedFd,
    sentinel: BTreeMap<PathBuf, [i64; 8]>,
}

impl Ground {
    /// In memory, if there is such a place. `None` for who is not root: owners and whiteouts could
    /// not be made.
    pub fn new() -> Option<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("garden-fuzz-{}-{number}", std::process::id());
        let given = std::env::var_os("GARDEN_FUZZ_DIR").map(PathBuf::from);
        let memory = Some(PathBuf::from("/dev/shm")).filter(|path| path.is_dir());
        let around = given.or(memory).unwrap_or_else(std::env::temp_dir);
        let path = around.join(name);
        std::fs::create_dir_all(path.join("sentinel/a/b")).unwrap();
        std::fs::write(path.join("sentinel/a/f"), "safe").unwrap();
        std::os::unix::fs::symlink("f", path.join("sentinel/a/l")).unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let mut ground = Self {
            fd: rustix::fs::openat(CWD, &path, flags, Mode::empty()).unwrap(),
            path,
            sentinel: BTreeMap::new(),
        };
        ground.sentinel = ground.look();
        Some(ground)
    }

    /// Everything beside the place to unpack in, with all that a change would change.
    fn look(&self) -> BTreeMap<PathBuf, [i64; 8]> {
        let mut seen = BTreeMap::new();
        let mut left = vec![self.path.join("sentinel")];
        while let Some(path) = left.pop() {
            let stat = path.symlink_metadata().unwrap();
            if stat.is_dir() {
                left.extend((path.read_dir().unwrap()).map(|entry| entry.unwrap().path()));
            }
            let values = [
                i64::from(stat.mode()),
                i64::from(stat.uid()),
                stat.nlink().cast_signed(),
                stat.size().cast_signed(),
                stat.mtime(),
                stat.mtime_nsec(),
                stat.ctime(),
                stat.ctime_nsec(),
            ];
            seen.insert(path, values);
        }
        seen
    }

    /// Bytes as a tar. Checksums are made right first: guessing them is not what is tested.
    pub fn tar(&self, bytes: &[u8]) {
        let mut tar = bytes.to_vec();
        entries::fix_checksums(&mut tar);
        self.unpack(&tar);
    }

    /// Bytes as a list of entries, which become a tar: most of it is well-formed.
    pub fn entries(&self, bytes: &[u8]) {
        self.unpack(&entries::tar(bytes, &self.path.join("sentinel/a")));
    }

    fn unpack(&self, mut tar: &[u8]) {
        let run = self.path.join("run");
        std::fs::create_dir_all(run.join("tree")).unwrap();
        let open = |path: &Path| OwnedFd::from(File::open(path).unwrap());
        let (staging, root) = (open(&run), open(&run.join("tree")));
        let mut tree = Tree::new(staging.as_fd(), root, &LIMITS).unwrap();
        let unpacked = archive::unpack(&mut tar, &mut tree, &LIMITS, None, "fuzz");
        let made = unpacked.and_then(|()| tree.finish().map_err(|fault| fault.of("fuzz", None)));
        match made {
            Ok(mut made) => {
                assert!(made.bytes <= LIMITS.bytes && made.entries <= LIMITS.entries);
                let sum = made.listing.finish().unwrap();
                let contents = File::open(run.join(CONTENTS)).unwrap();
                let damage = listing::verify(open(&run.join("tree")), &contents, sum).unwrap();
                assert!(damage.is_empty(), "{damage:?}");
                let mut beside: Vec<_> = (run.read_dir().unwrap())
                    .map(|entry| entry.unwrap().file_name())
                    .collect();
                beside.sort();
                assert_eq!(beside, [CONTENTS, "tree"]);
            }
            Err(Error::ImageMalformed { .. }) => {}
            Err(other) => panic!("an image made the host fail: {other:?}"),
        }
        assert_eq!(self.look(), self.sentinel, "something outside was changed");
        remove::tree(&self.fd, "run".as_ref(), &|| false).unwrap();
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// The documents of an image, divided by lines of `---`: the first, and whatever it leads to. `@1@`
/// in one becomes the digest of the second, `"#1#"` its length, and so on.
pub fn documents(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = crate::ImageSource::parse(text.lines().next().unwrap_or_default());
    let mut documents: Vec<String> = text.split("\n---\n").map(str::to_owned).collect();
    documents.truncate(8);
    let mut known = HashMap::new();
    // Each may name those behind it.
    for number in (1..documents.len()).rev() {
        let digest = Digest::of(documents[number].as_bytes());
        let length = documents[number].len();
        for earlier in &mut documents[..number] {
            *earlier = earlier
                .replace(&format!("@{number}@"), &digest.to_string())
                .replace(&format!("\"#{number}#\""), &length.to_string());
            earlier.truncate(earlier.floor_char_boundary(1 << 20));
        }
        known.insert(digest, documents[number].clone());
    }
    let start = Document {
        digest: Digest::of(documents[0].as_bytes()),
        media_type: None,
        bytes: documents[0].clone().into_bytes(),
    };
    if let Ok(manifest) = documents::resolve(&Given(known), start) {
        for layer in manifest.layers {
            let base = layer.base_directory.unwrap_or_default();
            assert!(!base.bytes().starts_with(b"/"));
        }
    }
}

/// Documents that are all at hand.
struct Given(HashMap<Digest, String>);

impl Documents for Given {
    fn image(&self) -> &str {
        "fuzz"
    }

    fn read(&self, _: Kind, digest: Digest, size: u64) -> crate::Result<Vec<u8>> {
        let found = self.0.get(&digest).map_or("", String::as_str);
        let most = usize::try_from(size).unwrap_or(usize::MAX);
        let length = found.len().min(most.saturating_add(1));
        Ok(found.as_bytes()[..length].to_vec())
    }
}

/// Bytes as a blob, plain or compressed.
pub fn stream(bytes: &[u8]) {
    const MOST: u64 = 1 << 20;
    let allowed = Allowed {
        packed: bytes.len() as u64,
        tar: MOST,
        ratio: 500,
        budget: None,
    };
    let blob = Box::new(std::io::Cursor::new(bytes.to_vec()));
    let mut archive = Archive::start(blob, allowed, Watch::default(), &|| {}).unwrap();
    let mut head = Vec::new();
    let started = archive.by_ref().take(100).read_to_end(&mut head);
    if let (Ok(length), Ok((tar, packed))) = (started, archive.finish()) {
        assert!(length as u64 <= tar.length && tar.length <= MOST);
        assert_eq!(packed.length, bytes.len() as u64);
        assert_eq!(packed.digest, Digest::of(bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every seed through its target, without libFuzzer.
    #[test]
    fn root_seeds_are_replayed() {
        let Some(ground) = Ground::new() else {
            println!("SKIPPED root_seeds_are_replayed: needs root");
            return;
        };
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        if !Path::new(env!("CARGO_MANIFEST_DIR")).exists() {
            println!("SKIPPED root_seeds_are_replayed: the sources are on another machine");
            return;
        }
        type Target<'a> = (&'a str, &'a dyn Fn(&[u8]));
        let targets: [Target<'_>; 4] = [
            ("tar_to_tree", &|bytes| ground.tar(bytes)),
            ("entries_to_tree", &|bytes| ground.entries(bytes)),
            ("documents", &documents),
            ("stream", &stream),
        ];
        for (target, run) in targets {
            let seeds: Vec<_> = (corpus.join(target).read_dir().unwrap())
                .map(|entry| entry.unwrap().path())
                .collect();
            assert!(!seeds.is_empty(), "{target}");
            for seed in seeds {
                println!("{}", seed.display());
                run(&std::fs::read(seed).unwrap());
            }
        }
    }
}
