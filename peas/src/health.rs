//! Whether something is healthy, from repeated checks.
//!
//! - [`Rule`]: how often a check is made, and how much it takes to believe it.
//! - [`Health`]: what all checks of one container together say, as a pure state machine.
//! - [`watch_check`]: repeats one check and hands its ends on.
//!
//! ```text
//!            all checks pass               a readiness check fails
//! Starting ───────────────────▶ Ready ◀──────────────────────────────▶ Unready
//!     │                           ▲                                       │
//!     │    a startup check gives  │ all pass again                        │ a liveness
//!     └──▶ up, a liveness check ──┴───▶ Unhealthy ◀───────────────────────┘ check fails
//!          fails
//! ```
//!
//! Called by whoever runs the checks. What a check is, and what to do about an unhealthy container,
//! is for others to decide, never for this module.

mod machine;
mod rule;
mod watch;

use serde::{Deserialize, Serialize};

pub use machine::{Change, Health, Next, Observed, Saved, SavedCheck, Verdict};
pub use rule::{Role, Rule, RuleError};
pub use watch::watch_check;

/// What is known about a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthState {
    /// Not all of its checks have passed so far.
    Starting,
    /// Passes all its checks.
    Ready,
    /// Was ready, and is not now; nothing says that it is broken.
    Unready,
    /// Its startup has failed, or a liveness check says that it is broken.
    Unhealthy,
}

impl HealthState {
    /// The word for it, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Unready => "unready",
            Self::Unhealthy => "unhealthy",
        }
    }
}

impl std::fmt::Display for HealthState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The end of one run of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// It said yes. Otherwise it said no, could not be run, or took too long.
    pub passed: bool,
    /// The last of what it said, or why it did not; bounded and free of secrets.
    pub output: String,
    /// When it ended, in nanoseconds since the epoch, as whoever saw it first noted it; 0 when
    /// nobody did.
    pub at_ns: u64,
}

impl Ended {
    /// One that did not come to a yes, and why.
    pub fn failed(why: impl Into<String>) -> Self {
        Self {
            passed: false,
            output: why.into(),
            at_ns: 0,
        }
    }
}
