//! The depot: what the server knows, as files below its runtime directory.
//!
//! ```text
//! <runtime>/lock                            held by the one server of this directory
//! <runtime>/containers/<handle>/            a container exists while its directory does
//!     container.json                        its record
//!     health.json                           its health checks and what they say
//!     events                                what happened to it last, a line each
//!     shim.sock                             its supervisor
//!     processes/<instance>.json             one record per process or pea
//!     processes/<instance>.exit             written by the supervisor when it has ended
//!     logs/                                 what processes wrote, where that is kept
//! <runtime>/gone/<instance>/                what was a container's directory, until torn down
//! <runtime>/teardown/                       the queue's jobs
//! <runtime>/starts                          how many servers there were
//! <runtime>/timeline/                       how long what took, also of containers that are gone
//! ```
//!
//! On a tmpfs (nothing in it is meant to outlive a boot), so writing means renaming into place
//! and never syncing. A directory made is a name reserved: there is no other index that could
//! disagree. Must never hold a secret but the environment, which the mode 0700 protects.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use garden_wire::ExitRecord;
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::bundle::IdRange;
use crate::checks::HealthRecord;
use crate::model::{ContainerSpec, Handle, ProcessId};
use crate::network::NetworkRecord;

/// The version of the records.
const VERSION: u32 = 1;

const RECORD: &str = "container.json";
const HEALTH: &str = "health.json";
const EVENTS: &str = "events";
const STARTS: &str = "starts";
const PROCESSES: &str = "processes";

/// Why the depot cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DepotError {
    /// Another server runs on it.
    #[error(
        "another garden server uses {}: talk to it, stop it, or choose another --runtime-dir",
        .0.display()
    )]
    InUse(PathBuf),
    /// A step failed.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// The step.
        doing: &'static str,
        /// Its object.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn failed<E: Into<io::Error>>(doing: &'static str, path: &Path) -> impl FnOnce(E) -> DepotError {
    let path = path.to_owned();
    move |error| DepotError::Io {
        doing,
        path,
        source: error.into(),
    }
}

/// How far a container has come. Written before the work that leads there begins to matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Being made: after a crash, undone.
    Creating,
    /// Usable.
    Created,
    /// Its supervisor died: nothing of it runs any more, and it is there to be asked about until
    /// somebody destroys it.
    Lost,
    /// Being destroyed: after a crash, finished.
    Destroying,
}

/// The record of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Format of this record.
    pub version: u32,
    /// How far it has come.
    pub phase: Phase,
    /// What tells it from an earlier or later container of the same handle.
    pub instance: String,
    /// The name of its cgroup.
    pub cgroup: String,
    /// What it was asked to be.
    pub spec: ContainerSpec,
    /// The environment of its image.
    pub image_env: Vec<String>,
    /// The id map of its user namespace; empty when it is privileged, or of an earlier release.
    #[serde(default)]
    pub ids: Vec<IdRange>,
    /// When it was created, in milliseconds since the epoch.
    pub created_ms: u64,
    /// Whether it was stopped.
    pub stopped: bool,
    /// What happened to it.
    pub events: Vec<String>,
    /// The pid of its init on the host, for people.
    pub init_pid: u32,
    /// How many kills for want of memory in its cgroup have been told as events.
    #[serde(default)]
    pub oom_kills: u64,
    /// What it has of the network.
    #[serde(default)]
    pub network: NetworkRecord,
    /// Whether its limits are just being changed: the kernel may have some of the old ones.
    #[serde(default)]
    pub limits_pending: bool,
}

impl ContainerRecord {
    /// A record for a container that is about to be made.
    pub fn new(instance: String, cgroup: String, spec: ContainerSpec, created_ms: u64) -> Self {
        Self {
            version: VERSION,
            phase: Phase::Creating,
            instance,
            cgroup,
            spec,
            image_env: Vec::new(),
            ids: Vec::new(),
            created_ms,
            stopped: false,
            events: Vec::new(),
            init_pid: 0,
            oom_kills: 0,
            network: NetworkRecord::default(),
            limits_pending: false,
        }
    }
}

/// The record of a process or a pea.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// Format of this record.
    pub version: u32,
    /// Its name.
    pub id: ProcessId,
    /// What tells it from an earlier or later one of the same name; the supervisor's name for it.
    pub instance: String,
    /// Its executable; never its arguments or environment.
    pub path: String,
    /// Whether it is a pea.
    pub pea: bool,
    /// For a pea: whether its cgroup stands beside its container's.
    #[serde(default)]
    pub own_limits: bool,
    /// Whether it is a run of a health check: it does not outlive its server.
    #[serde(default)]
    pub check: bool,
}

