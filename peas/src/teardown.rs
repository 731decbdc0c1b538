//! The durable teardown queue: what is left of peas and containers is taken away here.
//!
//! ```text
//! enqueue ─▶ file on tmpfs ─▶ [wait for a slot] ─▶ stage ─▶ stage ─▶ … ─▶ file removed
//!                                   ▲               │  │
//!                                   ├── back-off ◀──┘  └─▶ past its deadline: STUCK, slot given
//!                                   └───────────────────── back; goes on when it returns
//! ```
//!
//! Called on an exit's path (`enqueue`, one small file write) and by destroys, undos and restores.
//! It must never lose a job, never let one job hold up another, and never make a caller wait for
//! a stage. What a stage does is the business of whoever implements [`Stages`].

mod backoff;
mod job;
mod queue;
mod snapshot;
mod stages;
mod stats;
mod store;
mod thread;
mod worker;

pub use crate::histogram::BUCKETS_SECONDS;
pub use backoff::Backoff;
pub use job::{Job, JobId, Kind, Resources, Stage, Target};
pub use queue::{Options, Progress, Queue, Ticket};
pub use snapshot::{JobView, Phase, Snapshot};
pub use stages::{StageError, Stages};
pub use stats::StageStats;
pub use store::StoreError;
pub use thread::{ThreadError, on_own_thread};
