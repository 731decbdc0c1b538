//! `garden-shim`: the zygote, and the shims it turns into.
//!
//! The server starts one zygote (`garden-shim zygote`). It prepares what every pod needs once, a
//! minimal mount namespace and the compiled seccomp program, and then forks a shim for each pod.
//! A shim is the parent of everything in its pod; each start of a process is done by a worker
//! forked from it, because libcontainer changes process-wide state and clones its caller.
//!
//! ```text
//! server ─▶ zygote ──fork──▶ shim ──fork──▶ worker ──libcontainer──▶ process (the shim's child)
//! ```
//!
//! Nothing here starts a thread, ever: forking without exec is only sound without them.

mod executor;
mod failure;
mod mounts;
mod namespaces;
mod probe;
mod process;
mod record;
mod seccomp;
mod stage;
mod stream;
mod supervisor;
mod sys;
mod terminal;
mod worker;
mod zygote;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("zygote") => match zygote::Options::parse(arguments) {
            Ok(options) => zygote::run(&options),
            Err(problem) => {
                sys::log(&format!("garden-shim: {problem}"));
                ExitCode::from(2)
            }
        },
        _ => {
            sys::log("garden-shim: this program is started by the garden server, not by hand");
            ExitCode::from(2)
        }
    }
}
