//! `--health-*`: a health check as flags, with docker's names where docker has them.
//!
//! Flattened into `run` and `create`, and used by `health set`. One check by flags; several by a
//! file of JSON, which is what the API takes.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use garden::checks::health::{Role, Rule};
use garden::checks::spec::{ExecProbe, HttpCheck, Probe, TcpProbe};
use garden::checks::{Action, CheckSpec};

use crate::values;

/// The name of the check that flags describe.
const NAME: &str = "health";

/// A health check of a container.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Health check")]
pub(crate) struct HealthArgs {
    /// Shell command that succeeds when the container is healthy; runs in the container
    #[arg(long, value_name = "CMD", group = "health_probe")]
    health_cmd: Option<String>,
    /// Ask for this by HTTP from inside the container's network: [HOST:]PORT[/PATH]
    #[arg(long, value_name = "WHERE", group = "health_probe", value_parser = http)]
    health_http: Option<HttpCheck>,
    /// Connect to this from inside the container's network: [HOST:]PORT
    #[arg(long, value_name = "WHERE", group = "health_probe", value_parser = tcp)]
    health_tcp: Option<TcpProbe>,
    /// Run --health-cmd as a pea of this image
    #[arg(long, value_name = "IMAGE", requires = "health_cmd")]
    health_image: Option<String>,
    /// Run --health-cmd as a pea of the container's own image
    #[arg(long, requires = "health_cmd", conflicts_with = "health_image")]
    health_pea: bool,
    /// --health-cmd runs until the container is ready, and is a startup check
    #[arg(long, requires = "health_cmd")]
    health_long_lived: bool,
    /// User of --health-cmd [default: root]
    #[arg(long, value_name = "USER", requires = "health_cmd")]
    health_user: Option<String>,
    /// What the check decides [default: liveness]
    #[arg(long, value_name = "ROLE", requires = "health_probe")]
    health_role: Option<RoleArg>,
    /// From one run to the next [default: 30s]
    #[arg(long, value_name = "TIME", requires = "health_probe", value_parser = values::duration)]
    health_interval: Option<Duration>,
    /// The same until the first verdict [default: 500ms]
    #[arg(long, value_name = "TIME", requires = "health_probe", value_parser = values::duration)]
    health_start_interval: Option<Duration>,
    /// A run that takes longer has failed [default: 5s]
    #[arg(long, value_name = "TIME", requires = "health_probe", value_parser = values::duration)]
    health_timeout: Option<Duration>,
    /// Failures in a row that count [default: 3]
    #[arg(long, value_name = "N", requires = "health_probe")]
    health_retries: Option<u32>,
    /// Successes in a row that count [default: 1]
    #[arg(long, value_name = "N", requires = "health_probe")]
    health_successes: Option<u32>,
    /// How long failures before the first success do not count [default: 60s]
    #[arg(long, value_name = "TIME", requires = "health_probe", value_parser = values::duration)]
    health_start_period: Option<Duration>,
    /// Before the first run [default: 0s]
    #[arg(long, value_name = "TIME", requires = "health_probe", value_parser = values::duration)]
    health_initial_delay: Option<Duration>,
    /// What is done when the container becomes unhealthy [default: none]
    #[arg(long, value_name = "ACTION", requires = "health_probe")]
    health_on_failure: Option<ActionArg>,
    /// Checks as JSON, as in docs/health.md
    #[arg(long, value_name = "FILE", conflicts_with = "health_probe")]
    health_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RoleArg {
    Startup,
    Readiness,
    Liveness,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ActionArg {
    None,
    Stop,
    Kill,
}

impl HealthArgs {
    /// The checks that the flags ask for.
    pub(crate) fn checks(&self) -> Result<Vec<CheckSpec>> {
        if let Some(file) = &self.health_file {
            return read(file);
        }
        let Some(probe) = self.probe()? else {
            return Ok(Vec::new());
        };
        let default = Rule::default();
        let role = match self.health_role {
            _ if self.health_long_lived => Role::Startup,
            Some(RoleArg::Startup) => Role::Startup,
            Some(RoleArg::Readiness) => Role::Readiness,
            Some(RoleArg::Liveness) | None => Role::Liveness,
        };
        let endless = self.health_long_lived.then_some(Duration::ZERO);
        let check = CheckSpec {
            name: NAME.to_owned(),
            role,
            probe,
            rule: Rule {
                initial_delay: self.health_initial_delay.unwrap_or(default.initial_delay),
                start_period: self.health_start_period.unwrap_or(default.start_period),
                start_interval: self.health_start_interval.unwrap_or(default.start_interval),
                interval: self.health_interval.unwrap_or(default.interval),
                timeout: self.health_timeout.or(endless).unwrap_or(default.timeout),
                successes: self.health_successes.unwrap_or(default.successes),
                failures: self.health_retries.unwrap_or(default.failures),
            },
            on_unhealthy: match self.health_on_failure {
                None | Some(ActionArg::None) => Action::None,
                Some(ActionArg::Stop) => Action::Stop,
                Some(ActionArg::Kill) => Action::Kill,
            },
        };
        check.validate()?;
        Ok(vec![check])
    }

    fn probe(&self) -> Result<Option<Probe>> {
        if let Some(http) = &self.health_http {
            return Ok(Some(Probe::Http(http.clone())));
        }
        if let Some(tcp) = &self.health_tcp {
            return Ok(Some(Probe::Tcp(tcp.clone())));
        }
        let Some(command) = &self.health_cmd else {
            return Ok(None);
        };
        if command.trim().is_empty() {
            bail!("the health check is empty: give a shell command with --health-cmd");
        }
        let image = self.health_image.as_deref().map(super::image).transpose()?;
        Ok(Some(Probe::Exec(Box::new(ExecProbe {
            path: "/bin/sh".to_owned(),
            args: vec!["-c".to_owned(), command.clone()],
            user: self.health_user.clone(),
            pea: self.health_pea,
            image,
            long_lived: self.health_long_lived,
            ..ExecProbe::default()
        }))))
    }
}

/// Checks in a file: a list, or an object with `checks`.
pub(crate) fn read(file: &std::path::Path) -> Result<Vec<CheckSpec>> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Content {
        List(Vec<CheckSpec>),
        Object { checks: Vec<CheckSpec> },
    }
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("cannot read health checks from {}", file.display()))?;
    let content: Content = serde_json::from_str(&text).with_context(|| {
        format!(
            "{} is not a list of health checks: see docs/health.md",
            file.display()
        )
    })?;
    let (Content::List(checks) | Content::Object { checks }) = content;
    garden::checks::spec::validate_all(&checks)?;
    Ok(checks)
}

