//! `garden run` as a person uses it: exit codes, streams, user, environment, limits, kinds of images.

use anyhow::{Result, ensure};
use garden_integration::{World, check, lines_of, status_field};

/// Runs a shell script in a new container of the server and expects success; returns its output.
fn script(world: &World, flags: &[&str], script: &str) -> Result<String> {
    let server = world.server()?;
    let image = world.images()?.tar("app")?;
    let mut args = vec!["run", "--image", &image];
    args.extend(flags);
    args.extend(["--", "/bin/sh", "-c", script]);
    server.cli().output(&args)
}

#[test]
fn exit_codes() {
    check(|world| {
        let server = world.server()?;
        let image = world.images()?.tar("app")?;
        let run = |command: &[&str]| {
            let args = [&["run", "--image", &image, "--"], command].concat();
            server.cli().run(&args)
        };
        run(&["/bin/true"])?.expect_code(0)?;
        run(&["/bin/sh", "-c", "exit 42"])?.expect_code(42)?;
        run(&["/bin/sh", "-c", "kill -9 $$"])?.expect_code(137)?;
        run(&["/bin/sh", "-c", "kill -15 $$"])?.expect_code(143)?;
        run(&["/etc/passwd"])?.expect_code(126)?;
        run(&["/bin/nonesuch"])?.expect_code(127)?;
        run(&["nonesuch"])?.expect_code(127)?;
        let missing = world.images()?.missing()?;
        let refused = server
            .cli()
            .run(&["run", "--image", &missing, "--", "true"])?;
        refused.expect_code(125)?;
        let wrong = server.cli().run(&["run", "--no-such-flag"])?;
        wrong.expect_code(2)?;
        Ok(())
    });
}

#[test]
fn output_is_live_and_stdin_is_passed() {
    check(|world| {
        let server = world.server()?;
        let image = world.images()?.tar("app")?;
        let script = "echo first; read line; echo got $line; cat; echo ended >&2";
        let mut running = server
            .cli()
            .start(&["run", "--image", &image, "--", "/bin/sh", "-c", script])?;
        running.wait_stdout("first\n")?;
        running.write("hello\n")?;
        running.wait_stdout("got hello\n")?;
        running.write("rest")?;
        running.wait_stdout("rest")?;
        let outcome = running.finish()?;
        outcome.expect_code(0)?;
        ensure!(outcome.stdout == "first\ngot hello\nrest", "{outcome:?}");
        ensure!(outcome.stderr == "ended\n", "{outcome:?}");
        Ok(())
    });
}

#[test]
fn much_output_arrives_whole() {
    check(|world| {
        let output = script(world, &[], "seq 1 200000; seq 1 200000 >&2")?;
        let lines = lines_of(&output);
        ensure!(lines.len() == 200_000, "{} lines", lines.len());
        ensure!(lines.last() == Some(&"200000"), "the last line is missing");
        Ok(())
    });
}

#[test]
fn environment() {
    check(|world| {
        let flags = ["--env", "GREETING=hello world", "--env", "EMPTY="];
        let output = script(world, &flags, "env")?;
        let lines = lines_of(&output);
        ensure!(lines.contains(&"GREETING=hello world"), "{lines:?}");
        ensure!(lines.contains(&"EMPTY="), "{lines:?}");
        ensure!(lines.contains(&"USER=root"), "{lines:?}");
        ensure!(lines.contains(&"HOME=/root"), "{lines:?}");
        let path = lines.iter().find(|line| line.starts_with("PATH="));
        ensure!(
            path.is_some_and(|path| path.contains("/usr/local/sbin")),
            "{lines:?}"
        );
        ensure!(
            !lines.iter().any(|line| line.contains(world.tag())),
            "the server's own environment is visible: {lines:?}"
        );
        Ok(())
    });
}

#[test]
fn user_by_name_comes_from_the_image() {
    check(|world| {
        let output = script(
            world,
            &["--user", "vcap"],
            "id -u; id -g; id -G; echo $HOME",
        )?;
        let expected = ["2000", "2000", "2000 3000", "/home/vcap"];
        ensure!(lines_of(&output) == expected, "{output}");
        Ok(())
    });
}

#[test]
fn user_by_number_need_not_be_in_the_image() {
    check(|world| {
        let output = script(world, &["--user", "1234:567"], "id -u; id -g")?;
        ensure!(lines_of(&output) == ["1234", "567"], "{output}");
        Ok(())
    });
}

#[test]
fn working_directory_is_made_for_the_user() {
    check(|world| {
        let flags = ["--user", "vcap", "--cwd", "/home/vcap/new/deep"];
        let output = script(
            world,
            &flags,
            "pwd; stat -c %u .; touch file && echo written",
        )?;
        let expected = ["/home/vcap/new/deep", "2000", "written"];
        ensure!(lines_of(&output) == expected, "{output}");
        Ok(())
    });
}

