//! Containers outlive their server, and what a crash cut off is finished by the next start.

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use garden_integration::{App, Leaks, World, check};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A server that has run a container and a pea, so that what it keeps for later is there.
fn warm(world: &World) -> Result<App<'_>> {
    let app = App::start(world)?;
    app.pea("root", "true")?;
    Ok(app)
}

#[test]
fn a_container_outlives_its_server() {
    check(|world| {
        let mut app = warm(world)?;
        let pid = app.exec("cat /tmp/pid")?;
        app.server.kill()?;
        app.server.restart()?;
        ensure!(
            app.cli().output(&["ls"])?.contains("app"),
            "it is not listed"
        );
        app.exec(&format!("kill -0 {}", pid.trim()))?;
        ensure!(app.exec("cat /tmp/pid")? == pid, "another process");
        ensure!(
            app.pea("vcap", "id -u")? == "2000\n",
            "no pea after a restart"
        );
        app.cli().output(&["rm", "app"])?;
        ensure!(
            !app.cli().output(&["ls"])?.contains("app"),
            "it is still listed"
        );
        Ok(())
    });
}

#[test]
fn a_container_outlives_an_orderly_end_of_its_server() {
    check(|world| {
        let mut app = warm(world)?;
        let pid = app.exec("cat /tmp/pid")?;
        app.server.terminate()?;
        app.server.restart()?;
        app.exec(&format!("kill -0 {}", pid.trim()))?;
        app.cli().output(&["rm", "app"])?;
        Ok(())
    });
}

#[test]
fn a_container_can_be_removed_after_a_crash_without_a_trace() {
    check(|world| {
        let mut server = world.server()?;
        let image = world.images()?.tar("app")?;
        server
            .cli()
            .output(&["run", "--image", &image, "--", "/bin/true"])?;
        server.kill()?;
        server.restart()?;
        let before = Leaks::now(world, None);
        let mut app = App::start_on(world, server)?;
        app.pea("root", "true")?;
        app.server.kill()?;
        app.server.restart()?;
        app.cli().output(&["rm", "app"])?;
        drop(app.running);
        before.expect_no_more(world, None)
    });
}

#[test]
fn a_second_server_for_the_same_store_is_refused() {
    check(|world| {
        let app = App::start(world)?;
        let [socket, run, store] = ["second.sock", "second", "store"]
            .map(|name| world.directory().join(name).display().to_string());
        let tag = format!("{}b", world.tag());
        let args = [
            "server",
            "--socket",
            &socket,
            "--runtime-dir",
            &run,
            "--store",
            &store,
            "--tag",
            &tag,
        ];
        let outcome = app.cli().run(&args)?;
        outcome.expect_code(125)?;
        ensure!(outcome.stderr.contains(&store), "{outcome:?}");
        app.exec("true")?;
        app.end()
    });
}

#[test]
fn a_crash_after_a_peas_exit_finishes_its_teardown() {
    check(|world| {
        let mut app = warm(world)?;
        let before = Leaks::now(world, None);
        for _ in 0..10 {
            app.run_pea("root", "echo x > /tmp/x; exit 9")?
                .expect_code(9)?;
            // Its exit is known, its teardown is somewhere on its way.
            app.server.kill()?;
            app.server.restart()?;
        }
        before.expect_no_more(world, None)?;
        app.cli().output(&["rm", "app"])?;
        Ok(())
    });
}

#[test]
fn a_pea_that_ends_while_no_server_runs_is_torn_down() {
    check(|world| {
        let mut app = warm(world)?;
        let before = Leaks::now(world, None);
        let script = "echo up; sleep 1000";
        let args = [
            "pea", "run", "app", "--image", &app.image, "--", "/bin/sh", "-c", script,
        ];
        let pea = app.cli().start(&args)?;
        pea.wait_stdout("up")?;
        let pid = pea_pid(&app)?;
        app.server.kill()?;
        drop(pea);
        kill_process(pid, Signal::KILL)?;
        app.server.restart()?;
        before.expect_no_more(world, None)?;
        app.cli().output(&["rm", "app"])?;
        Ok(())
    });
}

/// The host's pid of the only pea.
fn pea_pid(app: &App<'_>) -> Result<Pid> {
    let shown = app.cli().output(&["inspect", "app", "--json"])?;
    let shown: Value = serde_json::from_str(&shown)?;
    let processes = shown["processes"].as_array().context("no processes")?;
    let pea = processes
        .iter()
        .find(|process| process["pea"] == true)
        .with_context(|| format!("no pea in {shown}"))?;
    let pid = pea["pid"].as_i64().context("no pid")?;
    Pid::from_raw(i32::try_from(pid)?).context("a pid of 0")
}

#[test]
fn hosted_runs_killed_at_any_moment_are_cleaned_by_the_next() {
    check(|world| {
        let image = world.images()?.tar("app")?;
        let garden = world.hosted();
        let started = SystemTime::now();
        garden.output(&["run", "--image", &image, "--", "/bin/true"])?;
        let whole = started.elapsed()?;
        let before = Leaks::now(world, None);
        let mut seed = started
            .duration_since(SystemTime::UNIX_EPOCH)?
            .subsec_nanos()
            | 1;
        println!("seed {seed}, a whole run takes {} ms", whole.as_millis());
        for _ in 0..20 {
            let running = garden.start(&["run", "--image", &image, "--", "/bin/sleep", "1000"])?;
            // xorshift; the moment itself is the point, so this is a time and no condition.
            seed ^= seed << 13;
            seed ^= seed >> 17;
            seed ^= seed << 5;
            let most = u32::try_from(whole.as_micros())?.max(1) * 2;
            std::thread::sleep(Duration::from_micros(u64::from(seed % most)));
            drop(running);
        }
        garden.output(&["run", "--image", &image, "--", "/bin/true"])?;
        before.expect_no_more(world, None)
    });
}

#[test]
fn a_corrupt_record_stops_nobody() {
    check(|world| {
        let mut app = warm(world)?;
        app.server.kill()?;
        spoil(&world.directory().join("run"))?;
        app.server.restart()?;
        // What its record said is lost; the server itself, and new containers, are not.
        let args = ["run", "--image", &app.image, "--", "/bin/true"];
        app.cli().output(&args)?;
        Ok(())
    });
}

/// Cuts the first container's own record short.
fn spoil(directory: &Path) -> Result<()> {
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|kind| kind == "json") {
                std::fs::write(&path, "{\"version\":")?;
                return Ok(());
            }
        }
    }
    None.context("there is no record to spoil")
}
