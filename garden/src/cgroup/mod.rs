//! Control groups of containers and peas, in whatever hierarchies the host has.
//!
//! ```text
//! <hierarchy>/garden[-tag]/<container>            limits; v1: its processes
//! <hierarchy>/garden[-tag]/<container>/init       v2 only: its processes
//! <hierarchy>/garden[-tag]/<container>/<pea>      a pea that shares the container's limits
//! <hierarchy>/garden[-tag]/<pea>                  a pea with limits of its own
//! ```
//!
//! On cgroup v2 a group with processes cannot hand controllers to its children, hence `init`.
//! On a hybrid host the v1 controllers limit, and the unified hierarchy, although it has no
//! controllers, gives what v1 lacks: killing a whole group at once and knowing when it is empty.
//!
//! Garden writes these files itself: they are on the path of every create and every exit.
//! A process joins v1 groups as its own last step before it becomes the user's program, through the
//! open files of [`Group::joins`], so that limits neither slow nor count its set-up. Into a v2 group
//! it is born ([`Group::directory`]): moving there later would wait for an RCU grace period. Only
//! where limits are so tight that its set-up would hit them does it move, which then costs less. All
//! calls here block (a removal may wait for the kernel): run them on worker threads.

mod base;
mod control;
mod devices;
mod files;
mod freezer;
mod host;
mod limit;
mod oom;
mod usage;
mod weight;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use host::{Hierarchies, Hierarchy};
pub use oom::{Alarm, Listening};
pub use usage::{MemoryUsage, Usage};
pub(crate) use weight::weight_of_shares;

use crate::model::{IoLimits, Limits};
use limit::When;

/// Why a group is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The kernel refused.
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
    /// A limit that nothing on this host can enforce.
    #[error(
        "this host has no {0} controller that garden may use, so such a limit would not hold: \
         leave it out, or see cgroup.controllers"
    )]
    NoController(&'static str),
    /// A limit that the kernel would not take.
    #[error("{0}")]
    OutOfRange(String),
    /// A memory limit below what is in use and cannot be given up.
    #[error(
        "{used} bytes of memory are in use in {} and cannot be dropped: a limit of {wanted} would \
         kill in it", path.display()
    )]
    InUse {
        /// The group.
        path: PathBuf,
        /// What is in use, in bytes.
        used: u64,
        /// The limit, in bytes.
        wanted: u64,
    },
}

impl CgroupError {
    fn is(&self, kind: io::ErrorKind) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == kind)
    }

    /// Whether the caller asked for what cannot be, rather than the host failing.
    pub fn is_callers(&self) -> bool {
        !matches!(self, Self::Io { .. })
    }
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_owned();
    move |source| CgroupError::Io {
        doing,
        path,
        source,
    }
}

/// What holds for every group of a server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// A memory limit does not limit swap.
    pub leave_swap: bool,
    /// Microseconds of CPU time in each 100 ms for each share, where the limits name no other
    /// quota.
    pub cpu_quota_per_share: Option<u64>,
    /// What groups get that have no such limits themselves.
    pub io: IoLimits,
}

/// The leaf of a container's own processes on v2.
const LEAF: &str = "init";

/// The groups of one server.
#[derive(Debug, Clone)]
pub struct Cgroups {
    hierarchies: Hierarchies,
    /// Name of the parent of all groups, relative to each hierarchy's mount.
    parent: PathBuf,
    policy: Policy,
    /// Held while this server lives: what stands below the parent is its own, and it removes what
    /// it does not know.
    _lock: Arc<OwnedFd>,
}

