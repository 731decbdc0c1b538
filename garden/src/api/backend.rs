//! What the API server needs of whoever manages containers.
//!
//! Declared by its consumer: the manager implements it, tests play it. All calls are in domain
//! types and may run at the same time, for the same container too; each must stay correct when
//! the container is destroyed under it. No call is ever cancelled half-way, not even by a client
//! that leaves.
//!
//! Errors: [`Error::ContainerNotFound`] for every call on a handle that does not exist.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tokio::io::AsyncRead;
use tokio::sync::mpsc;

use crate::checks::{CheckSpec, HealthStatus};
use crate::error::Error;
use crate::events::{EventFilter, EventStream};
use crate::logs::{LogInfo, LogStream};
use crate::model::{
    Capacity, ContainerInfo, ContainerSpec, Handle, ImageRef, Limits, LimitsChange, LimitsInForce,
    Metrics, NetOutRule, PortMapping, ProcessId, ProcessSpec, PullProgress, PulledImage,
    TeardownStatus,
};
use crate::process::Attachment;
use crate::timeline::Timeline;

/// An uncompressed tar archive on its way in or out. A read error means that it is cut short.
pub type TarStream = Pin<Box<dyn AsyncRead + Send>>;

/// Which containers a list names: those that have every property with its value.
///
/// As Guardian has it: an empty value also matches a container that lacks the property; the key
/// `garden.state` with `all` matches every container, with `created` (implied when the key is
/// absent) only finished ones.
pub type Filters = BTreeMap<String, String>;

/// Files to put into a container.
pub struct StreamIn {
    /// Who owns them; root when empty.
    pub user: String,
    /// Where they go; made when missing; relative to the user's home.
    pub destination: String,
    /// Owners, and modes as they are, come from the archive.
    pub owners: bool,
    /// The files.
    pub tar: TarStream,
}

/// Files to get out of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FilesOut {
    /// Who reads them; root when empty.
    pub user: String,
    /// A file, or a directory, of which only the content is meant when it ends in `/`; relative to
    /// the user's home.
    pub source: String,
    /// Only what the first entry says, without any content.
    pub head: bool,
    /// A source that is a symbolic link stands for what it leads to.
    pub follow: bool,
}

/// How the host's kernel counts a share of the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CpuScale {
    /// cgroup v1: 2 to 262144.
    Shares,
    /// cgroup v2: 1 to 10000.
    Weight,
}

