//! Running a network plugin: somebody else's program, for a bounded time, with bounded output.
//!
//! Used by the two kinds of plugins (`external`, `cni`), which know what the bytes mean. A plugin
//! leads a process group of its own. When its time is over, the group is killed before the plugin
//! is reaped, so that its number cannot mean others by then. Never called from an async context:
//! it blocks its thread as long as the plugin may run.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

/// The most bytes of an answer.
const MOST: usize = 4 << 20;

/// What is kept of standard error: its end, where the reason is.
const TOLD: usize = 4 << 10;

/// How long the output of an ended plugin is waited for, when a process that it left behind holds it
/// open.
const LEFT_OPEN: Duration = Duration::from_millis(500);

/// A program to run.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) program: &'a Path,
    pub(crate) arguments: &'a [OsString],
    /// Variables beside those of this process.
    pub(crate) variables: &'a [(&'a str, OsString)],
    pub(crate) input: &'a [u8],
    pub(crate) timeout: Duration,
}

/// How it ended.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    /// The last of what it said for people.
    pub(crate) stderr: String,
}

impl Answer {
    /// Its end in the words that Go programs use, which logs are searched for.
    pub(crate) fn status_text(&self) -> String {
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exit status {code}"),
            (None, Some(signal)) => format!("signal: {signal}"),
            (None, None) => "ended".to_owned(),
        }
    }
}

/// A plugin that gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// It is missing, or cannot be run.
    #[error("cannot run the plugin {program}")]
    Start {
        /// Its path.
        program: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It took too long, and was killed with all that it had started.
    #[error("the plugin {program} did not end within {} s and was killed{}", .after.as_secs_f32(), said(.stderr))]
    Timeout {
        /// Its path.
        program: PathBuf,
        /// How long it had.
        after: Duration,
        /// The last of its standard error.
        stderr: String,
    },
    /// It said more than an answer can be; it was killed.
    #[error("the plugin {program} wrote more than {MOST} bytes and was killed")]
    TooMuch {
        /// Its path.
        program: PathBuf,
    },
    /// Its pipes do not work.
    #[error("cannot talk to the plugin {program}")]
    Talk {
        /// Its path.
        program: PathBuf,
        /// What failed.
        #[source]
        source: io::Error,
    },
}

/// A plugin's own words, behind a text.
pub(crate) fn said(stderr: &str) -> String {
    match stderr.trim() {
        "" => String::new(),
        text => format!(": {text}"),
    }
}

/// Runs it to its end.
pub(crate) fn run(call: &Call<'_>) -> Result<Answer, PluginError> {
    let program = || call.program.to_owned();
    let mut child = Command::new(call.program)
        .args(call.arguments)
        .envs(call.variables.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|source| PluginError::Start {
            program: program(),
            source,
        })?;
    let talked = Talk::start(&mut child, call).and_then(|mut talk| {
        let heard = talk.until_end();
        heard.map(|heard| (talk, heard))
    });
    if !matches!(talked, Ok((_, Heard::End))) {
        kill_group(&child);
    }
    let status = child.wait();
    let talk = |source| PluginError::Talk {
        program: program(),
        source,
    };
    let (mut heard, end) = talked.map_err(talk)?;
    let stderr = heard.stderr_text();
    match end {
        Heard::End => Ok(Answer {
            status: status.map_err(talk)?,
            stdout: std::mem::take(&mut heard.stdout),
            stderr,
        }),
        Heard::TooMuch => Err(PluginError::TooMuch { program: program() }),
        Heard::Late => Err(PluginError::Timeout {
            program: program(),
            after: call.timeout,
            stderr,
        }),
    }
}

/// Kills a plugin and what it has started. It is not reaped yet, so the number is still its own.
fn kill_group(child: &Child) {
    if let Some(pid) = Pid::from_raw(child.id().cast_signed()) {
        let _ = kill_process_group(pid, Signal::KILL);
    }
}

enum Heard {
    End,
    Late,
    TooMuch,
}

