//! Running the built `garden` as a person would, and looking at what came out.
//!
//! [`Cli`] knows which server (or which place, without one) a command line is for; [`Running`] is
//! one that has not ended, [`Outcome`] one that has. Every wait has a deadline, and a dropped
//! [`Running`] is killed.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use rustix::pty::OpenptFlags;
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::wait::DEADLINE;

/// The program with the environment that directs it to one place.
#[derive(Clone)]
pub struct Cli {
    pub(crate) program: PathBuf,
    pub(crate) env: Vec<(&'static str, OsString)>,
}

impl Cli {
    /// Sets a variable of its environment.
    pub fn set(&mut self, name: &'static str, value: &str) {
        self.env.push((name, value.into()));
    }

    /// Starts the program, with a pipe for its stdin.
    pub fn start(&self, args: &[&str]) -> Result<Running> {
        let mut child = Command::new(&self.program)
            .args(args)
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", self.program.display()))?;
        let stdin = child.stdin.take();
        let stdout = Stream::read(child.stdout.take());
        let stderr = Stream::read(child.stderr.take());
        Ok(Running {
            command: args.join(" "),
            child,
            stdin,
            stdout,
            stderr,
        })
    }

    /// Starts the program on a terminal of this size; what it writes there is its stdout.
    pub fn start_on_terminal(&self, args: &[&str], size: (u16, u16)) -> Result<OnTerminal> {
        let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        rustix::pty::grantpt(&master)?;
        rustix::pty::unlockpt(&master)?;
        let name = rustix::pty::ptsname(&master, Vec::new())?;
        let slave = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlags::NOCTTY.bits().cast_signed())
            .open(name.to_str()?)?;
        let mut terminal = OnTerminal {
            stdout: Stream::read(Some(File::from(master.try_clone()?))),
            master: File::from(master),
            child: None,
        };
        terminal.set_size(size)?;
        let child = Command::new(&self.program)
            .args(args)
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .stdin(slave.try_clone()?)
            .stdout(slave.try_clone()?)
            .stderr(slave)
            .spawn()
            .with_context(|| format!("starting {}", self.program.display()))?;
        terminal.child = Some(child);
        Ok(terminal)
    }

    /// Runs the program to its end, with an empty stdin.
    pub fn run(&self, args: &[&str]) -> Result<Outcome> {
        self.start(args)?.finish()
    }

    /// Runs a script on the host to its end; in it `$garden` is the program.
    pub fn shell(&self, script: &str) -> Result<Outcome> {
        let mut shell = self.clone();
        shell.program = PathBuf::from("/bin/sh");
        shell.env.push(("garden", self.program.clone().into()));
        shell.run(&["-c", script])
    }

    /// Runs the program to its end, which must be a success; returns what it wrote to stdout.
    pub fn output(&self, args: &[&str]) -> Result<String> {
        let outcome = self.run(args)?;
        outcome.expect_code(0)?;
        Ok(outcome.stdout)
    }
}

/// A program that has not ended, as far as is known.
pub struct Running {
    command: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Stream,
    stderr: Stream,
}

impl Running {
    /// Writes to its stdin.
    pub fn write(&mut self, text: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("its stdin is closed")?;
        stdin.write_all(text.as_bytes())?;
        Ok(stdin.flush()?)
    }

    /// Ends its stdin.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Waits until its stdout holds the text.
    pub fn wait_stdout(&self, text: &str) -> Result<()> {
        self.stdout
            .wait_for(text)
            .with_context(|| format!("`garden {}` wrote {:?}", self.command, self.stderr.text()))
    }

    /// Whether its stdout holds the text by now.
    pub fn has_stdout(&self, text: &str) -> bool {
        self.stdout.text().contains(text)
    }