pub(crate) fn tcp(text: &str) -> Result<TcpProbe, String> {
    let wrong = || {
        format!(
            "{text:?} is no place to connect to: give a port, or ADDRESS:PORT, with [] around \
             an address of IPv6"
        )
    };
    if let Ok(port) = text.parse() {
        return Ok(TcpProbe { host: None, port });
    }
    let address: std::net::SocketAddr = text.parse().map_err(|_| wrong())?;
    Ok(TcpProbe {
        host: Some(address.ip()),
        port: address.port(),
    })
}

pub(crate) fn http(text: &str) -> Result<HttpCheck, String> {
    let place = text.strip_prefix("http://").unwrap_or(text);
    let (place, path) = match place.find('/') {
        Some(at) => place.split_at(at),
        None => (place, "/"),
    };
    let place = place.strip_prefix("localhost:").unwrap_or(place);
    let TcpProbe { host, port } = tcp(place)?;
    Ok(HttpCheck {
        host,
        port,
        path: path.to_owned(),
        status: (200, 399),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_have_defaults() {
        let parsed = http("http://localhost:8080/ready?x=1").unwrap();
        assert_eq!(
            (parsed.host, parsed.port, parsed.path.as_str()),
            (None, 8080, "/ready?x=1")
        );
        let parsed = http("[::1]:80").unwrap();
        assert_eq!(parsed.host, "::1".parse().ok());
        assert_eq!(parsed.path, "/");
        assert!(http("somewhere:80").is_err());
        assert!(tcp("99999").is_err());
    }
}
