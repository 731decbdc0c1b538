//! Importing images: from a source to layers in the store.
//!
//! The work behind `Store::import`. Each layer is read, hashed and unpacked in one pass, several
//! of them at once; only then, bottom first, come the directories whose attributes depend on lower
//! layers. Nothing gets its name before its digest is verified. Threads that want the same image
//! or the same layer at the same time do the work once.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{FileType, Mode, OFlags, Stat};

use crate::digest::Digest;
use crate::error::{Error, Result, Rule, Step};
use crate::fixup::{Fixups, Lower};
use crate::image::{Image, ImageConfig};
use crate::layers::{LayerRecord, TREE, key};
use crate::oci::{Blob, Layout};
use crate::source::ImageSource;
use crate::staging::Staged;
use crate::store::Store;
use crate::stream::{Archive, Counts};
use crate::unpack::tree::{Made, Tree};
use crate::unpack::{Fault, archive, copy};

/// The most layers that overlay stacks.
const STACK: usize = 500;

/// A layer that is unpacked and has no name yet.
struct Unpacked {
    staged: Staged,
    tree: OwnedFd,
    made: Made,
    diff_id: Digest,
}

impl Unpacked {
    fn fixups(&self, lower: &[Lower]) -> Result<Fixups> {
        Fixups::find(&self.made.implied, &self.made.whiteouts, lower)
    }
}

impl Store {
    /// Brings an image into the store, unless it is there and its source did not change.
    pub fn import(&self, source: &ImageSource) -> Result<Image> {
        let image = source.to_string();
        match source {
            ImageSource::Path(path) => self.import_path(path, &image),
            ImageSource::OciLayout { path, reference } => {
                let layout = Layout {
                    path,
                    image: &image,
                };
                self.import_layout(&layout, reference.as_deref())
            }
        }
    }

