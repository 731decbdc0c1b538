//! The words of the manager: handles, ids, specifications, exits.
//!
//! Used by every module of this crate and by the command line. These types carry no wire format
//! of the Garden API (its JSON is mapped to them at the API's edge); their own serde form is the
//! one of the records in the depot. Identifiers are parsed once, here, and trusted afterwards.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

pub use garden_net::{NetOutRule, Protocol};
use garden_peas::health::HealthState;
use serde::{Deserialize, Serialize};

use crate::checks::CheckSpec;

/// The longest handle or process id: a file name with room for a suffix.
pub const MAX_ID_LENGTH: usize = 200;

/// Why an identifier was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Nothing was given.
    #[error("it is empty: give 1 to {MAX_ID_LENGTH} characters of A-Z a-z 0-9 . _ : ; @ = -")]
    Empty,
    /// More than [`MAX_ID_LENGTH`] bytes.
    #[error("it has {0} characters: use at most {MAX_ID_LENGTH}")]
    TooLong(usize),
    /// A character that a file name, an URL segment or a bulk query could not carry.
    #[error("{0:?} is not allowed in it: use only A-Z a-z 0-9 . _ : ; @ = -")]
    Character(char),
    /// Starts with a dot or a dash.
    #[error("it starts with {0:?}: start with a letter or a digit")]
    Start(char),
}

fn check_id(text: &str) -> Result<(), IdError> {
    let first = text.chars().next().ok_or(IdError::Empty)?;
    if text.len() > MAX_ID_LENGTH {
        return Err(IdError::TooLong(text.len()));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._:;@=-".contains(c);
    if let Some(bad) = text.chars().find(|c| !allowed(*c)) {
        return Err(IdError::Character(bad));
    }
    if matches!(first, '.' | '-') {
        return Err(IdError::Start(first));
    }
    Ok(())
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// A fresh, unique one (UUID version 4).
            pub fn generate() -> Self {
                Self(uuid::Uuid::new_v4().to_string())
            }

            /// The text of it: safe as a file name and as an URL segment.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                check_id(text).map(|()| Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                check_id(&text).map(|()| Self(text))
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

identifier! {
    /// The name of a container, unique on one server.
    Handle
}
identifier! {
    /// The name of a process or a pea, unique within its container.
    ProcessId
}

/// An image and how to reach it.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImageRef {
    /// A path to a tar or a directory, or an URI (`oci://`, `docker://`, `raw://`, …).
    pub uri: String,
    /// Registry user, if any. Never logged.
    #[serde(default, skip_serializing)]
    pub username: Option<String>,
    /// Registry password, if any. Never logged, never recorded.
    #[serde(default, skip_serializing)]
    pub password: Option<String>,
}

impl fmt::Debug for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageRef")
            .field("uri", &self.uri)
            .finish_non_exhaustive()
    }
}

/// How far the import of an image is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum PullProgress {
    /// How many layers the image has; the first word.
    Layers {
        /// Their number.
        total: usize,
    },
    /// Something about one layer.
    Layer {
        /// Which one, from 0, the topmost last.
        index: usize,
        /// Its digest.
        digest: String,
        /// What happens with it.
        stage: PullStage,
        /// Bytes that were read of it.
        bytes: u64,
        /// Bytes that it has; 0 when nobody knows.
        of: u64,
    },
}

/// What happens with a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PullStage {
    /// It waits for its turn.
    Waiting,
    /// Its bytes are read.
    Downloading,
    /// Its files are written.
    Unpacking,
    /// It was imported.
    Done,
    /// It was there already.
    Cached,
}

/// An image that is in the store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PulledImage {
    /// What the store knows it by.
    pub id: String,
    /// Where it came from, without secrets.
    pub source: String,
    /// How many layers it has.
    pub layers: usize,
    /// Bytes in the files of its layers.
    pub bytes: u64,
}

