//! The server's side of the zygote: started with the server, asked for a shim per container.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use garden_wire::{IdRange, PROTOCOL, ZygoteReply, ZygoteRequest};
use tokio::sync::Mutex;

use super::socket::PacketSocket;
use crate::error::Error;
use crate::model::Handle;

/// How the zygote is started.
#[derive(Debug, Clone)]
pub struct ZygoteOptions {
    /// The `garden-shim` executable.
    pub program: PathBuf,
    /// Where the host's cgroup2 hierarchy is mounted, if anywhere.
    pub cgroup2: Option<PathBuf>,
    /// The server's tag: shown in the supervisors' command lines.
    pub tag: Option<String>,
}

/// A running zygote; started again when found dead.
pub struct Zygote {
    options: ZygoteOptions,
    /// `None` after [`Zygote::close`].
    running: Mutex<Option<Running>>,
}

struct Running {
    child: Child,
    socket: PacketSocket,
}

impl Drop for Running {
    fn drop(&mut self) {
        // It ends by itself when our end of the socket closes; this collects it, if it has ended
        // already. See `Zygote::close`.
        let _ = self.child.try_wait();
    }
}

impl Zygote {
    /// Starts it and waits until it is prepared (tens of milliseconds: it compiles the seccomp
    /// program).
    ///
    /// # Errors
    /// When the program is missing, or the host refuses what it needs: the text says which.
    pub async fn start(options: ZygoteOptions) -> Result<Self, Error> {
        let running = Running::start(&options).await?;
        Ok(Self {
            options,
            running: Mutex::new(Some(running)),
        })
    }

    /// Makes a shim that listens on what `listen` makes and writes exit records below `records`. It
    /// has the namespaces of its pod made, with these ids. Returns its pid and pidfd.
    ///
    /// A zygote that dies may have made the shim and not said so. Another shim must not share its
    /// socket: a client would reach one or the other. So the socket of the first is shut down, by
    /// which that one ends, and the second gets a socket of its own.
    ///
    /// # Errors
    /// When the zygote cannot fork, or cannot be started again after it died.
    pub async fn spawn(
        &self,
        handle: &Handle,
        ids: Option<&[IdRange]>,
        listen: impl Fn() -> std::io::Result<OwnedFd>,
        records: &OwnedFd,
    ) -> Result<(u32, OwnedFd), Error> {
        let listen =
            || listen().map_err(|error| Error::host("cannot make the supervisor's socket", error));
        let mut slot = self.running.lock().await;
        if let Some(running) = slot.as_mut() {
            let listener = listen()?;
            match running.spawn(handle, ids, &listener, records).await {
                Err(SpawnError::Gone) => {
                    tracing::warn!("the zygote is gone; starting another");
                    let _ = rustix::net::shutdown(&listener, rustix::net::Shutdown::Both);
                }
                outcome => return outcome.map_err(Error::from),
            }
        }
        let running = slot.insert(Running::start(&self.options).await?);
        running
            .spawn(handle, ids, &listen()?, records)
            .await
            .map_err(Error::from)
    }

    /// Ends it and waits until it has. Shims live on.
    pub async fn close(&self) {
        let Some(running) = self.running.lock().await.take() else {
            return;
        };
        let ended = tokio::task::spawn_blocking(move || running.end());
        let _ = tokio::time::timeout(std::time::Duration::from_secs(2), ended).await;
    }
}

enum SpawnError {
    Gone,
    Refused(String),
}

impl From<SpawnError> for Error {
    fn from(error: SpawnError) -> Self {
        match error {
            SpawnError::Gone => Error::host("cannot make a shim", "the zygote died twice"),
            SpawnError::Refused(message) => Error::host("cannot make a shim", message),
        }
    }
}

impl Running {
    /// Blocks until the zygote has ended.
    fn end(mut self) {
        let _ = rustix::net::shutdown(self.socket.as_fd(), rustix::net::Shutdown::Both);
        let _ = self.child.wait();
    }

    async fn start(options: &ZygoteOptions) -> Result<Self, Error> {
        let failed = |doing: &str| {
            let doing = format!("{doing} {}", options.program.display());
            move |error: std::io::Error| Error::host(doing, error)
        };
        let (ours, theirs) =
            garden_wire::socket_pair().map_err(failed("cannot make a socket for"))?;
        let child = command(options, theirs)
            .spawn()
            .map_err(failed("cannot start the supervisor program"))?;
        // Before it is asked for anything, so every shim inherits it.
        crate::nofile::restore_for(&child).map_err(failed("cannot limit the open files of"))?;
        let socket = PacketSocket::new(ours).map_err(failed("cannot use the socket of"))?;
        let running = Self { child, socket };
        let ready = running
            .socket
            .receive::<ZygoteReply>()
            .await
            .map_err(|error| Error::host("the zygote ended before it was ready", error))?;
        match ready.value {
            ZygoteReply::Ready { protocol, .. } if protocol != PROTOCOL => Err(Error::host(
                format!("{} is of another release", options.program.display()),
                format!("it speaks protocol {protocol}, this server {PROTOCOL}"),
            )),
            ZygoteReply::Ready {
                seccomp_instructions,
                ..
            } => {
                tracing::info!(
                    pid = running.child.id(),
                    seccomp_instructions,
                    "zygote ready"
                );
                Ok(running)
            }
            ZygoteReply::Failed { message } => Err(Error::host(
                "the zygote cannot prepare itself on this host",
                message,
            )),
            ZygoteReply::Spawned { .. } => Err(Error::host(
                "the zygote is out of step",
                "it answered before it was asked",
            )),
        }
    }

    async fn spawn(
        &mut self,
        handle: &Handle,
        ids: Option<&[IdRange]>,
        listener: &OwnedFd,
        records: &OwnedFd,
    ) -> Result<(u32, OwnedFd), SpawnError> {
        let request = ZygoteRequest::Spawn {
            handle: handle.to_string(),
            ids: ids.map(<[IdRange]>::to_vec),
        };
        let descriptors = [listener.as_fd(), records.as_fd()];
        self.socket
            .send(&request, &descriptors)
            .await
            .map_err(|_| SpawnError::Gone)?;
        let reply = self
            .socket
            .receive::<ZygoteReply>()
            .await
            .map_err(|_| SpawnError::Gone)?;
        match (reply.value, reply.descriptors.into_iter().next()) {
            (ZygoteReply::Spawned { pid }, Some(pidfd)) => Ok((pid, pidfd)),
            (ZygoteReply::Failed { message }, _) => Err(SpawnError::Refused(message)),
            _ => Err(SpawnError::Gone),
        }
    }
}

/// The environment is empty: nothing of the server's may reach a container through it.
fn command(options: &ZygoteOptions, socket: OwnedFd) -> Command {
    let mut command = Command::new(&options.program);
    command.arg("zygote").env_clear().current_dir("/");
    if let Some(path) = &options.cgroup2 {
        command.arg("--cgroup2").arg(path);
    }
    if let Some(tag) = &options.tag {
        command.arg("--tag").arg(tag);
    }
    command.stdin(Stdio::from(socket)).stdout(Stdio::null());
    command
}