/// A manager of containers.
pub trait Backend: Send + Sync + 'static {
    /// Whether it can serve. Cheap.
    fn ping(&self) -> impl Future<Output = Result<(), Error>> + Send;

    /// What it can hold.
    fn capacity(&self) -> impl Future<Output = Result<Capacity, Error>> + Send;

    /// Creates a container; returns when it can run processes. Leaves nothing when it fails.
    fn create(&self, spec: ContainerSpec) -> impl Future<Output = Result<Handle, Error>> + Send;

    /// Destroys a container with all that runs in it. At most one call runs per handle.
    fn destroy(&self, handle: &Handle) -> impl Future<Output = Result<(), Error>> + Send;

    /// Names the containers that match.
    fn list(&self, filters: &Filters) -> impl Future<Output = Result<Vec<Handle>, Error>> + Send;

    /// Describes a container.
    fn info(&self, handle: &Handle) -> impl Future<Output = Result<ContainerInfo, Error>> + Send;

    /// Measures a container, or the running pea with this id.
    fn metrics(&self, handle: &Handle) -> impl Future<Output = Result<Metrics, Error>> + Send;

    /// Ends all processes of a container but its init: at once with `kill`, else with SIGTERM
    /// and about 10 s of patience. Returns when they are gone; stubborn ones are no error.
    fn stop(&self, handle: &Handle, kill: bool) -> impl Future<Output = Result<(), Error>> + Send;

    /// Starts a process or a pea. What cannot be started is an error here, not an exit.
    fn run(
        &self,
        handle: &Handle,
        spec: ProcessSpec,
    ) -> impl Future<Output = Result<Attachment, Error>> + Send;

    /// Joins a process or a pea, also one that ended and is remembered.
    fn attach(
        &self,
        handle: &Handle,
        process: &ProcessId,
    ) -> impl Future<Output = Result<Attachment, Error>> + Send;

    /// Unpacks files; returns when they are there.
    fn stream_in(
        &self,
        handle: &Handle,
        files: StreamIn,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Packs files. The stream is dropped early by a client that has enough.
    fn stream_out(
        &self,
        handle: &Handle,
        files: FilesOut,
    ) -> impl Future<Output = Result<TarStream, Error>> + Send;

    /// All properties.
    fn properties(
        &self,
        handle: &Handle,
    ) -> impl Future<Output = Result<BTreeMap<String, String>, Error>> + Send;

    /// One property, if it is there.
    fn property(
        &self,
        handle: &Handle,
        key: &str,
    ) -> impl Future<Output = Result<Option<String>, Error>> + Send;

    /// Sets a property.
    fn set_property(
        &self,
        handle: &Handle,
        key: String,
        value: String,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Removes a property; one that is not there is no error.
    fn remove_property(
        &self,
        handle: &Handle,
        key: &str,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// How long a container may be unused; `None` is for ever. The API server keeps the time and
    /// calls [`Backend::destroy`].
    fn grace_time(
        &self,
        handle: &Handle,
    ) -> impl Future<Output = Result<Option<Duration>, Error>> + Send;

    /// Records a new grace time.
    fn set_grace_time(
        &self,
        handle: &Handle,
        grace_time: Option<Duration>,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// The limits of a container.
    fn limits(&self, handle: &Handle) -> impl Future<Output = Result<Limits, Error>> + Send;

    /// The limits of a container, with what the kernel has of them.
    fn limits_in_force(
        &self,
        handle: &Handle,
    ) -> impl Future<Output = Result<LimitsInForce, Error>> + Send;

    /// Changes limits of a container that runs; returns those that hold then.
    fn change_limits(
        &self,
        handle: &Handle,
        change: LimitsChange,
    ) -> impl Future<Output = Result<Limits, Error>> + Send;

    /// In which scale Guardian's clients expect to be told the CPU share.
    fn cpu_scale(&self) -> CpuScale {
        CpuScale::Shares
    }

    /// Maps a port into a container; returns the mapping with what was allocated.
    fn net_in(
        &self,
        handle: &Handle,
        mapping: PortMapping,
    ) -> impl Future<Output = Result<PortMapping, Error>> + Send;

    /// Allows outgoing traffic: all rules or, with an error, none of them.
    fn net_out(
        &self,
        handle: &Handle,
        rules: Vec<NetOutRule>,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Brings an image into the store; returns when it is there. What happens on the way is sent to
    /// `progress`, which is dropped at the end; nobody may be there to receive it.
    fn pull(
        &self,
        image: ImageRef,
        progress: mpsc::Sender<PullProgress>,
    ) -> impl Future<Output = Result<PulledImage, Error>> + Send;

    /// What the health checks of a container say.
    fn health(&self, handle: &Handle) -> impl Future<Output = Result<HealthStatus, Error>> + Send;

    /// Replaces all health checks of a container: all or, with an error, none of them.
    fn set_checks(
        &self,
        handle: &Handle,
        checks: Vec<CheckSpec>,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Removes a health check; one that is not there is an error.
    fn remove_check(
        &self,
        handle: &Handle,
        name: &str,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// What happens, and what has happened. Nobody waits for whoever reads it.
    fn events(
        &self,
        filter: EventFilter,
    ) -> impl Future<Output = Result<EventStream, Error>> + Send;

    /// Of which processes output is kept, the oldest first.
    fn logs(&self, handle: &Handle) -> impl Future<Output = Result<Vec<LogInfo>, Error>> + Send;

    /// The output that is kept of a process; with `follow`, also what is still to come.
    fn log(
        &self,
        handle: &Handle,
        process: &ProcessId,
        follow: bool,
    ) -> impl Future<Output = Result<LogStream, Error>> + Send;

    /// What happened to a container and how long it took, also of one that is gone.
    fn timeline(&self, handle: &Handle) -> impl Future<Output = Result<Timeline, Error>> + Send;

    /// What is left to clean up.
    fn teardown(&self) -> impl Future<Output = Result<TeardownStatus, Error>> + Send;

    /// Waits until nothing is left to clean up, at most `patience`; returns what is left then.
    fn teardown_wait(
        &self,
        patience: Duration,
    ) -> impl Future<Output = Result<TeardownStatus, Error>> + Send;
}
