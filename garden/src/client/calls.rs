//! The plain calls: everything but running and attaching.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Method;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::io::{ReaderStream, StreamReader};

use super::transport::{Body, Call, path, query};
use super::{Client, Info};
use crate::api::channel::Mapped;
use crate::api::error::restore;
use crate::api::wire::{
    WireBulkInfo, WireBulkMetrics, WireCapacity, WireContainerSpec, WireHandle, WireHandles,
    WireInfo, WireLimits, WireMetrics, WireNetOutRule, WirePorts, WireStop, WireValue,
    grace_to_nanos,
};
use crate::api::{FilesOut, Filters, Peas, Ps};
use crate::error::Error;
use crate::model::{
    Capacity, ContainerSpec, Handle, Limits, Metrics, NetOutRule, PortMapping, ProcessInfo,
    TeardownStatus,
};

fn of(handle: &Handle, rest: &[&str]) -> String {
    let mut segments = vec!["containers", handle.as_str()];
    segments.extend(rest);
    path(&segments)
}

fn handles(list: &[Handle]) -> String {
    let list: Vec<_> = list.iter().map(Handle::as_str).collect();
    query([("handles", list.join(",").as_str())])
}

impl Client {
    /// What the server can hold.
    pub async fn capacity(&self) -> Result<Capacity, Error> {
        self.ask::<WireCapacity>(self.get("/capacity"))
            .await
            .map(Into::into)
    }

    /// Creates a container; returns its handle.
    pub async fn create(&self, spec: &ContainerSpec) -> Result<Handle, Error> {
        let call = Call::new(Method::POST, "/containers").json(&WireContainerSpec::from(spec));
        let created: WireHandle = self.ask(call).await?;
        let text = created.handle;
        text.parse().map_err(|source| Error::BadId {
            what: "handle",
            text,
            source,
        })
    }

    /// Destroys a container with all that runs in it.
    pub async fn destroy(&self, handle: &Handle) -> Result<(), Error> {
        self.done(Call::new(Method::DELETE, of(handle, &[]))).await
    }

    /// Names the containers whose properties match. A name that only another server could have
    /// given is left out.
    pub async fn list(&self, filters: &Filters) -> Result<Vec<Handle>, Error> {
        let filters = filters.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        let target = format!("/containers{}", query(filters));
        let names: WireHandles = self.ask(self.get(target)).await?;
        Ok(names
            .handles
            .iter()
            .filter_map(|h| h.parse().ok())
            .collect())
    }

    /// Describes a container.
    pub async fn info(&self, handle: &Handle) -> Result<Info, Error> {
        let call = self.get(of(handle, &["info"]));
        self.ask::<WireInfo>(call).await.map(Into::into)
    }

    /// Describes many containers; each has an answer of its own.
    pub async fn bulk_info(
        &self,
        list: &[Handle],
    ) -> Result<BTreeMap<String, Result<Info, Error>>, Error> {
        let call = self.get(format!("/containers/bulk_info{}", handles(list)));
        let all: BTreeMap<String, WireBulkInfo> = self.ask(call).await?;
        let one = |entry: WireBulkInfo| match entry.error {
            None => Ok(entry.info.into()),
            Some(error) => Err(restore(error, None)),
        };
        Ok(all.into_iter().map(|(h, entry)| (h, one(entry))).collect())
    }

    /// Measures a container.
    pub async fn metrics(&self, handle: &Handle) -> Result<Metrics, Error> {
        let call = self.get(of(handle, &["metrics"]));
        self.ask::<WireMetrics>(call).await.map(Into::into)
    }

    /// Measures many containers, or running peas by their ids; each has an answer of its own.
    pub async fn bulk_metrics(
        &self,
        list: &[Handle],
    ) -> Result<BTreeMap<String, Result<Metrics, Error>>, Error> {
        let call = self.get(format!("/containers/bulk_metrics{}", handles(list)));
        let all: BTreeMap<String, WireBulkMetrics> = self.ask(call).await?;
        let one = |entry: WireBulkMetrics| match entry.error {
            None => Ok(entry.metrics.into()),
            Some(error) => Err(restore(error, None)),
        };
        Ok(all.into_iter().map(|(h, entry)| (h, one(entry))).collect())
    }

    /// Ends a container's processes: at once with `kill`, else gently first.
    pub async fn stop(&self, handle: &Handle, kill: bool) -> Result<(), Error> {
        let call = Call::new(Method::PUT, of(handle, &["stop"]));
        self.done(call.json(&WireStop { kill })).await
    }

    /// Unpacks a tar archive in a container, as `user` (root when empty).
    pub async fn stream_in(
        &self,
        handle: &Handle,
        user: &str,
        destination: &str,
        tar: impl AsyncRead + Send + 'static,
    ) -> Result<(), Error> {
        let parameters = query([("destination", destination), ("user", user)]);
        self.put_tar(handle, &parameters, tar).await
    }

    /// The same as root, with owners and modes as the archive has them.
    pub async fn stream_in_owned(
        &self,
        handle: &Handle,
        destination: &str,
        tar: impl AsyncRead + Send + 'static,
    ) -> Result<(), Error> {
        let parameters = [
            ("destination", destination),
            ("user", ""),
            ("owners", "true"),
        ];
        self.put_tar(handle, &query(parameters), tar).await
    }

