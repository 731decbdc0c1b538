//! What a process in a container may not ask the kernel for: namespaces, other processes, keys,
//! handles to files, the machine. Tried by system calls, from an exec and from a pea, as root and as
//! an ordinary user; all must be refused with an error that says so.

use anyhow::{Context, Result, ensure};
use garden_integration::{App, DEADLINE, check, lines_of, status_field, wait_until};

/// Runs the attacker in each way that a user's program can run.
fn everybody(app: &App<'_>, command: &str) -> Result<Vec<(String, String)>> {
    let mut seen = Vec::new();
    for user in ["root", "vcap"] {
        let script = format!("/bin/attacker {command}");
        seen.push((format!("exec as {user}"), app.exec_as(user, &script)?));
        seen.push((format!("pea as {user}"), app.pea(user, &script)?));
    }
    Ok(seen)
}

fn all_refused(app: &App<'_>, command: &str, at_least: usize) -> Result<()> {
    for (who, text) in everybody(app, command)? {
        let lines = lines_of(&text);
        ensure!(lines.len() >= at_least, "{who}: too few attempts: {text}");
        for line in lines {
            let (_, outcome) = line.split_once(' ').context("an outcome")?;
            let refused = ["EPERM", "EACCES", "ENOSYS"].contains(&outcome);
            ensure!(refused, "{command}, {who}: {line}");
        }
    }
    Ok(())
}

/// New namespaces, above all those of users, open the kernel's less trodden paths to everybody
/// (CVE-2022-0185, CVE-2022-25636 and many more).
#[test]
fn cve_2022_0185_new_namespaces() {
    check(|world| {
        let app = App::start_hostile(world, &[])?;
        all_refused(&app, "namespaces", 20)?;
        app.end()
    });
}

/// Another process's namespaces, those of the container's first process among them.
#[test]
fn others_namespaces_are_not_joined() {
    check(|world| {
        let app = App::start_hostile(world, &[])?;
        all_refused(&app, "setns 1", 7)?;
        app.end()
    });
}

/// Mounts of every kind, handles to files behind the root (known as Shocker, 2014), keys of others,
/// programs and modules in the kernel, the machine's clock and names.
#[test]
fn shocker_2014_and_other_calls_of_the_hosts_root() {
    check(|world| {
        let app = App::start_hostile(world, &[])?;
        all_refused(&app, "calls", 26)?;
        app.end()
    });
}

/// Capabilities that a program run by another user would inherit, or that an exec has and its
/// container has not (runc: CVE-2022-29162; crun: CVE-2022-27650; podman, moby: CVE-2022-24769;
/// youki: CVE-2025-27612).
#[test]
fn cve_2022_29162_inheritable_capabilities() {
    check(|world| {
        let app = App::start_hostile(world, &[])?;
        let own = "cat /proc/self/status";
        let bounds = "000000";
        let mut bounding = None;
        for (who, status) in [
            ("exec", app.exec(own)?),
            ("pea", app.pea("root", own)?),
            ("exec as a user", app.exec_as("vcap", own)?),
            ("pea as a user", app.pea("vcap", own)?),
        ] {
            let held = |field| status_field(&status, field).map(str::to_owned);
            for field in ["CapInh", "CapAmb"] {
                ensure!(
                    held(field)?.trim_start_matches('0').is_empty(),
                    "{who}: {status}"
                );
            }
            if who.ends_with("user") {
                for field in ["CapPrm", "CapEff"] {
                    ensure!(
                        held(field)?.trim_start_matches('0').is_empty(),
                        "{who}: {status}"
                    );
                }
            }
            let bound = held("CapBnd")?;
            ensure!(bound.starts_with(bounds), "{who}: {status}");
            let first = bounding.get_or_insert_with(|| bound.clone());
            ensure!(*first == bound, "{who} may have more than others: {status}");
        }
        app.end()
    });
}

