//! Which cgroup hierarchies the host has, read once from the mount table.

use std::io;
use std::path::{Path, PathBuf};

use super::base;

/// Controllers that every group needs a directory of its own for.
const PER_GROUP: [&str; 5] = ["memory", "pids", "cpu", "cpuacct", "blkio"];

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted; of cgroup v2 the part that this server may use.
    pub path: PathBuf,
    /// Whether it is cgroup v2.
    pub unified: bool,
    /// Its controllers.
    pub controllers: Vec<String>,
}

impl Hierarchy {
    /// Whether this controller is managed here.
    pub fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|own| own == controller)
    }
}

/// Which part of a hierarchy is mounted at a place: the fourth field of proc_pid_mountinfo(5).
fn mount_root(table: &str, place: &Path) -> String {
    let fields = table.lines().map(|line| line.split(' '));
    let found = fields.filter_map(|mut fields| {
        let root = fields.nth(3)?;
        (Path::new(fields.next()?) == place).then_some(root)
    });
    // A later mount covers an earlier one.
    found
        .fold(None, |_, root| Some(root))
        .unwrap_or("/")
        .to_owned()
}

/// All hierarchies of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hierarchies {
    /// cgroup v2, with or without controllers.
    pub unified: Option<Hierarchy>,
    /// cgroup v1.
    pub v1: Vec<Hierarchy>,
}

impl Hierarchies {
    /// Reads them from `/proc/self/mountinfo`.
    ///
    /// # Errors
    /// When that cannot be read, or names no hierarchy.
    pub fn find() -> io::Result<Self> {
        let table = std::fs::read_to_string("/proc/self/mountinfo")?;
        let mut found = Self::parse(&table);
        if let Some(unified) = &mut found.unified {
            unified.path = base::find(&unified.path, &mount_root(&table, &unified.path));
            let controllers = unified.path.join("cgroup.controllers");
            let text = std::fs::read_to_string(controllers).unwrap_or_default();
            unified.controllers = text.split_whitespace().map(str::to_owned).collect();
        }
        if found.unified.is_none() && found.v1.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "no cgroup hierarchy is mounted: mount cgroup2 on /sys/fs/cgroup",
            ));
        }
        Ok(found)
    }

    /// Format: proc_pid_mountinfo(5). The first mount of each hierarchy counts.
    fn parse(table: &str) -> Self {
        let mut found = Self::default();
        for line in table.lines() {
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let Some(place) = left.split(' ').nth(4) else {
                continue;
            };
            let mut fields = right.split(' ');
            let kind = fields.next().unwrap_or_default();
            let options = fields.nth(1).unwrap_or_default();
            let path = PathBuf::from(place);
            match kind {
                "cgroup2" if found.unified.is_none() => {
                    found.unified = Some(Hierarchy {
                        path,
                        unified: true,
                        controllers: Vec::new(),
                    });
                }
                "cgroup" => {
                    let controllers: Vec<String> = options
                        .split(',')
                        .filter(|option| !matches!(*option, "rw" | "ro" | "clone_children"))
                        .filter(|option| !option.contains('='))
                        .map(str::to_owned)
                        .collect();
                    let known = found
                        .v1
                        .iter()
                        .any(|other| other.controllers == controllers);
                    if !controllers.is_empty() && !known {
                        found.v1.push(Hierarchy {
                            path,
                            unified: false,
                            controllers,
                        });
                    }
                }
                _ => {}
            }
        }
        found
    }

    /// The hierarchies in which every group has a directory.
    pub fn per_group(&self) -> impl Iterator<Item = &Hierarchy> {
        let limiting = self
            .v1
            .iter()
            .filter(|hierarchy| PER_GROUP.iter().any(|controller| hierarchy.has(controller)));
        self.unified.iter().chain(limiting)
    }

    /// Whether any hierarchy manages this.
    pub fn has(&self, controller: &str) -> bool {
        self.used().any(|hierarchy| hierarchy.has(controller))
    }

    /// The v1 hierarchy for device access, whose groups are shared.
    pub fn devices(&self) -> Option<&Hierarchy> {
        self.v1.iter().find(|hierarchy| hierarchy.has("devices"))
    }

    /// Every hierarchy that Garden puts anything into.
    pub fn used(&self) -> impl Iterator<Item = &Hierarchy> {
        self.per_group().chain(self.devices())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_host_is_read() {
        let table = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:7 - cgroup2 cgroup2 rw
42 31 0:32 / /elsewhere rw,relatime - cgroup cgroup rw,memory
";
        let found = Hierarchies::parse(table);
        assert_eq!(
            found.unified.as_ref().unwrap().path,
            PathBuf::from("/sys/fs/cgroup/unified")
        );
        let paths: Vec<_> = found
            .per_group()
            .map(|h| h.path.to_str().unwrap())
            .collect();
        assert_eq!(
            paths,
            [
                "/sys/fs/cgroup/unified",
                "/sys/fs/cgroup/cpu,cpuacct",
                "/sys/fs/cgroup/memory"
            ]
        );
        assert_eq!(
            found.devices().unwrap().path,
            PathBuf::from("/sys/fs/cgroup/devices")
        );
    }

    #[test]
    fn a_pure_v2_host_is_read() {
        let table = "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = Hierarchies::parse(table);
        assert_eq!(found.per_group().count(), 1);
        assert!(found.v1.is_empty());
    }
}