    fn import_path(&self, path: &Path, image: &str) -> Result<Image> {
        // Not blocking: it could be a pipe.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| {
            let source = std::io::Error::from(errno);
            match source.kind() {
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => {
                    Error::ImageNotFound {
                        image: image.to_owned(),
                        source,
                    }
                }
                _ => Error::host(format!("open the image {image:?}"), source),
            }
        })?;
        let stat = rustix::fs::fstat(&fd).step(|| format!("look at the image {image:?}"))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => self.import_tar(File::from(fd), &stat, image),
            FileType::Directory => self.import_directory(&fd, image),
            _ => {
                let rule = Rule::Layout("it is neither a file nor a directory".to_owned());
                Err(Error::image(image, None, rule))
            }
        }
    }

    /// A tar is known by its inode, size and times: only another content is read again.
    fn import_tar(&self, file: File, stat: &Stat, image: &str) -> Result<Image> {
        let id = identity(stat);
        let _flight = self.inner.flights.take(&id.hex());
        if let Some(known) = self.known_image(id, image) {
            return Ok(known);
        }
        let unpacked = self.unpack_archive(&file, image, None)?;
        let fixups = unpacked.fixups(&[])?;
        let record = self.publish(unpacked, &fixups, image)?;
        let after = rustix::fs::fstat(&file).step(|| format!("look at the image {image:?}"))?;
        let unchanged = identity(&after) == id;
        self.compose(id, image, &[record], ImageConfig::default(), unchanged)
    }

    fn import_directory(&self, directory: &OwnedFd, image: &str) -> Result<Image> {
        let limits = &self.inner.limits;
        let print = copy::fingerprint(directory, limits, image)?;
        let id = Digest::of(format!("directory {print}").as_bytes());
        let _flight = self.inner.flights.take(&id.hex());
        if let Some(known) = self.known_image(id, image) {
            return Ok(known);
        }
        let (staged, tree) = self.stage()?;
        let mut target = Tree::new(staged.as_fd(), clone(&tree)?, limits);
        copy::copy(directory, &mut target, limits, image)?;
        let made = target.finish().map_err(|fault| fault.of(image, None))?;
        let unchanged = copy::fingerprint(directory, limits, image)? == print;
        // What was copied while it changed is the content of no fingerprint.
        let diff_id = match unchanged {
            true => id,
            false => Digest::of(uuid::Uuid::now_v7().as_bytes()),
        };
        let unpacked = Unpacked {
            staged,
            tree,
            made,
            diff_id,
        };
        let record = self.publish(unpacked, &Fixups::default(), image)?;
        self.compose(id, image, &[record], ImageConfig::default(), unchanged)
    }

    fn import_layout(&self, layout: &Layout<'_>, reference: Option<&str>) -> Result<Image> {
        let manifest = layout.read(reference)?;
        let id = manifest.digest;
        let _flight = self.inner.flights.take(&id.hex());
        if let Some(known) = self.known_image(id, layout.image) {
            return Ok(known);
        }
        if manifest.layers.len() > STACK {
            let rule = Rule::Layers(manifest.layers.len());
            return Err(Error::image(layout.image, None, rule));
        }
        let mut unpacked = self.unpack_all(layout, &manifest.layers)?;
        let mut lower: Vec<Lower> = Vec::new();
        for (blob, fresh) in manifest.layers.iter().zip(&mut unpacked) {
            let record = self.place(layout, blob, fresh.take(), &lower)?;
            lower.insert(0, (self.inner.layers.tree(&record.key)?, record));
        }
        let records: Vec<_> = lower.into_iter().rev().map(|(_, record)| record).collect();
        self.compose(id, layout.image, &records, manifest.config, true)
    }

    /// Unpacks the layers that are not in the store, several at once. `None` for one that is.
    fn unpack_all(&self, layout: &Layout<'_>, blobs: &[Blob]) -> Result<Vec<Option<Unpacked>>> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let next = AtomicUsize::new(0);
        let results: Vec<Mutex<Option<Unpacked>>> =
            blobs.iter().map(|_| Mutex::default()).collect();
        let failure: Mutex<Option<Error>> = Mutex::default();
        let work = || {
            while let Some(at) = Some(next.fetch_add(1, Ordering::Relaxed))
                && let Some(blob) = blobs.get(at)
            {
                match self.ensure_unpacked(layout, blob) {
                    Ok(unpacked) => *lock(&results[at]) = unpacked,
                    Err(error) => {
                        next.store(blobs.len(), Ordering::Relaxed);
                        lock(&failure).get_or_insert(error);
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for number in 1..threads.min(blobs.len()) {
                let name = format!("garden-unpack-{number}");
                let started = std::thread::Builder::new()
                    .name(name)
                    .spawn_scoped(scope, work);
                if let Err(error) = started {
                    tracing::debug!(%error, "unpacking with fewer threads");
                }
            }
            work();
        });
        match lock(&failure).take() {
            Some(error) => Err(error),
            None => Ok(results.iter().map(|result| lock(result).take()).collect()),
        }
    }

    /// Unpacks one layer unless it is in the store; publishes it if no lower layer matters.
    fn ensure_unpacked(&self, layout: &Layout<'_>, blob: &Blob) -> Result<Option<Unpacked>> {
        let _flight = self.inner.flights.take(&format!("layer {}", blob.diff_id));
        if self.inner.layers.with_diff_id(blob.diff_id).is_some() {
            return Ok(None);
        }
        let unpacked = self.unpack_archive(&layout.open(blob)?, layout.image, Some(blob))?;
        if unpacked.made.implied.is_empty() && unpacked.made.whiteouts.is_empty() {
            self.publish(unpacked, &Fixups::default(), layout.image)?;
            return Ok(None);
        }
        Ok(Some(unpacked))
    }

    /// Finds or makes the form of a layer that fits above these.
    fn place(
        &self,
        layout: &Layout<'_>,
        blob: &Blob,
        fresh: Option<Unpacked>,
        lower: &[Lower],
    ) -> Result<Arc<LayerRecord>> {
        let unpacked = match fresh {
            Some(unpacked) => unpacked,
            None => {
                if let Some(known) = self.inner.layers.with_diff_id(blob.diff_id) {
                    let fixups = Fixups::find(&known.implied, &known.whiteouts, lower)?;
                    let fitting = key(blob.diff_id, fixups.digest()?);
                    if let Some(record) = self.inner.layers.get(&fitting) {
                        return Ok(record);
                    }
                }
                self.unpack_archive(&layout.open(blob)?, layout.image, Some(blob))?
            }
        };
        let fixups = unpacked.fixups(lower)?;
        self.publish(unpacked, &fixups, layout.image)
    }

    fn stage(&self) -> Result<(Staged, OwnedFd)> {
        let staged = Staged::new(&self.inner.dirs, &self.inner.trash)?;
        let mode = Mode::from_raw_mode(0o755);
        let tree = staged.subdirectory(TREE, mode)?;
        Ok((staged, tree))
    }

    fn unpack_archive(&self, file: &File, image: &str, blob: Option<&Blob>) -> Result<Unpacked> {
        let limits = &self.inner.limits;
        let (staged, tree) = self.stage()?;
        let reading = |error| Fault::reading(error).of(image, None);
        let mut stream = Archive::new(file, limits.bytes, blob.is_some()).map_err(reading)?;
        let mut target = Tree::new(staged.as_fd(), clone(&tree)?, limits);
        archive::unpack(&mut stream, &mut target, limits, image)?;
        let made = target.finish().map_err(|fault| fault.of(image, None))?;
        let (tar, packed) = stream.finish().map_err(reading)?;
        if let (Some(blob), Some(packed)) = (blob, packed) {
            verify(image, blob, tar, packed)?;
        }
        Ok(Unpacked {
            staged,
            tree,
            made,
            diff_id: tar.digest,
        })
    }

    fn publish(
        &self,
        unpacked: Unpacked,
        fixups: &Fixups,
        image: &str,
    ) -> Result<Arc<LayerRecord>> {
        fixups.apply(&unpacked.tree, image)?;
        let Unpacked {
            staged,
            made,
            diff_id,
            ..
        } = unpacked;
        let layers = &self.inner.layers;
        let record = layers.publish(staged, made, diff_id, fixups.digest()?)?;
        if let Some(durable) = &self.inner.durable {
            durable.add(vec![record.key.clone()]);
        }
        Ok(record)
    }

    /// Makes the image of these layers, the topmost last, and remembers it if asked to.
    fn compose(
        &self,
        id: Digest,
        source: &str,
        records: &[Arc<LayerRecord>],
        config: ImageConfig,
        remember: bool,
    ) -> Result<Image> {
        let mut layers = Vec::new();
        let mut root = None;
        for record in records.iter().rev() {
            root = root.or_else(|| record.root.clone());
            // A layer that is there twice counts only where it is topmost: whatever it shows or
            // hides, it does there; and overlay refuses the same directory twice.
            if !layers
                .iter()
                .any(|known: &crate::Layer| known.key == record.key)
            {
                layers.push(record.layer());
            }
            if record.opaque_root {
                break;
            }
        }
        layers.reverse();
        let image = Image {
            id,
            source: source.to_owned(),
            layers,
            root: root.unwrap_or_default(),
            config,
        };
        if remember {
            self.remember(&image)?;
        }
        Ok(image)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn clone(fd: &OwnedFd) -> Result<OwnedFd> {
    fd.try_clone()
        .step(|| "open the tree of a new layer".to_owned())
}

/// What a file is known by: a digest of all that changes when its content does.
fn identity(stat: &Stat) -> Digest {
    let text = format!(
        "tar {} {} {} {}.{:09} {}.{:09}",
        stat.st_dev,
        stat.st_ino,
        stat.st_size,
        stat.st_mtime,
        stat.st_mtime_nsec,
        stat.st_ctime,
        stat.st_ctime_nsec
    );
    Digest::of(text.as_bytes())
}

fn verify(image: &str, blob: &Blob, tar: Counts, packed: Counts) -> Result<()> {
    let name = blob.digest.to_string();
    let wrong = |rule| Err(Error::image(image, Some(&name), rule));
    if packed.length != blob.size {
        return wrong(Rule::Size {
            expected: blob.size,
            actual: packed.length,
        });
    }
    for (expected, actual) in [(blob.digest, packed.digest), (blob.diff_id, tar.digest)] {
        if expected != actual {
            return wrong(Rule::Digest {
                expected: expected.to_string(),
                actual: actual.to_string(),
            });
        }
    }
    Ok(())
}
