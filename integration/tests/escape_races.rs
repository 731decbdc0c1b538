//! Races against the making of containers, execs and peas: who is inside already changes names under
//! the runtime's hands, or looks at processes that are half made.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use garden_integration::{App, check, lines_of};

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no UTF-8")
}

/// What a process has before it becomes the user's program: the runtime's own program (runc:
/// CVE-2019-5736), descriptors (runc: CVE-2016-9962, CVE-2024-21626), a root or a directory that is
/// the host's.
#[test]
fn cve_2016_9962_processes_that_are_half_made() {
    check(|world| {
        let app = App::start_hostile(world, &[])?;
        let run = ["exec", "app"];
        let pea = ["pea", "run", "app", "--image", &app.image];
        // One after the other: what two of them have open is each other's.
        for start in [run.as_slice(), &pea] {
            let args = [start, &["--", "/bin/attacker", "spy"]].concat();
            let spy = app.cli().start(&args)?;
            spy.wait_stdout("spying")?;
            for _ in 0..3 {
                for user in ["root", "vcap"] {
                    app.exec_as(user, "sleep 0.05")?;
                    app.pea(user, "sleep 0.05")?;
                }
            }
            let outcome = spy.finish()?;
            outcome.expect_code(0)?;
            let seen = lines_of(&outcome.stdout);
            ensure!(seen == ["spying", "saw others true"], "{start:?}: {seen:?}");
        }
        app.end()
    });
}

/// The place of a bind mount is exchanged with a link while the mount is made.
#[test]
fn cve_2021_30465_mounts_through_exchanged_links() {
    check(|world| {
        let shared = world.directory().join("shared");
        let secret = world.directory().join("secret");
        fs::create_dir_all(shared.join("target"))?;
        fs::create_dir(&secret)?;
        fs::write(secret.join("file"), "secret")?;
        symlink("/", shared.join("way"))?;
        // The container's root, whoever that is, may exchange them.
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(&shared, everybody)?;
        let share = format!("{}:/shared", text(&shared)?);
        let app = App::start_hostile(world, &["--volume", &share])?;
        let swap = [
            "exec",
            "app",
            "--",
            "/bin/attacker",
            "swap",
            "/shared/target",
            "/shared/way",
        ];
        let swapper = app.cli().start(&swap)?;
        swapper.wait_stdout("swapping")?;
        let inside = format!("/shared/target/{}", world.tag());
        let bind = format!("{}:{inside}", text(&secret)?);
        for round in 0..8 {
            let name = format!("victim{round}");
            let mut args = vec!["create", "--image", &app.image, "--name", &name];
            args.extend(["--volume", &share, "--volume", &bind]);
            if round % 2 == 0 {
                args.push("--privileged");
            }
            // That it fails is one way to be safe.
            if app.cli().run(&args)?.code != Some(0) {
                continue;
            }
            let script = "cat /etc/image; ls /";
            let seen = app
                .cli()
                .output(&["exec", &name, "--", "/bin/sh", "-c", script])?;
            ensure!(
                seen.starts_with("hostile") && !seen.contains("stage"),
                "{seen}"
            );
            let outside = Path::new("/").join(world.tag());
            ensure!(!outside.exists(), "a place was made on the host");
            app.cli().output(&["rm", &name])?;
        }
        let outcome = swapper.finish()?;
        ensure!(
            !outcome.stdout.contains("swapped 0 "),
            "nothing was exchanged: {outcome:?}"
        );
        let file = fs::read_to_string(secret.join("file"))?;
        ensure!(file == "secret", "{file}");
        app.end()
    });
}

/// A working directory that is exchanged with a link while it is made and entered (runc:
/// CVE-2024-45310), and one that leads through a descriptor (CVE-2024-21626).
#[test]
fn cve_2024_45310_working_directories_through_exchanged_links() {
    check(|world| {
        let outside = world.directory().join("outside");
        fs::create_dir(&outside)?;
        fs::set_permissions(
            &outside,
            std::os::unix::fs::PermissionsExt::from_mode(0o777),
        )?;
        let app = App::start_hostile(world, &[])?;
        app.exec(&format!(
            "mkdir /trap /trap/target && ln -s {} /trap/way",
            text(&outside)?
        ))?;
        let swap = [
            "exec",
            "app",
            "--",
            "/bin/attacker",
            "swap",
            "/trap/target",
            "/trap/way",
        ];
        let swapper = app.cli().start(&swap)?;
        swapper.wait_stdout("swapping")?;
        for _ in 0..10 {
            let args = [
                "exec",
                "app",
                "--cwd",
                "/trap/target/a/b",
                "--",
                "/bin/cat",
                "/etc/image",
            ];
            let outcome = app.cli().run(&args)?;
            ensure!(
                outcome.code != Some(0) || outcome.stdout == "hostile",
                "{outcome:?}"
            );
        }
        ensure!(
            fs::read_dir(&outside)?.next().is_none(),
            "a directory was made on the host"
        );
        swapper.finish()?.expect_code(0)?;
        app.end()
    });
}
