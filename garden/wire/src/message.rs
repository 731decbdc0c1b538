//! What the packets say.
//!
//! Server → zygote: [`ZygoteRequest`], answered by [`ZygoteReply`]. Server → shim: [`Request`]
//! in an [`Envelope`]; shim → server: [`FromShim`]. Containers outlive servers, so a shim may be
//! older than the server that talks to it, or newer after a step back. What keeps them together:
//! [`PROTOCOL`] grows with every request that is new, new fields have defaults, unknown fields are
//! passed over, and the first exchange on each connection is [`Request::Hello`]. A server sends
//! nothing that is newer than the shim, and talks to a newer shim down to what that still serves.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Version of this protocol: 1 is the first; 2 has [`Request::Probe`] and [`Request::Pack`]; 3 has
/// [`Unpack::owners`], [`Pack::head`] and [`Pack::follow`].
pub const PROTOCOL: u32 = 3;
/// The oldest servers that a shim of this release serves: nothing that they send, or look for in
/// an answer, has changed since.
pub const LOWEST: u32 = 1;

/// What the zygote is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum ZygoteRequest {
    /// Make a shim for a pod. Descriptors: its listening socket, its record directory.
    Spawn {
        /// The container's handle: for logs and the process title only.
        handle: String,
        /// The ids of its user namespace, for users and groups alike; `None`: it has none of its
        /// own and is privileged.
        ids: Option<Vec<IdRange>>,
    },
}

/// A range of ids of a user namespace: `size` ids from `inside` are those from `outside`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// First id in the namespace.
    pub inside: u32,
    /// First id on the host.
    pub outside: u32,
    /// How many.
    pub size: u32,
}

/// What the zygote answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum ZygoteReply {
    /// The zygote is prepared and takes requests. Sent once, unasked.
    Ready {
        /// Its [`PROTOCOL`].
        protocol: u32,
        /// Instructions of the seccomp program it compiled.
        seccomp_instructions: usize,
    },
    /// A shim runs. Descriptor: its pidfd.
    Spawned {
        /// Its pid on the host.
        pid: u32,
    },
    /// It could not.
    Failed {
        /// What failed and why.
        message: String,
    },
}

/// What the server asks a shim, with a number that the answer repeats.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Chosen by the server, unique on the connection.
    pub sequence: u64,
    /// The request.
    pub request: Request,
}

/// What the server asks a shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Request {
    /// First on each connection; answered by [`Answer::Hello`].
    Hello {
        /// The server's [`PROTOCOL`].
        protocol: u32,
    },
    /// Start a process. Descriptors as `descriptors` lists them.
    Start(Box<Start>),
    /// Send a signal to a process, by its pidfd.
    Signal {
        /// Its id.
        id: String,
        /// The signal's number.
        signal: i32,
    },
    /// Let go of the shim's end of a process's standard input.
    CloseStdin {
        /// Its id.
        id: String,
    },
    /// Set the size of a process's terminal.
    Resize {
        /// Its id.
        id: String,
        /// Columns.
        columns: u16,
        /// Rows.
        rows: u16,
    },
    /// Get the server's ends of a process's standard streams again, after a restart.
    Streams {
        /// Its id.
        id: String,
    },
    /// Drop what the shim keeps of a process that has ended: its streams and its exit.
    Forget {
        /// Its id.
        id: String,
    },
    /// Unpack a tar stream inside the container. Descriptors: the stream.
    Unpack(Unpack),
    /// Look from inside the pod's network whether something answers. Since version 2: an older
    /// shim would drop the connection.
    Probe(Probe),
    /// Pack files inside the container into a tar stream. Since version 2. Answered when it begins.
    /// Descriptors: the stream, and a pipe for how it ended: [`PACKED`], or the failure's text.
    Pack(Pack),
    /// End the shim. Refused while the container's init lives.
    Shutdown,
}

/// What kind of process a [`Start`] makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The container's init: new namespaces, a root filesystem, Garden's own init program.
    Init,
    /// A process in the container's namespaces and root filesystem.
    Exec,
    /// A process with a root filesystem of its own in the container's other namespaces.
    Pea,
}

/// What a descriptor of a [`Start`] is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The detached mount of the root filesystem.
    Rootfs,
    /// A detached mount that the specification names by [`bind_source`].
    Bind {
        /// The index.
        index: usize,
        /// Whether it is a directory.
        directory: bool,
    },
    /// A cgroup file to write `0` into, so that the writer joins (v1 `tasks`).
    Cgroup,
    /// The directory of a cgroup v2 group to be born in. At most one.
    CgroupDirectory,
    /// The process's end of a standard stream: 0, 1 or 2.
    Stream(u8),
    /// The other end of a standard stream, kept by the shim while the server may be gone.
    Keep(u8),
    /// A file with an `oom_kill` counter (`memory.oom_control` or `memory.events`).
    OomCounter,
}

/// What a [`Request::Start`] carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The process's id: names its exit record.
    pub id: String,
    /// What it is.
    pub kind: Kind,
    /// The OCI runtime specification, as JSON. Namespaces that are the container's carry the
    /// path [`POD_NAMESPACES`]`/<type>`; the shim puts its own descriptors in their place.
    pub spec: String,
    /// The capabilities by OCI name; applied by the shim itself after the seccomp program.
    pub capabilities: Vec<String>,
    /// Whether the seccomp program is loaded.
    pub seccomp: bool,
    /// Whether the process gets a terminal of this size.
    #[serde(default)]
    pub terminal: Option<(u16, u16)>,
    /// Whether the working directory is made when missing, owned by the process's user.
    #[serde(default)]
    pub make_cwd: bool,
    /// What the descriptors are, in order.
    pub descriptors: Vec<Role>,
}

