//! Processes and peas as the rest of the crate meets them.
//!
//! [`attachment`] is how whoever runs processes hands one to whoever speaks to its user. It must
//! never know of a wire format.

pub mod attachment;
pub(crate) mod streams;

pub use attachment::{Attachment, Control};