/// Limits of a container, or of a pea with its own cgroup. `None` means unlimited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory, in bytes; swap is not usable on top of it.
    pub memory_bytes: Option<u64>,
    /// Processes and threads together.
    pub pids: Option<u64>,
    /// Relative share of the CPU in the scale of cgroup v1 (`cpu.shares`, 2 to 262144).
    pub cpu_shares: Option<u64>,
    /// Most CPU time, in thousandths of one CPU.
    #[serde(default)]
    pub cpu_millis: Option<u64>,
    /// Reading and writing of block devices.
    #[serde(default)]
    pub io: IoLimits,
    /// What the root filesystem may grow to.
    pub disk: Option<DiskLimit>,
}

/// Limits on block devices; `None` means unlimited. The rates hold for each device of the host by
/// itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IoLimits {
    /// Relative share in the scale of cgroup v1 (`blkio.weight`, 10 to 1000).
    pub weight: Option<u64>,
    /// Bytes a second read.
    pub read_bps: Option<u64>,
    /// Bytes a second written.
    pub write_bps: Option<u64>,
    /// Operations a second read.
    pub read_iops: Option<u64>,
    /// Operations a second written.
    pub write_iops: Option<u64>,
}

impl IoLimits {
    /// These where they are set, otherwise those.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            weight: self.weight.or(other.weight),
            read_bps: self.read_bps.or(other.read_bps),
            write_bps: self.write_bps.or(other.write_bps),
            read_iops: self.read_iops.or(other.read_iops),
            write_iops: self.write_iops.or(other.write_iops),
        }
    }

    /// Whether any rate is limited.
    pub fn has_rate(&self) -> bool {
        self.read_bps.is_some()
            || self.write_bps.is_some()
            || self.read_iops.is_some()
            || self.write_iops.is_some()
    }
}

/// New values for some limits of a container that runs: what is absent stays, 0 takes a limit away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsChange {
    /// See [`Limits::memory_bytes`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// See [`Limits::pids`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    /// See [`Limits::cpu_shares`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_shares: Option<u64>,
    /// See [`Limits::cpu_millis`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u64>,
    /// See [`IoLimits::weight`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_weight: Option<u64>,
    /// See [`IoLimits::read_bps`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_read_bps: Option<u64>,
    /// See [`IoLimits::write_bps`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_write_bps: Option<u64>,
    /// See [`IoLimits::read_iops`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_read_iops: Option<u64>,
    /// See [`IoLimits::write_iops`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_write_iops: Option<u64>,
}

impl LimitsChange {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The limits that result from these ones.
    #[must_use]
    pub fn apply(&self, old: &Limits) -> Limits {
        fn changed(old: Option<u64>, new: Option<u64>) -> Option<u64> {
            new.map_or(old, |value| (value > 0).then_some(value))
        }
        Limits {
            memory_bytes: changed(old.memory_bytes, self.memory_bytes),
            pids: changed(old.pids, self.pids),
            cpu_shares: changed(old.cpu_shares, self.cpu_shares),
            cpu_millis: changed(old.cpu_millis, self.cpu_millis),
            io: IoLimits {
                weight: changed(old.io.weight, self.io_weight),
                read_bps: changed(old.io.read_bps, self.io_read_bps),
                write_bps: changed(old.io.write_bps, self.io_write_bps),
                read_iops: changed(old.io.read_iops, self.io_read_iops),
                write_iops: changed(old.io.write_iops, self.io_write_iops),
            },
            disk: old.disk,
        }
    }
}

/// The limits of a container, and what the kernel has of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsInForce {
    /// As they were asked for.
    pub limits: Limits,
    /// The kernel's files and what they say.
    pub kernel: BTreeMap<String, String>,
    /// Whether the CPU share is lowered because the container used more than it is entitled to.
    #[serde(default)]
    pub throttled: bool,
}

