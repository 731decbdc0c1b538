//! Layers of one image, from wherever they are to the store, several at once.
//!
//! Driven by the importer with one job per layer. Each layer that is not in the store is read,
//! hashed, decompressed and unpacked in one pass: every byte is written once. As soon as all below
//! it are in their place comes what depends on them. Nothing gets its name before its digests are
//! verified. The first error stops all that is still running, and what is half made goes to the
//! trash with it; layers that are whole by then stay, as any image may use them.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{Mode, Stat};

use super::compose;
use super::options::{ImportOptions, Stage};
use super::report::LayerReport;
use crate::digest::Digest;
use crate::error::{Error, Result, Rule, Step};
use crate::fixup::{Fixups, Lower};
use crate::flight::{Flight, Stopped};
use crate::image::ImageConfig;
use crate::layers::{self, LayerRecord, Origin, TREE, Used};
use crate::staging::Staged;
use crate::store::Store;
use crate::store::hold::Hold;
use crate::stream::{Allowed, Archive, Broken, Counts, Watch};
use crate::unpack::archive;
use crate::unpack::name::Name;
use crate::unpack::tree::{Made, Tree};

/// Layers of one image that are imported at once: as many connections as registries bear.
const AT_ONCE: usize = 6;
/// How far layers may be ahead of the lowest one that is not in its place: what is ahead may need
/// open files until then.
const WINDOW: usize = 64;
/// How often a waiting thread looks whether it should still wait.
const LOOK: Duration = Duration::from_millis(50);

/// A layer to be imported.
pub(super) struct Job<'a> {
    /// What it is called: the digest of its packed bytes, or what a file is known by.
    pub(super) name: Digest,
    pub(super) claim: Claim,
    /// How many packed bytes it has.
    pub(super) size: Option<u64>,
    /// The directory beneath which it is unpacked.
    pub(super) base: Option<Name>,
    pub(super) open: Open<'a>,
}

/// Opens the packed bytes of a layer.
pub(super) type Open<'a> = Box<dyn Fn() -> Result<Box<dyn Read + Send>> + Sync + 'a>;

/// What can be trusted before a layer was read.
pub(super) enum Claim {
    /// The name, and the digest of the tar: a configuration that was verified says so.
    Tar(Digest),
    /// The name only.
    Blob,
    /// Nothing: it is a file of this machine, which may change while it is read. With its path.
    File(Arc<File>, String),
}

/// A layer that is unpacked and has no name yet.
pub(super) struct Unpacked {
    staged: Staged,
    tree: OwnedFd,
    made: Made,
    origin: Origin,
}

/// How far a layer is before those below it are looked at.
enum Ready {
    /// Some form of it is in the store, and stays.
    Known(Digest, Hold),
    /// With how many packed bytes were read.
    Fresh(Box<Unpacked>, Watch),
}

/// The layers of an image, in the store.
#[derive(Default)]
pub(super) struct Stack {
    /// Bottom first.
    pub(super) records: Vec<Arc<LayerRecord>>,
    /// Keeps them from being collected until a record refers to them.
    pub(super) held: Vec<Hold>,
    /// Whether all files were the same before and after they were read.
    pub(super) stable: bool,
}

/// The layers on their way to their place.
struct Line {
    ready: Vec<Mutex<Option<Ready>>>,
    placed: Mutex<Stack>,
    moved: Condvar,
}

/// The import of one image.
pub(super) struct Pipeline<'a> {
    store: &'a Store,
    /// The source as it was given.
    image: &'a str,
    options: &'a ImportOptions<'a>,
    stop: Arc<AtomicBool>,
    stable: AtomicBool,
    budget: Option<(Arc<AtomicU64>, u64)>,
}

impl<'a> Pipeline<'a> {
    pub(super) fn new(store: &'a Store, image: &'a str, options: &'a ImportOptions<'a>) -> Self {
        let budget = options.most_bytes;
        Self {
            store,
            image,
            options,
            stop: Arc::default(),
            stable: AtomicBool::new(true),
            budget: budget.map(|most| (Arc::new(AtomicU64::new(most)), most)),
        }
    }

