//! The harness of the tests on a real kernel.
//!
//! A test gets a [`World`] of its own by [`check`]: a tag, a directory, images, servers and command
//! lines that carry the tag. Whatever happens, the world removes all that carries its tag, and the
//! next run removes what a killed run left. The tests drive only the built programs `garden` and
//! `garden-shim`; nothing here may depend on the packages under test, whose faults it would share.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test's output is its report"
)]

mod app;
mod cgroups;
mod cli;
mod grootfs;
mod http;
mod images;
mod inside;
mod internet;
mod kill;
mod layout;
mod leaks;
mod proc;
mod rootfs;
mod server;
mod sweep;
mod wait;
mod world;

pub use app::App;
pub use cli::{Cli, OnTerminal, Outcome, Running};
pub use grootfs::{Grootfs, MAPPED, is_mount_point, ready};
pub use images::Images;
pub use inside::{NAMESPACES, host_namespace, lines_of, status_field};
pub use internet::{HOST, HOST6, Internet, Machine, OUTSIDE, OUTSIDE6, Pod};
pub use kill::{Whom, kill_pid, signal_all};
pub use leaks::Leaks;
pub use rootfs::Rootfs;
pub use server::Server;
pub use wait::{DEADLINE, wait_until};
pub use world::{World, check, skip};
