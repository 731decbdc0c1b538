//! Turning foreign bytes into a layer: a directory in overlay form.
//!
//! Called by the importer, on its own threads. [`archive`] reads a tar as a stream, [`copy`] walks
//! a directory; both describe each object to [`tree::Tree`], the only place that touches the disk,
//! which keeps everything beneath one directory descriptor. What comes out depends on the input
//! alone: never on lower layers, on the order of whiteouts, or on the clock.
//!
//! There is no sandbox around it. Landlock would cost nothing that can be measured, but what it can
//! forbid (to make, write, link or remove outside a directory) cannot happen by descriptors that
//! were opened beneath it, what else could (owner, mode, time, attributes) it does not know, and
//! the thread that unpacks also publishes, and tells a caller's function how far it is.
//!
//! Nothing here trusts a name, a size, an owner or an attribute; what breaks a rule is an error
//! that names the entry, and the half-made tree is thrown away by the caller.

pub(crate) mod archive;
pub(crate) mod attributes;
pub(crate) mod copy;
pub(crate) mod listing;
pub(crate) mod name;
mod place;
pub(crate) mod tree;
pub(crate) mod whiteout;

use std::io;

use crate::error::{Error, Rule};

/// How much one layer may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries, of any type. Default: 2 million.
    pub entries: u64,
    /// Bytes of the layer when it is not compressed. Default: 64 GiB.
    pub bytes: u64,
    /// Bytes of the layer for each byte of its compressed form, once it has more than 1 GiB: what
    /// has more is a bomb. Default: 500; gzip makes zeros 1000 times as short.
    pub ratio: u64,
    /// Bytes of one name, and of one link target. Default: 4095, the longest path of Linux.
    pub name: usize,
    /// Directories inside each other. Default: 512.
    pub depth: usize,
    /// Bytes of all names, link targets and names of extended attributes. They are kept in the
    /// layer's listing; what of them must be remembered until the layer is complete may have an
    /// eighth of it. Default: 256 MiB.
    pub names: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 2_000_000,
            bytes: 64 << 30,
            ratio: 500,
            name: 4095,
            depth: 512,
            names: 256 << 20,
        }
    }
}

/// Why a layer was not made.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The entry breaks a rule.
    Rule(Rule),
    /// The host failed at a step.
    Host(String, io::Error),
}

impl From<Rule> for Fault {
    fn from(rule: Rule) -> Self {
        Self::Rule(rule)
    }
}

impl Fault {
    /// A failure to read the input: the host's fault when the kernel reported it, the image's when
    /// a decoder did.
    pub(crate) fn reading(error: io::Error) -> Self {
        if error.raw_os_error().is_some() {
            return Self::Host("read the image".to_owned(), error);
        }
        match error.downcast::<Rule>() {
            Ok(rule) => Self::Rule(rule),
            Err(error) => Self::Rule(Rule::Stream(error)),
        }
    }

    /// The error of the whole import.
    pub(crate) fn of(self, image: &str, entry: Option<&[u8]>) -> Error {
        let entry = entry.map(String::from_utf8_lossy);
        match self {
            Self::Rule(rule) => Error::image(image, entry.as_deref(), rule),
            Self::Host(step, source) => match entry {
                Some(entry) => {
                    Error::host(format!("{step} (entry {entry:?} of {image:?})"), source)
                }
                None => Error::host(format!("{step} (image {image:?})"), source),
            },
        }
    }
}

impl From<garden_tar::Error> for Fault {
    fn from(error: garden_tar::Error) -> Self {
        match error {
            garden_tar::Error::Header(text) => Self::Rule(Rule::Header(text)),
            garden_tar::Error::Read(error) => Self::reading(error),
        }
    }
}

/// Adds the step to a result of a system call.
pub(crate) trait Doing<T> {
    /// Names what was tried: `cannot {step}`.
    fn doing(self, step: &str) -> Result<T, Fault>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, step: &str) -> Result<T, Fault> {
        self.map_err(|source| Fault::Host(step.to_owned(), source.into()))
    }
}
