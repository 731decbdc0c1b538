//! The server's side of one shim.
//!
//! A [`Shim`] is a connection: it can be made to a shim just spawned, or to one that has outlived
//! a server. Requests may be in flight together; exits arrive on a channel of their own. When
//! the connection ends without having been asked to, the shim is dead, and with it its pod.

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use garden_wire::{
    Answer, Envelope, ExitRecord, FromShim, PROTOCOL, Pack, PacketError, Probe, ProcessState,
    Request, Start, Unpack,
};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::sync::{mpsc, oneshot};

use super::failure;
use super::socket::PacketSocket;
use crate::error::Error;

/// The file name of a shim's socket in its container's directory.
pub const SOCKET: &str = "shim.sock";

/// How long a supervisor may take for its first answer: it never blocks, so one that takes longer
/// is stopped or stuck, and must not keep a server from serving.
const HELLO_PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

type Reply = (Answer, Vec<OwnedFd>);
type Waiting = HashMap<u64, oneshot::Sender<Reply>>;

/// A connection to a shim. Cheap to clone.
#[derive(Clone)]
pub struct Shim(Arc<Inner>);

struct Inner {
    /// `None` when it was dead from the beginning.
    socket: Option<Arc<PacketSocket>>,
    sequence: AtomicU64,
    /// `None` once the connection has ended: whoever asks then is told at once.
    waiting: Arc<Mutex<Option<Waiting>>>,
    reader: Option<tokio::task::AbortHandle>,
    /// What it understands.
    protocol: AtomicU32,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(reader) = &self.reader {
            reader.abort();
        }
    }
}

/// What a shim says unasked.
#[derive(Debug)]
pub enum Event {
    /// A process has ended; its record is written.
    Exited(ExitRecord),
    /// The shim is gone. The last event.
    Gone,
}

/// Makes the listening socket for a shim, in the container's directory, in the place of an earlier
/// one.
///
/// # Errors
/// The kernel's.
pub fn listen(directory: BorrowedFd<'_>) -> std::io::Result<OwnedFd> {
    match rustix::fs::unlinkat(directory, SOCKET, rustix::fs::AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    let socket = packet_socket()?;
    rustix::net::bind(&socket, &address(directory)?)?;
    rustix::net::listen(&socket, 16)?;
    Ok(socket)
}

fn packet_socket() -> std::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        flags,
        None,
    )?)
}

/// Through the directory's descriptor, because a socket's path has room for 107 bytes only.
fn address(directory: BorrowedFd<'_>) -> std::io::Result<SocketAddrUnix> {
    use std::os::fd::AsRawFd as _;
    let path = format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd());
    Ok(SocketAddrUnix::new(Path::new(&path))?)
}

impl Shim {
    /// Stands for a shim that is known to be dead: whoever asks it is told so.
    pub(crate) fn dead() -> Self {
        Self(Arc::new(Inner {
            socket: None,
            sequence: AtomicU64::new(0),
            waiting: Arc::new(Mutex::new(None)),
            reader: None,
            protocol: AtomicU32::new(0),
        }))
    }

    /// Connects and exchanges versions. Returns what the shim knows of its processes, and the
    /// channel on which its events will come.
    ///
    /// # Errors
    /// When nobody listens (the shim is dead) or it is of a newer release than this server.
    pub async fn connect(
        directory: BorrowedFd<'_>,
    ) -> Result<(Self, Vec<ProcessState>, mpsc::UnboundedReceiver<Event>), Error> {
        let failed = |error| Error::host("cannot reach the container's supervisor", error);
        let socket = packet_socket().map_err(failed)?;
        let address = address(directory).map_err(failed)?;
        rustix::net::connect(&socket, &address)
            .map_err(|errno| failed(std::io::Error::from(errno)))?;
        let socket = Arc::new(PacketSocket::new(socket).map_err(failed)?);
        let waiting = Arc::new(Mutex::new(Some(Waiting::new())));
        let (events, receiver) = mpsc::unbounded_channel();
        let reader =
            tokio::spawn(read(Arc::clone(&socket), Arc::clone(&waiting), events)).abort_handle();
        let shim = Self(Arc::new(Inner {
            socket: Some(socket),
            sequence: AtomicU64::new(0),
            waiting,
            reader: Some(reader),
            protocol: AtomicU32::new(0),
        }));
        let hello = shim.ask(Request::Hello { protocol: PROTOCOL }, &[]);
        let (answer, _) =
            tokio::time::timeout(HELLO_PATIENCE, hello)
                .await
                .map_err(|elapsed| {
                    Error::host("the container's supervisor does not answer", elapsed)
                })??;
        match answer {
            Answer::Hello {
                protocol,
                lowest,
                processes,
            } if lowest <= PROTOCOL => {
                shim.0.protocol.store(protocol, Ordering::Relaxed);
                Ok((shim, processes, receiver))
            }
            Answer::Hello { lowest, .. } => Err(Error::host(
                "the container's supervisor is of a newer release than this server",
                format!("it speaks protocol {lowest} and newer, this server up to {PROTOCOL}"),
            )),
            answer => Err(out_of_step(&answer)),
        }
    }