/// Where a specification looks for the namespaces of its pod. Not a real path: see [`Start::spec`].
pub const POD_NAMESPACES: &str = "/pod/ns";

/// The path from which a specification binds the detached mount [`Role::Bind`]`{ index, .. }`.
pub fn bind_source(index: usize, directory: bool) -> String {
    let kind = if directory { "dir" } else { "file" };
    format!("/stage/bind/{kind}-{index}")
}

/// What a [`Request::Unpack`] carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpack {
    /// The user, by its id inside the container's user namespace.
    pub uid: u32,
    /// The group, as `uid`.
    pub gid: u32,
    /// Supplementary groups, as `uid`.
    #[serde(default)]
    pub groups: Vec<u32>,
    /// The directory inside the container, absolute; made when missing.
    pub destination: String,
    /// Owners, and modes as they are, come from the archive; only root can give files away.
    #[serde(default)]
    pub owners: bool,
}

/// What a [`Request::Probe`] carries: where to connect, and what to expect there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Addresses to try, one after the other, until one accepts the connection.
    pub addresses: Vec<SocketAddr>,
    /// All of it may take this long, in milliseconds.
    pub timeout_ms: u64,
    /// Ask for this by HTTP; otherwise a connection suffices.
    #[serde(default)]
    pub http: Option<HttpProbe>,
}

/// A GET of HTTP/1.1, of whose answer only the status is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpProbe {
    /// Path and query; printable ASCII without spaces.
    pub path: String,
    /// The `Host` header; printable ASCII without spaces.
    pub host: String,
    /// The lowest status that is a success.
    pub lowest: u16,
    /// The highest one.
    pub highest: u16,
}

/// What a [`Request::Pack`] carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pack {
    /// The user, by its id inside the container's user namespace.
    pub uid: u32,
    /// The group, as `uid`.
    pub gid: u32,
    /// Supplementary groups, as `uid`.
    #[serde(default)]
    pub groups: Vec<u32>,
    /// The path inside the container, absolute; with a `/` at its end: a directory's content.
    pub source: String,
    /// Only what the first entry says, without any content.
    #[serde(default)]
    pub head: bool,
    /// A source that is a symbolic link stands for what it leads to.
    #[serde(default)]
    pub follow: bool,
}

/// What a packer writes into its second pipe when the stream is whole.
pub const PACKED: &[u8] = b"packed";

/// What a shim sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum FromShim {
    /// The answer to one request.
    Answer {
        /// The request's number.
        sequence: u64,
        /// The answer.
        answer: Answer,
    },
    /// A process has ended and its record is written. Sent to every connection.
    Exited(ExitRecord),
}

/// The answer to one [`Request`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// To [`Request::Hello`].
    Hello {
        /// The shim's [`PROTOCOL`].
        protocol: u32,
        /// The shim's [`LOWEST`]; the first release did not say.
        #[serde(default)]
        lowest: u32,
        /// Every process it knows, ended ones included.
        processes: Vec<ProcessState>,
    },
    /// To [`Request::Start`]: it runs. With a terminal, one descriptor: its master.
    Started {
        /// Its pid on the host.
        pid: u32,
    },
    /// To [`Request::Streams`]. Descriptors: the kept ends, as listed.
    Streams {
        /// 0, 1, 2, as far as they are still kept.
        streams: Vec<u8>,
        /// Whether the only stream is a terminal's master.
        terminal: bool,
    },
    /// To [`Request::Probe`].
    Probed {
        /// Whether the answer is as expected.
        passed: bool,
        /// What was found, for a person; never more than a line.
        message: String,
        /// When that was known: nanoseconds of `CLOCK_REALTIME`.
        at_ns: u64,
    },
    /// It is done.
    Done,
    /// It is not.
    Failed(Failure),
}

/// Why a shim could not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What a caller decides on.
    pub kind: FailureKind,
    /// What failed and why, for a person.
    pub message: String,
}

/// Kinds of [`Failure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The executable does not exist.
    ExecutableNotFound,
    /// The executable exists and cannot be run.
    NotExecutable,
    /// The working directory cannot be entered.
    WorkingDirectory,
    /// A resource limit is above what the host lets the server give.
    ResourceLimit,
    /// No process of that id.
    UnknownProcess,
    /// The process has ended.
    Ended,
    /// Everything else.
    Other,
}

/// A process as its shim knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessState {
    /// Its id.
    pub id: String,
    /// What it is.
    pub kind: Kind,
    /// Its pid on the host.
    pub pid: u32,
    /// How it ended, once it has.
    pub exit: Option<ExitRecord>,
}

/// How a process ended. Also the content of its exit record in the depot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Its id.
    pub id: String,
    /// The exit code, or 128 + the signal that ended it.
    pub code: i32,
    /// Whether its cgroup's `oom_kill` counter had grown when it ended.
    pub out_of_memory: bool,
    /// When the shim reaped it: nanoseconds of `CLOCK_REALTIME`.
    pub exited_at_ns: u64,
}

impl ExitRecord {
    /// The file name of the record of process `id` in the record directory.
    pub fn file_name(id: &str) -> String {
        format!("{id}.exit")
    }
}
