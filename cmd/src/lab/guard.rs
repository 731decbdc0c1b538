//! The first process of a run: makes its place, starts the measuring process, and cleans up.
//!
//! It passes signals on and waits; it must not do anything that could fail half-way between
//! making the place and removing it.

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::signal::unix::{SignalKind, signal};

use super::blocking;
use super::place::{self, Place};

/// Runs the same command line once more, to measure (`--measure TAG` is added to it), to its end;
/// returns its exit code.
pub(crate) async fn run() -> Result<u8> {
    let place = blocking(|| {
        place::remove_stale();
        Place::claim()
    });
    let place = place.await??;
    let status = supervise(&place).await;
    blocking(move || place.remove()).await?;
    let status = status?;
    if let Some(signal) = status.signal() {
        bail!("the measuring process was ended by signal {signal}");
    }
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(u8::MAX))
}

async fn supervise(place: &Place) -> Result<ExitStatus> {
    // Caught before there is anything that would be left behind.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut child = start(place)?;
    let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    // The measuring process stops when this end is closed, so also when this process is killed.
    let lifeline = child.stdin.take();
    let mut ended = tokio::task::spawn_blocking(move || child.wait());
    let status = loop {
        tokio::select! {
            status = &mut ended => break status?.context("waiting for the measuring process")?,
            _ = interrupt.recv() => pass(pidfd.as_fd(), Signal::INT),
            _ = terminate.recv() => pass(pidfd.as_fd(), Signal::TERM),
            _ = hangup.recv() => pass(pidfd.as_fd(), Signal::TERM),
        }
    };
    drop(lifeline);
    Ok(status)
}

fn start(place: &Place) -> Result<Child> {
    let program = std::env::current_exe().context("looking for this program")?;
    // Its mounts are nobody else's, and end with it.
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "slave", "--"])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .args(["--measure", place.tag()])
        .env(place::TAG_VARIABLE, place.tag())
        .stdin(Stdio::piped());
    command
        .spawn()
        .context("starting unshare: ci/setup installs it (util-linux)")
}

/// It may have ended meanwhile, which the loop is about to see.
fn pass(process: BorrowedFd<'_>, signal: Signal) {
    let _ = pidfd_send_signal(process, signal);
}
