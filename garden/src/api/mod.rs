//! The server side of the Garden wire API.

mod backend;

pub use backend::{Backend, Filters, StreamIn, TarStream};
