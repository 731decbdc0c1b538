//! This command's own standard streams, connected to a process's.

use std::pin::pin;

use anyhow::Result;
use bytes::Bytes;
use garden::client::{Input, Output, Process};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
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
}

/// The tasks that carry this command's input and window sizes; they end with this.
struct Feeding(Vec<JoinHandle<()>>);

impl Feeding {
    fn start(process: &Process, how: How) -> Self {
        let mut tasks = Vec::new();
        if how.input {
            tasks.push(tokio::spawn(feed(process.input(), how.terminal)));
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
) -> Result<u8> {
    let _raw = how.terminal.then(terminal::Raw::enter);
    let stdout = process.stdout.take();
    let stderr = process.stderr.take();
    let _input = Feeding::start(&process, how);
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
            code = &mut interrupted => return Ok(code),
            (out, err) = &mut output, if !copied => {
                copied = true;
                if !(out && err) {
                    return Ok(BROKEN_PIPE);
                }
            }
        }
    };
    if !copied {
        output.await;
    }
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
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

/// Sends this command's standard input to the process, and its end.
async fn feed(input: Input, into_terminal: bool) {
    let mut stdin = stdin();
    let mut buffer = vec![0_u8; 64 * 1024];
    loop {
        match stdin.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(count) => {
                let piece = buffer.get(..count).unwrap_or_default();
                input.write(Bytes::copy_from_slice(piece)).await;
            }
        }
    }
    if into_terminal && !terminal::is_input() {
        // A pipe's end; a terminal has no other way to say so.
        input.write(Bytes::from_static(&[terminal::END])).await;
    }
    input.close().await;
}

fn stdin() -> impl AsyncRead + Unpin + Send {
    tokio::io::stdin()
}

/// Becomes ready when somebody wants this command to end: 130 for SIGINT, 143 for SIGTERM.
pub(crate) async fn interrupted() -> u8 {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => 130,
        _ = terminate.recv() => 143,
    }
}
