//! What the checks are about, looked at once.
//!
//! A store that is not there is not made: then what depends on it is answered for the nearest
//! directory above, on whose disk it would be.

use std::path::{Path, PathBuf};

use garden_rootfs::{Capabilities, Role, Store, StoreOptions};

/// A host, as far as it matters.
pub(super) struct Host {
    /// The place of the store.
    pub(super) path: PathBuf,
    /// The store, when it is there; or why it cannot be opened.
    pub(super) store: Option<Result<Store, garden_rootfs::Error>>,
    /// Whether the checks may do what only root may do.
    pub(super) root: bool,
    /// Whether they may measure.
    pub(super) measure: bool,
    /// The release of the kernel.
    pub(super) release: String,
}

impl Host {
    /// Looks at this one.
    pub(super) fn look(path: &Path, measure: bool) -> Self {
        let store = Store::is_at(path).then(|| {
            let mut options = StoreOptions::new(path);
            options.role = Role::Tool;
            Store::open(&options)
        });
        let release = rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned();
        Self {
            path: path.to_owned(),
            store,
            root: rustix::process::geteuid().is_root(),
            measure,
            release,
        }
    }

    /// The store, if it could be opened.
    pub(super) fn store(&self) -> Option<&Store> {
        self.store.as_ref()?.as_ref().ok()
    }

    /// What kernel and disk can do; `None` without a store that can be asked.
    pub(super) fn capabilities(&self) -> Option<Capabilities> {
        Some(self.store()?.capabilities())
    }

    /// The first two numbers of the kernel's release.
    pub(super) fn version(&self) -> (u32, u32) {
        let mut numbers = self.release.split(|c: char| !c.is_ascii_digit());
        let mut next = || {
            numbers
                .next()
                .and_then(|text| text.parse().ok())
                .unwrap_or(0)
        };
        (next(), next())
    }

    /// A small file of the kernel's.
    pub(super) fn file(path: &str) -> Option<String> {
        let text = std::fs::read_to_string(path).ok()?;
        Some(text.trim().to_owned())
    }
}
