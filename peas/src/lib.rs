//! What a pea is and does.
//!
//! - [`run_pea`], [`adopt_pea`] and [`PeaSet`]: the life of one pea, and of all of a container.
//! - [`health`]: what repeated checks say about something, and repeating them.
//! - [`teardown`]: the durable queue that takes away what peas and containers leave behind.
//! - [`histogram`]: durations in buckets, for whatever measures itself.
//! - [`parts`]: root filesystems, users and launching, known here only as traits, so that the laws
//!   of order are tested with fakes.
//!
//! This package must never enter the kernel for more than its own small files.

pub mod health;
pub mod histogram;
mod life;
pub mod parts;
mod run;
mod set;
pub mod teardown;

pub use life::TeardownMode;
pub use run::{ExitUnknown, Found, Names, Pea, Policy, RunError, StartTimes, adopt_pea, run_pea};
pub use set::PeaSet;
