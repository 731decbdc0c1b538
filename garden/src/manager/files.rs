//! Tar streams into and out of a container.
//!
//! Called by the backend. The work is done by a worker of the container's shim, in the container's
//! namespaces; here are its pipes. Nothing of the archive is looked at.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use garden_wire::{PACKED, Pack, Unpack};
use tokio::io::{AsyncRead, AsyncWriteExt as _, BufReader, ReadBuf};
use tokio::net::unix::pipe;

use crate::api::{FilesOut, StreamIn, TarStream};
use crate::container::Container;
use crate::error::Error;
use crate::process::streams;
use crate::users;

/// Bytes of a pipe: as large as an unprivileged one may be, for fewer switches between the sides.
const PIPE: usize = 1 << 20;

/// Bytes moved at once.
const PIECE: usize = 256 << 10;

/// Unpacks an archive; returns when all of it is there. (Clients look for the first words of a
/// failure.)
pub(super) async fn stream_in(container: &Arc<Container>, files: StreamIn) -> Result<(), Error> {
    let done = unpack(container, files).await;
    done.map_err(|error| match error {
        error @ (Error::ContainerNotFound(_) | Error::BeingDestroyed(_)) => error,
        error => Error::host("error streaming in", error),
    })
}

async fn unpack(container: &Arc<Container>, files: StreamIn) -> Result<(), Error> {
    let user = find_user(container, &files.user).await?;
    let request = Unpack {
        uid: user.uid,
        gid: user.gid,
        destination: absolute(&user, &files.destination),
        groups: user.additional_gids,
        owners: files.owners,
    };
    let (read, write) = make_pipe()?;
    let mut write = streams::writer(write).map_err(failed)?;
    let mut tar = BufReader::with_capacity(PIECE, files.tar);
    let copy = async move {
        let copied = tokio::io::copy_buf(&mut tar, &mut write).await;
        let _ = write.shutdown().await;
        copied
    };
    let unpack = async {
        let done = container.shim.unpack(request, read.as_fd()).await;
        // Only now: while our reading end is open, the copy cannot end by a broken pipe early.
        drop(read);
        done
    };
    let (unpacked, copied) = tokio::join!(unpack, copy);
    match copied {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::host("the stream ended before its end", error))
        }
        // The container's own word on what went wrong is better than a broken pipe.
        _ => unpacked,
    }
}

/// Packs a path; returns when the first bytes are on their way.
pub(super) async fn stream_out(
    container: &Arc<Container>,
    files: FilesOut,
) -> Result<TarStream, Error> {
    let user = find_user(container, &files.user).await?;
    let request = Pack {
        uid: user.uid,
        gid: user.gid,
        source: absolute(&user, &files.source),
        groups: user.additional_gids,
        head: files.head,
        follow: files.follow,
    };
    let (data, stream) = make_pipe()?;
    let (end, status) = make_pipe()?;
    let packed = container.shim.pack(request, stream.as_fd(), status.as_fd());
    packed.await?;
    Ok(Box::pin(Outgoing {
        data: streams::reader(data).map_err(failed)?,
        status: streams::reader(end).map_err(failed)?,
        said: Vec::new(),
        failing: false,
    }))
}

/// A path of the user's: relative ones are beneath the home directory.
fn absolute(user: &users::User, path: &str) -> String {
    if path.starts_with('/') {
        return path.to_owned();
    }
    format!("{}/{path}", user.home.trim_end_matches('/'))
}

fn failed(error: io::Error) -> Error {
    Error::host("cannot make the pipe of a stream", error)
}

fn make_pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    let made = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    let (read, write) = made.map_err(|errno| failed(errno.into()))?;
    let _ = rustix::pipe::fcntl_setpipe_size(&write, PIPE);
    Ok((read, write))
}

async fn find_user(container: &Arc<Container>, user: &str) -> Result<users::User, Error> {
    let files = &container.services.files;
    let container = Arc::clone(container);
    let user = user.to_owned();
    let found = files.run(move || Ok(users::resolve(container.root()?, &user)?));
    found.await?
}

/// What a packer sends. Its end is one only when the packer says that all was sent.
struct Outgoing {
    data: pipe::Receiver,
    status: pipe::Receiver,
    said: Vec<u8>,
    /// The failure is known, and is returned by the next read.
    failing: bool,
}

impl AsyncRead for Outgoing {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.data).poll_read(context, buffer))?;
        if buffer.filled().len() > before || buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let mut space = [0; 4096];
        loop {
            let mut piece = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut self.status).poll_read(context, &mut piece))?;
            match piece.filled() {
                [] => break,
                said => self.said.extend_from_slice(said),
            }
        }
        if self.said == PACKED {
            return Poll::Ready(Ok(()));
        }
        // An HTTP connection whose body fails drops what it has not written yet: once it is left idle,
        // so that it writes what it has, the head of the response first of all.
        if !std::mem::replace(&mut self.failing, true) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let said = match &self.said[..] {
            [] => "its packer was killed".into(),
            said => String::from_utf8_lossy(said),
        };
        Poll::Ready(Err(io::Error::other(format!("stream-out: {said}"))))
    }
}
