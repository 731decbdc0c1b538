//! The layers of an image as a mapping shows them, found once and remembered.
//!
//! Used by the mounting of root filesystems. Looking for a hundred layers, and opening them, costs
//! more than mounting them. What was found counts for as long as the directory of all layers is
//! unchanged: a layer comes and goes by a rename in there, in whatever process, and that changes
//! the directory's times. A stack keeps descriptors open, so their number is bounded; one that is
//! no longer true is forgotten with the next look.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use rustix::process::{Resource, getrlimit};

use super::lock;
use crate::error::{Result, Step};
use crate::image::{Image, Layer};
use crate::rootfs::Mapping;

/// The most layers that are remembered, and at the same time descriptors.
const MOST: usize = 1024;

/// A change within one tick of the clock leaves a directory's times as they are: what is younger
/// than this is not trusted to show the next one.
const SETTLED: Duration = Duration::from_secs(1);

/// Trees of layers that are mounted above each other.
#[derive(Debug)]
pub(crate) struct Stack {
    /// As paths in the directory of all layers; the topmost first.
    pub(crate) layers: Vec<String>,
    /// Whose ids their files get by the mount.
    pub(crate) mapping: Mapping,
    /// Opened in the view of the mapping.
    pub(super) trees: OnceLock<Vec<OwnedFd>>,
    /// What the next overlay of them can begin with: see [`super::ahead`].
    pub(super) ahead: Mutex<Option<OwnedFd>>,
}

impl Stack {
    pub(crate) fn new(layers: Vec<String>, mapping: Mapping) -> Self {
        Self {
            layers,
            mapping,
            trees: OnceLock::new(),
            ahead: Mutex::default(),
        }
    }
}

#[derive(Debug)]
struct Known {
    layers: Vec<Layer>,
    mapping: Mapping,
    times: Times,
    stack: Arc<Stack>,
}

/// When a directory was changed: by its content, and at all.
type Times = [(i64, u64); 2];

/// The stacks that were used last.
#[derive(Debug, Default)]
pub(crate) struct Stacks(Mutex<VecDeque<Known>>);

impl Stacks {
    /// The stack of an image, made if it is not known. The caller holds the image.
    pub(crate) fn get(
        &self,
        layers: &OwnedFd,
        image: &Image,
        mapping: &Mapping,
        make: impl FnOnce() -> Result<Stack>,
    ) -> Result<Arc<Stack>> {
        let (times, settled) = times(layers)?;
        {
            let mut all = lock(&self.0);
            all.retain(|known| known.times == times);
            let same = |known: &Known| known.layers == image.layers && known.mapping == *mapping;
            if let Some(at) = all.iter().position(same)
                && let Some(known) = all.remove(at)
            {
                let stack = Arc::clone(&known.stack);
                all.push_front(known);
                return Ok(stack);
            }
        }
        // Not under the lock: it may copy layers.
        let stack = Arc::new(make()?);
        if settled {
            let mut all = lock(&self.0);
            all.push_front(Known {
                layers: image.layers.clone(),
                mapping: mapping.clone(),
                times,
                stack: Arc::clone(&stack),
            });
            let mut left = most();
            all.retain(|known| {
                let fits = known.layers.len() <= left;
                left = left.saturating_sub(known.layers.len());
                fits
            });
        }
        Ok(stack)
    }
}

/// A quarter of the descriptors that this process may have.
fn most() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit / 4).unwrap_or(MOST).min(MOST)
}

fn times(directory: &OwnedFd) -> Result<(Times, bool)> {
    let stat = rustix::fs::fstat(directory).step(|| "look at the layers".to_owned())?;
    let times = [
        (stat.st_mtime, stat.st_mtime_nsec),
        (stat.st_ctime, stat.st_ctime_nsec),
    ];
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.map_or(0, |since| since.as_secs().try_into().unwrap_or(i64::MAX));
    let youngest = stat.st_mtime.max(stat.st_ctime);
    let wait = i64::try_from(SETTLED.as_secs()).unwrap_or(1);
    Ok((times, now > youngest.saturating_add(wait)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Digest;
    use crate::image::ImageConfig;
    use crate::unpack::attributes::Attributes;

    fn image(keys: usize) -> Image {
        let digest = Digest::of(b"");
        let layer = |number| Layer {
            key: format!("key-{number}"),
            diff_id: digest,
            size: 1,
        };
        Image {
            id: digest,
            source: String::new(),
            layers: (0..keys).map(layer).collect(),
            root: Attributes::default(),
            config: ImageConfig::default(),
        }
    }

    fn old(directory: &std::path::Path, nanoseconds: i64) -> OwnedFd {
        let fd: OwnedFd = std::fs::File::open(directory).unwrap().into();
        let time = rustix::fs::Timespec {
            tv_sec: 1_000_000,
            tv_nsec: nanoseconds,
        };
        let times = rustix::fs::Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::futimens(&fd, &times).unwrap();
        fd
    }

    fn made(stacks: &Stacks, directory: &OwnedFd, image: &Image) -> bool {
        let mut made = false;
        let make = || {
            made = true;
            Ok(Stack::new(Vec::new(), Mapping::Host))
        };
        stacks.get(directory, image, &Mapping::Host, make).unwrap();
        made
    }

    #[test]
    fn a_directory_that_changed_just_now_is_not_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap().into();
        let stacks = Stacks::default();
        assert!(made(&stacks, &fd, &image(1)));
        assert!(made(&stacks, &fd, &image(1)));
    }

    #[test]
    fn a_changed_directory_forgets_and_there_is_a_bound() {
        let dir = tempfile::tempdir().unwrap();
        let fd = old(dir.path(), 1);
        let stacks = Stacks::default();
        // The change time cannot be set back; it has to pass.
        std::thread::sleep(SETTLED * 2 + Duration::from_millis(200));
        assert!(made(&stacks, &fd, &image(1)));
        assert!(!made(&stacks, &fd, &image(1)));
        assert!(made(&stacks, &fd, &image(2)));
        assert!(made(&stacks, &fd, &image(MOST)));
        assert!(made(&stacks, &fd, &image(1)));
        let fd = old(dir.path(), 2);
        assert!(made(&stacks, &fd, &image(1)));
    }
}
