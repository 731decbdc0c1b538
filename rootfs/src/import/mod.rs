//! Importing images: from a source to layers in the store.
//!
//! The work behind `Store::import`: finds out what the source is now, and when that is not in the
//! store, gives its layers to the [`pipeline`]. Sources are resolved by each import, as tags move;
//! an image that is still the same costs no more than that. Threads and processes that want the
//! same image at the same time do the work once.

pub(crate) mod fetch;
mod local;
pub(crate) mod options;
mod pipeline;
mod preloaded;
mod report;

use std::sync::Arc;

use fetch::Fetch;
use options::{ImportOptions, Progress, Stage};
use pipeline::{Claim, Job, Pipeline, image_key};

use crate::digest::Digest;
use crate::error::{Error, Result, Rule};
use crate::flight::Flight;
use crate::image::{Image, ImageConfig};
use crate::layers::LayerRecord;
use crate::oci::Layout;
use crate::source::ImageSource;
use crate::store::Store;

/// The most layers that overlay stacks.
const STACK: usize = 500;

/// How many layers are unpacked at once in one process: all processors have something to do while
/// some wait for a disk or a network, and memory stays bounded.
pub(crate) fn slots() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    (2 * processors).clamp(4, 16)
}

/// One import.
struct Import<'a> {
    store: &'a Store,
    /// The source as it was given.
    image: &'a str,
    options: &'a ImportOptions<'a>,
}

impl Store {
    /// Brings an image into the store, unless it is there and its source did not change.
    pub fn import(&self, source: &ImageSource) -> Result<Image> {
        self.import_with(source, &ImportOptions::default())
    }

    /// The same, as the options say.
    ///
    /// # Errors
    /// [`Error::ImageNotFound`] and [`Error::ImageMalformed`] tell about the image; after any
    /// error nothing of it has a name in the store, but for layers that are whole and verified.
    /// [`Error::StoreFull`] when it needs more space than can be made: until then it is tried again
    /// after a collection, with its progress told from the start.
    pub fn import_with(&self, source: &ImageSource, options: &ImportOptions<'_>) -> Result<Image> {
        self.with_more_room(|| self.import_once(source, options))
    }

    fn import_once(&self, source: &ImageSource, options: &ImportOptions<'_>) -> Result<Image> {
        let image = source.to_string();
        let import = Import {
            store: self,
            image: &image,
            options,
        };
        match source {
            ImageSource::Path(path) => import.path(path),
            ImageSource::OciLayout { path, reference } => {
                let layout = Layout {
                    path,
                    reference: reference.as_deref(),
                    image: &image,
                    client: &self.inner.registry,
                };
                if options.unverified_layouts {
                    return import.unverified(&layout);
                }
                import.fetched(&layout)
            }
            ImageSource::Registry(reference) => {
                let client = &self.inner.registry;
                import.fetched(&client.image(reference, options.credentials, &image))
            }
            ImageSource::Preloaded {
                base,
                layer,
                layer_path,
                layer_digest,
            } => import.preloaded(base, layer, layer_path, *layer_digest),
            // It is used where it is.
            ImageSource::Raw(_) => Err(Error::InvalidSource {
                reason: "a raw directory is bound, not imported".to_owned(),
                image,
            }),
        }
    }
}

impl Import<'_> {
    /// An image whose manifest names all that is in it.
    fn fetched(&self, from: &dyn Fetch) -> Result<Image> {
        let manifest = from.manifest()?;
        let mut jobs = Vec::new();
        for blob in &manifest.layers {
            jobs.push(Job {
                name: blob.digest,
                claim: Claim::Tar(blob.diff_id),
                size: Some(blob.size),
                base: blob.base_directory.clone(),
                open: Box::new(|| from.open(blob)),
            });
        }
        self.layered(manifest.digest, &jobs, manifest.config)
    }

    /// An image of these layers, which is known by `id`.
    fn layered(&self, id: Digest, jobs: &[Job<'_>], config: ImageConfig) -> Result<Image> {
        if jobs.len() > STACK {
            return Err(Error::image(self.image, None, Rule::Layers(jobs.len())));
        }
        self.tell(Progress::Layers { total: jobs.len() });
        let known = || self.store.known_image(id, self.image);
        if let Some(known) = known() {
            self.tell_all(jobs, Stage::Cached);
            self.tell(Progress::Done);
            return Ok(known);
        }
        self.tell_all(jobs, Stage::Waiting);
        let _flight = self.flight(id)?;
        // Somebody else may have done it just now.
        if let Some(known) = known() {
            self.tell_all(jobs, Stage::Cached);
            self.tell(Progress::Done);
            return Ok(known);
        }
        self.check_quota(jobs)?;
        let stack = Pipeline::new(self.store, self.image, self.options).run(jobs)?;
        let image = compose(id, self.image, &stack.records, config);
        match stack.stable {
            true => self.store.remember(&image)?,
            false => self.store.keep_held(&image, stack.held),
        }
        self.tell(Progress::Done);
        Ok(image)
    }

    fn flight(&self, id: Digest) -> Result<Flight<'_>> {
        let inner = &self.store.inner;
        loop {
            let flight = inner
                .flights
                .take(&inner.dirs.locks, &image_key(id), &|| false)?;
            if let Ok(flight) = flight {
                return Ok(flight);
            }
        }
    }

    /// Refuses what is too big even while it is packed.
    fn check_quota(&self, jobs: &[Job<'_>]) -> Result<()> {
        let sizes = jobs.iter().filter_map(|job| job.size);
        let packed = sizes.fold(0, u64::saturating_add);
        match self.options.most_bytes {
            Some(most) if packed > most => {
                let packed = Some(packed);
                Err(Error::image(self.image, None, Rule::Quota { most, packed }))
            }
            _ => Ok(()),
        }
    }

    fn tell(&self, progress: Progress) {
        if let Some(sink) = self.options.progress {
            sink(progress);
        }
    }

    fn tell_all(&self, jobs: &[Job<'_>], stage: Stage) {
        for (index, job) in jobs.iter().enumerate() {
            self.tell(Progress::Layer {
                index,
                digest: job.name,
                stage,
                bytes: 0,
                of: job.size.unwrap_or(0),
            });
        }
    }
}

/// The image of these layers, the topmost last.
fn compose(id: Digest, source: &str, records: &[Arc<LayerRecord>], config: ImageConfig) -> Image {
    let mut layers = Vec::new();
    let mut root = None;
    for record in records.iter().rev() {
        root = root.or_else(|| record.root.clone());
        // A layer that is there twice counts only where it is topmost: whatever it shows or hides,
        // it does there; and overlay refuses the same directory twice.
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
    Image {
        id,
        source: source.to_owned(),
        layers,
        root: root.unwrap_or_default(),
        config,
    }
}
