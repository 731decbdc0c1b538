//! Nothing is left behind, however often.

use anyhow::ensure;
use garden_integration::{App, Leaks, check};

#[test]
fn a_hundred_runs() {
    check(|world| {
        let server = world.server()?;
        let image = world.images()?.tar("app")?;
        let args = [
            "run",
            "--image",
            &image,
            "--",
            "/bin/sh",
            "-c",
            "echo x > /tmp/x",
        ];
        server.cli().output(&args)?;
        let before = Leaks::now(world, Some(&server));
        for _ in 0..100 {
            server.cli().output(&args)?;
        }
        before.expect_no_more(world, Some(&server))
    });
}

#[test]
fn many_runs_at_once() {
    check(|world| {
        let server = world.server()?;
        let image = world.images()?.tar("app")?;
        server
            .cli()
            .output(&["run", "--image", &image, "--", "/bin/true"])?;
        let before = Leaks::now(world, Some(&server));
        let mut running = Vec::new();
        for number in 0..12 {
            let script = format!("echo {number}");
            let args = ["run", "--image", &image, "--", "/bin/sh", "-c", &script];
            running.push((number, server.cli().start(&args)?));
        }
        for (number, run) in running {
            let outcome = run.finish()?;
            outcome.expect_code(0)?;
            ensure!(outcome.stdout == format!("{number}\n"), "{outcome:?}");
        }
        before.expect_no_more(world, Some(&server))
    });
}

#[test]
fn execs() {
    check(|world| {
        let app = App::start(world)?;
        app.exec("true")?;
        let before = Leaks::now(world, Some(&app.server));
        for _ in 0..30 {
            app.exec("true")?;
        }
        before.expect_no_more(world, Some(&app.server))?;
        app.end()
    });
}

#[test]
fn a_client_that_vanishes() {
    check(|world| {
        let app = App::start(world)?;
        app.exec("true")?;
        let before = Leaks::now(world, Some(&app.server));
        for _ in 0..5 {
            // More output than any buffer between holds, and nobody who reads it.
            let args = [
                "exec",
                "app",
                "--",
                "/bin/sh",
                "-c",
                "echo up; seq 1 300000",
            ];
            let client = app.cli().start(&args)?;
            client.wait_stdout("up")?;
            drop(client);
        }
        before.expect_no_more(world, Some(&app.server))?;
        app.end()
    });
}

#[test]
fn removing_while_it_is_being_removed() {
    check(|world| {
        let server = world.server()?;
        let image = world.images()?.tar("app")?;
        server
            .cli()
            .output(&["run", "--image", &image, "--", "/bin/true"])?;
        let before = Leaks::now(world, Some(&server));
        let app = App::start_on(world, server)?;
        let removals = [(); 4].map(|()| app.cli().start(&["rm", "app"]));
        let mut removed = 0;
        for removal in removals {
            // One removes it; the others may find it gone, or going.
            removed += usize::from(removal?.finish()?.code == Some(0));
        }
        ensure!(removed >= 1, "nobody removed it");
        app.running.finish()?.expect_code(137)?;
        before.expect_no_more(world, Some(&app.server))
    });
}
