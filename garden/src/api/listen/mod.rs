//! Where a server listens: its unix socket, TCP addresses, sockets that it was started with.
//!
//! [`Listen`] is what the operator asks for; [`Listen::bind`] checks it and gives [`Listeners`],
//! which exist, and collect clients, before anything serves. Whoever gets through is root on this
//! host, so a unix socket is the server's user's alone unless somebody says otherwise, and TCP beyond
//! this host wants certificates of both sides, or the operator's word that the network is guarded.

mod inherited;
mod unix;

use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::pin;
use std::task::{Context, Poll};

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

pub use inherited::{Activation, Inherited, InheritedError};
pub use unix::{Socket, UnixSocket};

use crate::connection::tls::Accepting;
use crate::connection::{self, Connection};

/// Connections that the kernel keeps for a server that is busy or still starting; it takes
/// the lower of this and `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Where and how a server listens.
#[derive(Debug, Default)]
pub struct Listen {
    /// Its unix socket.
    pub unix: Option<UnixSocket>,
    /// TCP addresses; port 0 takes any free one.
    pub tcp: Vec<SocketAddr>,
    /// What all its TCP connections have to show; `None` is plain TCP.
    pub tls: Option<Accepting>,
    /// Plain TCP beyond this host is what the operator wants.
    pub insecure: bool,
    /// Sockets that were there when the process started.
    pub inherited: Vec<OwnedFd>,
}

/// Why a server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody answers there.
    #[error("a server listens on {} already: stop it, or listen elsewhere", .0.display())]
    InUse(PathBuf),
    /// A step with a socket's path failed.
    #[error("cannot listen on {}: {doing}", path.display())]
    Unix {
        /// The path.
        path: PathBuf,
        /// The step.
        doing: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A TCP address cannot be listened on.
    #[error("cannot listen on {address}")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Everybody in the network could become root here.
    #[error(
        "{0} can be reached from other hosts, and who reaches it is root here: give \
         --tls-cert, --tls-key and --tls-ca, listen on 127.0.0.1, or, where the network itself \
         keeps strangers out, say --insecure-tcp"
    )]
    Exposed(SocketAddr),
    /// A socket that was handed over cannot be used.
    #[error("cannot use a socket that the server was started with")]
    Inherited(#[source] io::Error),
    /// There is nothing to listen on.
    #[error("there is no address to listen on: give --bind-socket, or --bind-ip and --bind-port")]
    Nowhere,
}

/// Everything that a server listens on.
#[derive(Debug)]
pub struct Listeners(Vec<Endpoint>);

#[derive(Debug)]
enum Endpoint {
    Ours(Socket),
    Unix(UnixListener),
    Tcp(TcpListener, Option<Accepting>),
}

/// A client that has connected and shown nothing yet.
#[derive(Debug)]
pub(crate) enum Arrival {
    Unix(UnixStream),
    Tcp(TcpStream, Option<Accepting>),
}

impl Listen {
    /// One unix socket, for the server's user alone.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self {
            unix: Some(UnixSocket::new(path)),
            ..Self::default()
        }
    }

    /// Listens everywhere or, with an error, nowhere. Must be called within a runtime.
    ///
    /// # Errors
    /// As [`ListenError`] tells.
    pub fn bind(self) -> Result<Listeners, ListenError> {
        let exposed = |address: SocketAddr| {
            let far = !address.ip().to_canonical().is_loopback();
            far && self.tls.is_none() && !self.insecure
        };
        // Refused before anything is made.
        if let Some(address) = self.tcp.iter().find(|address| exposed(**address)) {
            return Err(ListenError::Exposed(*address));
        }
        let mut all = Vec::new();
        for socket in self.inherited {
            let endpoint = adopt(socket, self.tls.clone()).map_err(ListenError::Inherited)?;
            if let Endpoint::Tcp(listener, _) = &endpoint {
                let address = listener.local_addr().map_err(ListenError::Inherited)?;
                if exposed(address) {
                    return Err(ListenError::Exposed(address));
                }
            }
            all.push(endpoint);
        }
        for address in self.tcp {
            let listener = tcp(address).map_err(|source| ListenError::Tcp { address, source })?;
            all.push(Endpoint::Tcp(listener, self.tls.clone()));
        }
        if let Some(wanted) = self.unix {
            all.push(Endpoint::Ours(Socket::bind(wanted)?));
        }
        match all.is_empty() {
            true => Err(ListenError::Nowhere),
            false => Ok(Listeners(all)),
        }
    }
}

