//! Images and root filesystems.

/// What can go wrong with images and root filesystems.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {}
