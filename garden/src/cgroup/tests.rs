//! Groups on the host's own hierarchies.

use super::*;

fn tag() -> String {
    format!("test-{}", uuid::Uuid::new_v4().simple())
}

struct Removed(Cgroups);

impl Drop for Removed {
    fn drop(&mut self) {
        self.0.remove_parents();
    }
}

#[test]
fn root_a_group_is_made_with_limits_and_removed_whole() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED root_a_group_is_made_with_limits_and_removed_whole: needs root");
        return;
    }
    let cgroups = Removed(Cgroups::open(Some(&tag()), Policy::default()).unwrap());
    let limits = Limits {
        memory_bytes: Some(64 << 20),
        pids: Some(7),
        ..Limits::default()
    };
    let place = Place::Container("c");
    let group = cgroups
        .0
        .create(&place, &limits, &Limits::default(), &Devices::default())
        .unwrap();
    assert!(!group.joins.is_empty() || group.directory.is_some());
    assert!(
        cgroups
            .0
            .create(&place, &limits, &Limits::default(), &Devices::default())
            .is_err()
    );
    assert_eq!(
        cgroups.0.names(),
        ["c"],
        "the loser must not remove the winner's group"
    );
    let nested = Place::Nested {
        container: "c",
        pea: "p",
    };
    cgroups
        .0
        .create(
            &nested,
            &Limits::default(),
            &Limits::default(),
            &Devices::default(),
        )
        .unwrap();
    let pids = cgroups
        .0
        .hierarchies()
        .per_group()
        .find(|h| h.has("pids"))
        .cloned();
    if let Some(pids) = pids {
        let file = pids.path.join(&cgroups.0.parent).join("c/pids.max");
        assert_eq!(std::fs::read_to_string(file).unwrap().trim(), "7");
    }
    cgroups.0.remove(&place, Duration::ZERO).unwrap();
    assert!(cgroups.0.names().is_empty());
    cgroups.0.remove(&place, Duration::ZERO).unwrap();
}

#[test]
fn root_killing_a_group_ends_what_is_in_it() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED root_killing_a_group_ends_what_is_in_it: needs root");
        return;
    }
    let cgroups = Removed(Cgroups::open(Some(&tag()), Policy::default()).unwrap());
    let place = Place::Container("c");
    let group = cgroups
        .0
        .create(
            &place,
            &Limits::default(),
            &Limits::default(),
            &Devices::default(),
        )
        .unwrap();
    let mut child = std::process::Command::new("sleep")
        .arg("1000")
        .spawn()
        .unwrap();
    // From outside one writes the pid, and `cgroup.procs` takes it in both versions.
    drop(group);
    for hierarchy in cgroups.0.hierarchies().per_group() {
        let path = hierarchy.path.join(&cgroups.0.parent).join("c");
        let path = if hierarchy.unified {
            path.join("init")
        } else {
            path
        };
        std::fs::write(path.join("cgroup.procs"), child.id().to_string()).unwrap();
    }
    assert_eq!(
        cgroups.0.processes(&place),
        [i32::try_from(child.id()).unwrap()]
    );
    cgroups.0.kill(&place).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&status),
        Some(9)
    );
    cgroups.0.remove(&place, Duration::from_secs(10)).unwrap();
}