/// The conversation: all pipes at once, so that neither side waits for the other.
struct Talk<'a> {
    pidfd: OwnedFd,
    input: Option<File>,
    rest: &'a [u8],
    output: Option<File>,
    stdout: Vec<u8>,
    errors: Option<File>,
    stderr: Vec<u8>,
    deadline: Instant,
}

impl<'a> Talk<'a> {
    fn start(child: &mut Child, call: &Call<'a>) -> io::Result<Self> {
        let pid = Pid::from_raw(child.id().cast_signed()).ok_or(io::ErrorKind::NotFound)?;
        let pipe = |fd: Option<OwnedFd>| -> io::Result<Option<File>> {
            if let Some(fd) = &fd {
                rustix::io::ioctl_fionbio(fd, true)?;
            }
            Ok(fd.map(File::from))
        };
        Ok(Self {
            pidfd: pidfd_open(pid, PidfdFlags::empty())?,
            input: pipe(child.stdin.take().map(Into::into))?,
            rest: call.input,
            output: pipe(child.stdout.take().map(Into::into))?,
            stdout: Vec::new(),
            errors: pipe(child.stderr.take().map(Into::into))?,
            stderr: Vec::new(),
            deadline: Instant::now() + call.timeout,
        })
    }

    fn until_end(&mut self) -> io::Result<Heard> {
        let mut ended = false;
        loop {
            self.move_bytes()?;
            if self.stdout.len() > MOST {
                return Ok(Heard::TooMuch);
            }
            if ended && self.output.is_none() && self.errors.is_none() {
                return Ok(Heard::End);
            }
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(if ended { Heard::End } else { Heard::Late });
            }
            self.wait(ended, left)?;
            if !ended && self.wait_for_end(Duration::ZERO)? {
                ended = true;
                self.input = None;
                // Beyond its end there is only what others hold open.
                self.deadline = self.deadline.min(Instant::now() + LEFT_OPEN);
            }
        }
    }

    fn wait(&self, ended: bool, left: Duration) -> io::Result<()> {
        let mut fds = Vec::new();
        if !ended {
            fds.push(PollFd::new(&self.pidfd, PollFlags::IN));
        }
        for file in [&self.output, &self.errors].into_iter().flatten() {
            fds.push(PollFd::new(file, PollFlags::IN));
        }
        if let Some(input) = &self.input {
            fds.push(PollFd::new(input, PollFlags::OUT));
        }
        wait_for(&mut fds, left).map(drop)
    }

    fn wait_for_end(&self, left: Duration) -> io::Result<bool> {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        Ok(wait_for(&mut fds, left)? > 0)
    }

    fn move_bytes(&mut self) -> io::Result<()> {
        if let Some(input) = &mut self.input {
            while !self.rest.is_empty() {
                match input.write(self.rest) {
                    Ok(count) => self.rest = self.rest.get(count..).unwrap_or_default(),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    // It does not want to know; its answer will tell.
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.rest = &[],
                    Err(error) => return Err(error),
                }
            }
            if self.rest.is_empty() {
                self.input = None;
            }
        }
        take(&mut self.output, &mut self.stdout, MOST + 1)?;
        take(&mut self.errors, &mut self.stderr, usize::MAX)?;
        let surplus = self.stderr.len().saturating_sub(TOLD);
        self.stderr.drain(..surplus);
        Ok(())
    }

    fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim().to_owned()
    }
}

/// Reads what is there; the file is gone at its end.
fn take(from: &mut Option<File>, into: &mut Vec<u8>, most: usize) -> io::Result<()> {
    let mut piece = [0; 4096];
    let mut rounds = 0;
    while let Some(file) = from {
        // A plugin that never stops writing must not keep us from looking at the time.
        rounds += 1;
        if into.len() >= most || rounds > 64 {
            return Ok(());
        }
        match file.read(&mut piece) {
            Ok(0) => *from = None,
            Ok(count) => into.extend_from_slice(piece.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn wait_for(fds: &mut [PollFd<'_>], left: Duration) -> io::Result<usize> {
    let timeout = Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    };
    match poll(fds, Some(&timeout)) {
        Err(rustix::io::Errno::INTR) => Ok(0),
        polled => Ok(polled?),
    }
}

#[cfg(test)]
pub(crate) mod tests;
