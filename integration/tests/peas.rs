//! Peas: an image and mounts of their own, everything else their container's.

use anyhow::ensure;
use garden_integration::{App, Leaks, Rootfs, check, lines_of};
use rustix::process::Signal;

#[test]
fn a_pea_has_its_own_image_and_the_containers_network() {
    check(|world| {
        let server = world.server()?;
        let images = world.images()?;
        let (app, sidecar) = (images.tar("app")?, images.oci("sidecar")?);
        let serve = "echo here > /tmp/secret; echo up; exec httpd -f -p 127.0.0.1:8080 -h /etc";
        let args = [
            "run",
            "--image",
            &app,
            "--name",
            "web",
            "--env",
            "OF_CONTAINER=yes",
            "--",
            "/bin/sh",
            "-c",
            serve,
        ];
        let running = server.cli().start(&args)?;
        running.wait_stdout("up")?;
        let script = "cat /etc/image; echo; ls /tmp; env
            until wget -q -O - http://127.0.0.1:8080/image; do usleep 10000; done; echo; hostname";
        let pea = [
            "pea", "run", "web", "--image", &sidecar, "--", "/bin/sh", "-c", script,
        ];
        let output = server.cli().output(&pea)?;
        let lines = lines_of(&output);
        ensure!(lines.first() == Some(&"sidecar"), "{output}");
        ensure!(
            lines.contains(&"app"),
            "not the container's server: {output}"
        );
        ensure!(
            !output.contains("secret"),
            "the container's files: {output}"
        );
        ensure!(lines.contains(&"FROM_IMAGE=yes"), "{output}");
        ensure!(
            !output.contains("OF_CONTAINER"),
            "the container's env: {output}"
        );
        let hostname = server
            .cli()
            .output(&["exec", "web", "--", "/bin/hostname"])?;
        ensure!(output.ends_with(&hostname), "{output} {hostname}");
        running.signal(Signal::INT)?;
        running.finish()?.expect_code(130)?;
        Ok(())
    });
}

#[test]
fn exit_codes_of_a_pea() {
    check(|world| {
        let app = App::start(world)?;
        for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)] {
            app.run_pea("root", script)?.expect_code(code)?;
        }
        app.end()
    });
}

#[test]
fn streams_of_a_pea() {
    check(|world| {
        let app = App::start(world)?;
        let script = "echo out; echo err >&2; read line; echo got $line";
        let args = [
            "pea", "run", "app", "--image", &app.image, "--", "/bin/sh", "-c", script,
        ];
        let mut pea = app.cli().start(&args)?;
        pea.wait_stdout("out\n")?;
        pea.wait_stderr("err\n")?;
        pea.write("this\n")?;
        let outcome = pea.finish()?;
        outcome.expect_code(0)?;
        ensure!(outcome.stdout == "out\ngot this\n", "{outcome:?}");
        app.end()
    });
}

#[test]
fn a_named_user_comes_from_the_peas_image() {
    check(|world| {
        let app = App::start(world)?;
        let image = Rootfs::busybox("other")?
            .file("etc/passwd", 0o644, b"checker:x:4321:4321::/:/bin/sh\n")
            .file("etc/group", 0o644, b"checker:x:4321:\n");
        let image = world.images()?.tar_of("other", &image)?;
        let args = [
            "pea", "run", "app", "--image", &image, "--user", "checker", "--", "/bin/id", "-u",
        ];
        ensure!(app.cli().output(&args)? == "4321\n");
        app.end()
    });
}

#[test]
fn what_a_pea_writes_is_gone_with_it() {
    check(|world| {
        let app = App::start(world)?;
        app.pea("root", "echo kept > /tmp/kept")?;
        ensure!(app.pea("root", "ls /tmp")?.trim().is_empty());
        ensure!(!app.exec("ls /tmp")?.contains("kept"));
        app.end()
    });
}

#[test]
fn peas_leave_nothing_while_their_container_lives() {
    check(|world| {
        let app = App::start(world)?;
        app.pea("root", "true")?;
        let before = Leaks::now(world, Some(&app.server));
        for _ in 0..20 {
            app.pea(
                "root",
                "dd if=/dev/zero of=/tmp/file bs=1M count=2 2>/dev/null",
            )?;
        }
        // One that leaves a process of its own behind, without its output.
        let leaving = "sleep 1000 >/dev/null 2>&1 </dev/null & exit 3";
        app.run_pea("root", leaving)?.expect_code(3)?;
        before.expect_no_more(world, Some(&app.server))?;
        app.end()
    });
}

#[test]
fn a_pea_ends_with_its_container() {
    check(|world| {
        let server = world.server()?;
        let image = world.images()?.tar("app")?;
        server
            .cli()
            .output(&["run", "--image", &image, "--", "/bin/true"])?;
        let before = Leaks::now(world, Some(&server));
        let app = App::start_on(world, server)?;
        let args = [
            "pea",
            "run",
            "app",
            "--image",
            &app.image,
            "--",
            "/bin/sh",
            "-c",
            "echo up; cat",
        ];
        let pea = app.cli().start(&args)?;
        pea.wait_stdout("up")?;
        let shown = app.cli().output(&["inspect", "app", "--json"])?;
        let shown: serde_json::Value = serde_json::from_str(&shown)?;
        ensure!(shown.to_string().contains("\"pea\":true"), "{shown}");
        app.cli().output(&["rm", "app"])?;
        pea.finish()?.expect_code(137)?;
        app.running.finish()?.expect_code(137)?;
        ensure!(!app.server.cli().output(&["ls"])?.contains("app"));
        before.expect_no_more(world, Some(&app.server))
    });
}
