//! Checks of the kernel and of what the system makes of it.

use std::path::Path;

use super::Finding;
use super::host::Host;

/// Where systemd and everybody else mount cgroups.
const CGROUPS: &str = "/sys/fs/cgroup";
/// What limits of containers need.
const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];
/// The oldest kernel that everything is tried on, and the one from which nothing is left to wish.
const OLDEST: (u32, u32) = (5, 10);
const NEWEST: (u32, u32) = (6, 15);

pub(super) fn kernel(host: &Host) -> Finding {
    let release = format!("Linux {}", host.release);
    if host.version() < OLDEST {
        return Finding::fail(release, "run Linux 5.10 or newer");
    }
    if host.version() < NEWEST {
        let remedy = "nothing must be done; from Linux 6.15 on creates are quicker";
        return Finding::warn(release, remedy);
    }
    Finding::ok(release)
}

pub(super) fn user(host: &Host) -> Finding {
    if host.root {
        return Finding::ok("root");
    }
    Finding::fail("not root", "run the server, and this, as root")
}

/// Which versions are mounted: of either one, or v1 with v2 beside it.
fn versions() -> (bool, bool) {
    let is_there = |path: &str| Path::new(CGROUPS).join(path).exists();
    let unified = is_there("cgroup.controllers");
    let hybrid = is_there("unified/cgroup.controllers");
    let first = NEEDED.iter().any(|name| is_there(name));
    (first && !unified, unified || hybrid)
}

pub(super) fn cgroups(_: &Host) -> Finding {
    match versions() {
        (false, true) => Finding::ok("version 2"),
        (true, true) => Finding::ok("version 1, with version 2 for killing"),
        (true, false) => Finding::warn(
            "version 1 alone",
            "mount version 2 beside it, at /sys/fs/cgroup/unified: killing a container is then one \
             step",
        ),
        (false, false) => Finding::fail(
            format!("none below {CGROUPS}"),
            "mount cgroup2 there, or boot with systemd",
        ),
    }
}

pub(super) fn controllers(_: &Host) -> Finding {
    let unified = Host::file(&format!("{CGROUPS}/cgroup.controllers"));
    let listed = unified.is_some();
    let unified = unified.unwrap_or_default();
    let has = |name: &&&str| {
        if listed {
            unified.split_whitespace().any(|known| known == **name)
        } else {
            Path::new(CGROUPS).join(name).is_dir()
        }
    };
    let missing: Vec<_> = NEEDED.iter().filter(|name| !has(name)).copied().collect();
    if missing.is_empty() {
        return Finding::ok(NEEDED.join(", "));
    }
    Finding::warn(
        format!("without {}", missing.join(", ")),
        "limits of these are refused: enable the controllers for this part of the hierarchy",
    )
}

pub(super) fn user_namespaces(_: &Host) -> Finding {
    if !Path::new("/proc/self/ns/user").exists() {
        return Finding::fail("none in this kernel", "use a kernel with CONFIG_USER_NS");
    }
    let most = Host::file("/proc/sys/user/max_user_namespaces");
    match most.as_deref() {
        Some("0") => Finding::fail(
            "switched off",
            "sysctl user.max_user_namespaces=100000: unprivileged containers need them",
        ),
        Some(most) => Finding::ok(format!("up to {most}")),
        None => Finding::ok("without a limit"),
    }
}

pub(super) fn seccomp(_: &Host) -> Finding {
    match Host::file("/proc/sys/kernel/seccomp/actions_avail") {
        Some(actions) if actions.contains("errno") => Finding::ok("filters"),
        _ => Finding::fail(
            "no filters in this kernel",
            "use a kernel with CONFIG_SECCOMP_FILTER: unprivileged containers are not started \
             without",
        ),
    }
}

/// Whether another packet filter keeps containers from the world.
pub(super) fn forwarding(host: &Host) -> Finding {
    if !host.root {
        return Finding::unknown("only root may look at packet filters");
    }
    let found = match garden::network::other_filters() {
        Ok(found) => found,
        Err(error) => {
            return Finding::fail(
                garden::error::report(&error),
                "containers can have a loopback only (--network none) without nftables: load \
                 nf_tables",
            );
        }
    };
    if found.is_empty() {
        return Finding::ok("no other filter drops it by default");
    }
    Finding::warn(
        format!("dropped by default by {}", found.join("; ")),
        "let it pass what comes from and goes to the bridges of containers (w*brdg*)",
    )
}
