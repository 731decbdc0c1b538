//! What may stand in a pod file. Unknown keys are mistakes.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use anyhow::{Result, bail};
use garden::checks::health::{Role, Rule};
use garden::checks::spec::{ExecProbe, HttpCheck, Probe, TcpProbe};
use garden::checks::{Action, CheckSpec};
use garden::model::{Handle, ProcessId};
use serde::{Deserialize, Deserializer};

use crate::commands::health_args::{http, tcp};
use crate::values;

/// A whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pod {
    pub(super) version: u32,
    pub(super) name: Handle,
    pub(super) image: String,
    #[serde(default)]
    pub(super) command: Vec<String>,
    pub(super) user: Option<String>,
    pub(super) workdir: Option<String>,
    #[serde(default)]
    pub(super) env: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) properties: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) privileged: bool,
    #[serde(default)]
    pub(super) read_only: bool,
    #[serde(default)]
    pub(super) limits: Limits,
    #[serde(default)]
    pub(super) mounts: Vec<Mount>,
    #[serde(default)]
    pub(super) peas: Vec<Pea>,
    #[serde(default)]
    pub(super) checks: Vec<Check>,
}

/// A sidecar.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pea {
    pub(super) name: ProcessId,
    pub(super) image: String,
    pub(super) command: Vec<String>,
    pub(super) user: Option<String>,
    pub(super) workdir: Option<String>,
    #[serde(default)]
    pub(super) env: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) mounts: Vec<Mount>,
    /// Present: its own, beside the container's.
    pub(super) limits: Option<Limits>,
}

/// What may be used.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Limits {
    #[serde(deserialize_with = "size")]
    pub(super) memory: Option<u64>,
    #[serde(deserialize_with = "cpus")]
    pub(super) cpus: Option<u64>,
    pub(super) cpu_shares: Option<u64>,
    pub(super) pids: Option<u64>,
    #[serde(deserialize_with = "size")]
    pub(super) disk: Option<u64>,
}

/// A host path inside.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mount {
    pub(super) source: String,
    #[serde(deserialize_with = "absolute")]
    pub(super) destination: String,
    #[serde(default)]
    pub(super) read_only: bool,
}

/// A check of the container's health.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Check {
    name: String,
    role: Option<Role>,
    #[serde(default)]
    command: Vec<String>,
    #[serde(default, deserialize_with = "page")]
    http: Option<HttpCheck>,
    #[serde(default, deserialize_with = "port")]
    tcp: Option<TcpProbe>,
    user: Option<String>,
    #[serde(default, deserialize_with = "time")]
    interval: Option<Duration>,
    #[serde(default, deserialize_with = "time")]
    start_interval: Option<Duration>,
    #[serde(default, deserialize_with = "time")]
    start_period: Option<Duration>,
    #[serde(default, deserialize_with = "time")]
    timeout: Option<Duration>,
    failures: Option<u32>,
    successes: Option<u32>,
    #[serde(default)]
    on_unhealthy: Action,
}

impl Check {
    /// As the server wants it.
    pub(super) fn spec(&self) -> Result<CheckSpec> {
        let probe = match (self.command.split_first(), &self.http, &self.tcp) {
            (Some((path, args)), None, None) => Probe::Exec(Box::new(ExecProbe {
                path: path.clone(),
                args: args.to_vec(),
                user: self.user.clone(),
                ..ExecProbe::default()
            })),
            (None, Some(http), None) => Probe::Http(http.clone()),
            (None, None, Some(tcp)) => Probe::Tcp(tcp.clone()),
            _ => bail!(
                "checks.name = {:?}: give it one of command, http and tcp",
                self.name
            ),
        };
        let usual = Rule::default();
        Ok(CheckSpec {
            name: self.name.clone(),
            role: self.role.unwrap_or(Role::Liveness),
            probe,
            rule: Rule {
                interval: self.interval.unwrap_or(usual.interval),
                start_interval: self.start_interval.unwrap_or(usual.start_interval),
                start_period: self.start_period.unwrap_or(usual.start_period),
                timeout: self.timeout.unwrap_or(usual.timeout),
                failures: self.failures.unwrap_or(usual.failures),
                successes: self.successes.unwrap_or(usual.successes),
                ..usual
            },
            on_unhealthy: self.on_unhealthy,
        })
    }
}

/// A text that one of the command line's readers understands; numbers count as texts.
fn read<'de, D: Deserializer<'de>, T, E: Display>(
    deserializer: D,
    reader: impl Fn(&str) -> Result<T, E>,
) -> Result<Option<T>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Text(String),
        Whole(u64),
        Part(f64),
    }
    let text = match Written::deserialize(deserializer)? {
        Written::Text(text) => text,
        Written::Whole(number) => number.to_string(),
        Written::Part(number) => number.to_string(),
    };
    reader(&text).map(Some).map_err(serde::de::Error::custom)
}

fn size<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    read(from, values::size)
}

fn cpus<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    read(from, values::cpus)
}

fn time<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    read(from, values::duration)
}

fn page<'de, D: Deserializer<'de>>(from: D) -> Result<Option<HttpCheck>, D::Error> {
    read(from, http)
}

fn port<'de, D: Deserializer<'de>>(from: D) -> Result<Option<TcpProbe>, D::Error> {
    read(from, tcp)
}

fn absolute<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let text = String::deserialize(from)?;
    if text.starts_with('/') {
        return Ok(text);
    }
    let why = format!("{text:?} is not a path inside the container: begin it with /");
    Err(serde::de::Error::custom(why))
}
