//! What a process sees of itself and of the host: the first process of a container, an exec, a pea.
//!
//! All three must be confined alike: own namespaces, the default capabilities, the seccomp filter,
//! no file of the host, no open file of Garden's.

use anyhow::{Result, ensure};
use garden_integration::{App, NAMESPACES, check, host_namespace, lines_of, status_field};

/// The 14 default capabilities as the kernel prints a set.
const CAPABILITIES: &str = "00000000a80425fb";

fn confined(status: &str, effective: &str) -> Result<()> {
    ensure!(status_field(status, "CapEff")? == effective, "{status}");
    ensure!(status_field(status, "CapBnd")? == CAPABILITIES, "{status}");
    ensure!(
        status_field(status, "CapAmb")? == "0000000000000000",
        "{status}"
    );
    ensure!(
        status_field(status, "Seccomp")? == "2",
        "no filter: {status}"
    );
    ensure!(status_field(status, "NoNewPrivs")? == "0", "{status}");
    Ok(())
}

#[test]
fn capabilities_and_filter() {
    check(|world| {
        let app = App::start(world)?;
        let own = "cat /proc/self/status";
        confined(&app.exec("cat /proc/1/status")?, CAPABILITIES)?;
        confined(&app.exec(own)?, CAPABILITIES)?;
        confined(&app.exec_as("vcap", own)?, "0000000000000000")?;
        confined(&app.pea("root", own)?, CAPABILITIES)?;
        confined(&app.pea("vcap", own)?, "0000000000000000")?;
        app.end()
    });
}

#[test]
fn root_inside_is_nobody_outside() {
    check(|world| {
        let app = App::start(world)?;
        for map in [
            app.exec("cat /proc/1/uid_map")?,
            app.exec("cat /proc/self/uid_map")?,
            app.exec("cat /proc/self/gid_map")?,
            app.pea("root", "cat /proc/self/uid_map")?,
        ] {
            for line in lines_of(&map) {
                let numbers: Vec<_> = line.split_whitespace().collect();
                let [inside, outside, _] = numbers[..] else {
                    anyhow::bail!("an odd map: {map}");
                };
                ensure!(inside != "0" || outside != "0", "root is root: {map}");
            }
        }
        app.end()
    });
}

#[test]
fn namespaces() {
    check(|world| {
        let app = App::start(world)?;
        for kind in NAMESPACES {
            let own = format!("readlink /proc/self/ns/{kind}");
            let init = app.exec(&format!("readlink /proc/1/ns/{kind}"))?;
            let exec = app.exec(&own)?;
            let pea = app.pea("root", &own)?;
            ensure!(!init.trim().is_empty(), "no {kind} namespace can be read");
            ensure!(init.trim() != host_namespace(kind)?, "{kind} is the host's");
            ensure!(exec == init, "exec has another {kind}: {exec} and {init}");
            if kind == "mnt" {
                ensure!(pea != init, "a pea has the container's mounts");
                ensure!(
                    pea.trim() != host_namespace(kind)?,
                    "a pea has the host's mounts"
                );
            } else {
                ensure!(pea == init, "a pea has another {kind}: {pea} and {init}");
            }
        }
        app.end()
    });
}

#[test]
fn no_open_file_is_passed_on() {
    check(|world| {
        let app = App::start(world)?;
        // The shell's own, listed by a child. No pipeline: the shell would hold its ends for a while.
        let own = "ls -l /proc/$$/fd";
        for (who, open) in [
            ("init", app.exec("ls -l /proc/1/fd")?),
            ("exec", app.exec(own)?),
            ("pea", app.pea("root", own)?),
        ] {
            let listed: Vec<_> = lines_of(&open)
                .into_iter()
                .filter(|line| line.contains("->"))
                .collect();
            for line in &listed {
                let fine = ["pipe:", "/dev/null", "socket:", "/dev/pts/"]
                    .iter()
                    .any(|kind| line.contains(kind));
                ensure!(fine, "{who} has an open file: {open}");
            }
            ensure!(listed.len() == 3, "{who} has open files: {open}");
        }
        app.end()
    });
}

