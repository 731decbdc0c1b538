//! What can go wrong with an image plugin.
//!
//! The texts, joined with their causes by `: `, are Guardian's: clients and operators know them,
//! and they carry what the plugin said to its user on its standard output.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// What can go wrong with an image plugin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The program ran and failed, or could not be run.
    #[error("running image plugin {action}: {stdout}")]
    Running {
        /// `create`, `destroy`, `metrics` or `capacity`.
        action: &'static str,
        /// What it wrote to its standard output, without white space around it.
        stdout: String,
        /// How it ended, or why it could not start.
        #[source]
        source: Ended,
    },
    /// Its answer cannot be read.
    #[error("parsing {what}: {stdout}")]
    Parsing {
        /// What was expected.
        what: &'static str,
        /// What came.
        stdout: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// Its answer can be read, but is nothing that a container can run in.
    #[error("the image plugin {} made something that cannot be used: {what}", program.display())]
    Unusable {
        /// The program.
        program: PathBuf,
        /// What it made.
        what: String,
        /// What the kernel has against it, if it was asked.
        #[source]
        source: Option<io::Error>,
    },
    /// A `preloaded+layer` image lacks something.
    #[error("creating image spec")]
    Layout(#[source] Box<crate::Error>),
    /// The layout that says the same as a `preloaded+layer` image cannot be written.
    #[error("creating image spec: cannot write an image layout to {}", directory.display())]
    LayoutFile {
        /// Where it was to be.
        directory: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Both plugins failed to measure.
    #[error("{unprivileged}: {}; {privileged}", cause(unprivileged))]
    Both {
        /// What the one for unprivileged containers said.
        unprivileged: Box<Self>,
        /// What the one for privileged containers said.
        #[source]
        privileged: Box<Self>,
    },
}

/// How a run of a plugin ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Ended {
    /// It exited by itself.
    #[error("exit status {0}")]
    Exit(i32),
    /// A signal ended it.
    #[error("signal: {0}")]
    Signal(i32),
    /// It was killed because it took too long.
    #[error("it was killed after {} s: give it more time, or look into what it waits for", .0.as_secs_f32())]
    TimedOut(Duration),
    /// It was killed because it wrote too much.
    #[error("it was killed after it wrote more than {0} bytes to its standard output")]
    TooLong(usize),
    /// It could not be started, or not be waited for.
    #[error("{step} {}", program.display())]
    Host {
        /// What was tried.
        step: &'static str,
        /// The program.
        program: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// The result of this module.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(super) fn parsing(what: &'static str, stdout: &str, source: serde_json::Error) -> Self {
        Self::Parsing {
            what,
            stdout: stdout.trim().to_owned(),
            source,
        }
    }
}

/// The causes of an error, for a text that quotes two of them.
fn cause(error: &Error) -> String {
    let mut texts = Vec::new();
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        texts.push(source.to_string());
        cause = source.source();
    }
    texts.join(": ")
}
