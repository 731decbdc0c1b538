//! Requests about a process that runs or has ended: signals, terminal sizes, streams.
//!
//! Called by the loop for requests that need no worker: each is done when it returns.

use std::os::fd::{AsFd as _, BorrowedFd};

use garden_wire::{Answer, Failure, FailureKind, FromShim};

use super::Supervisor;
use crate::failure::{Result, Step as _, other};
use crate::process::Process;
use crate::terminal::set_size;

impl Supervisor {
    fn live(&self, id: &str) -> Result<&Process> {
        let process = self.processes.get(id).ok_or_else(|| unknown(id))?;
        if process.exit.is_some() {
            return Err(Failure {
                kind: FailureKind::Ended,
                message: format!("process {id} has ended"),
            });
        }
        Ok(process)
    }

    pub(super) fn signal(&self, id: &str, signal: i32) -> Result<()> {
        let process = self.live(id)?;
        let signal = rustix::process::Signal::from_named_raw(signal)
            .ok_or_else(|| other(format!("there is no signal {signal}")))?;
        match rustix::process::pidfd_send_signal(&process.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno).step(&format!("cannot send the signal to process {id}")),
        }
    }

    pub(super) fn close_stdin(&mut self, id: &str) -> Result<()> {
        let process = self.processes.get_mut(id).ok_or_else(|| unknown(id))?;
        if !process.terminal {
            process.streams[0] = None;
        }
        Ok(())
    }

    pub(super) fn resize(&self, id: &str, columns: u16, rows: u16) -> Result<()> {
        let process = self.live(id)?;
        match (&process.streams[0], process.terminal) {
            (Some(master), true) => {
                set_size(master, columns, rows).step("cannot set the terminal's size")
            }
            _ => Err(other(format!("process {id} has no terminal"))),
        }
    }

    pub(super) fn streams(&self, connection: u64, sequence: u64, id: &str) {
        let Some(process) = self.processes.get(id) else {
            let answer = Answer::Failed(unknown(id));
            return self.tell(connection, &FromShim::Answer { sequence, answer }, &[]);
        };
        let kept = || (0_u8..).zip(&process.streams);
        let answer = Answer::Streams {
            streams: kept()
                .filter(|(_, fd)| fd.is_some())
                .map(|(number, _)| number)
                .collect(),
            terminal: process.terminal,
        };
        let descriptors: Vec<BorrowedFd<'_>> = kept()
            .filter_map(|(_, fd)| fd.as_ref().map(|fd| fd.as_fd()))
            .collect();
        self.tell(
            connection,
            &FromShim::Answer { sequence, answer },
            &descriptors,
        );
    }

    pub(super) fn forget(&mut self, id: &str) -> Result<()> {
        match self.processes.get(id) {
            Some(process) if process.exit.is_none() => {
                return Err(other(format!("process {id} has not ended")));
            }
            _ => {}
        }
        self.processes.remove(id);
        Ok(())
    }

    pub(super) fn shutdown(&mut self) -> Result<()> {
        if self
            .processes
            .values()
            .any(|process| process.exit.is_none())
        {
            return Err(other("processes of this pod are alive"));
        }
        self.finished = true;
        Ok(())
    }
}

fn unknown(id: &str) -> Failure {
    Failure {
        kind: FailureKind::UnknownProcess,
        message: format!("unknown process: {id}"),
    }
}
