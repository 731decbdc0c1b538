//! One run of a plugin: both outputs read, its end awaited, its time limited.
//!
//! Waits for the program's own end, not for the end of its outputs: a plugin may leave a process
//! behind that cleans its store and has inherited them. What the program itself wrote is in the
//! pipes when it has ended, and is read to the last byte.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::error::{Ended, Error, Result};
use super::relog::Relog;
use super::{Action, Plugin};

/// More than this is no answer.
const MOST_OUTPUT: usize = 8 << 20;
/// Pieces of one output that are read before the other and the clock are looked at again. More
/// than the largest pipe holds, so that at its end everything of the program itself is read.
const PIECES: usize = 128;

/// Runs it, and returns its standard output.
pub(super) fn call(plugin: &Plugin, action: Action, args: &[OsString]) -> Result<String> {
    let mut answer = Vec::new();
    let ended = run(plugin, action, args, &mut answer);
    let stdout = String::from_utf8_lossy(&answer).into_owned();
    match ended {
        Ok(()) => Ok(stdout),
        Err(source) => {
            let error = Error::Running {
                action: action.name(),
                stdout: stdout.trim().to_owned(),
                source,
            };
            tracing::error!(action = action.name(), stdout, "the image plugin failed");
            Err(error)
        }
    }
}

fn run(
    plugin: &Plugin,
    action: Action,
    args: &[OsString],
    answer: &mut Vec<u8>,
) -> std::result::Result<(), Ended> {
    let host = |step| {
        let program = plugin.program.clone();
        move |source| Ended::Host {
            step,
            program,
            source,
        }
    };
    let mut child = Command::new(&plugin.program)
        .args(&plugin.extra_args)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A terminal's signals are for the server; and all that it starts can be killed with it.
        .process_group(0)
        .spawn()
        .map_err(host("cannot run"))?;
    let mut running = Running {
        relog: Relog::new(action.name()),
        answer,
        started: Instant::now(),
        timeout: plugin.timeout,
    };
    let waited = running.wait(&mut child);
    if !matches!(waited, Ok(Ok(_))) {
        kill(&mut child);
    }
    running.relog.finish();
    let status = waited.map_err(host("cannot wait for"))??;
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => Err(Ended::Exit(code)),
        (None, signal) => Err(Ended::Signal(signal.unwrap_or_default())),
    }
}

/// Kills it with all that it started, and reaps it.
fn kill(child: &mut Child) {
    // Not yet reaped, so the number is still its own.
    if let Some(group) = Pid::from_raw(child.id().cast_signed()) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait();
}

struct Running<'a> {
    relog: Relog,
    answer: &'a mut Vec<u8>,
    started: Instant,
    timeout: Option<Duration>,
}

