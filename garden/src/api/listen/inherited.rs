//! Sockets that whoever started the server opened for it: systemd's socket units, and Guardian's
//! `SOCKET2ME_FD`.
//!
//! The numbers come from the environment, so nothing is believed: a number must be open, and a
//! socket that listens. What is used is a copy; the original stays with whoever passed it on, as
//! with systemd, so that clients wait instead of failing while a server is started anew.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;

/// The first descriptor that systemd passes on.
const FIRST: i32 = 3;
/// More than anybody passes on; the number is foreign input.
const MOST: i32 = 256;

/// What the environment says of descriptors that were passed on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Activation {
    /// `LISTEN_PID`: whom they are for.
    pub listen_pid: Option<String>,
    /// `LISTEN_FDS`: how many there are.
    pub listen_fds: Option<String>,
    /// `LISTEN_FDNAMES`: what they are called, between colons.
    pub listen_names: Option<String>,
    /// `SOCKET2ME_FD`: the number of the one that Guardian is given.
    pub socket2me: Option<String>,
}

/// A listening socket, and the name that it has where it is from.
#[derive(Debug)]
pub struct Inherited {
    /// The name of its unit, `FileDescriptorName=`; empty when nobody gave one.
    pub name: String,
    /// The socket.
    pub socket: OwnedFd,
}

/// What was passed on cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InheritedError {
    /// A variable that holds no such number.
    #[error("{variable} is {text:?}, and must be a number of descriptors, or of one")]
    Number {
        /// Its name.
        variable: &'static str,
        /// Its value.
        text: String,
    },
    /// A descriptor that is not there, or is no listening socket.
    #[error("the descriptor {number} that {variable} tells of cannot be listened on")]
    Socket {
        /// Its number.
        number: i32,
        /// The variable.
        variable: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Activation {
    /// What this process's environment says.
    pub fn of_this_process() -> Self {
        let text = |value: OsString| value.to_string_lossy().into_owned();
        let of = |name| std::env::var_os(name).map(text);
        Self {
            listen_pid: of("LISTEN_PID"),
            listen_fds: of("LISTEN_FDS"),
            listen_names: of("LISTEN_FDNAMES"),
            socket2me: of("SOCKET2ME_FD"),
        }
    }

    /// The sockets, if any are for the process `pid`.
    ///
    /// # Errors
    /// When what is told of is not there.
    pub fn sockets(&self, pid: u32) -> Result<Vec<Inherited>, InheritedError> {
        let mut all = Vec::new();
        for (number, name, variable) in self.numbers(pid)? {
            let socket = open(number).map_err(|source| InheritedError::Socket {
                number,
                variable,
                source,
            })?;
            all.push(Inherited { name, socket });
        }
        if !all.is_empty() {
            // Older kernels cannot; then programs that are started inherit them, as from systemd.
            let _ = garden_sys::fds::close_on_exec();
        }
        Ok(all)
    }

    fn numbers(&self, pid: u32) -> Result<Vec<(i32, String, &'static str)>, InheritedError> {
        let number = |variable: &'static str, text: &str, least: i32, most: i32| {
            let number = text.trim().parse().ok();
            let number = number.filter(|number| (least..=most).contains(number));
            number.ok_or_else(|| InheritedError::Number {
                variable,
                text: text.to_owned(),
            })
        };
        let mut all = Vec::new();
        // Meant for the process of this number; our own parent may have been started that way.
        let ours = self.listen_pid.as_deref().map(str::trim) == Some(&pid.to_string());
        if let (true, Some(count)) = (ours, &self.listen_fds) {
            let count = number("LISTEN_FDS", count, 0, MOST)?;
            let names = self.listen_names.as_deref().unwrap_or_default();
            let mut names = names.split(':');
            for number in FIRST..FIRST + count {
                let name = names.next().unwrap_or_default().to_owned();
                all.push((number, name, "LISTEN_FDS"));
            }
        }
        if let Some(text) = self.socket2me.as_deref().filter(|text| !text.is_empty()) {
            let number = number("SOCKET2ME_FD", text, FIRST, i32::MAX)?;
            all.push((number, String::new(), "SOCKET2ME_FD"));
        }
        Ok(all)
    }
}

fn open(number: i32) -> io::Result<OwnedFd> {
    let socket = garden_sys::fds::duplicate(number)?;
    match rustix::net::sockopt::socket_acceptconn(&socket) {
        Ok(true) => Ok(socket),
        Ok(false) => Err(io::Error::other("it is a socket, but does not listen")),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::*;

    fn activation(pid: &str, count: &str, names: &str) -> Activation {
        let some = |text: &str| Some(text.to_owned());
        Activation {
            listen_pid: some(pid),
            listen_fds: some(count),
            listen_names: some(names),
            socket2me: None,
        }
    }

    #[test]
    fn what_the_variables_mean() {
        let numbers = |all: &Activation| {
            all.numbers(7)
                .map(|all| all.into_iter().map(|(n, name, _)| (n, name)).collect())
        };
        let named = |n, name: &str| (n, name.to_owned());
        let two: Vec<_> = numbers(&activation("7", "2", "api:debug")).unwrap();
        assert_eq!(two, [named(3, "api"), named(4, "debug")]);
        let unnamed: Vec<_> = numbers(&activation("7", "2", "api")).unwrap();
        assert_eq!(unnamed, [named(3, "api"), named(4, "")]);
        assert!(numbers(&activation("8", "2", "")).unwrap().is_empty());
        assert!(numbers(&activation("8", "x", "")).unwrap().is_empty());
        for count in ["x", "-1", "257", "99999999999", ""] {
            assert!(numbers(&activation("7", count, "")).is_err(), "{count}");
        }
        for wrong in ["0", "2", "-1", "x", "3.0", "4294967296"] {
            let all = Activation {
                socket2me: Some(wrong.to_owned()),
                ..Activation::default()
            };
            assert!(numbers(&all).is_err(), "{wrong}");
        }
        assert!(numbers(&Activation::default()).unwrap().is_empty());
    }

    #[test]
    fn only_what_listens_is_taken() {
        let given = |number: i32| Activation {
            socket2me: Some(number.to_string()),
            ..Activation::default()
        };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let sockets = given(listener.as_raw_fd()).sockets(1).unwrap();
        assert_eq!(sockets.len(), 1);
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        for wrong in [client.as_raw_fd(), file.as_raw_fd(), 1_000_000] {
            let error = given(wrong).sockets(1).unwrap_err().to_string();
            assert!(error.contains("SOCKET2ME_FD"), "{error}");
        }
    }
}
