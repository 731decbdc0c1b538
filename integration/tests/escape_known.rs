//! Ways out of a container that once worked in runc, crun or youki, tried from inside.
//!
//! Each test is named after what it was known as. The attempts run as the container's root, in an
//! exec and in a pea; where the kernel or another layer refuses is not the test's affair, only that
//! nothing of the host is reached.

use anyhow::{Result, ensure};
use garden_integration::{App, check, lines_of};

/// Runs a script in an exec and in a pea; both must print exactly this.
fn both(app: &App<'_>, script: &str, expected: &str) -> Result<()> {
    for (who, seen) in [
        ("exec", app.exec(script)?),
        ("pea", app.pea("root", script)?),
    ] {
        ensure!(seen.trim() == expected, "{who}: {script}: {seen}");
    }
    Ok(())
}

/// Tries each command alone; none may succeed.
fn all_refused(app: &App<'_>, attempts: &[&str]) -> Result<()> {
    for attempt in attempts {
        let script = format!("({attempt}) >/dev/null 2>&1 && echo done || echo refused");
        both(app, &script, "refused")?;
    }
    Ok(())
}

/// The program that starts the next process must not be writable through a running one.
#[test]
fn cve_2019_5736_the_runtimes_own_program() {
    check(|world| {
        let app = App::start(world)?;
        // The init is ours: its program is a sealed memory file.
        all_refused(
            &app,
            &[
                "echo x > /proc/1/exe",
                "exec 3<>/proc/1/exe",
                "dd if=/dev/zero of=/proc/1/exe bs=1 count=1 conv=notrunc",
            ],
        )?;
        // A process whose program is /proc/self/exe runs itself, never the runtime.
        let outcome = app
            .cli()
            .run(&["exec", "app", "--", "/proc/self/exe", "--version"])?;
        ensure!(!outcome.stdout.contains("garden"), "{outcome:?}");
        ensure!(app.exec("echo alive")? == "alive\n");
        app.end()
    });
}

/// A working directory by a descriptor that the runtime left open leads to the host.
#[test]
fn cve_2024_21626_working_directory_by_descriptor() {
    check(|world| {
        let app = App::start(world)?;
        // As long as the flag is what it is here.
        let usual = ["exec", "app", "--cwd", "/tmp", "--", "/bin/pwd"];
        ensure!(app.cli().output(&usual)? == "/tmp\n");
        for number in 0..40 {
            let directory = format!("/proc/self/fd/{number}");
            for path in [directory.clone(), format!("{directory}/../../..")] {
                let script = "ls / ; cat /etc/image; ls ../../../../..";
                let args = ["exec", "app", "--cwd", &path, "--", "/bin/sh", "-c", script];
                let outcome = app.cli().run(&args)?;
                let inside = outcome.code != Some(0) || outcome.stdout.contains("app");
                ensure!(inside, "{path}: {outcome:?}");
                ensure!(
                    !outcome.stdout.contains("lost+found"),
                    "{path}: {outcome:?}"
                );
            }
        }
        app.end()
    });
}

/// A directory behind a link in the image must be made inside (youki: CVE-2025-27612 class of
/// defaults; runc: CVE-2024-45310).
#[test]
fn cve_2024_45310_directories_made_through_links() {
    check(|world| {
        let app = App::start(world)?;
        let probe = world.directory().join("made-outside");
        let target = probe.display();
        app.exec(&format!("mkdir -p /trap && ln -s {target} /trap/way"))?;
        for (directory, made) in [("/trap/deep", true), ("/trap/way/deep", false)] {
            let args = ["exec", "app", "--cwd", directory, "--", "/bin/true"];
            let outcome = app.cli().run(&args)?;
            ensure!(outcome.code == Some(0) || !made, "{outcome:?}");
        }
        ensure!(!probe.exists(), "a directory was made on the host");
        app.end()
    });
}

/// Masked and read-only paths of /proc: what replaces them must be in place, whatever the
/// container does to its own /dev/null (CVE-2025-31133), to /dev/console (CVE-2025-52565), or to
/// where labels are written (CVE-2025-52881; youki: CVE-2025-54867, CVE-2025-62161, CVE-2025-62596).
#[test]
fn cve_2025_31133_masks_by_the_containers_own_null() {
    check(|world| {
        let app = App::start(world)?;
        let before = std::fs::read_to_string("/proc/sys/kernel/core_pattern")?;
        all_refused(
            &app,
            &[
                "echo '|/evil' > /proc/sys/kernel/core_pattern",
                "umount /proc/kcore",
                "umount /proc/sys",
                "mount -o remount,rw /proc/sys",
            ],
        )?;
        // A mount holds the name; whoever gets it away all the same must gain nothing.
        app.exec(
            "umount /dev/null 2>/dev/zero; rm -f /dev/null 2>/dev/zero &&
            ln -s /proc/sys/kernel/core_pattern /dev/null; true",
        )?;
        both(&app, "head -c 1 /proc/kcore | wc -c", "0")?;
        ensure!(before == std::fs::read_to_string("/proc/sys/kernel/core_pattern")?);
        app.end()
    });
}