#[test]
fn memory_limit_ends_a_process_that_wants_more() {
    check(|world| {
        let server = world.server()?;
        let image = world.images()?.tar("app")?;
        let fill = |megabytes: &str| {
            let block = format!("bs={megabytes}M");
            let fill = ["/bin/dd", "if=/dev/zero", "of=/dev/null", &block, "count=1"];
            let args = [
                &["run", "--image", &image, "--memory", "64M", "--"],
                fill.as_slice(),
            ]
            .concat();
            server.cli().run(&args)
        };
        fill("16")?.expect_code(0)?;
        fill("256")?.expect_code(137)?;
        Ok(())
    });
}

#[test]
fn pids_limit_refuses_more_processes() {
    check(|world| {
        let server = world.server()?;
        let image = world.images()?.tar("app")?;
        // Each child waits for the end of a pipe that ends with the shell.
        let script = "for i in $(seq 40); do cat /dev/zero >/dev/null & done; kill $(jobs -p)";
        let args = [
            "run", "--image", &image, "--pids", "12", "--", "/bin/sh", "-c", script,
        ];
        let outcome = server.cli().run(&args)?;
        ensure!(outcome.code != Some(0), "{outcome:?}");
        ensure!(outcome.stderr.contains("can't fork"), "{outcome:?}");
        Ok(())
    });
}

#[test]
fn every_kind_of_image_runs() {
    check(|world| {
        let server = world.server()?;
        let images = world.images()?;
        let kinds = [
            ("a", images.tar("a")?),
            ("b", images.tar_gz("b")?),
            ("c", images.tar_zst("c")?),
            ("d", images.directory("d")?),
            ("e", images.oci("e")?),
        ];
        for (name, image) in &kinds {
            let args = ["run", "--image", image, "--", "/bin/cat", "/etc/image"];
            let output = server.cli().output(&args)?;
            ensure!(output == *name, "{image}: {output:?}");
        }
        Ok(())
    });
}

#[test]
fn layers_of_an_image_lie_on_each_other() {
    check(|world| {
        let server = world.server()?;
        let image = world.images()?.oci("layered")?;
        let script = "cat /etc/second; ls /etc/gone 2>/dev/null; ls -a /etc | grep wh; env";
        let args = ["run", "--image", &image, "--", "/bin/sh", "-c", script];
        let output = server.cli().output(&args)?;
        ensure!(output.starts_with("second layer"), "{output}");
        ensure!(!output.contains("gone"), "{output}");
        ensure!(lines_of(&output).contains(&"FROM_IMAGE=yes"), "{output}");
        Ok(())
    });
}

#[test]
fn containers_do_not_see_what_others_wrote() {
    check(|world| {
        let server = world.server()?;
        let image = world.images()?.tar("app")?;
        let script = "ls /tmp; echo mine > /tmp/mine; echo changed > /etc/image";
        let args = ["run", "--image", &image, "--", "/bin/sh", "-c", script];
        server.cli().output(&args)?;
        let output = server.cli().output(&args)?;
        ensure!(!output.contains("mine"), "{output}");
        let args = ["run", "--image", &image, "--", "/bin/cat", "/etc/image"];
        ensure!(server.cli().output(&args)? == "app");
        Ok(())
    });
}

#[test]
fn a_privileged_container_has_more() {
    check(|world| {
        let status = script(world, &["--privileged"], "cat /proc/self/status")?;
        ensure!(status_field(&status, "Seccomp")? == "0", "{status}");
        let bounding = u64::from_str_radix(status_field(&status, "CapBnd")?, 16)?;
        let admin = 1 << 21;
        ensure!(bounding & admin != 0, "{status}");
        Ok(())
    });
}

#[test]
fn health_is_reported() {
    check(|world| {
        let server = world.server()?;
        let images = world.images()?;
        let (app, check) = (images.tar("app")?, images.tar("check")?);
        let probe = "wget -q -O /dev/null http://127.0.0.1:8080/etc/image";
        let args = [
            "run",
            "--image",
            &app,
            "--health-image",
            &check,
            "--health-cmd",
            probe,
            "--",
            "/bin/httpd",
            "-f",
            "-p",
            "127.0.0.1:8080",
            "-h",
            "/",
        ];
        let running = server.cli().start(&args)?;
        running.wait_stderr("healthy after ")?;
        running.signal(rustix::process::Signal::INT)?;
        running.finish()?.expect_code(130)?;
        Ok(())
    });
}