/// Where a group is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place<'a> {
    /// A container.
    Container(&'a str),
    /// A pea inside its container's limits.
    Nested {
        /// The container's group.
        container: &'a str,
        /// The pea's group.
        pea: &'a str,
    },
    /// A pea with limits of its own.
    Beside(&'a str),
}

/// A group that was made: what a process needs to be in it.
#[derive(Debug, Default)]
pub struct Group {
    /// Files to write `0` into, each of which moves the writer into one v1 hierarchy.
    pub joins: Vec<OwnedFd>,
    /// The directory of its cgroup v2 group, for a process to be born in.
    pub directory: Option<OwnedFd>,
    /// The file with its `oom_kill` counter, where the host counts.
    pub oom: Option<OwnedFd>,
}

impl Group {
    /// Adds the way into one hierarchy.
    fn enter(
        &mut self,
        hierarchy: &Hierarchy,
        path: &Path,
        entry: Entry,
    ) -> Result<(), CgroupError> {
        if hierarchy.unified && entry == Entry::Born {
            self.directory = Some(files::open_directory(path)?);
        } else if hierarchy.unified {
            self.joins.push(files::open_procs(path)?);
        } else {
            self.joins.push(files::open_tasks(path)?);
        }
        // Of its own group, so that a death beside it is not taken for its own.
        if self.oom.is_none() && hierarchy.has("memory") {
            self.oom = files::open_oom_counter(hierarchy, path);
        }
        Ok(())
    }
}

/// How a process comes into its v2 group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    /// It is born there, and so are those that set it up.
    Born,
    /// It moves there when it is set up.
    Joined,
}

/// Which processes may use which devices (v1 `devices` hierarchy): shared by all containers of
/// a kind, written once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Devices {
    /// The default nodes.
    Unprivileged,
    /// The default nodes and `/dev/fuse`.
    Privileged,
}

impl Cgroups {
    /// Finds the host's hierarchies and makes the parents of all groups.
    ///
    /// # Errors
    /// When there is no hierarchy at all, another server has this tag, or the parents cannot be made.
    pub fn open(tag: Option<&str>, policy: Policy) -> Result<Self, CgroupError> {
        let of_policy = Limits {
            io: policy.io,
            ..Limits::default()
        };
        limit::check(&of_policy)?;
        let hierarchies =
            Hierarchies::find().map_err(failed("read", Path::new("/proc/self/mountinfo")))?;
        let parent = PathBuf::from(match tag {
            Some(tag) => format!("garden-{tag}"),
            None => "garden".to_owned(),
        });
        let first = hierarchies
            .used()
            .next()
            .map(|first| first.path.join(&parent));
        let lock = files::lock(&first.unwrap_or_default())?;
        let cgroups = Self {
            hierarchies,
            parent,
            policy,
            _lock: Arc::new(lock),
        };
        for hierarchy in cgroups.hierarchies.used() {
            let path = hierarchy.path.join(&cgroups.parent);
            files::make(&path)?;
            files::prepare_parent(hierarchy, &path)?;
        }
        Ok(cgroups)
    }

    /// The host's hierarchies.
    pub fn hierarchies(&self) -> &Hierarchies {
        &self.hierarchies
    }

    fn relative(&self, place: &Place<'_>) -> PathBuf {
        match place {
            Place::Container(name) | Place::Beside(name) => self.parent.join(name),
            Place::Nested { container, pea } => self.parent.join(container).join(pea),
        }
    }

    /// Makes a group. One of the same name must not exist. Its limits hold as far as they do not
    /// concern the set-up: [`Cgroups::complete`] sets the rest. `within` are those of the group
    /// that it is nested in.
    ///
    /// # Errors
    /// The step the kernel refused; what was made is removed again. A limit that cannot be.
    pub fn create(
        &self,
        place: &Place<'_>,
        limits: &Limits,
        within: &Limits,
        devices: Devices,
    ) -> Result<Group, CgroupError> {
        limit::check(limits)?;
        limit::unsupported(limits, |controller| self.hierarchies.has(controller))?;
        // The first directory reserves the name: who fails there has nothing to undo, and must
        // not remove what belongs to the group's owner.
        let relative = self.relative(place);
        if let Some(first) = self.hierarchies.per_group().next() {
            files::make_new(&first.path.join(&relative))?;
        }
        let entry = match place {
            // Its limits come when it is set up.
            Place::Container(_) => Entry::Born,
            _ => self.entry(&[limits, within]),
        };
        let made = self.make(&relative, place, limits, devices, entry);
        if made.is_err() {
            let _ = self.remove_now(place);
        }
        made
    }

