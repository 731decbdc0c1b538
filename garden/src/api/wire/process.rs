//! What a process or a pea is made from, on the wire.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::container::{WireBindMount, WireImage, all};
use super::limits::{WireDisk, WirePids, WireProcessLimits};
use super::zero;
use crate::error::Error;
use crate::model::{ProcessId, ProcessSpec, Rlimit, WindowSize};

/// Body of a run.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct WireProcessSpec {
    #[serde(skip_serializing_if = "zero")]
    id: String,
    #[serde(skip_serializing_if = "zero")]
    path: String,
    #[serde(skip_serializing_if = "zero")]
    args: Vec<String>,
    #[serde(skip_serializing_if = "zero")]
    env: Vec<String>,
    #[serde(skip_serializing_if = "zero")]
    dir: String,
    #[serde(skip_serializing_if = "zero")]
    user: String,
    /// By name; those that nobody knows are ignored like any unknown member.
    rlimits: BTreeMap<String, Value>,
    /// Present, even if empty: a cgroup of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<WireProcessLimits>,
    /// Present, even if empty: a terminal.
    #[serde(skip_serializing_if = "Option::is_none")]
    tty: Option<WireTty>,
    image: WireImage,
    /// Ours: what a pea's root filesystem may grow to. Garden's API has no word for it.
    #[serde(skip_serializing_if = "zero")]
    disk_limits: WireDisk,
    /// Ours: how many processes a pea may have at once, wherever its cgroup is.
    #[serde(skip_serializing_if = "zero")]
    pid_limits: WirePids,
    #[serde(skip_serializing_if = "zero")]
    bind_mounts: Vec<WireBindMount>,
    /// Ours: how many bytes of its last output are kept.
    #[serde(skip_serializing_if = "zero")]
    log_bytes: u64,
}

/// A terminal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct WireTty {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) window_size: Option<WireWindowSize>,
}

/// Its size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct WireWindowSize {
    #[serde(skip_serializing_if = "zero")]
    columns: u16,
    #[serde(skip_serializing_if = "zero")]
    rows: u16,
}

impl From<WireWindowSize> for WindowSize {
    fn from(wire: WireWindowSize) -> Self {
        Self {
            columns: wire.columns,
            rows: wire.rows,
        }
    }
}

impl From<WindowSize> for WireTty {
    fn from(size: WindowSize) -> Self {
        let window_size = (size.columns, size.rows) != (0, 0);
        Self {
            window_size: window_size.then_some(WireWindowSize {
                columns: size.columns,
                rows: size.rows,
            }),
        }
    }
}

fn rlimits(wire: &BTreeMap<String, Value>) -> Result<Vec<Rlimit>, Error> {
    let known = wire
        .iter()
        .filter(|(name, _)| Rlimit::NAMES.contains(&name.as_str()));
    known
        .map(|(name, value)| {
            let value = value.as_u64().ok_or_else(|| {
                Error::Invalid(format!("rlimit {name}: {value} is not a whole number"))
            })?;
            Ok(Rlimit {
                name: name.clone(),
                value,
            })
        })
        .collect()
}

impl TryFrom<WireProcessSpec> for ProcessSpec {
    type Error = Error;

    fn try_from(wire: WireProcessSpec) -> Result<Self, Error> {
        let given = |text: String| (!text.is_empty()).then_some(text);
        let id = given(wire.id)
            .map(|text| {
                text.parse::<ProcessId>().map_err(|source| Error::BadId {
                    what: "process id",
                    text,
                    source,
                })
            })
            .transpose()?;
        let image = wire.image.into_domain();
        if image.is_none() && !wire.bind_mounts.is_empty() {
            return Err(Error::Invalid(
                "Running a process with bind mounts and no image provided is not allowed".into(),
            ));
        }
        let disk = wire.disk_limits.limit()?;
        if image.is_none() && disk.is_some() {
            return Err(Error::Invalid(
                "a disk limit is for a process with an image: others share their container's"
                    .into(),
            ));
        }
        Ok(Self {
            id,
            path: wire.path,
            args: wire.args,
            env: wire.env,
            dir: given(wire.dir),
            user: given(wire.user),
            rlimits: rlimits(&wire.rlimits)?,
            tty: wire
                .tty
                .map(|tty| tty.window_size.unwrap_or_default().into()),
            image,
            own_limits: wire.limits.map(Into::into),
            disk,
            pids: wire.pid_limits.limit(),
            bind_mounts: all(wire.bind_mounts)?,
            log_bytes: (wire.log_bytes > 0).then_some(wire.log_bytes),
            check: false,
        })
    }
}

