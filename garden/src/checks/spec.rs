//! What users write about health checks, and what of it is refused.
//!
//! The JSON here is that of the API, of `--health-file` and of the record in the depot alike.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use garden_peas::health::{Role, Rule, RuleError};
use garden_wire::HttpProbe;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::model::{ImageRef, Limits, ProcessId};

/// The most checks of one container.
const MOST: usize = 16;
/// The longest name of a check: it is part of a process id.
const LONGEST_NAME: usize = 64;
/// The longest path that an HTTP check asks for.
const LONGEST_PATH: usize = 2048;

/// A check of a container's health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckSpec {
    /// Its name, unique in its container.
    pub name: String,
    /// What it decides.
    pub role: Role,
    /// What it does.
    pub probe: Probe,
    /// When it is made and what its ends mean.
    #[serde(flatten)]
    pub rule: Rule,
    /// What is done when it makes its container unhealthy.
    #[serde(default)]
    pub on_unhealthy: Action,
}

/// What is done with an unhealthy container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It is told, and that is all.
    #[default]
    None,
    /// Its processes are ended as by a stop.
    Stop,
    /// Its processes are killed at once.
    Kill,
}

/// What a check does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    /// Runs a program: its exit code 0 is a success.
    Exec(Box<ExecProbe>),
    /// Connects.
    Tcp(TcpProbe),
    /// Asks by HTTP.
    Http(HttpCheck),
}

/// A program that is a check.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecProbe {
    /// The executable.
    pub path: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// `K=V` strings.
    pub env: Vec<String>,
    /// Its user; root when absent.
    pub user: Option<String>,
    /// Its working directory.
    pub dir: Option<String>,
    /// Run it as a pea of the container's own image: a fresh root filesystem for each run.
    pub pea: bool,
    /// Run it as a pea of this image. A password in it is not recorded: after a restart of the
    /// server the image must be reachable without.
    pub image: Option<ImageRef>,
    /// As a pea: its own cgroup with these limits, beside the container's.
    pub limits: Option<Limits>,
    /// It runs until the container is ready: each line of its output is an event.
    pub long_lived: bool,
}

impl ExecProbe {
    /// Whether it is run as a pea.
    pub fn is_pea(&self) -> bool {
        self.pea || self.image.is_some()
    }
}

/// Something that accepts connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpProbe {
    /// Its address; the loopback's of IPv4, then of IPv6, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<IpAddr>,
    /// Its port.
    pub port: u16,
}

/// Something that answers to HTTP/1.1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpCheck {
    /// As of [`TcpProbe`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<IpAddr>,
    /// Its port.
    pub port: u16,
    /// What to ask for.
    #[serde(default = "root")]
    pub path: String,
    /// The lowest status that is a success, and the highest one.
    #[serde(default = "good")]
    pub status: (u16, u16),
}

fn root() -> String {
    "/".to_owned()
}

fn good() -> (u16, u16) {
    (200, 399)
}

impl CheckSpec {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the check and what to give instead.
    pub fn validate(&self) -> Result<(), Error> {
        let wrong = |what: String| Error::Invalid(format!("health check {:?}: {what}", self.name));
        let name_is_good =
            self.name.len() <= LONGEST_NAME && self.name.parse::<ProcessId>().is_ok();
        if !name_is_good {
            return Err(wrong(format!(
                "its name is not 1 to {LONGEST_NAME} letters, digits or - . _"
            )));
        }
        let long_lived = matches!(&self.probe, Probe::Exec(exec) if exec.long_lived);
        if long_lived && self.role != Role::Startup {
            return Err(wrong(
                "one that runs until the container is ready can only be a startup check".to_owned(),
            ));
        }
        if self.role == Role::Readiness && self.on_unhealthy != Action::None {
            return Err(wrong(
                "a readiness check makes nothing unhealthy: use a liveness check for that"
                    .to_owned(),
            ));
        }
        self.rule
            .validate(long_lived)
            .map_err(|error: RuleError| wrong(error.to_string()))?;
        self.probe.problem().map_or(Ok(()), |what| Err(wrong(what)))
    }
}

/// Refuses a set of checks that cannot work.
///
/// # Errors
/// As [`CheckSpec::validate`]; too many of them, or two of one name.
pub fn validate_all(checks: &[CheckSpec]) -> Result<(), Error> {
    if checks.len() > MOST {
        return Err(Error::Invalid(format!(
            "{} health checks are too many: give at most {MOST}",
            checks.len()
        )));
    }
    for (index, check) in checks.iter().enumerate() {
        check.validate()?;
        if checks
            .iter()
            .take(index)
            .any(|other| other.name == check.name)
        {
            return Err(Error::Invalid(format!(
                "two health checks are named {:?}: give each a name of its own",
                check.name
            )));
        }
    }
    Ok(())
}

fn addresses(host: Option<IpAddr>, port: u16) -> Vec<SocketAddr> {
    let both = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let hosts = host.map_or_else(|| both.to_vec(), |host| vec![host]);
    hosts
        .into_iter()
        .map(|host| SocketAddr::new(host, port))
        .collect()
}

