//! The bytes of a copy: between the async client and the threads that pack and unpack.
//!
//! A pipe joins the two. What fails on one side ends the other, and the reason is what is told: the
//! unpacker's before the stream's, the packer's before the server's.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use anyhow::{Context as _, Result};
use garden::client::StreamOut;
use garden_tar::pack;
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, ReadBuf};
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

use super::unpack;

/// Bytes moved at once.
const PIECE: usize = 256 << 10;

/// Bytes of a pipe.
const PIPE: usize = 1 << 20;

/// What a person sees meanwhile, on standard error.
#[derive(Debug, Clone)]
pub(super) struct Bar {
    bar: ProgressBar,
    watched: bool,
}

impl Bar {
    /// A bar of `size` bytes, or a counter where that is not known (0).
    pub(super) fn new(watched: bool, size: u64) -> Self {
        let target = if watched {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let template = if size > 0 {
            "[{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left"
        } else {
            "{bytes}, {bytes_per_sec}"
        };
        let style = ProgressStyle::with_template(template)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ");
        let length = (size > 0).then_some(size);
        let bar = ProgressBar::with_draw_target(length, target).with_style(style);
        Self { bar, watched }
    }

    fn add(&self, bytes: usize) {
        self.bar.inc(bytes as u64);
    }

    /// The last word, to somebody who looks.
    pub(super) fn done(&self, what: &str) {
        let bytes = self.bar.position();
        self.bar.finish_and_clear();
        if self.watched {
            #[expect(clippy::print_stderr, reason = "a result for people beside the copy")]
            {
                eprintln!("copied {what}: {}", HumanBytes(bytes));
            }
        }
    }
}

fn make_pipe() -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .context("cannot make a pipe for the copy")?;
    let _ = rustix::pipe::fcntl_setpipe_size(&write, PIPE);
    Ok((read, write))
}

/// The async side of a pipe does not wait, the other one does.
fn not_waiting(fd: &OwnedFd) -> Result<()> {
    rustix::io::ioctl_fionbio(fd, true).context("cannot use a pipe for the copy")
}

/// Unpacks what arrives; returns what was left out.
pub(super) async fn out(
    mut tar: StreamOut,
    directory: OwnedFd,
    how: unpack::How,
    bar: &Bar,
) -> Result<Vec<String>> {
    let (read, write) = make_pipe()?;
    not_waiting(&write)?;
    let mut write = pipe::Sender::from_owned_fd(write)?;
    let unpacker =
        tokio::task::spawn_blocking(move || unpack::unpack(File::from(read), directory, how));
    let copied: io::Result<()> = async {
        let mut piece = vec![0; PIECE];
        loop {
            let length = tar.read(&mut piece).await?;
            if length == 0 {
                return Ok(());
            }
            write.write_all(&piece[..length]).await?;
            bar.add(length);
        }
    }
    .await;
    drop(write);
    let unpacked = unpacker.await?;
    match copied {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("the copy was cut short: see the server's log")
        }
        _ => unpacked,
    }
}

/// Writes what arrives to standard output. Who reads that may have enough early.
pub(super) async fn to_stdout(tar: &mut StreamOut) -> io::Result<()> {
    let mut tar = tokio::io::BufReader::with_capacity(PIECE, tar);
    let mut stdout = tokio::io::stdout();
    let copied = match tokio::io::copy_buf(&mut tar, &mut stdout).await {
        Ok(_) => stdout.flush().await,
        Err(error) => Err(error),
    };
    match copied {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        copied => copied,
    }
}

/// Why a packer did not pack all.
#[derive(Debug, Clone, Default)]
pub(super) struct Failure(Arc<Mutex<Option<pack::PackError>>>);

impl Failure {
    pub(super) fn take(&self) -> Option<pack::PackError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn set(&self, error: pack::PackError) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }
}

/// Files of this host as a tar, packed while it is read. It ends with an error when not all of it
/// could be packed, so that the server does not take a part for the whole.
pub(super) fn packed(source: pack::Source, bar: Bar) -> Result<(Packed, Failure)> {
    let (read, write) = make_pipe()?;
    not_waiting(&read)?;
    let pipe = pipe::Receiver::from_owned_fd(read)?;
    let failure = Failure::default();
    let told = failure.clone();
    let packer = tokio::task::spawn_blocking(move || {
        let packed = pack::all(&source, write.as_fd());
        let whole = packed.is_ok();
        if let Err(error) = packed {
            told.set(error);
        }
        whole
    });
    let packed = Packed {
        pipe,
        packer,
        whole: None,
        bar,
    };
    Ok((packed, failure))
}

/// The tar of a packer.
#[derive(Debug)]
pub(super) struct Packed {
    pipe: pipe::Receiver,
    packer: JoinHandle<bool>,
    /// What the packer said.
    whole: Option<bool>,
    bar: Bar,
}

impl AsyncRead for Packed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.pipe).poll_read(context, buffer))?;
        let length = buffer.filled().len() - before;
        if length > 0 || buffer.remaining() == 0 {
            self.bar.add(length);
            return Poll::Ready(Ok(()));
        }
        let whole = match self.whole {
            Some(whole) => whole,
            None => ready!(Pin::new(&mut self.packer).poll(context)).unwrap_or(false),
        };
        self.whole = Some(whole);
        Poll::Ready(end(whole))
    }
}

fn end(whole: bool) -> io::Result<()> {
    if whole {
        return Ok(());
    }
    Err(io::Error::other("not all files could be packed"))
}