impl ProcessRecord {
    /// A record for a process that is about to be started.
    pub fn new(id: ProcessId, instance: String, path: String) -> Self {
        Self {
            version: VERSION,
            id,
            instance,
            path,
            pea: false,
            own_limits: false,
            check: false,
        }
    }
}

/// The depot of one server.
#[derive(Debug)]
pub struct Depot {
    root: PathBuf,
    containers: OwnedFd,
    gone: OwnedFd,
    _lock: OwnedFd,
}

/// The directory of one container.
#[derive(Debug)]
pub struct ContainerDir {
    path: PathBuf,
    fd: OwnedFd,
    processes: OwnedFd,
}

fn open_dir(at: BorrowedFd<'_>, name: &str, path: &Path) -> Result<OwnedFd, DepotError> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty()).map_err(failed("open", path))
}

fn make_dir(at: BorrowedFd<'_>, name: &str, path: &Path) -> Result<OwnedFd, DepotError> {
    match rustix::fs::mkdirat(at, name, Mode::RWXU) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => open_dir(at, name, path),
        Err(errno) => Err(failed("make the directory", path)(errno)),
    }
}

impl Depot {
    /// Opens it, making what is missing, and locks it.
    ///
    /// # Errors
    /// [`DepotError::InUse`] when another server has it.
    pub fn open(root: &Path) -> Result<Self, DepotError> {
        std::fs::create_dir_all(root).map_err(failed("make the directory", root))?;
        let root = root.canonicalize().map_err(failed("find", root))?;
        let lock_path = root.join("lock");
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let lock = rustix::fs::open(&lock_path, flags, Mode::RUSR | Mode::WUSR)
            .map_err(failed("open", &lock_path))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(DepotError::InUse(root)),
            Err(errno) => return Err(failed("lock", &lock_path)(errno)),
        }
        let base =
            open_dir(CWD, root.to_str().unwrap_or("."), &root).or_else(|_| open_plain(&root))?;
        let containers = make_dir(base.as_fd(), "containers", &root.join("containers"))?;
        let gone = make_dir(base.as_fd(), "gone", &root.join("gone"))?;
        Ok(Self {
            root,
            containers,
            gone,
            _lock: lock,
        })
    }

    /// The runtime directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the teardown queue keeps its jobs.
    pub fn teardown(&self) -> PathBuf {
        self.root.join("teardown")
    }

    /// Counts this start, and returns how many there were before it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn count_start(&self) -> Result<u64, DepotError> {
        let path = self.root.join(STARTS);
        let before = std::fs::read_to_string(&path).unwrap_or_default();
        let before = before.trim().parse().unwrap_or(0_u64);
        std::fs::write(&path, before.saturating_add(1).to_string())
            .map_err(failed("write", &path))?;
        Ok(before)
    }

    /// A container's directory.
    pub fn container_path(&self, handle: &Handle) -> PathBuf {
        self.root.join("containers").join(handle.as_str())
    }

    /// Makes a container's directory: from here on the handle is taken. `None`: it was already.
    ///
    /// # Errors
    /// The kernel's.
    pub fn reserve(&self, handle: &Handle) -> Result<Option<ContainerDir>, DepotError> {
        let path = self.container_path(handle);
        match rustix::fs::mkdirat(&self.containers, handle.as_str(), Mode::RWXU) {
            Ok(()) => self.container(handle).map(Some),
            Err(rustix::io::Errno::EXIST) => Ok(None),
            Err(errno) => Err(failed("make the directory", &path)(errno)),
        }
    }

    /// Opens a container's directory.
    ///
    /// # Errors
    /// The kernel's.
    pub fn container(&self, handle: &Handle) -> Result<ContainerDir, DepotError> {
        let path = self.container_path(handle);
        let fd = open_dir(self.containers.as_fd(), handle.as_str(), &path)?;
        let processes = make_dir(fd.as_fd(), PROCESSES, &path.join(PROCESSES))?;
        Ok(ContainerDir {
            path,
            fd,
            processes,
        })
    }

    /// Names in the containers directory, whatever they are.
    ///
    /// # Errors
    /// The kernel's.
    pub fn names(&self) -> Result<Vec<String>, DepotError> {
        let path = self.root.join("containers");
        names(&path)
    }

    /// Moves a container's directory aside: from here on the handle is free.
    /// One that is gone already is no error.
    ///
    /// # Errors
    /// The kernel's.
    pub fn retire(&self, handle: &Handle, instance: &str) -> Result<(), DepotError> {
        match rustix::fs::renameat(&self.containers, handle.as_str(), &self.gone, instance) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(errno) => Err(failed("move away", &self.container_path(handle))(errno)),
        }
    }

    /// Where [`Depot::retire`] puts a directory.
    pub fn gone(&self, instance: &str) -> PathBuf {
        self.root.join("gone").join(instance)
    }

    /// The record in a retired directory, and whose it was; `None` when there is none, or none that
    /// can be read.
    pub fn gone_record(&self, name: &str) -> Option<(Handle, ContainerRecord)> {
        let directory = open_dir(self.gone.as_fd(), name, &self.gone(name)).ok()?;
        let record: ContainerRecord = read_json(directory.as_fd(), RECORD)?;
        let handle = record.spec.handle.clone()?;
        (record.version == VERSION).then_some((handle, record))
    }

    /// Notes in the record of a retired directory that the network is gone: a later server, whose
    /// teardown goes on behind that step, is not to take it up again.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn forget_network(
        &self,
        name: &str,
        mut record: ContainerRecord,
    ) -> Result<(), DepotError> {
        if std::mem::take(&mut record.network) == NetworkRecord::default() {
            return Ok(());
        }
        let path = self.gone(name);
        let directory = open_dir(self.gone.as_fd(), name, &path)?;
        write_json(directory.as_fd(), RECORD, &record, &path)
    }

    /// Names of retired directories.
    ///
    /// # Errors
    /// The kernel's.
    pub fn gone_names(&self) -> Result<Vec<String>, DepotError> {
        names(&self.root.join("gone"))
    }
}

