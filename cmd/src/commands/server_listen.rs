//! Flags of `garden server` about who can reach it, and for how long they are waited for.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use garden::api;
use garden::api::listen::{Activation, Inherited, Listen, UnixSocket};
use garden::nofile;

use crate::reach::Target;
use crate::values;

/// The name that the debug server's socket has in a socket unit (`FileDescriptorName=`).
const DEBUG: &str = "debug";

/// Who can reach the server, and how.
#[derive(Debug, Clone, Args)]
pub(crate) struct ListenArgs {
    /// Unix socket to listen on [default: --socket, unless there is another place to listen]
    #[arg(long, value_name = "PATH")]
    bind_socket: Option<PathBuf>,
    /// Permissions of the unix socket; who can write to it is root on this host
    #[arg(long, value_name = "MODE", value_parser = mode, default_value = "600")]
    socket_mode: u32,
    /// Whom the unix socket belongs to [default: the server's user]
    #[arg(long, value_name = "USER[:GROUP]")]
    socket_owner: Option<String>,
    /// Listen on TCP at this address instead of a unix socket
    #[arg(long, value_name = "IP")]
    bind_ip: Option<IpAddr>,
    /// The port there
    #[arg(long, value_name = "PORT", default_value_t = 7777)]
    bind_port: u16,
    /// Speak plain TCP also beyond this host, to whoever connects
    #[arg(long)]
    insecure_tcp: bool,
    /// How long a client may take for the head of a request, or stay idle; 0 for ever
    #[arg(long, value_name = "TIME", value_parser = values::time, default_value = "1m")]
    read_header_timeout: Duration,
    /// Connections at a time; more wait [default: as many as the limit of open files allows]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(16..))]
    max_connections: Option<u32>,
    /// How long requests that run are waited for at the end; 0 for ever
    #[arg(long, value_name = "TIME", value_parser = values::time, default_value = "10s")]
    stop_timeout: Duration,
    /// Serve health, metrics and a status page at this address
    #[arg(long, value_name = "IP")]
    debug_bind_ip: Option<IpAddr>,
    /// The port there
    #[arg(long, value_name = "PORT", default_value_t = 17013)]
    debug_bind_port: u16,
}

/// The places to listen on, and how to serve.
pub(crate) struct Reachable {
    pub(crate) listen: Listen,
    pub(crate) serving: api::Options,
    /// Where the debug server listens, if anywhere.
    pub(crate) debug: Option<Listen>,
}

impl ListenArgs {
    /// Opens what the process was given, reads certificates, and raises the limit of open files.
    pub(crate) fn apply(&self, target: &Target, grace: Option<Duration>) -> Result<Reachable> {
        let activation = Activation::of_this_process();
        let inherited = activation.sockets(std::process::id())?;
        let (debug_sockets, sockets): (Vec<_>, Vec<_>) =
            inherited.into_iter().partition(|one| one.name == DEBUG);
        let tls = target.tls.files()?;
        let listen = Listen {
            unix: self.unix(&target.socket, sockets.is_empty())?,
            tcp: self
                .bind_ip
                .map(|ip| SocketAddr::new(ip, self.bind_port))
                .into_iter()
                .collect(),
            tls: tls.map(|files| files.accepting()).transpose()?,
            insecure: self.insecure_tcp,
            inherited: sockets.into_iter().map(|one| one.socket).collect(),
        };
        let room = nofile::raise().context("cannot raise the limit of open files")?;
        let wanted = self
            .max_connections
            .map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        let defaults = api::Options::default();
        let serving = api::Options {
            default_grace_time: grace.filter(|time| !time.is_zero()),
            header_timeout: given(self.read_header_timeout),
            max_connections: wanted.unwrap_or(defaults.max_connections).min(room),
            stop_patience: given(self.stop_timeout),
            ..defaults
        };
        Ok(Reachable {
            listen,
            serving,
            debug: self.debug(debug_sockets),
        })
    }

    /// Whether the values can be used, as far as nothing needs to be opened to know.
    pub(crate) fn check(&self, target: &Target) -> Result<()> {
        self.unix(&target.socket, true)?;
        target.tls.files().map(drop)
    }

    fn unix(&self, socket: &Path, alone: bool) -> Result<Option<UnixSocket>> {
        let path = match &self.bind_socket {
            Some(path) => path,
            None if alone && self.bind_ip.is_none() => socket,
            None => return Ok(None),
        };
        if path.to_string_lossy().starts_with("tcp://") {
            bail!(
                "a server listens on {} by --bind-ip and --bind-port",
                path.display()
            );
        }
        let mut wanted = UnixSocket::new(path);
        wanted.mode = self.socket_mode;
        if let Some(text) = &self.socket_owner {
            (wanted.owner, wanted.group) = owner(text)?;
        }
        Ok(Some(wanted))
    }

    /// Plain, as Guardian's: it tells and changes nothing that needs more than a guarded network.
    fn debug(&self, inherited: Vec<Inherited>) -> Option<Listen> {
        let tcp = self.debug_bind_ip;
        (tcp.is_some() || !inherited.is_empty()).then(|| Listen {
            tcp: tcp
                .map(|ip| SocketAddr::new(ip, self.debug_bind_port))
                .into_iter()
                .collect(),
            insecure: true,
            inherited: inherited.into_iter().map(|one| one.socket).collect(),
            ..Listen::default()
        })
    }
}

fn given(time: Duration) -> Option<Duration> {
    Some(time).filter(|time| !time.is_zero())
}

fn mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text.strip_prefix("0o").unwrap_or(text), 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err(format!("{text:?} are no permissions: write them like 660")),
    }
}

/// `user`, `user:group`, `:group`; names or numbers.
fn owner(text: &str) -> Result<(Option<u32>, Option<u32>)> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, group),
        None => (text, ""),
    };
    let find = |name: &str, file: &str| match name {
        "" => Ok(None),
        name => id(name, file).map(Some),
    };
    Ok((find(user, "/etc/passwd")?, find(group, "/etc/group")?))
}

fn id(name: &str, file: &str) -> Result<u32> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let all = std::fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
    let mut lines = all.lines().map(|line| line.split(':'));
    let found = lines.find_map(|mut fields| {
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    });
    found.with_context(|| format!("{name} is not in {file}: give its number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_and_modes() {
        assert_eq!(owner("root").unwrap(), (Some(0), None));
        assert_eq!(owner("root:root").unwrap(), (Some(0), Some(0)));
        assert_eq!(owner(":12").unwrap(), (None, Some(12)));
        assert!(owner("no-such-user").is_err());
        assert_eq!(mode("660"), Ok(0o660));
        assert_eq!(mode("0777"), Ok(0o777));
        for wrong in ["", "888", "1777", "-1", "rw"] {
            assert!(mode(wrong).is_err(), "{wrong}");
        }
    }
}