/// What writes to the host by design of the kernel's interfaces.
#[test]
fn cve_2025_52881_write_targets_of_procfs() {
    check(|world| {
        let app = App::start(world)?;
        all_refused(
            &app,
            &[
                "echo b > /proc/sysrq-trigger",
                "echo 1 > /proc/sys/vm/drop_caches",
                "echo /evil > /proc/sys/kernel/modprobe",
                "echo 0 > /proc/irq/default_smp_affinity",
                "echo x > /sys/kernel/uevent_helper",
                "echo 0 > /proc/1/oom_score_adj && echo -1000 > /proc/self/oom_score_adj",
                "echo '0 0 1' > /proc/self/uid_map",
                "test -w /proc/kcore && cat /proc/kcore | head -c 1 | grep .",
            ],
        )?;
        app.end()
    });
}

/// A container's root must not get at more by new namespaces or others' (CVE-2022-0185 class).
#[test]
fn namespaces_and_capabilities_do_not_grow() {
    check(|world| {
        let app = App::start(world)?;
        all_refused(
            &app,
            &[
                "unshare -m true",
                "unshare -U true",
                "unshare -p true",
                "nsenter -t 1 -n ip link add evil type dummy",
                "mount -t proc proc /tmp",
                "mount -t cgroup2 none /tmp",
                "chroot / mount -t tmpfs none /tmp",
                "mknod /tmp/mem c 1 1 && head -c 1 /tmp/mem",
                "mknod /tmp/disk b 8 0 && head -c 1 /tmp/disk",
            ],
        )?;
        // CVE-2022-24769, CVE-2022-29162: inheritable capabilities.
        both(
            &app,
            "grep CapInh /proc/self/status | cut -f 2",
            "0000000000000000",
        )?;
        app.end()
    });
}

/// Neither the supervisor nor another container's processes can be seen, signalled or traced.
#[test]
fn other_processes_are_out_of_reach() {
    check(|world| {
        let app = App::start(world)?;
        let args = [
            "run",
            "--image",
            &app.image,
            "--name",
            "other",
            "--",
            "/bin/sh",
            "-c",
            "echo up; cat",
        ];
        let other = app.cli().start(&args)?;
        other.wait_stdout("up")?;
        // Its own first processes have the lowest numbers; no command line is another's.
        let script = "cat /proc/[0-9]*/cmdline | tr '\\0' ' '";
        for seen in [app.exec(script)?, app.pea("root", script)?] {
            ensure!(
                !seen.contains("shim") && !seen.contains("echo up; cat "),
                "{seen}"
            );
        }
        for pid in [other.pid(), app.running.pid()] {
            all_refused(
                &app,
                &[&format!("kill -0 {pid}"), &format!("ls /proc/{pid}/root")],
            )?;
        }
        // All that it may signal is its own; the server and the other container live on.
        app.cli()
            .run(&["exec", "app", "--", "/bin/sh", "-c", "kill -9 -1"])?;
        let seen = app
            .cli()
            .output(&["exec", "other", "--", "/bin/echo", "alive"])?;
        ensure!(lines_of(&seen) == ["alive"], "{seen}");
        other.finish()?.expect_code(0)?;
        Ok(())
    });
}

/// Arguments and environments as large as the kernel takes, and larger.
#[test]
fn huge_arguments_fail_alone() {
    check(|world| {
        let app = App::start(world)?;
        let long = "x".repeat(120_000);
        let variable = format!("LONG={long}");
        let args = [
            "exec",
            "app",
            "--env",
            &variable,
            "--",
            "/bin/sh",
            "-c",
            "echo ${#LONG}",
        ];
        let outcome = app.cli().run(&args)?;
        ensure!(
            outcome.code != Some(0) || outcome.stdout.trim() == "120000",
            "{outcome:?}"
        );
        ensure!(app.exec("echo alive")? == "alive\n");
        app.end()
    });
}

/// Every descriptor that a process may have: the next process starts all the same.
#[test]
fn exhausted_descriptors_are_ones_own() {
    check(|world| {
        let app = App::start(world)?;
        app.exec("i=3; while [ $i -lt 200 ]; do eval \"exec $i</dev/zero\" || break; i=$((i+1)); done; true")?;
        ensure!(app.exec("echo alive")? == "alive\n");
        app.end()
    });
}