impl Running<'_> {
    fn wait(&mut self, child: &mut Child) -> io::Result<std::result::Result<ExitStatus, Ended>> {
        let mut stdout = child.stdout.take().map(OwnedFd::from).map(File::from);
        let mut stderr = child.stderr.take().map(OwnedFd::from).map(File::from);
        for output in stdout.iter().chain(&stderr) {
            let flags = rustix::fs::fcntl_getfl(output)?;
            rustix::fs::fcntl_setfl(output, flags | OFlags::NONBLOCK)?;
        }
        let pid = Pid::from_raw(child.id().cast_signed()).ok_or(io::ErrorKind::NotFound)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        loop {
            if !self.poll(&pidfd, stdout.as_ref(), stderr.as_ref())? {
                return Ok(Err(Ended::TimedOut(self.timeout.unwrap_or_default())));
            }
            // Looked at first: what it wrote before its end is then in the pipes.
            let status = child.try_wait()?;
            if self.read(&mut stdout, true)? || self.read(&mut stderr, false)? {
                return Ok(Err(Ended::TooLong(MOST_OUTPUT)));
            }
            if let Some(status) = status {
                return Ok(Ok(status));
            }
        }
    }

    /// Waits until something happens; `false` when its time is up.
    fn poll(
        &self,
        pidfd: &OwnedFd,
        stdout: Option<&File>,
        stderr: Option<&File>,
    ) -> io::Result<bool> {
        let outputs = [stdout, stderr].into_iter().flatten().map(AsFd::as_fd);
        let fds: Vec<BorrowedFd<'_>> = std::iter::once(pidfd.as_fd()).chain(outputs).collect();
        loop {
            let left = (self.timeout).map(|most| most.saturating_sub(self.started.elapsed()));
            let left = left.map(|left| Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            });
            let mut watched: Vec<_> = fds
                .iter()
                .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
                .collect();
            match poll(&mut watched, left.as_ref()) {
                Err(rustix::io::Errno::INTR) => {}
                other => return Ok(other? > 0),
            }
        }
    }

    /// Reads what is there; `true` when the answer is too long. An output at its end is closed.
    fn read(&mut self, output: &mut Option<File>, is_answer: bool) -> io::Result<bool> {
        let mut buffer = [0; 16 << 10];
        for _ in 0..PIECES {
            let Some(file) = output else { break };
            match file.read(&mut buffer) {
                Ok(0) => *output = None,
                Ok(count) => {
                    let piece = buffer.get(..count).unwrap_or_default();
                    if !is_answer {
                        self.relog.write(piece);
                    } else if self.answer.len() + count > MOST_OUTPUT {
                        return Ok(true);
                    } else {
                        self.answer.extend_from_slice(piece);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Plugin {
        Plugin {
            program: "/bin/sh".into(),
            extra_args: vec!["-c".into(), script.into(), "plugin".into()],
            timeout: None,
        }
    }

    fn report(error: &dyn std::error::Error) -> String {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(source) = cause {
            text = format!("{text}: {source}");
            cause = source.source();
        }
        text
    }

    #[test]
    fn failures_quote_what_the_user_is_told() {
        let plugin = shell("echo no such image; echo secret >&2; exit 3");
        let error = plugin.delete("x").unwrap_err();
        assert_eq!(
            report(&error),
            "running image plugin destroy: no such image: exit status 3"
        );
        let error = shell("kill -9 $$").capacity().unwrap_err();
        assert_eq!(report(&error), "running image plugin capacity: : signal: 9");
        let error = shell("echo nonsense").stats("x").unwrap_err();
        let text = report(&error);
        assert!(text.starts_with("parsing stats: nonsense: "), "{text}");
    }

    #[test]
    fn answers_are_read() {
        let script = r#"test "$*" = "stats web-1" &&
            echo '{"disk_usage":{"total_bytes_used":5,"exclusive_bytes_used":2,"more":1}}'"#;
        let usage = shell(script).stats("web-1").unwrap();
        assert_eq!((usage.total_bytes_used, usage.exclusive_bytes_used), (5, 2));
        let script = r#"test "$*" = capacity && echo '{"capacity": 77}'"#;
        assert_eq!(shell(script).capacity().unwrap(), 77);
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = Plugin::new("/nowhere/plugin").delete("x").unwrap_err();
        let text = report(&error);
        assert!(text.contains("cannot run /nowhere/plugin: "), "{text}");
    }

    #[test]
    fn one_that_takes_too_long_is_killed_with_what_it_started() {
        let directory = tempfile::tempdir().unwrap();
        let pid = directory.path().join("pid");
        let mut plugin = shell(&format!("sleep 1000 & echo $! > {}; wait", pid.display()));
        plugin.timeout = Some(Duration::from_millis(300));
        let error = plugin.delete("x").unwrap_err();
        assert!(report(&error).contains("it was killed after 0.3 s"));
        let pid: i32 = std::fs::read_to_string(&pid)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        // An orphan may stay a zombie until the host's init looks at it.
        let gone = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
            stat.map_or(true, |stat| stat.contains(") Z "))
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !gone() {
            assert!(Instant::now() < deadline, "{pid} lives on");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn what_it_leaves_behind_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let hold = directory.path().join("hold");
        let script = format!(
            "(while test -e {0}; do sleep 0.05; done) & echo '{{\"capacity\": 1}}'",
            hold.display()
        );
        std::fs::write(&hold, "").unwrap();
        // Would never return if it waited for the end of the output.
        assert_eq!(shell(&script).capacity().unwrap(), 1);
        std::fs::remove_file(hold).unwrap();
    }

    #[test]
    fn a_flood_is_cut_off() {
        let error = shell("exec yes").capacity().unwrap_err();
        assert!(matches!(
            error,
            Error::Running {
                source: Ended::TooLong(_),
                ..
            }
        ));
    }

    #[test]
    fn a_long_answer_is_read_whole() {
        let script = "printf '{\"capacity\": 5, \"more\": \"'; head -c 1000000 /dev/zero | tr '\\0' x; \
                      printf '\"}'";
        assert_eq!(shell(script).capacity().unwrap(), 5);
    }
}
