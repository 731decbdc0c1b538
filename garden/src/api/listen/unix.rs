//! The unix socket that a server makes, and removes.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixListener;

use super::{BACKLOG, ListenError};

/// A unix socket that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnixSocket {
    /// Where.
    pub path: PathBuf,
    /// Its permissions. Who may write to it may connect, and is root on this host.
    pub mode: u32,
    /// Whom it belongs to, if not to the server's user.
    pub owner: Option<u32>,
    /// Its group, if not the server's.
    pub group: Option<u32>,
}

impl UnixSocket {
    /// One for the server's user alone.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            mode: 0o600,
            owner: None,
            group: None,
        }
    }
}

/// A listening unix socket that removes itself from its directory when dropped.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    identity: (u64, u64),
}

impl Socket {
    /// Listens at a path, in place of whatever file is there; but not of a socket that somebody
    /// listens on. Nobody can connect before mode and owner are what they should be.
    pub(super) fn bind(wanted: UnixSocket) -> Result<Self, ListenError> {
        let path = &wanted.path;
        let failed = |doing: &'static str| {
            move |source: io::Error| ListenError::Unix {
                path: path.clone(),
                doing,
                source,
            }
        };
        make_way(path)?;
        let socket = bound(path).map_err(failed("binding"))?;
        let bound_here = Bound(path, identity(path).map_err(failed("looking at it"))?);
        if wanted.owner.is_some() || wanted.group.is_some() {
            std::os::unix::fs::lchown(path, wanted.owner, wanted.group)
                .map_err(failed("giving it to its owner"))?;
        }
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(wanted.mode))
            .map_err(failed("setting its mode"))?;
        rustix::net::listen(&socket, BACKLOG).map_err(|error| failed("listening")(error.into()))?;
        let listener =
            UnixListener::from_std(socket.into()).map_err(failed("waiting for clients"))?;
        let identity = bound_here.keep();
        Ok(Self {
            listener,
            path: wanted.path,
            identity,
        })
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn bound(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Removes what is in the way, unless somebody answers there.
fn make_way(path: &Path) -> Result<(), ListenError> {
    let failed = |doing| {
        move |source| ListenError::Unix {
            path: path.to_owned(),
            doing,
            source,
        }
    };
    let there = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        there => there.map_err(failed("looking at what is there"))?,
    };
    if there.file_type().is_socket() && answers(path) {
        return Err(ListenError::InUse(path.to_owned()));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("removing what is there")(error))
        }
        _ => Ok(()),
    }
}

/// Whether somebody listens on a socket; one whose queue is full does.
fn answers(path: &Path) -> bool {
    let connected = || -> rustix::io::Result<()> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)
    };
    matches!(connected(), Ok(()) | Err(rustix::io::Errno::AGAIN))
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

/// A socket's name that goes again unless everything else succeeds.
struct Bound<'a>(&'a Path, (u64, u64));

impl Bound<'_> {
    fn keep(self) -> (u64, u64) {
        let identity = self.1;
        std::mem::forget(self);
        identity
    }
}

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        remove(self.0, self.1);
    }
}

/// Removes a name, unless another server has taken it over.
fn remove(path: &Path, own: (u64, u64)) {
    if identity(path).is_ok_and(|there| there == own) {
        let _ = std::fs::remove_file(path);
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        remove(&self.path, self.identity);
    }
}