/// The kernel runs a program of the host when the last process of a cgroup ends: who can mount such
/// a hierarchy names it.
#[test]
fn cve_2022_0492_release_agent() {
    check(|world| {
        let app = App::start_hostile(world, &[])?;
        let script = "mkdir /tmp/cg
            for kind in rdma memory misc devices; do
                mount -t cgroup -o $kind cgroup /tmp/cg 2>/dev/null && echo mounted
                unshare -Urm mount -t cgroup -o $kind cgroup /tmp/cg 2>/dev/null && echo mounted
            done
            find / -xdev -name release_agent 2>/dev/null
            find /sys/fs/cgroup -name release_agent 2>/dev/null | while read file; do
                (echo /evil >$file) 2>/dev/null && echo written $file
            done; true";
        for seen in [app.exec(script)?, app.pea("root", script)?] {
            ensure!(
                !seen.contains("mounted") && !seen.contains("written"),
                "{seen}"
            );
        }
        app.end()
    });
}

/// What the container sees of its own cgroups it must not change (runc: CVE-2023-25809).
#[test]
fn cve_2023_25809_cgroups_are_read_only() {
    check(|world| {
        let app = App::start_hostile(world, &["--pids", "100"])?;
        let script = "cd /sys/fs/cgroup || exit 0
            find . -name cgroup.procs | while read file; do
                dir=${file%/*}
                mkdir $dir/evil 2>/dev/null && echo made $dir
                for file in cgroup.procs pids.max memory.max memory.limit_in_bytes tasks; do
                    [ -e $dir/$file ] && (echo max >$dir/$file) 2>/dev/null && echo wrote $dir/$file
                done
            done; true";
        for (user, seen) in [
            ("root", app.exec(script)?),
            ("root", app.pea("root", script)?),
            ("vcap", app.exec_as("vcap", script)?),
        ] {
            ensure!(seen.is_empty(), "{user}: {seen}");
        }
        app.end()
    });
}

/// Runtime's sockets without a name in the file system are reached by everybody of a network
/// namespace (containerd: CVE-2020-15257).
#[test]
fn cve_2020_15257_sockets_of_the_runtime() {
    check(|world| {
        let app = App::start_hostile(world, &[])?;
        for seen in [
            app.exec("cat /proc/net/unix")?,
            app.pea("root", "cat /proc/net/unix")?,
        ] {
            ensure!(!seen.contains('@') && !seen.contains(".sock"), "{seen}");
        }
        let host = std::fs::read_to_string("/proc/net/unix")?;
        let named = host
            .lines()
            .find(|line| line.contains('@') && line.contains(world.tag()));
        ensure!(named.is_none(), "{named:?}");
        app.end()
    });
}

/// A process is traced and read only by who may act for its user: neither a container's first
/// process, nor another user's pea, nor a process of another user by a pea.
#[test]
fn others_processes_are_not_traced() {
    check(|world| {
        let app = App::start_hostile(world, &[])?;
        let flags = [
            "pea", "run", "app", "--image", &app.image, "--", "/bin/sh", "-c",
        ];
        let pea = app
            .cli()
            .start(&[&flags[..], &["echo up $$ .; cat"]].concat())?;
        pea.wait_stdout(" .")?;
        let script = "for dir in /proc/[0-9]*; do tr '\\0' ' ' <$dir/cmdline | grep -q '^cat' && echo ${dir#/proc/}; done; true";
        let mut pids = String::new();
        wait_until("the container's and the pea's run", DEADLINE, || {
            pids = app.exec(script)?;
            Ok(lines_of(&pids).len() >= 2)
        })?;
        let pids = lines_of(&pids);
        for pid in pids.iter().chain(&["1"]) {
            let script = format!("/bin/attacker trace {pid}");
            for seen in [app.exec_as("vcap", &script)?, app.pea("vcap", &script)?] {
                ensure!(
                    lines_of(&seen) == ["read-memory EPERM", "trace EPERM"],
                    "{pid}: {seen}"
                );
            }
        }
        // A number of the host's names nobody here.
        let server = std::process::id();
        let seen = app.exec(&format!(
            "/bin/attacker trace {server}; kill -0 {server} 2>&1; true"
        ))?;
        ensure!(!seen.contains("done"), "{seen}");
        pea.finish()?.expect_code(0)?;
        app.end()
    });
}