/// A limit on the bytes and inodes of a root filesystem.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskLimit {
    /// Bytes.
    pub bytes: Option<u64>,
    /// Inodes that are made or changed; never those of the image.
    pub inodes: Option<u64>,
    /// Whether the image's own layers count towards `bytes`.
    pub scope: DiskScope,
}

/// What a [`DiskLimit`] counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskScope {
    /// The image's layers and what the container wrote.
    #[default]
    Total,
    /// Only what the container wrote.
    Exclusive,
}

/// A host path that appears inside a container or a pea.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindMount {
    /// The path on the host; a file or a directory that exists.
    pub source: PathBuf,
    /// The path inside; made when missing.
    pub destination: PathBuf,
    /// Whether the inside may write.
    pub writable: bool,
}

/// What a container is made from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Its name; generated when absent.
    pub handle: Option<Handle>,
    /// Its root filesystem; the server's default when absent.
    pub image: Option<ImageRef>,
    /// `K=V` strings for every process in it.
    pub env: Vec<String>,
    /// Host paths inside it.
    pub bind_mounts: Vec<BindMount>,
    /// Free text by key, for the user.
    pub properties: BTreeMap<String, String>,
    /// No user namespace, all capabilities, no seccomp filter.
    pub privileged: bool,
    /// Nothing can be written to its root filesystem; bind mounts are as they say.
    #[serde(default)]
    pub read_only: bool,
    /// Limits.
    pub limits: Limits,
    /// How long it may be unused before it is destroyed; `None` is for ever.
    pub grace_time: Option<Duration>,
    /// Address or subnet asked for, in the words of the network.
    pub network: Option<String>,
    /// Ports to map at creation.
    pub net_in: Vec<PortMapping>,
    /// Rules for outgoing traffic, at creation.
    pub net_out: Vec<NetOutRule>,
    /// Checks of its health, from its creation on.
    #[serde(default)]
    pub checks: Vec<CheckSpec>,
}

/// A port of the host that leads into a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// Port on the host; 0 asks for one from the pool.
    pub host_port: u32,
    /// Port in the container; 0 means the same as on the host.
    pub container_port: u32,
}

/// A terminal size in characters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Columns; 0 means the default of 80.
    pub columns: u16,
    /// Rows; 0 means the default of 24.
    pub rows: u16,
}

/// Soft and hard limit of one resource of a process, both the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// Lower-case name without prefix: `nofile`, `nproc`, `core`, ….
    pub name: String,
    /// The value, in the unit of that resource.
    pub value: u64,
}

impl Rlimit {
    /// What there are limits of (setrlimit(2)).
    pub const NAMES: [&str; 15] = [
        "as",
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "sigpending",
        "stack",
    ];
}

/// What a process in a container, or a pea, is made from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Its name; generated when absent.
    pub id: Option<ProcessId>,
    /// The executable, looked up in the process's `PATH` when it has no slash.
    pub path: String,
    /// Its arguments, without `argv[0]`.
    pub args: Vec<String>,
    /// `K=V` strings, after the ones of the container (or of the pea's image).
    pub env: Vec<String>,
    /// Working directory: the user's home for a process, `/` for a pea, when absent.
    pub dir: Option<String>,
    /// `name`, `uid`, `uid:gid`, `name:group`; root when absent.
    pub user: Option<String>,
    /// Resource limits of the process itself.
    pub rlimits: Vec<Rlimit>,
    /// A terminal, and its size.
    pub tty: Option<WindowSize>,
    /// Present: the process is a pea with this image for its root filesystem.
    pub image: Option<ImageRef>,
    /// For a pea: its own cgroup with these limits, beside the container's instead of below it.
    pub own_limits: Option<Limits>,
    /// For a pea: what its root filesystem may grow to. Of `own_limits` the disk is not looked at.
    pub disk: Option<DiskLimit>,
    /// For a pea: how many processes and threads it may have at once, wherever its cgroup is.
    /// Where `own_limits` says so too, the smaller number holds.
    #[serde(default)]
    pub pids: Option<u64>,
    /// For a pea: host paths inside it.
    pub bind_mounts: Vec<BindMount>,
    /// How many bytes of its last output are kept for whoever asks later; `None` keeps nothing.
    #[serde(default)]
    pub log_bytes: Option<u64>,
    /// It is a run of a health check: it has a group of its own, and nothing of it stays. Only the
    /// manager itself says so.
    #[serde(skip)]
    pub check: bool,
}

