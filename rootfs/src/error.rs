//! What can go wrong with images and root filesystems.
//!
//! Callers decide on the variant: an image that is not there, an image that is wrong, an id that
//! is taken, and a host that did not do its part lead to different answers. Texts are for people;
//! the cause is kept as the source and never repeated.

use std::io;
use std::path::PathBuf;

use crate::registry::RegistryError;

/// What can go wrong with images and root filesystems.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The image source has a form that cannot be read.
    #[error(
        "the image source {0:?} is not supported: use the path of a tar (plain, gzip or zstd) or \
         of a directory, file:///PATH, oci:///PATH[:REF], docker://[HOST/]REPOSITORY[:TAG|@DIGEST], \
         preloaded+layer:///PATH?layer=URL&layer_path=DIRECTORY&layer_digest=SHA256, or raw:///PATH"
    )]
    UnsupportedSource(String),
    /// The image source has a known form, but something in it is wrong.
    #[error("the image source {image:?} cannot be used: {reason}")]
    InvalidSource {
        /// The source, without its secrets.
        image: String,
        /// What is wrong, and what to write instead.
        reason: String,
    },
    /// A parameter of a `preloaded+layer` source is missing. The text is Guardian's.
    #[error(
        "no query parameter '{parameter}' found in URL {url}: layer, layer_path and layer_digest \
         are needed"
    )]
    MissingParameter {
        /// Its name.
        parameter: &'static str,
        /// The source, without its secrets.
        url: String,
    },
    /// A registry, or the server of a layer, did not give what was asked for.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The image is not where its source says.
    #[error("the image {image:?} does not exist: check the path")]
    ImageNotFound {
        /// The source, as it was given.
        image: String,
        /// What was looked for.
        #[source]
        source: io::Error,
    },
    /// The image is there, but cannot be used; nothing of it was kept.
    #[error("the image {image:?} cannot be used{}", entry.as_deref().map(|e| format!(", because of its entry {e:?}")).unwrap_or_default())]
    ImageMalformed {
        /// The source, as it was given.
        image: String,
        /// The entry of the archive, or the file of the layout, that is wrong.
        entry: Option<String>,
        /// The rule that it breaks.
        #[source]
        rule: Rule,
    },
    /// The id cannot be the name of a root filesystem.
    #[error(
        "the id {0:?} cannot be used: give 1 to 255 bytes without a slash, not starting with a dot"
    )]
    InvalidId(String),
    /// There is a root filesystem of this id.
    #[error(
        "a root filesystem with the id {0:?} already exists: destroy it first, or use another id"
    )]
    IdInUse(String),
    /// There is no root filesystem of this id.
    #[error("there is no root filesystem with the id {0:?}")]
    NoSuchRootfs(String),
    /// The limit has no room for the image. (Users of other image plugins know this text.)
    #[error(
        "disk limit is smaller than volume size: the limit is {limit} bytes and the layers of the \
         image have {volume}; give a larger limit, or one that counts only what is written"
    )]
    DiskLimitTooSmall {
        /// The limit, in bytes.
        limit: u64,
        /// The size of the image, in bytes.
        volume: u64,
    },
    /// Nothing can hold a root filesystem to its limit, and the store is to refuse such.
    #[error("the disk limit cannot be enforced: {0}")]
    NoQuota(String),
    /// Another server works with this store.
    #[error("the store {} is in use by another server: stop it, or use another store", .0.display())]
    StoreInUse(PathBuf),
    /// There is no space, also after the trash was emptied and what is unused was collected.
    #[error(
        "the disk of the store {} is full, and nothing more can be collected: make room on it, \
         or destroy something",
        store.display()
    )]
    StoreFull {
        /// The store.
        store: PathBuf,
        /// What found no space.
        #[source]
        source: Box<Error>,
    },
    /// The mapping of owners is not usable.
    #[error("the mapping of owners cannot be used: {0}")]
    InvalidMapping(String),
    /// More directories would have to be stacked than the kernel can.
    #[error(
        "the root filesystem {id:?} would need {layers} layers and the kernel stacks 500: merge \
         some of the image's, and mind that read-only needs one more"
    )]
    TooManyLayers {
        /// The root filesystem.
        id: String,
        /// How many there would be.
        layers: usize,
    },
    /// The kernel cannot do what is needed.
    #[error("this kernel has no {what}: it needs Linux {since} or newer")]
    HostLacks {
        /// The feature.
        what: &'static str,
        /// The first kernel that has it.
        since: &'static str,
    },
    /// A step on the host failed.
    #[error("cannot {step}{}", kernel.as_deref().map(|text| format!(" (the kernel says: {text})")).unwrap_or_default())]
    Host {
        /// The step, with its object.
        step: String,
        /// The kernel's own words, where it left any.
        kernel: Option<String>,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A rule that every image must keep.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Rule {
    /// `..` in a name.
    #[error("a name must not contain '..'")]
    Parent,
    /// Nothing, a NUL byte, or a whiteout of nothing.
    #[error("it is not a usable file name")]
    Name,
    /// A name, a part of it, or a link target longer than is allowed.
    #[error("a name must not be longer than {0} bytes")]
    Length(usize),
    /// More directories inside each other than is allowed.
    #[error("directories must not be nested deeper than {0}")]
    Depth(usize),
    /// Nothing, or a NUL byte, as the target of a symbolic link.
    #[error("a symbolic link must lead to a usable file name")]
    Target,
    /// A symbolic link whose target the disk cannot keep.
    #[error(
        "its target has {length} bytes, and {file_system} keeps {limit} at most: put the store on \
         another file system"
    )]
    TargetLength {
        /// Bytes of the target.
        length: usize,
        /// Bytes that the file system takes.
        limit: usize,
        /// The file system of the store.
        file_system: &'static str,
    },
    /// A way through symbolic links that never ends.
    #[error("its way leads through too many symbolic links")]
    Loop,
    /// The root itself is not a directory.
    #[error("the root must be a directory")]
    RootNotDirectory,
    /// A hard link to something that the layer did not bring before it.
    #[error("a hard link must lead to a file that comes earlier in the same layer, not to {0:?}")]
    LinkTarget(String),
    /// An owner that would be another one inside.
    #[error("the owner {0} is too large: 2147483647 is the last one")]
    Owner(u64),
    /// Too many entries.
    #[error("a layer must not have more than {0} entries")]
    Entries(u64),
    /// Too many bytes.
    #[error("a layer must not have more than {0} bytes")]
    Bytes(u64),
    /// A compressed stream that becomes suspiciously long.
    #[error(
        "its compressed bytes become more than {0} times as many: allow it by the limit `ratio` if \
         you trust it"
    )]
    Ratio(u64),
    /// Names that would need too much memory.
    #[error("the names of a layer must not need more than {0} bytes")]
    Names(u64),
    /// Names that would need too much memory until the layer is complete.
    #[error(
        "the whiteouts of a layer, and the directories that it does not describe, must not have \
         names of more than {0} bytes"
    )]
    Remembered(u64),
    /// An extended attribute that no file system takes: its name, and the bytes of its value.
    #[error("its extended attribute {0:?} of {1} bytes is too long")]
    Attribute(String, usize),
    /// More extended attributes than can be listed.
    #[error("the names of its extended attributes must not have more than {0} bytes")]
    Attributes(usize),
    /// A header that says something impossible.
    #[error("its header is wrong: {0}")]
    Header(String),
    /// An archive or a compressed stream that cannot be read.
    #[error("its bytes cannot be read as what they claim to be")]
    Stream(#[source] io::Error),
    /// Content that is not what was promised.
    #[error("its content has the digest {actual} instead of {expected}")]
    Digest {
        /// What was promised.
        expected: String,
        /// What is there.
        actual: String,
    },
    /// Content of another size than was promised.
    #[error("it has {actual} bytes instead of {expected}")]
    Size {
        /// What was promised.
        expected: u64,
        /// What is there.
        actual: u64,
    },
    /// An image layout, manifest or configuration that cannot be used.
    #[error("{0}")]
    Layout(String),
    /// More bytes than are left of a quota.
    #[error(
        "its layers have {} bytes, and {most} are allowed",
        packed.map_or("more".to_owned(), |packed| format!("{packed} packed"))
    )]
    Quota {
        /// What is allowed for all new layers, when they are unpacked.
        most: u64,
        /// What the layers have already when they are packed; `None` when they turned out to be
        /// too big while they were unpacked.
        packed: Option<u64>,
    },
    /// More layers than overlay can stack.
    #[error("it has {0} layers: 500 can be stacked")]
    Layers(usize),
}

/// The result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A failed step on the host.
    pub(crate) fn host(step: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Host {
            step: step.into(),
            kernel: None,
            source: source.into(),
        }
    }

    /// An image that breaks a rule.
    pub(crate) fn image(image: &str, entry: Option<&str>, rule: Rule) -> Self {
        Self::ImageMalformed {
            image: image.to_owned(),
            entry: entry.map(str::to_owned),
            rule,
        }
    }
}

/// Adds the step to a result of a system call.
pub(crate) trait Step<T> {
    /// Names what was tried: `cannot {step}`.
    fn step(self, step: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Step<T> for std::result::Result<T, E> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::host(step(), source))
    }
}
