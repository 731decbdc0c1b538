//! This command's own standard streams, connected to a process's.

use std::pin::pin;
use std::sync::Arc;

use anyhow::Result;
use bytes::Bytes;
use garden::client::{Input, Output, Process};
use garden::model::{Handle, ProcessId};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::terminal;

/// What a shell shows for a command that SIGPIPE has ended.
const BROKEN_PIPE: u8 = 141;

/// How a process is followed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct How {
    /// Whether standard input is passed on.
    pub(crate) input: bool,
    /// Whether the process has a terminal.
    pub(crate) terminal: bool,
    /// Whether the detach keys may leave it.
    pub(crate) detach: bool,
}

/// How following a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Followed {
    /// With this exit code for the command.
    Ended(u8),
    /// By the detach keys: the process runs on.
    Detached,
}

/// The tasks that carry this command's input and window sizes; they end with this.
struct Feeding(Vec<JoinHandle<()>>);

impl Feeding {
    fn start(process: &Process, how: How, detached: Arc<Notify>) -> Self {
        let mut tasks = Vec::new();
        if how.input {
            // Only a person has keys; a pipe may carry the same bytes and mean them.
            let keys = (how.detach && how.terminal && terminal::is_input()).then_some(detached);
            tasks.push(tokio::spawn(feed(process.input(), how.terminal, keys)));
        }
        if how.terminal {
            tasks.push(tokio::spawn(terminal::follow_size(process.input())));
        }
        Self(tasks)
    }
}

impl Drop for Feeding {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

/// Connects all three streams, waits for the process's end and for its output.
///
/// Returns its exit code. `interrupted` is awaited beside it: when it comes first, its value is
/// returned instead; so is 141 when nobody reads this command's output any more.
pub(crate) async fn follow(
    mut process: Process,
    how: How,
    interrupted: impl Future<Output = u8>,
) -> Result<Followed> {
    let _raw = how.terminal.then(terminal::Raw::enter);
    let stdout = process.stdout.take();
    let stderr = process.stderr.take();
    let detached = Arc::new(Notify::new());
    let _input = Feeding::start(&process, how, Arc::clone(&detached));
    let mut output = pin!(async {
        tokio::join!(
            copy(stdout, tokio::io::stdout()),
            copy(stderr, tokio::io::stderr())
        )
    });
    let mut interrupted = pin!(interrupted);
    let mut copied = false;
    let code = loop {
        tokio::select! {
            code = process.wait() => break code?,
            code = &mut interrupted => return Ok(Followed::Ended(code)),
            () = detached.notified() => return Ok(Followed::Detached),
            (out, err) = &mut output, if !copied => {
                copied = true;
                if !(out && err) {
                    return Ok(Followed::Ended(BROKEN_PIPE));
                }
            }
        }
    };
    if !copied {
        output.await;
    }
    Ok(Followed::Ended(u8::try_from(code).unwrap_or(u8::MAX)))
}

/// Copies to the end; `false` when nobody takes it any more.
async fn copy(from: Option<Output>, mut to: impl AsyncWrite + Unpin) -> bool {
    let Some(mut from) = from else { return true };
    let mut buffer = vec![0_u8; 64 * 1024];
    while let Ok(count) = from.read(&mut buffer).await {
        let piece = buffer.get(..count).unwrap_or_default();
        if count == 0 {
            break;
        }
        // Each piece at once: somebody may be watching.
        if to.write_all(piece).await.is_err() || to.flush().await.is_err() {
            return false;
        }
    }
    true
}

/// Tells the person who typed the detach keys what becomes of the process.
#[expect(clippy::print_stderr, reason = "for the person at the terminal")]
pub(crate) fn say_detached(container: &Handle, process: &ProcessId) {
    eprintln!("\r\ngarden: left running; `garden attach -t {container} {process}` joins it again");
}

/// Sends this command's standard input to the process, and its end; or, when the detach keys are
/// typed, says so and sends nothing more.
async fn feed(input: Input, into_terminal: bool, detached: Option<Arc<Notify>>) {
    let mut keys = DetachKeys::default();
    let mut stdin = stdin();
    let mut buffer = vec![0_u8; 64 * 1024];
    loop {
        match stdin.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(count) => {
                let piece = buffer.get(..count).unwrap_or_default();
                let Some(detached) = &detached else {
                    input.write(Bytes::copy_from_slice(piece)).await;
                    continue;
                };
                let (typed, left) = keys.filter(piece);
                input.write(Bytes::from(typed)).await;
                if left {
                    detached.notify_one();
                    return;
                }
            }
        }
    }
    if into_terminal && !terminal::is_input() {
        // A pipe's end; a terminal has no other way to say so.
        input.write(Bytes::from_static(&[terminal::END])).await;
    }
    input.close().await;
}

/// Docker's keys to leave a process: Ctrl-P, then Ctrl-Q.
#[derive(Debug, Default)]
struct DetachKeys {
    /// Ctrl-P was typed and is not passed on yet.
    begun: bool,
}

impl DetachKeys {
    const FIRST: u8 = 0x10;
    const SECOND: u8 = 0x11;

    /// What of a piece of input is to be passed on, and whether the keys were typed in it.
    fn filter(&mut self, piece: &[u8]) -> (Vec<u8>, bool) {
        let mut typed = Vec::with_capacity(piece.len() + 1);
        for byte in piece {
            match (self.begun, *byte) {
                (true, Self::SECOND) => return (typed, true),
                // Twice: the first one was meant for the process.
                (true, Self::FIRST) => typed.push(Self::FIRST),
                (true, other) => {
                    self.begun = false;
                    typed.extend([Self::FIRST, other]);
                }
                (false, Self::FIRST) => self.begun = true,
                (false, other) => typed.push(other),
            }
        }
        (typed, false)
    }
}

fn stdin() -> impl AsyncRead + Unpin + Send {
    tokio::io::stdin()
}

/// Becomes ready when somebody wants this command to end: 130 for SIGINT, 143 for SIGTERM, 129
/// when its terminal is gone.
pub(crate) async fn interrupted() -> u8 {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
        signal(SignalKind::hangup()),
    ) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => 130,
        _ = terminate.recv() => 143,
        _ = hangup.recv() => 129,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_detach_keys_are_found_also_in_pieces() {
        let mut keys = DetachKeys::default();
        assert_eq!(keys.filter(b"a\x10"), (b"a".to_vec(), false));
        assert_eq!(keys.filter(b"\x11b"), (Vec::new(), true));
    }

    #[test]
    fn what_only_begins_like_them_is_typed() {
        let mut keys = DetachKeys::default();
        assert_eq!(keys.filter(b"\x10x"), (b"\x10x".to_vec(), false));
        assert_eq!(keys.filter(b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(keys.filter(b"y\x11"), (b"\x10y\x11".to_vec(), false));
    }
}
