//! Nothing is left behind, however often.

use anyhow::{Context, Result, ensure};
use garden_integration::{App, DEADLINE, Leaks, Server, World, check, wait_until};

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

/// A server that has run a container with an exec in it, and what is there then.
fn warm(world: &World) -> Result<(Server<'_>, Leaks)> {
    let app = App::start(world)?;
    app.exec("true")?;
    app.running.finish()?.expect_code(0)?;
    let server = app.server;
    let before = Leaks::now(world, Some(&server));
    Ok((server, before))
}

/// Waits until the server has no more files open than it had.
fn expect_files(server: &Server<'_>, before: usize) -> Result<()> {
    wait_until("the server has closed its files", DEADLINE, || {
        Ok(server.open_files() <= before)
    })
    .with_context(|| format!("{before} before, {} now", server.open_files()))
}

#[test]
fn execs() {
    check(|world| {
        let (server, before) = warm(world)?;
        let app = App::start_on(world, server)?;
        app.exec("true")?;
        let files = app.server.open_files();
        for _ in 0..30 {
            app.exec("true")?;
        }
        // How they ended is remembered, for as long as their container is there; nothing is open.
        expect_files(&app.server, files)?;
        app.running.finish()?.expect_code(0)?;
        before.expect_no_more(world, Some(&app.server))
    });
}

#[test]
fn a_client_that_vanishes() {
    check(|world| {
        let (server, before) = warm(world)?;
        let app = App::start_on(world, server)?;
        app.exec("true")?;
        let files = app.server.open_files();
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
        expect_files(&app.server, files)?;
        app.running.finish()?.expect_code(0)?;
        before.expect_no_more(world, Some(&app.server))
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
