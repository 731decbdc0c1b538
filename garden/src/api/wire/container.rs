//! What a container is made from, on the wire.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::limits::WireLimits;
use super::net::{WireNetOutRule, WirePorts};
use super::zero;
use crate::checks::CheckSpec;
use crate::error::Error;
use crate::model::{BindMount, ContainerSpec, Handle, ImageRef, NetOutRule};

/// Body of a create.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct WireContainerSpec {
    #[serde(skip_serializing_if = "zero")]
    pub(crate) handle: String,
    /// Nanoseconds; zero means the server's default, less than zero at once.
    #[serde(skip_serializing_if = "zero")]
    pub(crate) grace_time: i64,
    /// The old place of the image's URI.
    #[serde(skip_serializing_if = "zero")]
    pub(crate) rootfs: String,
    pub(crate) image: WireImage,
    #[serde(skip_serializing_if = "zero")]
    pub(crate) bind_mounts: Vec<WireBindMount>,
    #[serde(skip_serializing_if = "zero")]
    pub(crate) network: String,
    #[serde(skip_serializing_if = "zero")]
    pub(crate) properties: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "zero")]
    pub(crate) env: Vec<String>,
    #[serde(skip_serializing_if = "zero")]
    pub(crate) privileged: bool,
    pub(crate) limits: WireLimits,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) netout_rules: Vec<WireNetOutRule>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) netin: Vec<WirePorts>,
    /// Of our own: checks of its health.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) checks: Vec<CheckSpec>,
    /// Of our own: nothing can be written to its root filesystem.
    #[serde(skip_serializing_if = "zero")]
    pub(crate) read_only: bool,
}

/// An image. Present as an object also when there is none.
#[derive(Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct WireImage {
    #[serde(skip_serializing_if = "zero")]
    uri: String,
    #[serde(skip_serializing_if = "zero")]
    username: String,
    #[serde(skip_serializing_if = "zero")]
    password: String,
}

// By hand, so that the password never reaches a log.
impl std::fmt::Debug for WireImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WireImage")
            .field("uri", &self.uri)
            .finish_non_exhaustive()
    }
}

/// A host path inside a container.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct WireBindMount {
    #[serde(skip_serializing_if = "zero")]
    src_path: String,
    #[serde(skip_serializing_if = "zero")]
    dst_path: String,
    /// 0 reads only, 1 writes too.
    #[serde(skip_serializing_if = "zero")]
    mode: u8,
    /// 0 is the host, 1 the container; without effect, as in Guardian.
    #[serde(skip_serializing_if = "zero")]
    origin: u8,
}

impl WireImage {
    /// An image when any part of it is given.
    pub(super) fn into_domain(self) -> Option<ImageRef> {
        let given = |text: String| (!text.is_empty()).then_some(text);
        (!zero(&self)).then(|| ImageRef {
            uri: self.uri,
            username: given(self.username),
            password: given(self.password),
        })
    }

    pub(super) fn of(image: Option<&ImageRef>) -> Self {
        image.map_or_else(Self::default, |image| Self {
            uri: image.uri.clone(),
            username: image.username.clone().unwrap_or_default(),
            password: image.password.clone().unwrap_or_default(),
        })
    }
}

impl TryFrom<WireBindMount> for BindMount {
    type Error = Error;

    fn try_from(wire: WireBindMount) -> Result<Self, Error> {
        if wire.mode > 1 {
            return Err(Error::Invalid(format!(
                "invalid bind mount mode: {}: use 0 (read only) or 1 (read and write)",
                wire.mode
            )));
        }
        Ok(Self {
            source: PathBuf::from(wire.src_path),
            destination: PathBuf::from(wire.dst_path),
            writable: wire.mode == 1,
        })
    }
}

impl From<&BindMount> for WireBindMount {
    fn from(mount: &BindMount) -> Self {
        Self {
            src_path: mount.source.to_string_lossy().into_owned(),
            dst_path: mount.destination.to_string_lossy().into_owned(),
            mode: u8::from(mount.writable),
            origin: 0,
        }
    }
}

/// Domain values of a list, or the first that is wrong.
pub(super) fn all<W, T: TryFrom<W>>(wire: Vec<W>) -> Result<Vec<T>, T::Error> {
    wire.into_iter().map(T::try_from).collect()
}

/// A grace time as the wire has it.
pub(crate) fn grace_from_nanos(nanos: i64) -> Option<Duration> {
    (nanos != 0).then(|| Duration::from_nanos(nanos.max(0).unsigned_abs()))
}

/// A grace time for the wire; one of nothing at all is negative there.
pub(crate) fn grace_to_nanos(grace_time: Option<Duration>) -> i64 {
    match grace_time {
        None => 0,
        Some(Duration::ZERO) => -1,
        Some(time) => i64::try_from(time.as_nanos()).unwrap_or(i64::MAX),
    }
}

impl TryFrom<WireContainerSpec> for ContainerSpec {
    type Error = Error;