impl From<&ProcessSpec> for WireProcessSpec {
    fn from(spec: &ProcessSpec) -> Self {
        Self {
            id: spec
                .id
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            path: spec.path.clone(),
            args: spec.args.clone(),
            env: spec.env.clone(),
            dir: spec.dir.clone().unwrap_or_default(),
            user: spec.user.clone().unwrap_or_default(),
            rlimits: spec
                .rlimits
                .iter()
                .map(|limit| (limit.name.clone(), Value::from(limit.value)))
                .collect(),
            limits: spec.own_limits.as_ref().map(Into::into),
            tty: spec.tty.map(Into::into),
            image: WireImage::of(spec.image.as_ref()),
            disk_limits: WireDisk::of(spec.disk),
            pid_limits: WirePids::of(spec.pids),
            bind_mounts: spec.bind_mounts.iter().map(Into::into).collect(),
            log_bytes: spec.log_bytes.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{decode_request, encode};
    use super::*;
    use crate::model::Limits;

    fn spec(json: &str) -> Result<ProcessSpec, Error> {
        decode_request::<WireProcessSpec>(json.as_bytes())
            .unwrap()
            .try_into()
    }

    #[test]
    fn an_empty_image_is_no_pea_and_empty_limits_are_limits() {
        let plain = spec(r#"{"path":"sh","rlimits":{},"image":{}}"#).unwrap();
        assert!(!plain.is_pea() && plain.own_limits.is_none() && plain.tty.is_none());
        let pea = spec(
            r#"{"id":"demo-app-01-liveness-healthcheck-0","path":"/hc","rlimits":{"nofile":1024,"core":0,"x":"y"},
               "limits":{"cpu_limits":{},"memory_limits":{}},"image":{"uri":"/var/stacks/base.tar"},
               "bind_mounts":[{"src_path":"/host/hc","dst_path":"/etc/cf-assets/healthcheck"}],"tty":{}}"#,
        )
        .unwrap();
        assert!(pea.is_pea() && !pea.bind_mounts[0].writable);
        assert_eq!(pea.own_limits, Some(Limits::default()));
        assert_eq!(
            pea.tty,
            Some(WindowSize {
                columns: 0,
                rows: 0
            })
        );
        let named: Vec<_> = pea
            .rlimits
            .iter()
            .map(|l| (l.name.as_str(), l.value))
            .collect();
        assert_eq!(named, [("core", 0), ("nofile", 1024)]);
        assert!(spec(r#"{"image":{"username":"u"}}"#).unwrap().is_pea());
    }

    #[test]
    fn a_pea_may_have_a_disk_limit_of_its_own() {
        let pea = spec(r#"{"image":{"uri":"/a.tar"},"disk_limits":{"byte_hard":9,"scope":1}}"#);
        let pea = pea.unwrap();
        let disk = pea.disk.unwrap();
        assert_eq!((disk.bytes, disk.inodes), (Some(9), None));
        let body = encode(&WireProcessSpec::from(&pea)).unwrap();
        assert_eq!(spec(std::str::from_utf8(&body).unwrap()).unwrap(), pea);
        assert!(spec(r#"{"disk_limits":{"byte_hard":9}}"#).is_err());
    }

    #[test]
    fn the_smallest_spec_is_written_as_go_writes_it() {
        let spec = ProcessSpec {
            path: "sh".into(),
            args: vec!["-c".into(), "cat".into()],
            ..ProcessSpec::default()
        };
        let body = encode(&WireProcessSpec::from(&spec)).unwrap();
        assert_eq!(
            String::from_utf8(body).unwrap(),
            "{\"path\":\"sh\",\"args\":[\"-c\",\"cat\"],\"rlimits\":{},\"image\":{}}\n"
        );
    }

    #[test]
    fn wrong_specs_are_refused() {
        let mounts = spec(r#"{"bind_mounts":[{"src_path":"/a"}]}"#).unwrap_err();
        assert_eq!(
            mounts.report(),
            "Running a process with bind mounts and no image provided is not allowed"
        );
        assert!(spec(r#"{"rlimits":{"nofile":-1}}"#).is_err());
        assert!(spec(r#"{"id":"a b"}"#).is_err());
    }
}
