//! Letting a process die that somebody has frozen.
//!
//! On v2 a frozen process is killed like any other. On v1 the freezer is a hierarchy of its own, which
//! Garden uses for nothing; but whoever suspends containers of a host by it (a checkpoint, a person)
//! leaves processes that take no signal, SIGKILL included. Source: cgroup-v1/freezer-subsystem.rst.
//!
//! Called for processes that were killed and are still there. The process is moved to the root of
//! that hierarchy, which is never frozen; its group, and others in it, stay as they are.

use super::Cgroups;

impl Cgroups {
    /// Takes a process that was killed out of a frozen v1 group, if it is in one. Blocks.
    pub fn thaw(&self, pid: i32) {
        let mut v1 = self.hierarchies.v1.iter();
        let Some(freezer) = v1.find(|hierarchy| hierarchy.has("freezer")) else {
            return;
        };
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        if is_below_root(&groups) {
            // By number: what is written there is a process of that number, and moving a stranger
            // that has it by now out of a freezer group is all that could go wrong.
            match std::fs::write(freezer.path.join("cgroup.procs"), pid.to_string()) {
                Ok(()) => tracing::warn!(pid, "killed, and taken out of a freezer's group to die"),
                Err(error) => tracing::debug!(pid, %error, "not taken out of a freezer's group"),
            }
        }
    }
}

/// Whether `/proc/PID/cgroup` names a freezer group other than the root.
fn is_below_root(groups: &str) -> bool {
    groups.lines().any(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let controllers = fields.next().unwrap_or_default();
        let path = fields.next().unwrap_or_default();
        controllers.split(',').any(|name| name == "freezer") && path != "/"
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_freezer_group_below_the_root_counts() {
        assert!(is_below_root("8:freezer:/stopped\n0::/\n"));
        assert!(is_below_root("3:net_cls,freezer:/a/b\n"));
        assert!(!is_below_root("8:freezer:/\n5:memory:/a\n0::/a\n"));
        assert!(!is_below_root("0::/freezer\n"));
        assert!(!is_below_root(""));
    }
}