fn open_plain(path: &Path) -> Result<OwnedFd, DepotError> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(failed("open", path))
}

fn names(path: &Path) -> Result<Vec<String>, DepotError> {
    let entries = std::fs::read_dir(path).map_err(failed("list", path))?;
    Ok(entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect())
}

impl ContainerDir {
    /// Its path, for people.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory itself.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The directory of its process and exit records.
    pub fn processes(&self) -> &OwnedFd {
        &self.processes
    }

    /// Writes the container's record.
    ///
    /// # Errors
    /// The kernel's.
    pub fn write(&self, record: &ContainerRecord) -> Result<(), DepotError> {
        write_json(self.fd.as_fd(), RECORD, record, &self.path)
    }

    /// Reads the container's record; `None` when there is none, or none that can be read.
    pub fn read(&self) -> Option<ContainerRecord> {
        read_json(self.fd.as_fd(), RECORD)
            .filter(|record: &ContainerRecord| record.version == VERSION)
    }

    /// Writes what is known of the container's health.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn write_health(&self, record: &HealthRecord) -> Result<(), DepotError> {
        write_json(self.fd.as_fd(), HEALTH, record, &self.path)
    }

    /// Forgets it: the container has no checks any more.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn remove_health(&self) -> Result<(), DepotError> {
        match rustix::fs::unlinkat(&self.fd, HEALTH, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(errno) => Err(failed("remove a record in", &self.path)(errno)),
        }
    }

    /// Reads what is known of the container's health; `None` when it has no checks.
    pub(crate) fn read_health(&self) -> Option<HealthRecord> {
        read_json(self.fd.as_fd(), HEALTH)
    }

    /// Adds lines to the container's events.
    pub(crate) fn append_events(&self, lines: &str) -> io::Result<()> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&self.fd, EVENTS, flags, Mode::RUSR | Mode::WUSR)?;
        io::Write::write_all(&mut std::fs::File::from(file), lines.as_bytes())
    }

    /// Replaces the container's events.
    pub(crate) fn write_events(&self, lines: &str) -> io::Result<()> {
        write_file(self.fd.as_fd(), EVENTS, lines.as_bytes())
    }

    /// The container's events; empty when there are none.
    pub(crate) fn read_events(&self) -> String {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&self.fd, EVENTS, flags, Mode::empty());
        let text = file.map_err(io::Error::from);
        text.and_then(|file| io::read_to_string(std::fs::File::from(file)))
            .unwrap_or_default()
    }

    /// Writes a process's record.
    ///
    /// # Errors
    /// The kernel's.
    pub fn write_process(&self, record: &ProcessRecord) -> Result<(), DepotError> {
        let name = format!("{}.json", record.instance);
        write_json(self.processes.as_fd(), &name, record, &self.path)
    }

    /// All processes' records that can be read.
    pub fn read_processes(&self) -> Vec<ProcessRecord> {
        let Ok(names) = names(&self.path.join(PROCESSES)) else {
            return Vec::new();
        };
        names
            .iter()
            .filter(|name| name.ends_with(".json"))
            .filter_map(|name| read_json(self.processes.as_fd(), name))
            .filter(|record: &ProcessRecord| record.version == VERSION)
            .collect()
    }

    /// Reads how a process has ended, if its supervisor has said so.
    pub fn read_exit(&self, instance: &str) -> Option<ExitRecord> {
        read_json(self.processes.as_fd(), &ExitRecord::file_name(instance))
    }

    /// Removes a process's records. Missing ones are no error.
    pub fn remove_process(&self, instance: &str) {
        for name in [format!("{instance}.json"), format!("{instance}.exit")] {
            let _ = rustix::fs::unlinkat(&self.processes, &name, AtFlags::empty());
        }
    }
}