    /// Whether it is known to be gone.
    pub(crate) fn is_dead(&self) -> bool {
        lock(&self.0.waiting).is_none()
    }

    /// Starts a process. Returns its pid and, if it has a terminal, the terminal's master.
    ///
    /// # Errors
    /// Typed for a missing or unusable executable; otherwise the step that failed.
    pub async fn start(
        &self,
        start: Start,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(u32, Option<OwnedFd>), Error> {
        let (answer, fds) = self
            .ask(Request::Start(Box::new(start)), descriptors)
            .await?;
        match answer {
            Answer::Started { pid } => Ok((pid, fds.into_iter().next())),
            answer => Err(out_of_step(&answer)),
        }
    }

    /// Unpacks a tar stream inside the container; returns when its end has been unpacked.
    ///
    /// # Errors
    /// What the container's file system or the archive brought up.
    pub async fn unpack(&self, unpack: Unpack, stream: BorrowedFd<'_>) -> Result<(), Error> {
        if unpack.owners {
            self.since(3, "keep the owners of files")?;
        }
        self.done(Request::Unpack(unpack), &[stream]).await
    }

    /// Refuses what the shim would not understand.
    fn since(&self, version: u32, what: &str) -> Result<(), Error> {
        if self.0.protocol.load(Ordering::Relaxed) >= version {
            return Ok(());
        }
        Err(Error::host(
            format!("the container's supervisor cannot {what}"),
            "it is of an older release: create the container anew",
        ))
    }

    /// Looks from inside the pod's network whether something answers. Returns whether it is as
    /// expected, what was found, and when that was known, in nanoseconds since the epoch.
    ///
    /// # Errors
    /// When the shim is gone, or of a release that cannot do it.
    pub async fn probe(&self, probe: Probe) -> Result<(bool, String, u64), Error> {
        self.since(2, "probe its network")?;
        match self.ask(Request::Probe(probe), &[]).await?.0 {
            Answer::Probed {
                passed,
                message,
                at_ns,
            } => Ok((passed, message, at_ns)),
            answer => Err(out_of_step(&answer)),
        }
    }

    /// Packs files inside the container into `stream`; returns when that begins. `status` gets
    /// [`garden_wire::PACKED`] when the stream is whole, else what went wrong.
    ///
    /// # Errors
    /// When the user cannot open the source.
    pub async fn pack(
        &self,
        pack: Pack,
        stream: BorrowedFd<'_>,
        status: BorrowedFd<'_>,
    ) -> Result<(), Error> {
        self.since(2, "pack files")?;
        if pack.head || pack.follow {
            self.since(3, "describe files, or follow links to them")?;
        }
        self.done(Request::Pack(pack), &[stream, status]).await
    }

    /// Sends a signal. A process that has ended meanwhile is no error here.
    ///
    /// # Errors
    /// When the shim is gone or does not know the process.
    pub async fn signal(&self, id: &str, signal: i32) -> Result<(), Error> {
        self.done(
            Request::Signal {
                id: id.to_owned(),
                signal,
            },
            &[],
        )
        .await
    }

    /// Lets go of the shim's end of a process's standard input.
    ///
    /// # Errors
    /// As [`Shim::signal`].
    pub async fn close_stdin(&self, id: &str) -> Result<(), Error> {
        self.done(Request::CloseStdin { id: id.to_owned() }, &[])
            .await
    }

    /// Sets the size of a process's terminal.
    ///
    /// # Errors
    /// As [`Shim::signal`], and when it has no terminal.
    pub async fn resize(&self, id: &str, columns: u16, rows: u16) -> Result<(), Error> {
        self.done(
            Request::Resize {
                id: id.to_owned(),
                columns,
                rows,
            },
            &[],
        )
        .await
    }

    /// Gets the kept ends of a process's streams: by number, and whether 0 is a terminal.
    ///
    /// # Errors
    /// As [`Shim::signal`].
    pub async fn streams(&self, id: &str) -> Result<(Vec<(u8, OwnedFd)>, bool), Error> {
        let (answer, fds) = self
            .ask(Request::Streams { id: id.to_owned() }, &[])
            .await?;
        match answer {
            Answer::Streams { streams, terminal } => {
                Ok((streams.into_iter().zip(fds).collect(), terminal))
            }
            answer => Err(out_of_step(&answer)),
        }
    }

    /// Makes the shim drop what it keeps of an ended process.
    ///
    /// # Errors
    /// As [`Shim::signal`].
    pub async fn forget(&self, id: &str) -> Result<(), Error> {
        self.done(Request::Forget { id: id.to_owned() }, &[]).await
    }

    /// Ends the shim.
    ///
    /// # Errors
    /// While processes of its pod live.
    pub async fn shutdown(&self) -> Result<(), Error> {
        self.done(Request::Shutdown, &[]).await
    }

    async fn done(&self, request: Request, descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
        match self.ask(request, descriptors).await?.0 {
            Answer::Done => Ok(()),
            answer => Err(out_of_step(&answer)),
        }
    }

    async fn ask(&self, request: Request, descriptors: &[BorrowedFd<'_>]) -> Result<Reply, Error> {
        let gone = || {
            Error::host(
                "the container's supervisor is gone",
                "destroy the container to clean up",
            )
        };
        let sequence = self.0.sequence.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        match lock(&self.0.waiting).as_mut() {
            Some(waiting) => waiting.insert(sequence, sender),
            None => return Err(gone()),
        };
        let envelope = Envelope { sequence, request };
        let socket = self.0.socket.as_ref().ok_or_else(gone)?;
        socket
            .send(&envelope, descriptors)
            .await
            .map_err(|_| gone())?;
        let (answer, fds) = receiver.await.map_err(|_| gone())?;
        match answer {
            Answer::Failed(refusal) => Err(failure(refusal)),
            answer => Ok((answer, fds)),
        }
    }
}

fn lock(waiting: &Mutex<Option<Waiting>>) -> std::sync::MutexGuard<'_, Option<Waiting>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

fn out_of_step(answer: &Answer) -> Error {
    Error::host(
        "the container's supervisor is out of step",
        format!("it answered {answer:?}"),
    )
}

async fn read(
    socket: Arc<PacketSocket>,
    waiting: Arc<Mutex<Option<Waiting>>>,
    events: mpsc::UnboundedSender<Event>,
) {
    loop {
        match socket.receive::<FromShim>().await {
            Ok(received) => match received.value {
                FromShim::Answer { sequence, answer } => {
                    let sender = lock(&waiting)
                        .as_mut()
                        .and_then(|map| map.remove(&sequence));
                    if let Some(sender) = sender {
                        let _ = sender.send((answer, received.descriptors));
                    }
                }
                FromShim::Exited(record) => {
                    let _ = events.send(Event::Exited(record));
                }
            },
            Err(error) => {
                if !matches!(error, PacketError::Closed) {
                    tracing::warn!(%error, "connection to a shim failed");
                }
                // Dropping the senders answers everybody who waits.
                drop(lock(&waiting).take());
                let _ = events.send(Event::Gone);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::os::fd::AsFd as _;

    /// Connects to a supervisor that answers the first request with these words.
    async fn greet(answer: Value) -> Result<usize, Error> {
        let directory = tempfile::tempdir().unwrap();
        let opened = std::fs::File::open(directory.path()).unwrap();
        let listener = listen(opened.as_fd()).unwrap();
        let supervisor = std::thread::spawn(move || {
            let server = rustix::net::accept(&listener).unwrap();
            let asked = garden_wire::receive::<Value>(server.as_fd()).unwrap();
            let sequence = &asked.value["sequence"];
            let message = json!({"is": "answer", "sequence": sequence, "answer": answer});
            garden_wire::send(server.as_fd(), &message, &[]).unwrap();
        });
        let connected = Shim::connect(opened.as_fd()).await;
        supervisor.join().unwrap();
        connected.map(|(_, processes, _)| processes.len())
    }

    /// As the first release wrote it, and as later ones must go on reading it.
    #[tokio::test]
    async fn a_supervisor_of_the_first_release_is_understood() {
        let process = json!({"id": "init", "kind": "init", "pid": 7});
        let hello = json!({"answer": "hello", "protocol": 1, "processes": [process]});
        assert_eq!(greet(hello).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn what_a_supervisor_says_beyond_what_is_known_is_passed_over() {
        let process = json!({"id": "init", "kind": "init", "pid": 7, "mood": "fine"});
        let hello = json!({"answer": "hello", "protocol": 1, "processes": [process], "x": 1});
        assert_eq!(greet(hello).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn a_supervisor_of_a_newer_release_is_refused_with_both_versions() {
        let newer = PROTOCOL + 1;
        let hello = json!({"answer": "hello", "protocol": newer, "lowest": 1, "processes": []});
        assert_eq!(greet(hello).await.unwrap(), 0, "it serves older servers");
        let hello = json!({"answer": "hello", "protocol": newer, "lowest": newer, "processes": []});
        let error = greet(hello).await.unwrap_err();
        let text = error.report();
        assert!(
            text.contains("newer release") && text.contains(&newer.to_string()),
            "{text}"
        );
    }
}
