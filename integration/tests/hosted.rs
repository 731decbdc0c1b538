//! `garden run` without a server: it hosts one for itself, and takes everything with it.

use anyhow::ensure;
use garden_integration::{Leaks, World, check};
use rustix::process::Signal;

fn warm(world: &World) -> anyhow::Result<(String, Leaks)> {
    let image = world.images()?.tar("app")?;
    world
        .hosted()
        .output(&["run", "--image", &image, "--", "/bin/true"])?;
    Ok((image, Leaks::now(world, None)))
}

#[test]
fn a_run_without_a_server() {
    check(|world| {
        let (image, before) = warm(world)?;
        let args = [
            "run",
            "--image",
            &image,
            "--",
            "/bin/sh",
            "-c",
            "cat; echo >&2 bye; exit 5",
        ];
        let mut running = world.hosted().start(&args)?;
        running.write("through")?;
        let outcome = running.finish()?;
        outcome.expect_code(5)?;
        ensure!(
            outcome.stdout == "through" && outcome.stderr == "bye\n",
            "{outcome:?}"
        );
        before.expect_no_more(world, None)
    });
}

#[test]
fn interrupted() {
    check(|world| {
        let (image, before) = warm(world)?;
        for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
            let args = [
                "run",
                "--image",
                &image,
                "--",
                "/bin/sh",
                "-c",
                "echo up; sleep 1000",
            ];
            let running = world.hosted().start(&args)?;
            running.wait_stdout("up")?;
            running.signal(signal)?;
            running.finish()?.expect_code(code)?;
            before.expect_no_more(world, None)?;
        }
        Ok(())
    });
}

#[test]
fn interrupted_with_a_server() {
    check(|world| {
        let server = world.server()?;
        let image = world.images()?.tar("app")?;
        server
            .cli()
            .output(&["run", "--image", &image, "--", "/bin/true"])?;
        let before = Leaks::now(world, Some(&server));
        let script = "trap '' TERM; echo up; while :; do sleep 1000; done";
        let args = ["run", "--image", &image, "--", "/bin/sh", "-c", script];
        let running = server.cli().start(&args)?;
        running.wait_stdout("up")?;
        running.signal(Signal::INT)?;
        running.finish()?.expect_code(130)?;
        before.expect_no_more(world, Some(&server))
    });
}

#[test]
fn two_at_once() {
    check(|world| {
        let image = world.images()?.tar("app")?;
        let args = [
            "run",
            "--image",
            &image,
            "--",
            "/bin/sh",
            "-c",
            "echo up; read line",
        ];
        let both = || -> anyhow::Result<()> {
            let mut first = world.hosted().start(&args)?;
            first.wait_stdout("up")?;
            let second = ["run", "--image", &image, "--", "/bin/true"];
            world.hosted().run(&second)?.expect_code(0)?;
            first.write("go on\n")?;
            first.finish()?.expect_code(0)?;
            Ok(())
        };
        // Each has a store of its own, which stays, as a cache of images.
        both()?;
        let before = Leaks::now(world, None);
        both()?;
        before.expect_no_more(world, None)
    });
}
