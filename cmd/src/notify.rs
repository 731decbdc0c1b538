//! Telling systemd, or whoever set `NOTIFY_SOCKET`, how far the server is.
//!
//! Nobody there is the usual case and no error; one that cannot be told is logged, and the server
//! runs on: it is the manager's part to notice.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The variable that names the socket.
const VARIABLE: &str = "NOTIFY_SOCKET";

/// Who wants to know.
#[derive(Debug)]
pub(crate) struct Notify(Option<OsString>);

impl Notify {
    /// Whom the environment names.
    pub(crate) fn of_environment() -> Self {
        Self(std::env::var_os(VARIABLE).filter(|name| !name.is_empty()))
    }

    /// The server can be used.
    pub(crate) fn ready(&self) {
        self.tell(&format!("READY=1\nMAINPID={}\n", std::process::id()));
    }

    /// The server ends.
    pub(crate) fn stopping(&self) {
        self.tell("STOPPING=1\n");
    }

    fn tell(&self, what: &str) {
        if let Some(name) = &self.0
            && let Err(error) = send(name, what)
        {
            tracing::warn!(%error, "cannot tell the service manager");
        }
    }
}

/// `@name` is in the abstract namespace, `/name` a path; systemd knows no other form.
fn send(name: &OsStr, what: &str) -> io::Result<()> {
    let address = match name.as_bytes() {
        [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        _ => {
            let text = "NOTIFY_SOCKET is neither a path nor an abstract name";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
    };
    let socket = UnixDatagram::unbound()?;
    // Whoever does not read must not hold up the server.
    socket.set_nonblocking(true)?;
    socket.send_to_addr(what.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let count = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    }

    #[test]
    fn by_path_and_by_abstract_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        Notify(Some(path.into())).ready();
        assert!(heard(&by_path).starts_with("READY=1\n"));
        let name = format!("garden-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let abstractly = UnixDatagram::bind_addr(&address).unwrap();
        Notify(Some(format!("@{name}").into())).stopping();
        assert_eq!(heard(&abstractly), "STOPPING=1\n");
    }

    #[test]
    fn nobody_there_is_no_failure() {
        Notify(None).ready();
        Notify(Some("/nonexistent/notify".into())).ready();
        assert!(send(OsStr::new("vsock:2:1"), "x").is_err());
    }
}
