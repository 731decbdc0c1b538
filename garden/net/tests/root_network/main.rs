//! The network on a real kernel, in namespaces of its own.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod cni;
mod costs;
mod failing;
mod filter;
mod reach;
mod restart;
mod world;