impl ProcessSpec {
    /// Whether this describes a pea.
    pub fn is_pea(&self) -> bool {
        self.image.is_some()
    }
}

/// A signal that a user may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Signal {
    /// SIGTERM.
    Terminate,
    /// SIGKILL.
    Kill,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code, or 128 + the signal that ended it.
    pub code: i32,
    /// Whether the kernel killed something in its cgroup for want of memory before it ended.
    #[serde(default)]
    pub out_of_memory: bool,
}

/// A container as a user sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerInfo {
    /// Its name.
    pub handle: Handle,
    /// Whether `stop` was called.
    pub stopped: bool,
    /// The image it was made from.
    pub image: String,
    /// Unprivileged or not.
    pub privileged: bool,
    /// When it was created, in milliseconds since the epoch.
    pub created_ms: u64,
    /// What happened to it, oldest first (`Out of memory`, …).
    pub events: Vec<String>,
    /// Its directory in the depot.
    pub path: PathBuf,
    /// Where it is reached.
    #[serde(default)]
    pub addresses: Addresses,
    /// Its properties.
    pub properties: BTreeMap<String, String>,
    /// Its processes and peas that have not ended.
    pub processes: Vec<ProcessInfo>,
    /// Ports that lead into it.
    pub mapped_ports: Vec<PortMapping>,
    /// Its limits.
    pub limits: Limits,
    /// What its health checks say, if it has any.
    #[serde(default)]
    pub health: Option<HealthState>,
}

/// The addresses of a container; `None` where there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// The host's end of the container's network.
    pub host: Option<IpAddr>,
    /// The container's own.
    pub container: Option<IpAddr>,
    /// The container's own in IPv6.
    pub container_v6: Option<IpAddr>,
    /// The one by which the host is known outside.
    pub external: Option<IpAddr>,
}

/// What one server can hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Bytes of memory of the host.
    pub memory_bytes: u64,
    /// Bytes of the disk under the root filesystems.
    pub disk_bytes: u64,
    /// Bytes of it that containers may be promised.
    pub schedulable_disk_bytes: u64,
    /// Containers.
    pub max_containers: u64,
}

/// What a container, or a pea, uses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    /// `memory.stat` of its cgroup, by the kernel's own names (v1 or v2), in bytes and counts.
    pub memory_stat: BTreeMap<String, u64>,
    /// Bytes that count towards its memory limit, without what the kernel could drop at once.
    pub memory_bytes: u64,
    /// Processor time.
    pub cpu: CpuMetrics,
    /// Its root filesystem.
    pub disk: DiskMetrics,
    /// Its network, where it has one of its own.
    pub network: Option<NetworkMetrics>,
    /// Processes and threads now.
    pub pids: u64,
    /// Processes and threads allowed; `None` is unlimited.
    pub max_pids: Option<u64>,
    /// How long it has existed.
    pub age: Duration,
    /// Processor time it was entitled to by its shares since it was made; zero for a pea.
    pub cpu_entitlement: Duration,
    /// What could not be measured (`memory`, `cpu`, `pids`, `disk`), and stands here as zero.
    #[serde(default)]
    pub missing: Vec<String>,
}

/// Processor time since creation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuMetrics {
    /// All of it.
    pub usage: Duration,
    /// In user mode.
    pub user: Duration,
    /// In the kernel.
    pub system: Duration,
}