impl Probe {
    /// Where a built-in probe connects, and what it asks there; `None` for a program.
    pub(crate) fn on_network(&self) -> Option<(Vec<SocketAddr>, Option<HttpProbe>)> {
        match self {
            Self::Exec(_) => None,
            Self::Tcp(tcp) => Some((addresses(tcp.host, tcp.port), None)),
            Self::Http(http) => {
                let host = match http.host {
                    Some(host) => SocketAddr::new(host, http.port).to_string(),
                    None => format!("localhost:{}", http.port),
                };
                let asked = HttpProbe {
                    path: http.path.clone(),
                    host,
                    lowest: http.status.0,
                    highest: http.status.1,
                };
                Some((addresses(http.host, http.port), Some(asked)))
            }
        }
    }

    fn problem(&self) -> Option<String> {
        let port = match self {
            Self::Exec(exec) => return exec_problem(exec),
            Self::Tcp(tcp) => tcp.port,
            Self::Http(http) => {
                let printable = http.path.bytes().all(|byte| byte.is_ascii_graphic());
                if !http.path.starts_with('/') || !printable || http.path.len() > LONGEST_PATH {
                    return Some(format!(
                        "its path is not one: give / and printable ASCII without spaces, at most \
                         {LONGEST_PATH} bytes (escape the rest as %XX)"
                    ));
                }
                let (lowest, highest) = http.status;
                if lowest < 100 || lowest > highest || highest > 599 {
                    return Some(format!(
                        "{lowest} to {highest} are not statuses: give two of 100 to 599, the \
                         lower first"
                    ));
                }
                http.port
            }
        };
        (port == 0).then(|| "its port is 0: give 1 to 65535".to_owned())
    }
}

fn exec_problem(exec: &ExecProbe) -> Option<String> {
    if exec.path.trim().is_empty() {
        return Some("it has no command".to_owned());
    }
    if exec.limits.is_some() && !exec.is_pea() {
        return Some("limits of its own are for a check that is a pea".to_owned());
    }
    if exec.env.iter().any(|entry| !entry.contains('=')) {
        return Some("its environment is not of the form NAME=VALUE".to_owned());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str) -> CheckSpec {
        serde_json::from_str(json).unwrap()
    }

    fn refusal(json: &str) -> String {
        check(json).validate().unwrap_err().report()
    }

    #[test]
    fn the_smallest_checks_have_defaults() {
        let http = check(r#"{"name":"web","role":"readiness","probe":{"http":{"port":8080}}}"#);
        http.validate().unwrap();
        let (addresses, asked) = http.probe.on_network().unwrap();
        assert_eq!(addresses.len(), 2);
        assert!(addresses[0].is_ipv4() && addresses[1].is_ipv6());
        let asked = asked.unwrap();
        assert_eq!(
            (asked.path.as_str(), asked.host.as_str()),
            ("/", "localhost:8080")
        );
        assert_eq!((asked.lowest, asked.highest), (200, 399));
        let text = serde_json::to_string(&http).unwrap();
        assert_eq!(check(&text), http);
        let exec = check(
            r#"{"name":"a","role":"liveness","interval_ms":50,"probe":{"exec":{"path":"true"}}}"#,
        );
        assert_eq!(exec.rule.interval.as_millis(), 50);
        exec.validate().unwrap();
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let probes = [
            (r#"{"tcp":{"port":0}}"#, "port is 0"),
            (r#"{"http":{"port":1,"path":"x"}}"#, "path is not one"),
            (
                r#"{"http":{"port":1,"path":"/\r\nHost: x"}}"#,
                "path is not one",
            ),
            (r#"{"http":{"port":1,"path":"/a b"}}"#, "path is not one"),
            (r#"{"http":{"port":1,"status":[300,200]}}"#, "not statuses"),
            (r#"{"http":{"port":1,"status":[200,900]}}"#, "not statuses"),
            (r#"{"exec":{}}"#, "no command"),
            (
                r#"{"exec":{"path":"a","long_lived":true}}"#,
                "startup check",
            ),
            (r#"{"exec":{"path":"a","limits":{}}}"#, "a pea"),
        ];
        for (probe, why) in probes {
            let text = refusal(&format!(
                r#"{{"name":"x","role":"liveness","probe":{probe}}}"#
            ));
            assert!(text.contains(why), "{probe}: {text}");
        }
        let named = |name: &str| {
            refusal(&format!(
                r#"{{"name":"{name}","role":"liveness","probe":{{"tcp":{{"port":1}}}}}}"#
            ))
        };
        assert!(named("a/b").contains("name"));
        assert!(named(&"x".repeat(65)).contains("name"));
        let acts =
            r#"{"name":"x","role":"readiness","on_unhealthy":"kill","probe":{"tcp":{"port":1}}}"#;
        assert!(refusal(acts).contains("liveness"));
    }

    #[test]
    fn a_set_has_bounds() {
        let one = check(r#"{"name":"x","role":"liveness","probe":{"tcp":{"port":1}}}"#);
        assert!(validate_all(&[one.clone(), one.clone()]).is_err());
        let many: Vec<_> = (0..=MOST)
            .map(|number| CheckSpec {
                name: format!("x{number}"),
                ..one.clone()
            })
            .collect();
        assert!(validate_all(&many).is_err());
        validate_all(&many[1..]).unwrap();
    }
}
