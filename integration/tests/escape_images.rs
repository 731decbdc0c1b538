//! Images, and directories bound into containers, that are made to mislead a runtime: links where it
//! mounts, files where it looks for its own. A start may fail; what it makes may reach nothing of the
//! host.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use garden_integration::{App, Rootfs, World, check};

/// An image like any other, but for what `change` makes of it.
fn image(world: &World, name: &str, change: impl FnOnce(Rootfs) -> Rootfs) -> Result<String> {
    world
        .images()?
        .tar_of(name, &change(Rootfs::busybox(name)?))
}

/// What a script shows in a container of this image and in a pea of it; what does not start shows
/// nothing.
fn shown(app: &App<'_>, image: &str, flags: &[&str], script: &str) -> Result<Vec<String>> {
    let command = ["--", "/bin/sh", "-c", script];
    let run = ["run", "--image", image];
    let pea = ["pea", "run", "app", "--image", image];
    let volumes: Vec<&str> = flags
        .iter()
        .copied()
        .filter(|flag| *flag != "--privileged")
        .collect();
    let outcomes = [
        app.cli().run(&[&run[..], flags, &command].concat())?,
        app.cli().run(&[&pea[..], &volumes, &command].concat())?,
    ];
    let started = outcomes
        .into_iter()
        .filter(|outcome| outcome.code == Some(0));
    Ok(started
        .map(|outcome| outcome.stdout.trim().to_owned())
        .collect())
}

/// Whether what must be hidden is, and what looks like procfs is procfs.
const MASKED: &str = "head -c 1 /proc/kcore 2>/dev/null | wc -c; head -c 1 /proc/keys 2>/dev/null | wc -c
    (echo x >/proc/sysrq-trigger) 2>/dev/null && echo written; (echo x >/proc/sys/kernel/core_pattern) 2>/dev/null && echo written
    grep -c ^CapEff /proc/self/status";
const MASKED_SEEN: &str = "0\n0\n1";

/// `/proc` is a link to a directory of the image's: masks and writes for the new process go astray
/// (runc: CVE-2019-19921, CVE-2023-27561, CVE-2023-28642).
#[test]
fn cve_2023_27561_proc_is_a_link() {
    check(|world| {
        let app = App::start(world)?;
        for target in ["/tmp/fake", "/dev", "/../../../proc", "/sys"] {
            let name = format!("link{}", target.replace(['/', '.'], "-"));
            let fake = image(world, &name, |rootfs| {
                rootfs
                    .directory("tmp/fake", 0o755, 0)
                    .directory("tmp/fake/self", 0o755, 0)
                    .file("tmp/fake/self/status", 0o644, b"fake")
                    .symlink("proc", target)
            })?;
            for seen in shown(&app, &fake, &[], MASKED)? {
                ensure!(seen == MASKED_SEEN, "{target}: {seen}");
            }
        }
        app.end()
    });
}

/// A directory of the user's lies where procfs is (runc: CVE-2019-16884, CVE-2025-52881; youki:
/// CVE-2025-54867, CVE-2025-62596): what the runtime writes there for the new process must neither be
/// believed nor land elsewhere.
#[test]
fn cve_2019_16884_a_directory_over_proc() {
    check(|world| {
        let app = App::start(world)?;
        let fake = world.directory().join("fake");
        let victim = world.directory().join("victim");
        fs::create_dir_all(fake.join("self/attr/apparmor"))?;
        fs::create_dir_all(fake.join("sys/net/ipv4"))?;
        fs::write(&victim, "untouched")?;
        fs::set_permissions(&victim, fs::Permissions::from_mode(0o666))?;
        for name in [
            "self/attr/exec",
            "self/attr/apparmor/exec",
            "self/oom_score_adj",
            "self/setgroups",
            "sys/net/ipv4/tcp_keepalive_time",
            "sys/net/ipv4/tcp_retries2",
            "sys/net/ipv4/ping_group_range",
        ] {
            symlink(&victim, fake.join(name))?;
        }
        let bind = format!("{}:/proc", fake.display());
        for flags in [
            vec!["--volume", &bind],
            vec!["--privileged", "--volume", &bind],
        ] {
            shown(&app, &app.image, &flags, "true")?;
            ensure!(fs::read_to_string(&victim)? == "untouched");
        }
        app.end()
    });
}

