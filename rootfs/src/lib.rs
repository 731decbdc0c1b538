//! Images and root filesystems.
//!
//! A [`Store`] keeps the layers of images, each once, and makes root filesystems from them:
//! overlay mounts that no mount table of the host shows, in the owners that a container needs,
//! whose end costs nothing and whose removal is one rename. Nothing here knows containers, and
//! nothing here is asynchronous: every call blocks, some of them on a disk, so callers give them
//! their own threads.
//!
//! ```no_run
//! use garden_rootfs::{CreateRequest, DiskLimit, ImageSource, Mapping, Store, StoreOptions};
//!
//! # fn main() -> garden_rootfs::Result<()> {
//! let store = Store::open(&StoreOptions::new("/var/lib/garden"))?;
//! let image = store.import(&ImageSource::parse("/images/busybox.tar.gz")?)?;
//! let rootfs = store.create(&CreateRequest {
//!     id: "web-1",
//!     image: &image,
//!     mapping: Mapping::Host,
//!     read_only: false,
//!     limit: DiskLimit::default(),
//! })?;
//! // Attach `rootfs.mount` in a container's mount namespace, run it, and then:
//! store.destroy_holding("web-1", vec![rootfs.mount])?;
//! # Ok(())
//! # }
//! ```

mod capabilities;
mod check;
mod collect;
mod digest;
mod dirs;
mod durable;
mod error;
mod fixup;
mod flight;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod host;
mod image;
mod import;
mod layers;
mod mount;
mod mounting;
mod oci;
pub mod plugin;
mod quota;
mod recover;
mod registry;
mod remove;
mod rootfs;
mod shifted;
mod source;
mod staging;
mod store;
mod stream;
mod trash;
mod unpack;

pub use capabilities::{Capabilities, FileSystem, Pretend, Volatile};
pub use check::{CheckReport, Finding, FindingKind, Repair, Repaired};
pub use collect::{
    CollectPolicy, CollectProblem, CollectReport, Disk, KeptObjects, Outcome, Space, WaterMarks,
};
pub use digest::{Digest, NoDigest};
pub use error::{Error, Result, Rule};
pub use garden_sys::userns::IdRange;
pub use host::keep_descriptors_from_children;
pub use image::{Image, ImageConfig, Layer};
pub use import::options::{Credentials, ImportOptions, Progress, Stage};
pub use mounting::{BindRequest, Health};
pub use quota::{
    AppliedLimit, DiskLimit, Enforced, Kind as QuotaKind, Measured, NotCounted, Scope, Usage,
    WithoutQuota,
};
pub use recover::Recovered;
pub use registry::{RegistryError, RegistryPolicy, ServerStep, Timeouts};
pub use rootfs::{CreateRequest, Mapping, Rootfs, RootfsInfo};
pub use source::{ImageSource, RegistryReference, TagOrDigest};
pub use store::{ImageInfo, Maintenance, Role, Store, StoreOptions, Unmount};
pub use trash::{TrashFailure, TrashStats};
pub use unpack::Limits;
pub use unpack::attributes::Attributes;
pub use unpack::listing::{Damage, Wrong};
