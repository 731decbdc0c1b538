//! The manager of containers and their peas.
//!
//! [`model`] holds the words everything else speaks: handles, specifications, exits. They are
//! deliberately free of the Garden wire types, which live in the API module and are mapped at
//! its edge.

pub mod api;
pub mod bundle;
pub mod cgroup;
pub mod checks;
pub mod client;
pub mod connection;
mod container;
pub mod debug;
pub mod depot;
pub mod env;
pub mod error;
pub mod events;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod group_names;
pub mod hosting;
pub mod ids;
pub mod logs;
pub mod manager;
mod metrics;
pub mod model;
pub mod network;
pub mod nofile;
pub mod policy;
pub mod process;
mod ring;
mod roots;
pub mod runtime;
mod services;
pub mod timeline;
pub mod users;
pub mod workers;