    fn make(
        &self,
        relative: &Path,
        place: &Place<'_>,
        limits: &Limits,
        devices: Devices,
        entry: Entry,
    ) -> Result<Group, CgroupError> {
        let mut group = Group::default();
        for hierarchy in self.hierarchies.per_group() {
            let path = hierarchy.path.join(relative);
            files::make(&path)?;
            if !(hierarchy.unified && matches!(place, Place::Container(_))) {
                let when = match entry {
                    Entry::Born => When::BeforeProgram,
                    Entry::Joined => When::Final,
                };
                let order = self.order(limits, when);
                limit::write(hierarchy, &path, &order)?;
                if !matches!(place, Place::Container(_)) {
                    limit::write_cpu(hierarchy, &path, &order)?;
                }
            }
            let leaf = if matches!(place, Place::Container(_)) && hierarchy.unified {
                files::delegate(&path);
                let leaf = path.join(LEAF);
                files::make_new(&leaf)?;
                leaf
            } else {
                path
            };
            group.enter(hierarchy, &leaf, entry)?;
        }
        self.restrict_devices(&mut group, devices)?;
        Ok(group)
    }

    /// Whether there is a group at this place, in any hierarchy.
    pub fn exists(&self, place: &Place<'_>) -> bool {
        let relative = self.relative(place);
        self.hierarchies
            .per_group()
            .any(|hierarchy| hierarchy.path.join(&relative).exists())
    }

    /// Opens the files by which another process joins a container's group.
    ///
    /// # Errors
    /// When the group is gone.
    pub fn open_container(
        &self,
        container: &str,
        limits: &Limits,
        devices: Devices,
    ) -> Result<Group, CgroupError> {
        let entry = self.entry(&[limits]);
        let relative = self.relative(&Place::Container(container));
        let mut group = Group::default();
        for hierarchy in self.hierarchies.per_group() {
            let path = hierarchy.path.join(&relative);
            let leaf = if hierarchy.unified {
                path.join(LEAF)
            } else {
                path
            };
            group.enter(hierarchy, &leaf, entry)?;
        }
        self.restrict_devices(&mut group, devices)?;
        Ok(group)
    }

    /// Adds the shared group that restricts devices, where the host has them in v1.
    fn restrict_devices(&self, group: &mut Group, kind: Devices) -> Result<(), CgroupError> {
        if let Some(hierarchy) = self.hierarchies.devices() {
            let parent = hierarchy.path.join(&self.parent);
            group.enter(hierarchy, &parent.join(devices::group(kind)), Entry::Joined)?;
        }
        Ok(())
    }

    /// Kills everything in a group and below it. A group that is gone is no error.
    ///
    /// # Errors
    /// The kernel's.
    pub fn kill(&self, place: &Place<'_>) -> Result<(), CgroupError> {
        let relative = self.relative(place);
        match &self.hierarchies.unified {
            Some(unified) => files::kill_group(&unified.path.join(&relative)),
            None => self.hierarchies.per_group().next().map_or(Ok(()), |first| {
                files::kill_each(&first.path.join(&relative))
            }),
        }
    }

    /// The pids in a group and below it, without order; empty when the group is gone.
    pub fn processes(&self, place: &Place<'_>) -> Vec<i32> {
        let relative = self.relative(place);
        self.hierarchies
            .unified
            .iter()
            .chain(self.hierarchies.per_group())
            .next()
            .map(|hierarchy| files::processes(&hierarchy.path.join(&relative)))
            .unwrap_or_default()
    }

    /// Removes a group and all below it, waiting up to `patience` for what was killed in it to
    /// be gone. A group that is gone is no error.
    ///
    /// # Errors
    /// When something in it still lives after that time.
    pub fn remove(&self, place: &Place<'_>, patience: Duration) -> Result<(), CgroupError> {
        let deadline = Instant::now() + patience;
        let mut pause = Duration::from_micros(200);
        loop {
            match self.remove_now(place) {
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(20));
                }
                Ok(()) => return Ok(()),
            }
        }
    }

    fn remove_now(&self, place: &Place<'_>) -> Result<(), CgroupError> {
        let relative = self.relative(place);
        let mut outcome = Ok(());
        for hierarchy in self.hierarchies.per_group() {
            let removed = files::remove_tree(&hierarchy.path.join(&relative));
            outcome = outcome.and(removed);
        }
        outcome
    }

    /// Names of all groups directly below the parent, in any hierarchy: for finding leftovers.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .hierarchies
            .per_group()
            .flat_map(|hierarchy| files::children(&hierarchy.path.join(&self.parent)))
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Removes the parents. For a server that leaves nothing behind: its groups must be gone.
    pub fn remove_parents(&self) {
        for hierarchy in self.hierarchies.used() {
            let _ = files::remove_tree(&hierarchy.path.join(&self.parent));
        }
    }
}

#[cfg(test)]
mod tests;
