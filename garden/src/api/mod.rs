//! The server side of the Garden wire API, exact to what stock Go clients accept.
//!
//! ```text
//! server    accepts, reads each connection's first head (head)
//!   ├─ hijack ─ session    run, attach: frames (frames) both ways on the raw socket
//!   │     └──── streams    output, fetched over connections of its own
//!   └─ handlers            everything else, through hyper: routes, bulk, files, own
//! ```
//!
//! [`Backend`] is what it needs of the manager, in the manager's words; `wire` maps them to JSON
//! and back. It keeps grace times (`grace`), because only it sees who uses a container.

mod backend;
pub(crate) mod base64;
mod bulk;
pub(crate) mod channel;
pub(crate) mod error;
mod events;
mod files;
pub(crate) mod frames;
mod grace;
mod handlers;
pub(crate) mod head;
mod health;
mod hijack;
pub mod listen;
pub mod meters;
mod own;
mod own_limits;
pub(crate) mod partial;
pub(crate) mod pull;
mod routes;
mod server;
mod session;
mod story;
mod streams;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub(crate) mod wire;

pub use backend::{Backend, CpuScale, FilesOut, Filters, StreamIn, TarStream};
pub use health::Checks;
pub use listen::{Listen, ListenError, Listeners};
pub use meters::Meters;
pub use own::{Peas, Ps, PsContainer};
pub use server::{Options, Server};
pub use story::LogList;