#[test]
fn mounts_are_its_own() {
    check(|world| {
        let app = App::start(world)?;
        let known = [
            "/proc",
            "/dev",
            "/sys",
            "/tmp/garden-init",
            "/etc/hosts",
            "/etc/resolv.conf",
        ];
        let read = "cat /proc/self/mountinfo";
        for table in [app.exec(read)?, app.pea("root", read)?] {
            for line in lines_of(&table) {
                let point = line.split(' ').nth(4).unwrap_or_default();
                let fine = point == "/"
                    || known
                        .iter()
                        .any(|root| point == *root || point.starts_with(&format!("{root}/")));
                ensure!(fine, "an unexpected mount: {line}");
            }
            let lines = lines_of(&table);
            let root = lines
                .iter()
                .find(|line| line.split(' ').nth(4) == Some("/"));
            let overlay = root.is_some_and(|root| root.contains(" - overlay "));
            ensure!(overlay, "no overlay root: {table}");
            let old_roots = table.matches(" / / ").count();
            ensure!(old_roots <= 1, "an old root is still there: {table}");
        }
        app.end()
    });
}

#[test]
fn the_hosts_table_shows_no_overlay() {
    check(|world| {
        let app = App::start(world)?;
        let table = std::fs::read_to_string("/proc/self/mountinfo")?;
        let pea = app.pea("root", "echo a pea")?;
        ensure!(pea == "a pea\n");
        let later = std::fs::read_to_string("/proc/self/mountinfo")?;
        for table in [table, later] {
            ensure!(!table.contains(world.tag()), "mounts on the host: {table}");
        }
        app.end()
    });
}

#[test]
fn masked_paths_are_empty() {
    check(|world| {
        let app = App::start(world)?;
        let masked = [
            "/proc/kcore",
            "/proc/latency_stats",
            "/proc/sched_debug",
            "/proc/scsi",
            "/proc/timer_list",
            "/proc/timer_stats",
            "/proc/keys",
            "/sys/firmware",
        ];
        for path in masked {
            if !std::path::Path::new(path).exists() {
                continue;
            }
            let script =
                format!("if [ -d {path} ]; then ls -A {path}; else cat {path}; fi | wc -c");
            ensure!(app.exec(&script)?.trim() == "0", "exec reads {path}");
            ensure!(
                app.pea("root", &script)?.trim() == "0",
                "a pea reads {path}"
            );
        }
        app.end()
    });
}

#[test]
fn what_is_forbidden_fails() {
    check(|world| {
        let app = App::start(world)?;
        let attempts = [
            "mount -t tmpfs none /tmp",
            "unshare -n true",
            "echo 1 > /proc/sys/kernel/core_uses_pid",
            "echo c > /proc/sysrq-trigger",
            "dmesg > /dev/null",
            "hwclock -w",
            "mknod /tmp/disk b 8 0 && cat /tmp/disk",
            "ls /proc/1/root/../../var/tmp/garden-it",
        ];
        for attempt in attempts {
            let script = format!("({attempt}) 2>/dev/null && echo done || echo refused");
            ensure!(app.exec(&script)?.trim() == "refused", "exec: {attempt}");
            ensure!(
                app.pea("root", &script)?.trim() == "refused",
                "pea: {attempt}"
            );
        }
        app.end()
    });
}

#[test]
fn devices_are_the_usual_ones() {
    check(|world| {
        let app = App::start(world)?;
        let script =
            "for d in null zero full random urandom tty; do [ -c /dev/$d ] || echo $d; done
            head -c 4 /dev/urandom | wc -c; echo x > /dev/null && readlink /dev/fd";
        for output in [app.exec(script)?, app.pea("vcap", script)?] {
            ensure!(lines_of(&output) == ["4", "/proc/self/fd"], "{output}");
        }
        app.end()
    });
}
