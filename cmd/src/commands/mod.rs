//! The verbs, one module each: its flags and what it does.

pub(crate) mod attach;
pub(crate) mod cleanup;
pub(crate) mod completion;
pub(crate) mod config;
pub(crate) mod cp;
pub(crate) mod create;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod health;
pub(crate) mod health_args;
pub(crate) mod images;
pub(crate) mod inspect;
pub(crate) mod limits;
pub(crate) mod logs;
pub(crate) mod ls;
pub(crate) mod net_out;
pub(crate) mod pea;
pub(crate) mod port;
pub(crate) mod process;
pub(crate) mod prop;
pub(crate) mod ps;
pub(crate) mod pull;
pub(crate) mod repro;
pub(crate) mod rm;
pub(crate) mod rootfs;
pub(crate) mod run;
pub(crate) mod scale;
pub(crate) mod server;
mod server_ends;
mod server_guardian;
mod server_limits;
mod server_listen;
mod server_network;
pub(crate) mod setup;
pub(crate) mod shell;
pub(crate) mod start;
pub(crate) mod stats;
pub(crate) mod stop;
pub(crate) mod stream_in;
pub(crate) mod stream_out;
pub(crate) mod teardown;
pub(crate) mod timeline;
pub(crate) mod top;
pub(crate) mod up;
pub(crate) mod version;
pub(crate) mod wait;

use std::io::Write as _;

use anyhow::{Context as _, Result};
use garden::model::ImageRef;

/// The name of a container's own process, where nobody gives it another.
pub(crate) const MAIN: &str = "main";

/// An image as it is written. A plain path is made absolute: the server has another directory. A
/// name that can be no file's is an image of a registry, as docker's users write it.
pub(crate) fn image(text: &str) -> Result<ImageRef> {
    let uri = if text.contains("://") || text.starts_with('/') {
        text.to_owned()
    } else if is_reference(text) && !std::path::Path::new(text).exists() {
        format!("docker://{text}")
    } else {
        let path = std::path::absolute(text).with_context(|| format!("cannot use {text}"))?;
        path.to_string_lossy().into_owned()
    };
    Ok(ImageRef {
        uri,
        ..ImageRef::default()
    })
}

/// Whether a name can be a repository's: one with a dot in front, or with the ending of an archive,
/// is a file that is missing.
fn is_reference(text: &str) -> bool {
    let archives = [".tar", ".tgz", ".tar.gz", ".tar.zst", ".tzst"];
    !text.starts_with(['.', '~']) && !archives.iter().any(|ending| text.ends_with(ending))
}

/// Prints a result.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        // `garden ls | head -1` is no failure.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.context("cannot print the result"),
    }
}

/// Prints a result for programs.
pub(crate) fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).context("cannot write the result as JSON")?;
    print(&format!("{text}\n"))
}

/// A process from a command line: the program and its arguments.
pub(crate) fn program(words: &[String]) -> (String, Vec<String>) {
    match words.split_first() {
        Some((path, arguments)) => (path.clone(), arguments.to_vec()),
        None => (String::new(), Vec::new()),
    }
}