fn write_json(
    directory: BorrowedFd<'_>,
    name: &str,
    value: &impl Serialize,
    path: &Path,
) -> Result<(), DepotError> {
    let bytes = serde_json::to_vec(value)
        .map_err(|error| failed("describe what belongs into", path)(io::Error::from(error)))?;
    write_file(directory, name, &bytes).map_err(failed("write a record in", path))
}

/// Replaces a file by a rename, so that it is there as a whole or not at all.
fn write_file(directory: BorrowedFd<'_>, name: &str, bytes: &[u8]) -> io::Result<()> {
    // Unique, because a record may be written by two tasks at the same time.
    let temporary = format!(".{name}.{}", uuid::Uuid::new_v4().simple());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, &temporary, flags, Mode::RUSR | Mode::WUSR)?;
    let mut file = std::fs::File::from(file);
    let written = io::Write::write_all(&mut file, bytes).and_then(|()| {
        Ok(rustix::fs::renameat(
            directory, &temporary, directory, name,
        )?)
    });
    if written.is_err() {
        let _ = rustix::fs::unlinkat(directory, &temporary, AtFlags::empty());
    }
    written
}

fn read_json<T: DeserializeOwned>(directory: BorrowedFd<'_>, name: &str) -> Option<T> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::openat(directory, name, flags, Mode::empty()).ok()?;
    serde_json::from_reader(io::BufReader::new(std::fs::File::from(file))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_reserved_once_and_free_again_when_retired() {
        let dir = tempfile::tempdir().unwrap();
        let depot = Depot::open(dir.path()).unwrap();
        let handle: Handle = "web".parse().unwrap();
        let first = depot.reserve(&handle).unwrap().unwrap();
        assert!(depot.reserve(&handle).unwrap().is_none());
        let record = ContainerRecord::new("i1".into(), "web".into(), ContainerSpec::default(), 7);
        first.write(&record).unwrap();
        assert_eq!(first.read().unwrap().instance, "i1");
        depot.retire(&handle, "i1").unwrap();
        depot.retire(&handle, "i1").unwrap();
        assert!(depot.reserve(&handle).unwrap().is_some());
        assert_eq!(depot.gone_names().unwrap(), ["i1"]);
    }

    #[test]
    fn a_network_that_is_gone_is_not_found_by_the_next_server() {
        let dir = tempfile::tempdir().unwrap();
        let depot = Depot::open(dir.path()).unwrap();
        let handle: Handle = "web".parse().unwrap();
        let spec = ContainerSpec {
            handle: Some(handle.clone()),
            ..ContainerSpec::default()
        };
        let mut record = ContainerRecord::new("i1".into(), "web".into(), spec, 7);
        record.network.properties.insert("its".into(), "own".into());
        let container = depot.reserve(&handle).unwrap().unwrap();
        container.write(&record).unwrap();
        depot.retire(&handle, "i1").unwrap();
        let (whose, retired) = depot.gone_record("i1").unwrap();
        assert_eq!((whose, &retired.network), (handle, &record.network));
        depot.forget_network("i1", retired).unwrap();
        let (_, retired) = depot.gone_record("i1").unwrap();
        assert_eq!(retired.network, NetworkRecord::default());
        assert_eq!(retired.created_ms, record.created_ms);
    }

    #[test]
    fn two_servers_do_not_share_a_depot() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Depot::open(dir.path()).unwrap();
        assert!(matches!(Depot::open(dir.path()), Err(DepotError::InUse(_))));
    }
}