    /// Waits until its stderr holds the text.
    pub fn wait_stderr(&self, text: &str) -> Result<()> {
        self.stderr
            .wait_for(text)
            .with_context(|| format!("`garden {}`", self.command))
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Sends it a signal; one that has ended already is no fault.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.pid()).context("no pid")?;
        match kill_process(pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("signalling {}", self.pid())),
        }
    }

    /// Closes its stdin and waits for its end.
    pub fn finish(mut self) -> Result<Outcome> {
        self.close_stdin();
        if !ended_within_deadline(&self.child)? {
            bail!(
                "`garden {}` did not end within {} s; so far stdout {:?}, stderr {:?}",
                self.command,
                DEADLINE.as_secs(),
                self.stdout.text(),
                self.stderr.text()
            );
        }
        let status = self.child.wait()?;
        Ok(Outcome {
            command: self.command.clone(),
            code: status.code(),
            signal: status.signal(),
            stdout: self.stdout.finish()?,
            stderr: self.stderr.finish()?,
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program on a terminal.
pub struct OnTerminal {
    master: File,
    child: Option<Child>,
    stdout: Stream,
}

impl OnTerminal {
    /// Types.
    pub fn write(&mut self, text: &str) -> Result<()> {
        Ok(self.master.write_all(text.as_bytes())?)
    }

    /// Changes the size, and tells the program as a terminal's driver would.
    pub fn set_size(&mut self, (columns, rows): (u16, u16)) -> Result<()> {
        let size = Winsize {
            ws_col: columns,
            ws_row: rows,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.master, size)?;
        if let Some(child) = &self.child {
            let pid = Pid::from_raw(child.id().cast_signed()).context("no pid")?;
            kill_process(pid, Signal::WINCH)?;
        }
        Ok(())
    }

    /// Waits until the terminal shows the text.
    pub fn wait_for(&self, text: &str) -> Result<()> {
        self.stdout.wait_for(text)
    }

    /// What the terminal has shown so far.
    pub fn text(&self) -> String {
        self.stdout.text()
    }

    /// Sends the program a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child.as_ref().context("it has ended")?;
        let pid = Pid::from_raw(child.id().cast_signed()).context("no pid")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Whether typed characters go through as they are.
    pub fn is_raw(&self) -> Result<bool> {
        let modes = tcgetattr(&self.master)?.local_modes;
        Ok(!modes.intersects(LocalModes::ICANON | LocalModes::ECHO))
    }

    /// Waits for the program's end; returns its exit code. The terminal stays.
    pub fn wait_end(&mut self) -> Result<Option<i32>> {
        let child = self.child.as_mut().context("it has ended")?;
        ensure!(ended_within_deadline(child)?, "it does not end");
        Ok(child.wait()?.code())
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Waits for a child without reaping it; false when the deadline passed.
pub(crate) fn ended_within_deadline(child: &Child) -> Result<bool> {
    let pid = Pid::from_raw(child.id().cast_signed()).context("no pid")?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let timeout = Timespec {
        tv_sec: i64::try_from(DEADLINE.as_secs())?,
        tv_nsec: 0,
    };
    let ready = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout))?;
    Ok(ready == 1)
}

/// A program that has ended.
#[derive(Debug)]
pub struct Outcome {
    /// Its command line, without the program.
    pub command: String,
    /// Its exit code, unless a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// All that it wrote to stdout.
    pub stdout: String,
    /// All that it wrote to stderr.
    pub stderr: String,
}

impl Outcome {
    /// Refuses every exit but this one.
    pub fn expect_code(&self, code: i32) -> Result<&Self> {
        ensure!(
            self.code == Some(code),
            "expected exit code {code}: {self:?}"
        );
        Ok(self)
    }

    /// Refuses an explanation that is not exactly one line with all of these words in it.
    pub fn expect_one_line(&self, words: &[&str]) -> Result<&Self> {
        let lines: Vec<_> = self.stderr.lines().collect();
        ensure!(lines.len() == 1, "expected one line on stderr: {self:?}");
        ensure!(self.stdout.is_empty(), "expected no stdout: {self:?}");
        for word in words {
            ensure!(
                self.stderr.contains(word),
                "expected {word:?} in its error: {self:?}"
            );
        }
        Ok(self)
    }
}

/// What came from one of its outputs so far, filled by a thread of its own.
struct Stream {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    ended: bool,
}

impl Stream {
    fn read(source: Option<impl Read + Send + 'static>) -> Self {
        let shared = Arc::new(Shared::default());
        let filled = Arc::clone(&shared);
        let reader = std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            if let Some(mut source) = source {
                while let Ok(read @ 1..) = source.read(&mut chunk) {
                    filled.update(|state| state.bytes.extend_from_slice(&chunk[..read]));
                }
            }
            filled.update(|state| state.ended = true);
        });
        Self {
            shared,
            reader: Some(reader),
        }
    }

    fn text(&self) -> String {
        let state = self.shared.state.lock();
        let state = state.unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&state.bytes).into_owned()
    }

    /// Waits until the text is there; fails at the end of the output or at the deadline.
    fn wait_for(&self, text: &str) -> Result<()> {
        let end = Instant::now() + DEADLINE;
        let state = self.shared.state.lock();
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        while !String::from_utf8_lossy(&state.bytes).contains(text) {
            let left = end.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                let seen = String::from_utf8_lossy(&state.bytes).into_owned();
                bail!("waited in vain for {text:?} in {seen:?}");
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// All of it. Only after the program has ended: a process that it left behind may still hold
    /// the pipe, and is not waited for beyond the deadline.
    fn finish(&mut self) -> Result<String> {
        let end = Instant::now() + DEADLINE;
        let state = self.shared.state.lock();
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        while !state.ended {
            let left = end.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "its output is held open after its end");
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        Ok(self.text())
    }
}

impl Shared {
    fn update(&self, change: impl FnOnce(&mut State)) {
        let state = self.state.lock();
        change(&mut state.unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }
}
