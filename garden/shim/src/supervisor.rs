//! The supervisor: the loop of one shim.
//!
//! Owns the pod's processes. Waits for everything at once (new connections, requests, workers'
//! reports, processes' ends) and does only what cannot block: what may (libcontainer, unpacking) is
//! done by a forked child. On a process's exit it does three things, in this order and nothing
//! between: reap, write the record, tell the server.

mod requests;

use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::rc::Rc;

use garden_wire::{
    Answer, Envelope, ExitRecord, Failure, FromShim, Kind, LOWEST, PROTOCOL, Pack, PacketError,
    Probe, Request, Role, Start, Unpack,
};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus};

use crate::failure::{Result, Step as _, other};
use crate::namespaces::{self, Namespaces, Prepared};
use crate::process::{Process, oom_kills};
use crate::seccomp::Program;
use crate::worker::{self, Report};
use crate::{probe, record, stream, sys, terminal};

/// Namespaces that a pod shares, by their names in `/proc/<pid>/ns` and in the OCI spec.
const NAMESPACES: [(&str, &str); 6] = [
    ("user", "user"),
    ("pid", "pid"),
    ("net", "network"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("mnt", "mount"),
];

/// A shim's whole state.
pub(crate) struct Supervisor {
    listener: OwnedFd,
    records: OwnedFd,
    seccomp: Rc<Program>,
    init: Rc<OwnedFd>,
    connections: Vec<Connection>,
    next_connection: u64,
    processes: HashMap<String, Process>,
    pending: Vec<Pending>,
    /// By pidfd, which tells when they are to be reaped: workers that have reported, and the
    /// holder of the namespaces.
    leaving: Vec<OwnedFd>,
    /// The pod's; those that are made ahead until its init runs.
    namespaces: Namespaces,
    /// Why these are not made.
    unprepared: Option<Failure>,
    finished: bool,
}

struct Connection {
    number: u64,
    socket: OwnedFd,
}

/// A request that a forked worker is doing.
struct Pending {
    worker: Worker,
    connection: u64,
    sequence: u64,
    work: Work,
}

/// A forked worker.
struct Worker {
    /// Where its report comes.
    report: OwnedFd,
    pidfd: OwnedFd,
}

enum Work {
    Start {
        start: Box<Start>,
        descriptors: Vec<OwnedFd>,
    },
    /// It starts nothing: its report is the answer.
    Task,
}

enum Ready {
    Listener,
    Connection(u64),
    Worker(usize),
    WorkersEnd,
    Process(String),
}

impl Supervisor {
    /// A shim that listens on `listener` and writes its records below `records`.
    pub(crate) fn new(
        listener: OwnedFd,
        records: OwnedFd,
        seccomp: Rc<Program>,
        init: Rc<OwnedFd>,
        prepared: Result<Prepared>,
    ) -> Self {
        let (namespaces, leaving, unprepared) = match prepared {
            Ok(prepared) => (prepared.namespaces, vec![prepared.holder], None),
            Err(failure) => (Vec::new(), Vec::new(), Some(failure)),
        };
        Self {
            listener,
            records,
            seccomp,
            init,
            connections: Vec::new(),
            next_connection: 0,
            processes: HashMap::new(),
            pending: Vec::new(),
            leaving,
            namespaces,
            unprepared,
            finished: false,
        }
    }

    /// Serves until told to end.
    pub(crate) fn run(&mut self) {
        while !self.finished {
            for ready in self.wait() {
                match ready {
                    // An exit before everything else: it is what somebody waits for.
                    Ready::Process(id) => self.process_ended(&id),
                    Ready::Worker(index) => self.worker_reported(index),
                    Ready::WorkersEnd => self.leaving.retain(|pidfd| !ended(pidfd)),
                    Ready::Listener => self.accept(),
                    Ready::Connection(number) => self.serve(number),
                }
            }
            self.reap_strangers();
        }
    }

    /// Blocks until something is ready. At most one worker at a time is returned, so that its
    /// index is still right when it is served.
    fn wait(&self) -> Vec<Ready> {
        let mut what = Vec::new();
        let mut files = Vec::new();
        for process in self
            .processes
            .values()
            .filter(|process| process.exit.is_none())
        {
            files.push(PollFd::new(&process.pidfd, PollFlags::IN));
            what.push(Ready::Process(process.id.clone()));
        }
        for (index, pending) in self.pending.iter().enumerate() {
            files.push(PollFd::new(&pending.worker.report, PollFlags::IN));
            what.push(Ready::Worker(index));
        }
        for pidfd in &self.leaving {
            files.push(PollFd::new(pidfd, PollFlags::IN));
            what.push(Ready::WorkersEnd);
        }
        files.push(PollFd::new(&self.listener, PollFlags::IN));
        what.push(Ready::Listener);
        for connection in &self.connections {
            files.push(PollFd::new(&connection.socket, PollFlags::IN));
            what.push(Ready::Connection(connection.number));
        }
        if rustix::event::poll(&mut files, None).is_err() {
            return Vec::new();
        }
        let mut worker_seen = false;
        files
            .iter()
            .zip(what)
            .filter(|(file, _)| !file.revents().is_empty())
            .map(|(_, ready)| ready)
            .filter(|ready| match ready {
                Ready::Worker(_) => !std::mem::replace(&mut worker_seen, true),
                _ => true,
            })
            .collect()
    }

    fn accept(&mut self) {
        let flags = rustix::net::SocketFlags::CLOEXEC;
        match rustix::net::accept_with(&self.listener, flags) {
            Ok(socket) => {
                self.next_connection += 1;
                self.connections.push(Connection {
                    number: self.next_connection,
                    socket,
                });
            }
            // Shut down by the server, which does not know of this shim: its zygote died before it
            // could tell, and another shim was made instead.
            Err(rustix::io::Errno::INVAL) => self.finished = self.processes.is_empty(),
            Err(_) => {}
        }
    }

    fn serve(&mut self, number: u64) {
        let Some(connection) = self.connections.iter().find(|c| c.number == number) else {
            return;
        };
        match garden_wire::receive::<Envelope>(connection.socket.as_fd()) {
            Ok(received) => {
                let Envelope { sequence, request } = received.value;
                self.handle(number, sequence, request, received.descriptors);
            }
            Err(PacketError::NotReady) => {}
            Err(PacketError::Closed) => self.connections.retain(|c| c.number != number),
            Err(error) => {
                // One side is of another release, or broken: nothing on this connection can be
                // trusted to be in step any more.
                sys::log(&format!("garden-shim: connection dropped: {error}"));
                self.connections.retain(|c| c.number != number);
            }
        }
    }

    fn handle(
        &mut self,
        connection: u64,
        sequence: u64,
        request: Request,
        descriptors: Vec<OwnedFd>,
    ) {
        let answer = match request {
            Request::Start(start) => match self.start(connection, sequence, start, descriptors) {
                Ok(()) => return,
                Err(failure) => Answer::Failed(failure),
            },
            Request::Unpack(request) => {
                match self.unpack(connection, sequence, &request, &descriptors) {
                    Ok(()) => return,
                    Err(failure) => Answer::Failed(failure),
                }
            }
            Request::Probe(probe) => match self.probe(connection, sequence, &probe) {
                Ok(()) => return,
                Err(failure) => Answer::Failed(failure),
            },
            Request::Pack(request) => {
                match self.pack(connection, sequence, &request, &descriptors) {
                    Ok(()) => return,
                    Err(failure) => Answer::Failed(failure),
                }
            }
            Request::Streams { id } => return self.streams(connection, sequence, &id),
            Request::Hello { .. } => Answer::Hello {
                protocol: PROTOCOL,
                lowest: LOWEST,
                processes: self.processes.values().map(Process::state).collect(),
            },
            Request::Signal { id, signal } => answer(self.signal(&id, signal)),
            Request::CloseStdin { id } => answer(self.close_stdin(&id)),
            Request::Resize { id, columns, rows } => answer(self.resize(&id, columns, rows)),
            Request::Forget { id } => answer(self.forget(&id)),
            Request::Shutdown => answer(self.shutdown()),
        };
        self.tell(connection, &FromShim::Answer { sequence, answer }, &[]);
    }

    fn tell(&self, number: u64, message: &FromShim, descriptors: &[BorrowedFd<'_>]) {
        if let Some(connection) = self.connections.iter().find(|c| c.number == number) {
            // A server that is gone is no error: it asks again when it is back.
            let _ = garden_wire::send(connection.socket.as_fd(), message, descriptors);
        }
    }

    fn start(
        &mut self,
        connection: u64,
        sequence: u64,
        start: Box<Start>,
        descriptors: Vec<OwnedFd>,
    ) -> Result<()> {
        let taken =
            |id: &str, kind| id == start.id || (kind, start.kind) == (Kind::Init, Kind::Init);
        let known = self.processes.values().any(|one| taken(&one.id, one.kind))
            || self.pending.iter().any(|pending| match &pending.work {
                Work::Start { start: other, .. } => taken(&other.id, other.kind),
                Work::Task => false,
            });
        if known {
            return Err(other(format!("process ID '{}' already in use", start.id)));
        }
        if let (Kind::Init, Some(failure)) = (start.kind, &self.unprepared) {
            return Err(failure.clone());
        }
        if start.descriptors.len() != descriptors.len() {
            return Err(other("descriptors and their roles differ in number"));
        }
        let inputs = worker::Inputs {
            start: &start,
            descriptors: &descriptors,
            namespaces: &self.namespaces,
            seccomp: &self.seccomp,
            init: self.init.as_fd(),
        };
        let group = start
            .descriptors
            .iter()
            .zip(&descriptors)
            .find(|(role, _)| **role == Role::CgroupDirectory)
            .map(|(_, fd)| fd.as_fd());
        let worker = fork_worker(group, |report| worker::main(&inputs, report))?;
        // Only what the shim keeps stays open here: the process's own ends must close with it.
        self.expect(
            worker,
            connection,
            sequence,
            Work::Start { start, descriptors },
        );
        Ok(())
    }

    /// Remembers whom the report of a worker is for.
    fn expect(&mut self, worker: Worker, connection: u64, sequence: u64, work: Work) {
        self.pending.push(Pending {
            worker,
            connection,
            sequence,
            work,
        });
    }

    fn unpack(
        &mut self,
        connection: u64,
        sequence: u64,
        request: &Unpack,
        descriptors: &[OwnedFd],
    ) -> Result<()> {
        let files = descriptors
            .first()
            .ok_or_else(|| other("no stream to unpack"))?;
        let namespaces = &self.namespaces;
        let worker = fork_worker(None, |report| {
            stream::unpack(request, files, namespaces, report)
        })?;
        self.expect(worker, connection, sequence, Work::Task);
        Ok(())
    }

    fn pack(
        &mut self,
        connection: u64,
        sequence: u64,
        request: &Pack,
        descriptors: &[OwnedFd],
    ) -> Result<()> {
        let [files, status] = descriptors else {
            return Err(other("a packer needs a stream and a pipe for its end"));
        };
        let namespaces = &self.namespaces;
        let worker = fork_worker(None, |report| {
            stream::pack(request, files, status, namespaces, report)
        })?;
        self.expect(worker, connection, sequence, Work::Task);
        Ok(())
    }

    fn probe(&mut self, connection: u64, sequence: u64, probe: &Probe) -> Result<()> {
        let namespaces = &self.namespaces;
        let worker = fork_worker(None, |report| probe::main(probe, namespaces, report))?;
        self.expect(worker, connection, sequence, Work::Task);
        Ok(())
    }

    fn worker_reported(&mut self, index: usize) {
        let Some(report) = self
            .pending
            .get(index)
            .map(|pending| pending.worker.report.as_fd())
        else {
            return;
        };
        let received = garden_wire::receive::<Report>(report);
        let pending = self.pending.swap_remove(index);
        self.leaving.push(pending.worker.pidfd);
        let mut extra = Vec::new();
        let answer = match received {
            Ok(received) => match (received.value, pending.work) {
                (Report::Failed(failure), _) => Answer::Failed(failure),
                (Report::Running(_), Work::Task) => Answer::Done,
                (
                    Report::Probed {
                        passed,
                        message,
                        at_ns,
                    },
                    _,
                ) => Answer::Probed {
                    passed,
                    message,
                    at_ns,
                },
                (Report::Running(pid), Work::Start { start, descriptors }) => {
                    let master = received.descriptors.into_iter().next();
                    match self.track(&start, pid, descriptors, master) {
                        Ok(copy) => {
                            extra.extend(copy);
                            Answer::Started {
                                pid: pid.unsigned_abs(),
                            }
                        }
                        Err(failure) => Answer::Failed(failure),
                    }
                }
            },
            Err(error) => Answer::Failed(other(format!(
                "the worker ended without a report ({error}): see the server's log"
            ))),
        };
        let message = FromShim::Answer {
            sequence: pending.sequence,
            answer,
        };
        let extra: Vec<BorrowedFd<'_>> = extra.iter().map(|fd: &OwnedFd| fd.as_fd()).collect();
        self.tell(pending.connection, &message, &extra);
    }

    /// Takes a new process into care. Returns a copy of its terminal's master, if it has one.
    fn track(
        &mut self,
        start: &Start,
        pid: i32,
        descriptors: Vec<OwnedFd>,
        master: Option<OwnedFd>,
    ) -> Result<Option<OwnedFd>> {
        // It cannot have been reaped: strangers are reaped only while no worker is at work, and
        // this worker's report has just been read.
        let raw = rustix::process::Pid::from_raw(pid).ok_or_else(|| other("no pid came"))?;
        let pidfd = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty())
            .step("cannot get hold of the new process")?;
        if start.kind == Kind::Init {
            self.namespaces = open_namespaces(pid)?;
        }
        let mut process = Process {
            id: start.id.clone(),
            kind: start.kind,
            pid,
            pidfd,
            streams: [None, None, None],
            terminal: master.is_some(),
            oom: None,
            exit: None,
        };
        for (role, fd) in start.descriptors.iter().zip(descriptors) {
            match role {
                Role::Keep(number) => {
                    if let Some(place) = process.streams.get_mut(usize::from(*number)) {
                        *place = Some(fd);
                    }
                }
                Role::OomCounter => {
                    let before = oom_kills(&fd);
                    process.oom = Some((fd, before));
                }
                _ => {}
            }
        }
        let mut copy = None;
        if let Some(master) = master {
            if let Some((columns, rows)) = start.terminal {
                terminal::set_size(&master, columns, rows)
                    .step("cannot set the terminal's size")?;
            }
            copy = Some(
                rustix::io::fcntl_dupfd_cloexec(&master, 3)
                    .step("cannot duplicate the terminal")?,
            );
            process.streams[0] = Some(master);
        }
        self.processes.insert(start.id.clone(), process);
        Ok(copy)
    }

    /// The exit path. Nothing may be added to it that can wait.
    fn process_ended(&mut self, id: &str) {
        let Some(process) = self.processes.get_mut(id) else {
            return;
        };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = match rustix::process::waitid(WaitId::PidFd(process.pidfd.as_fd()), options) {
            Ok(Some(status)) => Some(status),
            Ok(None) => return,
            // Reaped as a stranger's would be: cannot happen, but the exit must not be lost.
            Err(_) => None,
        };
        let exit = ExitRecord {
            id: id.to_owned(),
            code: status.as_ref().map_or(255, exit_code),
            out_of_memory: process.out_of_memory(),
            exited_at_ns: record::now_ns(),
        };
        if let Err(error) = record::write(self.records.as_fd(), &exit) {
            sys::log(&format!(
                "garden-shim: cannot write the exit record of {id}: {error}"
            ));
        }
        process.exit = Some(exit.clone());
        process.oom = None;
        let message = FromShim::Exited(exit);
        for connection in &self.connections {
            let _ = garden_wire::send(connection.socket.as_fd(), &message, &[]);
        }
    }

    /// Reaps workers, libcontainer's intermediate processes and adopted orphans.
    ///
    /// Only while no worker is at work that starts one: until its report has come, one of the
    /// strangers may be the process that it reports. (Probes may be at work all the time.)
    fn reap_strangers(&mut self) {
        let starting = |pending: &Pending| matches!(pending.work, Work::Start { .. });
        if self.pending.iter().any(starting) {
            return;
        }
        loop {
            let peek = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            let Ok(Some(_)) = rustix::process::waitid(WaitId::All, peek) else {
                return;
            };
            let own = self
                .processes
                .values()
                .filter(|process| process.exit.is_none())
                .find(|process| {
                    let options =
                        WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
                    let which = WaitId::PidFd(process.pidfd.as_fd());
                    matches!(rustix::process::waitid(which, options), Ok(Some(_)))
                })
                .map(|process| process.id.clone());
            match own {
                Some(id) => self.process_ended(&id),
                None => {
                    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
                    if !matches!(rustix::process::waitid(WaitId::All, options), Ok(Some(_))) {
                        return;
                    }
                }
            }
        }
    }
}

/// Whether a process has ended.
fn ended(pidfd: &OwnedFd) -> bool {
    let mut files = [PollFd::new(pidfd, PollFlags::IN)];
    let now = rustix::time::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let polled = rustix::event::poll(&mut files, Some(&now));
    polled.is_ok() && files.iter().any(|file| !file.revents().is_empty())
}

fn answer(result: Result<()>) -> Answer {
    match result {
        Ok(()) => Answer::Done,
        Err(failure) => Answer::Failed(failure),
    }
}

/// Forks a worker, into a cgroup if one is given.
fn fork_worker(group: Option<BorrowedFd<'_>>, work: impl FnOnce(BorrowedFd<'_>)) -> Result<Worker> {
    let (ours, theirs) = garden_wire::socket_pair().step("cannot make a socket pair")?;
    let forked = group.map_or_else(sys::fork, sys::fork_into);
    match forked.step("cannot fork a worker")? {
        sys::Fork::Child => {
            drop(ours);
            work(theirs.as_fd());
            sys::exit(1)
        }
        sys::Fork::Parent(pid) => Ok(Worker {
            report: ours,
            // Nobody else reaps it: the pid is still its own.
            pidfd: rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
                .step("cannot get hold of the worker")?,
        }),
    }
}

fn open_namespaces(pid: i32) -> Result<Namespaces> {
    NAMESPACES
        .iter()
        .map(|(file, name)| Ok(((*name).to_owned(), namespaces::open(pid, file)?)))
        .collect()
}

fn exit_code(status: &WaitIdStatus) -> i32 {
    if let Some(code) = status.exit_status() {
        return code;
    }
    status
        .terminating_signal()
        .map_or(255, |signal| 128 + signal)
}