    fn try_from(wire: WireContainerSpec) -> Result<Self, Error> {
        let handle = match wire.handle {
            text if text.is_empty() => None,
            text => Some(text.parse::<Handle>().map_err(|source| Error::BadId {
                what: "handle",
                text,
                source,
            })?),
        };
        let mut image = wire.image.into_domain();
        if !wire.rootfs.is_empty() {
            let image = image.get_or_insert_default();
            if !image.uri.is_empty() {
                return Err(Error::Invalid(
                    "Cannot provide both Image.URI and RootFSPath".into(),
                ));
            }
            image.uri = wire.rootfs;
        }
        Ok(Self {
            handle,
            image,
            env: wire.env,
            bind_mounts: all(wire.bind_mounts)?,
            properties: wire.properties,
            privileged: wire.privileged,
            read_only: wire.read_only,
            limits: wire.limits.try_into()?,
            grace_time: grace_from_nanos(wire.grace_time),
            network: (!wire.network.is_empty()).then_some(wire.network),
            net_in: wire.netin.into_iter().map(Into::into).collect(),
            net_out: all::<_, NetOutRule>(wire.netout_rules)?,
            checks: wire.checks,
        })
    }
}

impl From<&ContainerSpec> for WireContainerSpec {
    fn from(spec: &ContainerSpec) -> Self {
        Self {
            handle: spec
                .handle
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            grace_time: grace_to_nanos(spec.grace_time),
            rootfs: String::new(),
            image: WireImage::of(spec.image.as_ref()),
            bind_mounts: spec.bind_mounts.iter().map(Into::into).collect(),
            network: spec.network.clone().unwrap_or_default(),
            properties: spec.properties.clone(),
            env: spec.env.clone(),
            privileged: spec.privileged,
            read_only: spec.read_only,
            limits: (&spec.limits).into(),
            netout_rules: spec.net_out.iter().map(Into::into).collect(),
            netin: spec.net_in.iter().copied().map(Into::into).collect(),
            checks: spec.checks.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{decode_request, encode};
    use super::*;

    fn spec(json: &str) -> Result<ContainerSpec, Error> {
        decode_request::<WireContainerSpec>(json.as_bytes())
            .unwrap()
            .try_into()
    }

    #[test]
    fn the_smallest_spec_is_written_as_go_writes_it() {
        let spec = ContainerSpec {
            handle: Some("demo-app-01".parse().unwrap()),
            ..ContainerSpec::default()
        };
        let body = encode(&WireContainerSpec::from(&spec)).unwrap();
        assert_eq!(
            String::from_utf8(body).unwrap(),
            "{\"handle\":\"demo-app-01\",\"image\":{},\"limits\":{\"bandwidth_limits\":{},\
             \"cpu_limits\":{},\"disk_limits\":{},\"memory_limits\":{},\"pid_limits\":{}}}\n"
        );
    }

    #[test]
    fn a_full_spec_survives_the_round_trip() {
        let full = spec(
            r#"{"handle":"a","grace_time":5,"image":{"uri":"docker:///x","username":"u","password":"p"},
               "bind_mounts":[{"src_path":"/a","dst_path":"/b","mode":1,"origin":1}],"network":"10.0.0.0/30",
               "properties":{"k":"v"},"env":["A=B"],"privileged":true,
               "limits":{"cpu_limits":{"limit_in_shares":7},"disk_limits":{"byte_hard":1,"inode_hard":2,"scope":1},
               "memory_limits":{"limit_in_bytes":3},"pid_limits":{"max":4}},
               "netout_rules":[{"protocol":1,"networks":[{"start":"1.1.1.1","end":"1.1.1.2"}],"ports":[{"start":1,"end":2}]}],
               "netin":[{"host_port":0,"container_port":8080}]}"#,
        )
        .unwrap();
        assert!(full.limits.disk.is_some() && full.bind_mounts[0].writable);
        let body = encode(&WireContainerSpec::from(&full)).unwrap();
        assert_eq!(spec(std::str::from_utf8(&body).unwrap()).unwrap(), full);
    }

    #[test]
    fn limits_are_read_as_guardian_reads_them() {
        let limits = |json: &str| spec(&format!(r#"{{"limits":{json}}}"#)).unwrap().limits;
        let both = r#"{"cpu_limits":{"weight":5,"limit_in_shares":9}}"#;
        assert_eq!(limits(both).cpu_shares, Some(5));
        assert_eq!(limits("{}"), crate::model::Limits::default());
        let huge = r#"{"memory_limits":{"limit_in_bytes":18446744073709551615}}"#;
        assert_eq!(limits(huge).memory_bytes, Some(9_223_372_036_854_775_807));
    }

    #[test]
    fn an_image_comes_from_one_place() {
        assert_eq!(spec("{}").unwrap().image, None);
        assert_eq!(spec(r#"{"rootfs":"/r"}"#).unwrap().image.unwrap().uri, "/r");
        let both = spec(r#"{"rootfs":"/r","image":{"uri":"/i"}}"#).unwrap_err();
        assert_eq!(
            both.report(),
            "Cannot provide both Image.URI and RootFSPath"
        );
        assert!(
            spec(r#"{"handle":"a/b"}"#)
                .unwrap_err()
                .report()
                .contains("'/'")
        );
    }
}
