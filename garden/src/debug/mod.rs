//! The debug server: what an operator, or a machine that watches, asks of a running server.
//!
//! ```text
//! server       requests: which page, in which form            (HTTP only)
//! look         one look at everything: the manager, the API server, the process, the host
//! prometheus   that look in Prometheus' text form
//! vars         that look as Guardian's expvar
//! page         the status page, and the JSON that it polls
//! ```
//!
//! On an address of its own, so that it answers when the API is flooded, and so that who may look need
//! not be who may create containers. It changes nothing but the level of the log. It tells names,
//! counts, times and the texts of events: never properties, arguments or environment.

mod look;
mod page;
mod prometheus;
mod server;
mod vars;

use std::fmt;

pub use look::{ContainerLook, Look, Rates};
pub use server::Debug;

/// Logs another level from now on; with an error, why it cannot.
pub type SetLevel = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// How the level of the log is seen and changed. Whoever set the log up knows how.
pub struct Levels {
    /// What is logged now.
    pub get: Box<dyn Fn() -> String + Send + Sync>,
    /// Logs another level from now on; with an error, why it cannot.
    pub set: SetLevel,
}

impl fmt::Debug for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Levels").finish_non_exhaustive()
    }
}