    /// Brings all layers into the store, given the lowest first.
    pub(super) fn run(&self, jobs: &[Job<'_>]) -> Result<Stack> {
        let next = AtomicUsize::new(0);
        let failure: Mutex<Option<Error>> = Mutex::default();
        let line = Line {
            ready: jobs.iter().map(|_| Mutex::default()).collect(),
            placed: Mutex::default(),
            moved: Condvar::new(),
        };
        let work = || {
            while let Some(at) = Some(next.fetch_add(1, Ordering::Relaxed))
                && let Some(job) = jobs.get(at)
                && self.wait_for(at, &line)
            {
                let done = self.ensure(at, job).and_then(|ready| {
                    *lock(&line.ready[at]) = Some(ready);
                    self.advance(jobs, &line)
                });
                if let Err(error) = done {
                    // The first error is the cause of those that stopping leads to.
                    lock(&failure).get_or_insert(error);
                    self.stop.store(true, Ordering::Relaxed);
                    line.moved.notify_all();
                }
            }
        };
        std::thread::scope(|scope| {
            for number in 1..jobs.len().min(AT_ONCE) {
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
        if let Some(error) = lock(&failure).take() {
            return Err(error);
        }
        let placed = line.placed.into_inner();
        let mut stack = placed.unwrap_or_else(PoisonError::into_inner);
        stack.stable = self.stable.load(Ordering::Relaxed);
        Ok(stack)
    }

    /// Waits until a layer is not too far ahead; `false` when nothing more is to be done.
    fn wait_for(&self, at: usize, line: &Line) -> bool {
        let mut placed = lock(&line.placed);
        while at >= placed.records.len() + WINDOW && !self.stopped() {
            let waited = line.moved.wait_timeout(placed, LOOK);
            placed = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        !self.stopped()
    }

    /// Puts layers into their place, as long as all below them are in theirs. Who is ready while
    /// another thread does this comes after it, so no layer is forgotten.
    fn advance(&self, jobs: &[Job<'_>], line: &Line) -> Result<()> {
        let mut placed = lock(&line.placed);
        while let Some(ready) = line.ready.get(placed.records.len())
            && let Some(ready) = lock(ready).take()
        {
            let at = placed.records.len();
            let lower = Lower {
                layers: &self.store.inner.layers,
                records: &placed.records,
            };
            let Used { record, hold } = self.place(at, &jobs[at], ready, lower)?;
            placed.records.push(record);
            placed.held.push(hold);
            line.moved.notify_all();
        }
        Ok(())
    }

    /// Unpacks a layer unless some form of it is in the store, and publishes it if no lower layer
    /// matters.
    fn ensure(&self, index: usize, job: &Job<'_>) -> Result<Ready> {
        let report = self.report(index, job, Watch::default());
        let _flight = self.take(&job.key())?;
        let layers = &self.store.inner.layers;
        if let Some(known) = self.find(job)
            && let Some(used) = layers.using(&known.key)?
        {
            report.stage(Stage::Cached);
            return Ok(Ready::Known(known.diff_id, used.hold));
        }
        let unpacked = self.unpack(job, &report)?;
        let alone = unpacked.made.implied.is_empty() && unpacked.made.whiteouts.is_empty();
        if index > 0 && !(alone && job.base.is_none()) {
            return Ok(Ready::Fresh(Box::new(unpacked), report.watch));
        }
        let fixups = unpacked.fixups(Lower {
            layers,
            records: &[],
        })?;
        // Whoever names a layer by its tar flies under that name already.
        let _named = match job.claim {
            Claim::Tar(_) => None,
            _ => Some(self.take(&layer_key(unpacked.origin.diff_id))?),
        };
        let Used { record, hold } = self.publish(unpacked, &fixups)?;
        if let Claim::File(_, path) = &job.claim
            && job.base.is_none()
            && job.is_unchanged()?
        {
            // As an image of its own, so that whoever waits for this flight finds it.
            let records = [Arc::clone(&record)];
            let image = compose(job.name, path, &records, ImageConfig::default());
            self.store.remember(&image)?;
        }
        report.stage(Stage::Done);
        Ok(Ready::Known(record.diff_id, hold))
    }

    /// Some form of a layer, if the store has one.
    fn find(&self, job: &Job<'_>) -> Option<Arc<LayerRecord>> {
        let layers = &self.store.inner.layers;
        match &job.claim {
            Claim::Tar(diff_id) => layers.of_tar(*diff_id, job.base.as_ref()),
            Claim::Blob => layers.of_blob(job.name, job.base.as_ref()),
            Claim::File(_, path) if job.base.is_none() => {
                let image = self.store.known_image(job.name, path)?;
                layers.get(&image.layers.first()?.key)
            }
            Claim::File(..) => None,
        }
    }

    /// Finds or makes the form of a layer that fits above these.
    fn place(&self, at: usize, job: &Job<'_>, ready: Ready, lower: Lower<'_>) -> Result<Used> {
        if let Some(base) = &job.base {
            self.check_base(base, lower)?;
        }
        let layers = &self.store.inner.layers;
        let known = match &ready {
            Ready::Known(diff_id, _) => *diff_id,
            Ready::Fresh(unpacked, _) => unpacked.origin.diff_id,
        };
        let _flight = self.take(&layer_key(known))?;
        let (unpacked, report) = match ready {
            Ready::Fresh(unpacked, watch) => (*unpacked, self.report(at, job, watch)),
            Ready::Known(diff_id, _hold) => {
                if let Some(known) = layers.of_tar(diff_id, job.base.as_ref()) {
                    let fixups = Fixups::find(&known.implied, &known.whiteouts, lower)?;
                    let fitting = layers::key(diff_id, job.base.as_ref(), &fixups)?;
                    if let Some(used) = layers.using(&fitting)? {
                        return Ok(used);
                    }
                }
                let report = self.report(at, job, Watch::default());
                (self.unpack(job, &report)?, report)
            }
        };
        if unpacked.origin.diff_id != known {
            // A file that became another one meanwhile. Nobody else knows this content as that.
            return Err(self.wrong(job, Rule::Layout("it changed while it was read".to_owned())));
        }
        let fixups = unpacked.fixups(lower)?;
        let used = self.publish(unpacked, &fixups)?;
        report.stage(Stage::Done);
        Ok(used)
    }

    /// What is unpacked beneath a directory that is not there would be beside the point.
    fn check_base(&self, base: &Name, lower: Lower<'_>) -> Result<()> {
        if lower.nearest(base)?.is_some() {
            return Ok(());
        }
        let text = "no lower layer has this directory, beneath which a layer is to be unpacked";
        let rule = Rule::Layout(text.to_owned());
        let name = String::from_utf8_lossy(base.path());
        Err(Error::image(self.image, Some(&name), rule))
    }

    fn unpack(&self, job: &Job<'_>, report: &LayerReport<'_>) -> Result<Unpacked> {
        let store = &self.store.inner;
        let slot = store.flights.slot(&|| self.stopped());
        let _slot = slot.map_err(|Stopped| stopped())?;
        let (staged, tree) = stage(self.store)?;
        let input = (job.open)()?;
        report.stage(Stage::Downloading);
        let tick = || report.tick();
        let mut stream = Archive::start(input, self.allowed(job), report.watch.clone(), &tick)
            .step(|| "start a thread that reads a layer".to_owned())?;
        let target = Tree::new(staged.as_fd(), clone(&tree)?, &store.limits);
        let mut target = target.map_err(|fault| fault.of(self.image, None))?;
        let base = job.base.as_ref();
        let unpacked = archive::unpack(&mut stream, &mut target, &store.limits, base, self.image);
        if let Err(error) = unpacked {
            // What the reader saw is the cause, if it saw something.
            let broken = stream.broken();
            return Err(broken.map_or(error, |broken| self.broken(job, broken)));
        }
        let made = target.finish();
        let made = made.map_err(|fault| fault.of(self.image, None))?;
        let (tar, packed) = stream.finish().map_err(|broken| self.broken(job, broken))?;
        self.verify(job, tar, packed)?;
        if !job.is_unchanged()? {
            self.stable.store(false, Ordering::Relaxed);
        }
        let origin = Origin {
            diff_id: tar.digest,
            blob: Some(packed.digest),
            base: job.base.clone(),
        };
        Ok(Unpacked {
            staged,
            tree,
            made,
            origin,
        })
    }

    fn allowed(&self, job: &Job<'_>) -> Allowed {
        Allowed {
            packed: job.size.unwrap_or(u64::MAX),
            tar: self.store.inner.limits.bytes,
            ratio: self.store.inner.limits.ratio,
            budget: self.budget.clone(),
        }
    }

    fn verify(&self, job: &Job<'_>, tar: Counts, packed: Counts) -> Result<()> {
        if let Some(expected) = job.size
            && expected != packed.length
        {
            let actual = packed.length;
            return Err(self.wrong(job, Rule::Size { expected, actual }));
        }
        let digest = |expected: Digest, actual: Digest| match expected == actual {
            true => Ok(()),
            false => Err(self.wrong(
                job,
                Rule::Digest {
                    expected: expected.to_string(),
                    actual: actual.to_string(),
                },
            )),
        };
        match job.claim {
            Claim::Tar(diff_id) => {
                digest(job.name, packed.digest)?;
                digest(diff_id, tar.digest)
            }
            Claim::Blob => digest(job.name, packed.digest),
            Claim::File(..) => Ok(()),
        }
    }

    fn publish(&self, unpacked: Unpacked, fixups: &Fixups) -> Result<Used> {
        publish(self.store, unpacked, fixups, self.image)
    }

    fn take(&self, key: &str) -> Result<Flight<'_>> {
        let inner = &self.store.inner;
        let flight = inner
            .flights
            .take(&inner.dirs.locks, key, &|| self.stopped())?;
        flight.map_err(|Stopped| stopped())
    }

    fn report(&self, index: usize, job: &Job<'_>, watch: Watch) -> LayerReport<'_> {
        let watch = Watch {
            stop: Arc::clone(&self.stop),
            ..watch
        };
        let of = job.size.unwrap_or(0);
        LayerReport::new(self.options.progress, index, job.name, of, watch)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn broken(&self, job: &Job<'_>, broken: Broken) -> Error {
        match broken {
            Broken::Rule(rule) => self.wrong(job, rule),
            // A source that knows better says it in its own words.
            Broken::Source(error) => error.downcast::<Error>().unwrap_or_else(|error| {
                let step = match job.claim {
                    Claim::File(..) => format!("read the image {:?}", self.image),
                    _ => format!("read the layer {} of the image {:?}", job.name, self.image),
                };
                Error::host(step, error)
            }),
        }
    }

    fn wrong(&self, job: &Job<'_>, rule: Rule) -> Error {
        let name = job.name.to_string();
        let entry = (!matches!(job.claim, Claim::File(..))).then_some(&*name);
        Error::image(self.image, entry, rule)
    }
}

impl<'a> Job<'a> {
    /// A file of this machine.
    pub(super) fn file(file: Arc<File>, path: String) -> Result<Self> {
        let stat = rustix::fs::fstat(&file).step(|| "look at a layer".to_owned())?;
        let copy = Arc::clone(&file);
        Ok(Self {
            name: identity(&stat),
            claim: Claim::File(file, path),
            size: None,
            base: None,
            open: Box::new(move || {
                let file = Arc::clone(&copy);
                Ok(Box::new(FromStart { file, at: 0 }))
            }),
        })
    }

    fn key(&self) -> String {
        match self.claim {
            Claim::Tar(diff_id) => layer_key(diff_id),
            Claim::Blob => format!("blob-{}", self.name.hex()),
            Claim::File(..) => image_key(self.name),
        }
    }

    /// Whether a file is still what it was when it was opened.
    fn is_unchanged(&self) -> Result<bool> {
        let Claim::File(file, path) = &self.claim else {
            return Ok(true);
        };
        let stat = rustix::fs::fstat(file).step(|| format!("look at the image {path:?}"))?;
        Ok(identity(&stat) == self.name)
    }
}

impl Unpacked {
    /// A tree that did not come from a stream.
    pub(super) fn new(staged: Staged, tree: OwnedFd, made: Made, diff_id: Digest) -> Self {
        let origin = Origin {
            diff_id,
            blob: None,
            base: None,
        };
        Self {
            staged,
            tree,
            made,
            origin,
        }
    }

    fn fixups(&self, lower: Lower<'_>) -> Result<Fixups> {
        Fixups::find(&self.made.implied, &self.made.whiteouts, lower)
    }
}

/// Publishes a layer under whose key the caller flies.
pub(super) fn publish(
    store: &Store,
    unpacked: Unpacked,
    fixups: &Fixups,
    image: &str,
) -> Result<Used> {
    let Unpacked {
        staged,
        tree,
        mut made,
        origin,
    } = unpacked;
    fixups.apply(&tree, &mut made.listing, image)?;
    let inner = &store.inner;
    let used = (inner.layers).publish(staged, made, origin, fixups, &inner.trash)?;
    store.published(vec![used.record.key.clone()]);
    Ok(used)
}

/// Makes a private directory, and the tree in it.
pub(super) fn stage(store: &Store) -> Result<(Staged, OwnedFd)> {
    let staged = Staged::new(&store.inner.dirs, &store.inner.trash)?;
    let tree = staged.subdirectory(TREE, Mode::from_raw_mode(0o755))?;
    Ok((staged, tree))
}

pub(super) fn clone(fd: &OwnedFd) -> Result<OwnedFd> {
    fd.try_clone()
        .step(|| "open the tree of a new layer".to_owned())
}

/// Under what an image is imported.
pub(super) fn image_key(id: Digest) -> String {
    format!("image-{}", id.hex())
}

fn layer_key(diff_id: Digest) -> String {
    format!("layer-{}", diff_id.hex())
}

/// Reads a file from its start, whoever else reads it.
struct FromStart {
    file: Arc<File>,
    at: u64,
}

impl Read for FromStart {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read_at(buffer, self.at)?;
        self.at += length as u64;
        Ok(length)
    }
}

/// What a file is known by: a digest of all that changes when its content does.
pub(super) fn identity(stat: &Stat) -> Digest {
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

/// Never seen: another error came before it.
fn stopped() -> Error {
    Error::host(
        "go on with an import that failed",
        io::Error::from(io::ErrorKind::ConnectionAborted),
    )
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
