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
mod container;
pub mod depot;
pub mod devices;
pub mod env;
pub mod error;
pub mod events;
pub mod hosting;
pub mod ids;
pub mod manager;
mod metrics;
pub mod model;
pub mod policy;
pub mod process;
mod roots;
pub mod runtime;
mod services;
pub mod users;
pub mod workers;
