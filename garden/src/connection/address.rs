//! Where a server is reached, as people write it.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The port that Garden servers have when nobody says another.
const PORT: u16 = 7777;

/// Where a server is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A unix socket: a path, or `unix://` and a path.
    Unix(PathBuf),
    /// A host: `tcp://` and a name or an address, IPv6 in brackets, and a port (default 7777).
    Tcp {
        /// A name or an address, without brackets.
        host: String,
        /// Its port.
        port: u16,
    },
}

/// A text that is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no address of a server: write tcp://HOST:PORT, or the path of a unix socket")]
pub struct BadAddress(String);

impl Address {
    /// Understands what a person wrote.
    ///
    /// # Errors
    /// When it begins like an address over TCP and is none.
    pub fn parse(text: &OsStr) -> Result<Self, BadAddress> {
        let bad = || BadAddress(text.to_string_lossy().into_owned());
        match text.to_str() {
            Some(utf8) if utf8.starts_with("tcp://") => utf8.parse().map_err(|_| bad()),
            Some(utf8) if utf8.starts_with("unix://") => Ok(Self::Unix(utf8[7..].into())),
            _ => Ok(Self::Unix(text.into())),
        }
    }
}

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let Some(rest) = text.strip_prefix("tcp://") else {
            return Self::parse(OsStr::new(text));
        };
        let bad = || BadAddress(text.to_owned());
        let (host, port) = match rest.strip_prefix('[') {
            Some(bracketed) => {
                let (host, port) = bracketed.split_once(']').ok_or_else(bad)?;
                let _: std::net::Ipv6Addr = host.parse().map_err(|_| bad())?;
                match port {
                    "" => (host, None),
                    port => (host, Some(port.strip_prefix(':').ok_or_else(bad)?)),
                }
            }
            None => match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            },
        };
        let port = port.map_or(Ok(PORT), str::parse).map_err(|_| bad())?;
        let strange = |c: char| c.is_whitespace() || c.is_control() || "/@?#".contains(c);
        if host.is_empty() || port == 0 || host.contains(strange) {
            return Err(bad());
        }
        Ok(Self::Tcp {
            host: host.to_owned(),
            port,
        })
    }
}

impl From<&Path> for Address {
    fn from(path: &Path) -> Self {
        Self::Unix(path.to_owned())
    }
}

impl From<PathBuf> for Address {
    fn from(path: PathBuf) -> Self {
        Self::Unix(path)
    }
}

impl From<&PathBuf> for Address {
    fn from(path: &PathBuf) -> Self {
        Self::Unix(path.clone())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write() {
        for (text, shown) in [
            ("/run/garden/garden.sock", "/run/garden/garden.sock"),
            ("unix:///run/g.sock", "/run/g.sock"),
            ("relative:7777", "relative:7777"),
            ("tcp://10.0.0.1:80", "tcp://10.0.0.1:80"),
            ("tcp://cell-1.example", "tcp://cell-1.example:7777"),
            ("tcp://[::1]:1", "tcp://[::1]:1"),
            ("tcp://[::1]", "tcp://[::1]:7777"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), shown);
        }
        for text in [
            "tcp://",
            "tcp://:1",
            "tcp://h:",
            "tcp://h:0",
            "tcp://h:65536",
            "tcp://h:1:2",
            "tcp://[::1",
            "tcp://[h]:1",
            "tcp://[::1]1",
            "tcp://user@h:1",
            "tcp://h/path",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
