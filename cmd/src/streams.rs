//! This command's own standard streams, connected to a process's.

use anyhow::Result;
use bytes::Bytes;
use garden::client::{Input, Output, Process};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::task::JoinHandle;

/// Connects all three streams, waits for the process's end and for its output.
///
/// Returns its exit code. `interrupted` is awaited beside it: when it comes first, its value is
/// returned instead.
pub(crate) async fn follow(
    mut process: Process,
    interrupted: impl Future<Output = u8>,
) -> Result<u8> {
    let stdout = process
        .stdout
        .take()
        .map(|output| copy(output, tokio::io::stdout()));
    let stderr = process
        .stderr
        .take()
        .map(|output| copy(output, tokio::io::stderr()));
    let input = tokio::spawn(feed(process.input()));
    let code = tokio::select! {
        code = process.wait() => code?,
        code = interrupted => return Ok(code),
    };
    input.abort();
    for copied in [stdout, stderr].into_iter().flatten() {
        let _ = copied.await;
    }
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}

fn copy(mut from: Output, mut to: impl AsyncWrite + Unpin + Send + 'static) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut buffer = vec![0_u8; 64 * 1024];
        while let Ok(count) = from.read(&mut buffer).await {
            let piece = buffer.get(..count).unwrap_or_default();
            // Each piece at once: somebody may be watching.
            if count == 0 || to.write_all(piece).await.is_err() || to.flush().await.is_err() {
                return;
            }
        }
    })
}

/// Sends this command's standard input to the process, and its end.
async fn feed(input: Input) {
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