fn tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
        SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
    };
    // Connections of a server that has just ended linger for a minute.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG.unsigned_abs())
}

fn adopt(socket: OwnedFd, tls: Option<Accepting>) -> io::Result<Endpoint> {
    use rustix::net::AddressFamily;
    rustix::io::ioctl_fionbio(&socket, true)?;
    match rustix::net::sockopt::socket_domain(&socket)? {
        AddressFamily::UNIX => UnixListener::from_std(socket.into()).map(Endpoint::Unix),
        AddressFamily::INET | AddressFamily::INET6 => {
            let listener = TcpListener::from_std(StdTcpListener::from(socket))?;
            Ok(Endpoint::Tcp(listener, tls))
        }
        _ => Err(io::Error::other("it is neither a unix nor a TCP socket")),
    }
}

impl Listeners {
    /// Waits for the next client of any. Loses none when dropped.
    pub(crate) async fn accept(&self) -> io::Result<Arrival> {
        // Starting elsewhere each time would be fairer; the clients of one server are friends.
        poll_fn(|cx| {
            for endpoint in &self.0 {
                if let Poll::Ready(arrived) = endpoint.poll_accept(cx) {
                    return Poll::Ready(arrived);
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Where it listens, for logs: paths, and addresses with the ports that were found.
    pub fn places(&self) -> Vec<String> {
        self.0.iter().map(Endpoint::place).collect()
    }

    /// The TCP addresses among them.
    pub fn tcp(&self) -> Vec<SocketAddr> {
        let tcp = self.0.iter().filter_map(|endpoint| match endpoint {
            Endpoint::Tcp(listener, _) => listener.local_addr().ok(),
            _ => None,
        });
        tcp.collect()
    }
}

impl Endpoint {
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Arrival>> {
        match self {
            Self::Ours(socket) => socket.listener().poll_accept(cx).map_ok(unix),
            Self::Unix(listener) => listener.poll_accept(cx).map_ok(unix),
            Self::Tcp(listener, tls) => listener
                .poll_accept(cx)
                .map_ok(|(stream, _)| Arrival::Tcp(stream, tls.clone())),
        }
    }

    fn place(&self) -> String {
        match self {
            Self::Ours(socket) => socket.path().display().to_string(),
            Self::Unix(listener) => match listener.local_addr() {
                Ok(address) => format!("inherited {address:?}"),
                Err(_) => "inherited unix socket".to_owned(),
            },
            Self::Tcp(listener, tls) => {
                let kind = if tls.is_some() { "tls" } else { "tcp" };
                match listener.local_addr() {
                    Ok(address) => format!("{kind}://{address}"),
                    Err(_) => kind.to_owned(),
                }
            }
        }
    }
}

fn unix((stream, _): (UnixStream, tokio::net::unix::SocketAddr)) -> Arrival {
    Arrival::Unix(stream)
}

impl Arrival {
    /// The connection, once the client has shown what it must.
    pub(crate) async fn establish(self) -> io::Result<Connection> {
        match self {
            Self::Unix(stream) => Ok(Connection::Unix(stream)),
            Self::Tcp(stream, tls) => {
                connection::prepare(&stream)?;
                match tls {
                    None => Ok(Connection::Tcp(stream)),
                    Some(tls) => {
                        let shaken = pin!(tls.establish(stream)).await?;
                        Ok(Connection::Tls(Box::new(shaken)))
                    }
                }
            }
        }
    }
}
