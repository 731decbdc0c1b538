//! Plain requests to a server's socket, for what no command line asks.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// Sends a request and returns the JSON of the answer, which must be a success.
pub(crate) fn ask(
    socket: &Path,
    method: &str,
    target: &str,
    body: Option<&Value>,
) -> Result<Value> {
    let (status, content) = exchange(socket, method, target, body)?;
    ensure!(status / 100 == 2, "{method} {target}: {status} {content}");
    serde_json::from_str(&content).with_context(|| format!("{method} {target}: {content}"))
}

/// Sends a request and returns status and body of the answer.
pub(crate) fn exchange(
    socket: &Path,
    method: &str,
    target: &str,
    body: Option<&Value>,
) -> Result<(u16, String)> {
    let body = body.map(Value::to_string).unwrap_or_default();
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(crate::wait::DEADLINE))?;
    write!(
        stream,
        "{method} {target} HTTP/1.1\r\nHost: garden\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, content) = answer
        .split_once("\r\n\r\n")
        .context("no end of the head")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    ensure!(
        !head.to_ascii_lowercase().contains("transfer-encoding"),
        "an answer in pieces: {head}"
    );
    Ok((status.parse()?, content.to_owned()))
}