/// The container's `/dev/null` is what masks are made of (runc: CVE-2025-31133; youki:
/// CVE-2025-62161): here it is a link to what an attacker wants to write to.
#[test]
fn cve_2025_31133_null_is_a_link() {
    check(|world| {
        let app = App::start(world)?;
        let fake = world.directory().join("dev");
        fs::create_dir(&fake)?;
        for name in ["null", "zero", "tty", "console", "ptmx", "fuse"] {
            symlink("/proc/sys/kernel/core_pattern", fake.join(name))?;
        }
        let before = fs::read_to_string("/proc/sys/kernel/core_pattern")?;
        let bind = format!("{}:/dev", fake.display());
        for seen in shown(&app, &app.image, &["--volume", &bind], MASKED)? {
            ensure!(seen == MASKED_SEEN, "{seen}");
        }
        // And an image that has such a directory; every container gets its own above it.
        let linked = image(world, "linked", |rootfs| {
            rootfs
                .directory("dev", 0o755, 0)
                .symlink("dev/null", "/proc/sys/kernel/core_pattern")
                .symlink("dev/console", "/proc/sysrq-trigger")
        })?;
        let seen = shown(&app, &linked, &[], MASKED)?;
        ensure!(seen == [MASKED_SEEN, MASKED_SEEN], "{seen:?}");
        ensure!(before == fs::read_to_string("/proc/sys/kernel/core_pattern")?);
        app.end()
    });
}

/// A terminal's place in the container is a link (runc: CVE-2025-52565).
#[test]
fn cve_2025_52565_console_is_a_link() {
    check(|world| {
        let app = App::start(world)?;
        let before = fs::read_to_string("/proc/sys/kernel/core_pattern")?;
        let linked = image(world, "console", |rootfs| {
            rootfs
                .directory("dev", 0o755, 0)
                .symlink("dev/console", "/proc/sys/kernel/core_pattern")
                .symlink("dev/pts", "/proc/sys/kernel")
        })?;
        let script = "tty; (echo x >/proc/sys/kernel/core_pattern) 2>/dev/null && echo written";
        for args in [
            vec![
                "run", "--image", &linked, "--tty", "--", "/bin/sh", "-c", script,
            ],
            vec![
                "pea", "run", "app", "--image", &linked, "--tty", "--", "/bin/sh", "-c", script,
            ],
        ] {
            let terminal = app.cli().start_on_terminal(&args, (80, 24))?;
            terminal.wait_for("/dev/")?;
            ensure!(!terminal.text().contains("written"), "{}", terminal.text());
        }
        ensure!(before == fs::read_to_string("/proc/sys/kernel/core_pattern")?);
        app.end()
    });
}

/// Files that a runtime writes at the start are links in the image (crun: CVE-2025-24965; and what
/// Garden itself puts into `/etc`).
#[test]
fn cve_2025_24965_files_of_the_runtime_are_links() {
    check(|world| {
        let app = App::start(world)?;
        let victim = world.directory().join("victim");
        fs::write(&victim, "untouched")?;
        fs::set_permissions(&victim, fs::Permissions::from_mode(0o666))?;
        let missing = world.directory().join("missing");
        let (target, missing_target) = (text(&victim)?, text(&missing)?);
        let up = format!("../../../../../..{target}");
        let linked = image(world, "files", |rootfs| {
            rootfs
                .symlink(".krun_config.json", target)
                .symlink("etc/hosts", target)
                .symlink("etc/resolv.conf", missing_target)
                .symlink("etc/hostname", &up)
        })?;
        let script = "cat /etc/image; (echo evil >/etc/hosts; echo evil >/etc/resolv.conf) 2>/dev/null; true";
        let bind = format!("{}:{missing_target}/deep", world.directory().display());
        for flags in [
            vec![],
            vec!["--privileged"],
            vec!["--privileged", "--volume", &bind],
        ] {
            for seen in shown(&app, &linked, &flags, script)? {
                ensure!(seen == "files", "{seen}");
            }
            ensure!(fs::read_to_string(&victim)? == "untouched");
            ensure!(!missing.exists(), "a file was made on the host");
        }
        app.end()
    });
}

/// Who a user is, is looked up in the image; its files lead out of it.
#[test]
fn users_are_not_looked_up_on_the_host() {
    check(|world| {
        let app = App::start(world)?;
        let foreign = world.directory().join("passwd");
        fs::write(&foreign, "foreign:x:0:0::/:/bin/sh\n")?;
        let linked = image(world, "users", |rootfs| {
            rootfs
                .symlink(
                    "etc/passwd",
                    &format!("../../../../../..{}", foreign.display()),
                )
                .symlink("etc/group", "/proc/self/environ")
        })?;
        for (name, start) in [("container", "run"), ("pea", "pea")] {
            let mut args = match start {
                "run" => vec!["run"],
                _ => vec!["pea", "run", "app"],
            };
            args.extend(["--image", &linked, "--user", "foreign", "--", "/bin/true"]);
            let outcome = app.cli().run(&args)?;
            ensure!(outcome.code != Some(0), "{name}: {outcome:?}");
        }
        app.end()
    });
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no UTF-8")
}
