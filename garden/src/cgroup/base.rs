//! Where in the cgroup v2 hierarchy a server's groups may be.
//!
//! Called once, when the hierarchies are found. Usually that is the root of the mount. Under
//! systemd with `Delegate=yes` it is the unit's own group, and nothing outside may be touched; in a
//! container of its own the server finds itself at the root of its cgroup namespace. There and in
//! a delegated unit the kernel hands controllers down only when no process is in the group itself,
//! so what is there moves to a leaf.

use std::path::{Path, PathBuf};

use super::files;

/// The leaf for the server's own processes.
const LEAF: &str = "server";

/// Where groups go and whether processes are in the way there.
#[derive(Debug, PartialEq, Eq)]
struct Base {
    path: PathBuf,
    occupied: bool,
}

/// The directory below which this server makes its groups. What is in the way is moved.
pub(super) fn find(mount: &Path, mount_root: &str) -> PathBuf {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::"));
    let own = own.and_then(|own| below(mount, mount_root, own));
    // The root of all groups has no type; it may hold processes and hand controllers down.
    let is_root = |path: &Path| !path.join("cgroup.type").exists();
    let base = choose(mount, own.as_deref(), is_root, is_delegated);
    if base.occupied {
        make_way(&base.path);
    }
    base.path
}

/// A path of `/proc/self/cgroup` as a directory below a mount of a part of the hierarchy.
fn below(mount: &Path, mount_root: &str, own: &str) -> Option<PathBuf> {
    let inside = own.strip_prefix(mount_root.trim_end_matches('/'))?;
    if inside.split('/').any(|name| name == "..") {
        return None;
    }
    Some(mount.join(inside.trim_start_matches('/')))
}

fn choose(
    mount: &Path,
    own: Option<&Path>,
    is_root: impl Fn(&Path) -> bool,
    is_delegated: impl Fn(&Path) -> bool,
) -> Base {
    let at = |path: &Path, occupied| Base {
        path: path.to_owned(),
        occupied,
    };
    let Some(own) = own.filter(|own| own.starts_with(mount)) else {
        return at(mount, false);
    };
    if own == mount {
        return at(mount, !is_root(mount));
    }
    if is_delegated(own) {
        return at(own, true);
    }
    // Moved to a leaf of its delegated unit: by systemd (`DelegateSubgroup=`), or by an earlier
    // server whose child this one is. Units below a delegated one are another manager's.
    match own.parent() {
        Some(above) if !is_unit(own) && is_delegated(above) => at(above, false),
        _ => at(mount, false),
    }
}

fn is_unit(path: &Path) -> bool {
    path.extension().is_some_and(|kind| {
        ["service", "scope", "slice"]
            .iter()
            .any(|unit| kind == *unit)
    })
}

/// Whether systemd says that a group is not its own any more.
fn is_delegated(path: &Path) -> bool {
    ["user.delegate", "trusted.delegate"].iter().any(|name| {
        let mut value = [0_u8; 8];
        let length = rustix::fs::getxattr(path, *name, value.as_mut_slice());
        length.is_ok_and(|length| value.get(..length) == Some(b"1"))
    })
}

/// Moves the processes of a group into its leaf.
fn make_way(path: &Path) {
    let leaf = path.join(LEAF);
    if let Err(error) = files::make(&leaf) {
        tracing::warn!(error = %crate::error::report(&error), "controllers may be missing");
        return;
    }
    // Another process may have forked meanwhile.
    for _ in 0..10 {
        let pids = files::read(path, "cgroup.procs").unwrap_or_default();
        let mut moved = 0;
        for pid in pids.lines() {
            moved += usize::from(files::put(&leaf, "cgroup.procs", pid).is_ok());
        }
        if moved == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(own: &str, root: bool, delegated: &'static str) -> (String, bool) {
        let mount = Path::new("/sys/fs/cgroup");
        let own = below(mount, "/", own).unwrap();
        let base = choose(
            mount,
            Some(&own),
            |_| root,
            |path| path == Path::new(delegated),
        );
        (base.path.display().to_string(), base.occupied)
    }

    #[test]
    fn groups_go_where_the_server_may_make_them() {
        let top = "/sys/fs/cgroup".to_owned();
        assert_eq!(chosen("/", true, ""), (top.clone(), false));
        // The root of a cgroup namespace.
        assert_eq!(chosen("/", false, ""), (top.clone(), true));
        // A unit without delegation, a login.
        assert_eq!(chosen("/a.slice/b.service", true, ""), (top.clone(), false));
        let unit = "/sys/fs/cgroup/a.slice/b.service";
        assert_eq!(
            chosen("/a.slice/b.service", true, unit),
            (unit.to_owned(), true)
        );
        assert_eq!(
            chosen("/a.slice/b.service/server", true, unit),
            (unit.to_owned(), false)
        );
        // A unit of a user's manager is not ours although the manager's is delegated.
        let user = "/sys/fs/cgroup/user@0.service";
        assert_eq!(chosen("/user@0.service/x.scope", true, user), (top, false));
    }

    #[test]
    fn a_mount_of_a_part_of_the_hierarchy_is_understood() {
        let mount = Path::new("/cg");
        assert_eq!(below(mount, "/a/b", "/a/b/c"), Some("/cg/c".into()));
        assert_eq!(below(mount, "/a/b", "/x"), None);
        assert_eq!(below(mount, "/", "/../x"), None);
    }
}