/// What a root filesystem holds. The total is never less than the exclusive part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskMetrics {
    /// Bytes, with those of the image.
    pub total_bytes: u64,
    /// Inodes, with those of the image.
    pub total_inodes: u64,
    /// Bytes that the container wrote.
    pub exclusive_bytes: u64,
    /// Inodes that the container made.
    pub exclusive_inodes: u64,
}

/// Bytes through a container's network device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkMetrics {
    /// Received by the container.
    pub rx_bytes: u64,
    /// Sent by the container.
    pub tx_bytes: u64,
}

/// What is left to clean up behind containers and peas that have ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TeardownStatus {
    /// Jobs that are not done.
    pub depth: usize,
    /// Age of the oldest of them, in milliseconds.
    pub oldest_ms: Option<u64>,
    /// Attempts that failed since the server started.
    pub failures: u64,
    /// Those jobs.
    pub jobs: Vec<TeardownJob>,
    /// Time spent by stage, since the server started.
    pub stages: Vec<TeardownStage>,
}

/// One container or pea that is being cleaned up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TeardownJob {
    /// The container.
    pub container: String,
    /// The pea, if it is one.
    pub pea: Option<String>,
    /// The stage it is in.
    pub stage: String,
    /// Attempts at this stage that failed.
    pub attempts: u32,
    /// Why the last one failed.
    pub last_error: Option<String>,
    /// Whether the stage exceeded its deadline and was moved aside.
    pub stuck: bool,
    /// Since when it waits, in milliseconds.
    pub age_ms: u64,
}

/// How long one stage of teardown takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TeardownStage {
    /// Its name.
    pub stage: String,
    /// How often it ran.
    pub runs: u64,
    /// All its runs together, in microseconds.
    pub total_us: u64,
    /// The longest, in microseconds.
    pub longest_us: u64,
}

/// A process or a pea as a user sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Its name.
    pub id: ProcessId,
    /// Its pid on the host.
    pub pid: u32,
    /// Whether it is a pea.
    pub pea: bool,
    /// The executable. (Never its arguments or environment.)
    pub path: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_that_could_leave_their_directory_are_refused() {
        assert_eq!("a/b".parse::<Handle>(), Err(IdError::Character('/')));
        assert_eq!("..".parse::<Handle>(), Err(IdError::Start('.')));
        assert_eq!("".parse::<Handle>(), Err(IdError::Empty));
        assert_eq!("a b".parse::<Handle>(), Err(IdError::Character(' ')));
        assert_eq!("a,b".parse::<Handle>(), Err(IdError::Character(',')));
        assert!("x".repeat(201).parse::<Handle>().is_err());
        assert!("concourse:exit-status".parse::<ProcessId>().is_ok());
    }

    #[test]
    fn a_change_of_limits_keeps_what_it_does_not_name() {
        let old = Limits {
            memory_bytes: Some(1 << 20),
            pids: Some(5),
            cpu_shares: Some(10),
            ..Limits::default()
        };
        let change = LimitsChange {
            pids: Some(7),
            cpu_shares: Some(0),
            io_read_bps: Some(1000),
            ..LimitsChange::default()
        };
        let new = change.apply(&old);
        assert_eq!(new.memory_bytes, Some(1 << 20));
        assert_eq!(new.pids, Some(7));
        assert_eq!(new.cpu_shares, None);
        assert_eq!(new.io.read_bps, Some(1000));
        assert!(LimitsChange::default().is_empty() && !change.is_empty());
    }

    #[test]
    fn a_password_is_neither_recorded_nor_shown() {
        let image = ImageRef {
            uri: "docker:///x".into(),
            username: Some("me".into()),
            password: Some("hunter2".into()),
        };
        assert!(!format!("{image:?}").contains("hunter2"));
        assert!(!serde_json::to_string(&image).unwrap().contains("hunter2"));
    }
}