    async fn put_tar(
        &self,
        handle: &Handle,
        parameters: &str,
        tar: impl AsyncRead + Send + 'static,
    ) -> Result<(), Error> {
        let target = format!("{}{parameters}", of(handle, &["files"]));
        let frames = Mapped::new(
            ReaderStream::with_capacity(tar, 256 << 10),
            |piece: io::Result<_>| piece.map(Frame::data),
        );
        let body = Body::new(StreamBody::new(frames));
        self.done(Call::new(Method::PUT, target).tar(body)).await
    }

    /// A tar archive of a file or directory (of its content only, when `source` ends in `/`).
    pub async fn stream_out(
        &self,
        handle: &Handle,
        user: &str,
        source: &str,
    ) -> Result<StreamOut, Error> {
        let files = FilesOut {
            user: user.to_owned(),
            source: source.to_owned(),
            ..FilesOut::default()
        };
        self.files_out(handle, &files).await
    }

    /// The same, or only a description, or through a link.
    pub async fn files_out(&self, handle: &Handle, files: &FilesOut) -> Result<StreamOut, Error> {
        let mut parameters = vec![("source", &*files.source), ("user", &*files.user)];
        for (name, set) in [("head", files.head), ("follow", files.follow)] {
            if set {
                parameters.push((name, "true"));
            }
        }
        let target = format!("{}{}", of(handle, &["files"]), query(parameters));
        let body = self.send(self.get(target)).await?.into_body();
        let data = Mapped::new(body.into_data_stream(), |piece: Result<_, hyper::Error>| {
            piece.map_err(io::Error::other)
        });
        Ok(StreamOut(Box::pin(StreamReader::new(data))))
    }

    /// The limits of a container, except those that the server does not tell (processes).
    pub async fn limits(&self, handle: &Handle) -> Result<Limits, Error> {
        let limit = |kind| self.get(of(handle, &["limits", kind]));
        let wire = WireLimits {
            cpu_limits: self.ask(limit("cpu")).await?,
            disk_limits: self.ask(limit("disk")).await?,
            memory_limits: self.ask(limit("memory")).await?,
            ..WireLimits::default()
        };
        wire.try_into()
    }

    /// Maps a port into a container; zeros ask for one. Returns what was allocated.
    pub async fn net_in(&self, handle: &Handle, wish: PortMapping) -> Result<PortMapping, Error> {
        let call = Call::new(Method::POST, of(handle, &["net", "in"]));
        let mapped: WirePorts = self.ask(call.json(&WirePorts::from(wish))).await?;
        Ok(mapped.into())
    }

    /// Allows outgoing traffic.
    pub async fn net_out(&self, handle: &Handle, rules: &[NetOutRule]) -> Result<(), Error> {
        let rules: Vec<_> = rules.iter().map(WireNetOutRule::from).collect();
        let call = Call::new(Method::POST, of(handle, &["net", "out", "bulk"]));
        self.done(call.json(&rules)).await
    }

    /// Sets how long a container may be unused; `None` is for ever.
    pub async fn set_grace_time(
        &self,
        handle: &Handle,
        grace_time: Option<Duration>,
    ) -> Result<(), Error> {
        let call = Call::new(Method::PUT, of(handle, &["grace_time"]));
        self.done(call.json(&grace_to_nanos(grace_time))).await
    }

    /// All properties of a container.
    pub async fn properties(&self, handle: &Handle) -> Result<BTreeMap<String, String>, Error> {
        self.ask(self.get(of(handle, &["properties"]))).await
    }

    /// One property; one that is not there is an error.
    pub async fn property(&self, handle: &Handle, key: &str) -> Result<String, Error> {
        let call = self.get(of(handle, &["properties", key]));
        Ok(self.ask::<WireValue>(call).await?.value)
    }

    /// Sets a property.
    pub async fn set_property(&self, handle: &Handle, key: &str, value: &str) -> Result<(), Error> {
        let call = Call::new(Method::PUT, of(handle, &["properties", key]));
        let value = value.to_owned();
        self.done(call.json(&WireValue { value })).await
    }

    /// Removes a property; one that is not there is no error.
    pub async fn remove_property(&self, handle: &Handle, key: &str) -> Result<(), Error> {
        let target = of(handle, &["properties", key]);
        self.done(Call::new(Method::DELETE, target)).await
    }

    /// All containers with their state, age and processes.
    pub async fn ps(&self) -> Result<Ps, Error> {
        self.ask(self.get("/garden/v1/ps")).await
    }

    /// The running peas of a container.
    pub async fn peas(&self, handle: &Handle) -> Result<Vec<ProcessInfo>, Error> {
        let target = path(&["garden", "v1", "containers", handle.as_str(), "peas"]);
        Ok(self.ask::<Peas>(self.get(target)).await?.peas)
    }

    /// What is left to clean up behind what has ended.
    pub async fn teardown(&self) -> Result<TeardownStatus, Error> {
        self.ask(self.get("/garden/v1/teardown")).await
    }

    /// Waits until nothing is left to clean up, at most `patience`; returns what is left then.
    pub async fn teardown_wait(&self, patience: Duration) -> Result<TeardownStatus, Error> {
        let patience = patience.as_millis().to_string();
        let target = query([("timeout_ms", patience.as_str())]);
        let target = format!("/garden/v1/teardown/wait{target}");
        self.ask(Call::new(Method::POST, target)).await
    }
}

/// A tar archive as it arrives. A read error means that it is cut short; may be dropped early.
pub struct StreamOut(Pin<Box<dyn AsyncRead + Send>>);

impl fmt::Debug for StreamOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamOut").finish_non_exhaustive()
    }
}

impl AsyncRead for StreamOut {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_read(cx, buf)
    }
}
