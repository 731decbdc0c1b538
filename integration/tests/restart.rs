//! A server that is killed and started again while many processes run: every status and every byte
//! is there, nobody waits for what does not concern him, and a supervisor that died is told.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use garden_integration::{
    App, Cli, DEADLINE, Leaks, Server, Whom, World, check, signal_all, wait_until,
};
use rustix::process::Signal;
use serde_json::Value;

/// Processes of each kind.
const ENDING: usize = 20;
const STAYING: usize = 20;
const WRITING: usize = 10;
const BYTES: usize = 10_000_000;

#[test]
fn nothing_is_lost_while_there_is_no_server() {
    check(|world| {
        let mut server = world.server()?;
        let image = world.images()?.tar("app")?;
        let shared = world.directory().join("shared");
        fs::create_dir(&shared)?;
        let bind = format!("{}:/shared:ro", shared.display());
        let cli = server.cli();
        cli.output(&[
            "create", "--quiet", "--image", &image, "--name", "app", "-v", &bind,
        ])?;
        let start = |id: &str, script: &str| {
            let script = format!("until [ -e /shared/go ]; do sleep 0.4; done; {script}");
            let words = ["exec", "app", "--detach", "--id", id, "--", "/bin/sh", "-c"];
            cli.output(&[&words[..], &[&script]].concat())
        };
        let stay = "until [ -e /shared/end ]; do sleep 0.4; done; echo later; exit";
        for number in 0..ENDING {
            start(
                &format!("ends-{number}"),
                &format!("echo said; exit {number}"),
            )?;
        }
        for number in 0..STAYING {
            start(
                &format!("stays-{number}"),
                &format!("{stay} {}", 50 + number),
            )?;
        }
        let write = format!("head -c {BYTES} /dev/zero; exit 9");
        for number in 0..WRITING {
            start(&format!("writes-{number}"), &write)?;
        }
        server.kill()?;
        fs::write(shared.join("go"), "")?;
        // A pipe is full, and some have ended, before there is a server again.
        let ended = || {
            let records = world.runtime_dir().join("containers/app/processes");
            let names = fs::read_dir(records)?.flatten();
            let exits =
                names.filter(|name| name.path().extension().is_some_and(|end| end == "exit"));
            Ok(exits.count() >= ENDING)
        };
        wait_until("some have ended", DEADLINE, ended)?;
        server.restart()?;
        let cli = server.cli();
        for number in 0..ENDING {
            let outcome = cli.run(&["attach", "--no-stdin", "app", &format!("ends-{number}")])?;
            outcome.expect_code(i32::try_from(number)?)?;
            ensure!(outcome.stdout == "said\n", "{outcome:?}");
        }
        for number in 0..WRITING {
            let outcome = cli.run(&["attach", "--no-stdin", "app", &format!("writes-{number}")])?;
            outcome.expect_code(9)?;
            ensure!(
                outcome.stdout.len() == BYTES,
                "{} bytes",
                outcome.stdout.len()
            );
        }
        // Once more, with clients that are connected while it happens.
        let waiting: Vec<_> = (0..STAYING)
            .map(|number| cli.start(&["attach", "--no-stdin", "app", &format!("stays-{number}")]))
            .collect::<Result<_>>()?;
        fs::write(shared.join("end"), "")?;
        for (number, client) in waiting.into_iter().enumerate() {
            let outcome = client.finish()?;
            outcome.expect_code(50 + i32::try_from(number)?)?;
            ensure!(outcome.stdout == "later\n", "{outcome:?}");
        }
        cli.output(&["rm", "app"])?;
        Ok(())
    });
}

fn create(cli: &Cli, image: &str, name: &str) -> Result<()> {
    cli.output(&["create", "--quiet", "--image", image, "--name", name])?;
    Ok(())
}

/// Signals the supervisor of a container.
fn signal_supervisor(world: &World, name: &str, signal: Signal) -> Result<()> {
    let reached = signal_all(world, signal, Whom::Supervisor(name));
    // One of an earlier container of this name may be about to end.
    ensure!(reached > 0, "no supervisor of {name}");
    Ok(())
}

fn handles(server: &Server<'_>) -> Result<Vec<String>> {
    let answer = server.get("/containers")?;
    let handles = answer["Handles"].as_array().context("no handles")?;
    let mut handles: Vec<_> = handles
        .iter()
        .filter_map(|handle| handle.as_str().map(str::to_owned))
        .collect();
    handles.sort();
    Ok(handles)
}

#[test]
fn one_supervisor_that_does_not_answer_holds_up_nobody_else() {
    check(|world| {
        let mut server = world.server()?;
        let image = world.images()?.tar("app")?;
        for name in ["slow", "fast"] {
            create(&server.cli(), &image, name)?;
        }
        server.kill()?;
        signal_supervisor(world, "slow", Signal::STOP)?;
        server.restart()?;
        let cli = server.cli();
        cli.output(&["exec", "fast", "--", "/bin/true"])?;
        ensure!(handles(&server)? == ["fast", "slow"], "both are known");
        create(&cli, &image, "new")?;
        let taken = cli.run(&["create", "--image", &image, "--name", "slow"])?;
        ensure!(taken.stderr.contains("already in use"), "{taken:?}");
        // Whoever wants that one waits for it, instead of being told that it is not there.
        let waiting = cli.start(&["exec", "slow", "--", "/bin/echo", "here"])?;
        cli.output(&["exec", "fast", "--", "/bin/true"])?;
        signal_supervisor(world, "slow", Signal::CONT)?;
        let outcome = waiting.finish()?;
        ensure!(outcome.stdout == "here\n", "{outcome:?}");
        for name in ["slow", "fast", "new"] {
            cli.output(&["rm", name])?;
        }
        Ok(())
    });
}

/// What must be true of a container whose supervisor died, whenever that was noticed.
fn expect_lost(server: &Server<'_>, image: &str) -> Result<()> {
    let cli = server.cli();
    let inspected = || -> Result<Value> {
        let shown = cli.output(&["inspect", "app", "--json"])?;
        Ok(serde_json::from_str(&shown)?)
    };
    wait_until("its death is noticed", DEADLINE, || {
        Ok(inspected()?["events"]
            .to_string()
            .contains("Supervisor died"))
    })?;
    ensure!(handles(server)? == ["app"], "it stays in the list");
    ensure!(cli.output(&["ls"])?.contains("stopped"));
    let events = cli.output(&["events", "app", "--no-follow", "--json"])?;
    ensure!(events.contains("supervisor_died"), "{events}");
    for refused in [
        &["exec", "app", "--", "/bin/true"][..],
        &["pea", "run", "app", "--image", image, "--", "/bin/true"],
        &["stream-in", "app", "/tmp"],
    ] {
        let outcome = cli.run(refused)?;
        ensure!(outcome.stderr.contains("app is lost"), "{outcome:?}");
    }
    let again = cli.run(&["create", "--image", image, "--name", "app"])?;
    ensure!(again.stderr.contains("already in use"), "{again:?}");
    // What ended before can still be asked.
    cli.run(&["attach", "--no-stdin", "app", "early"])?
        .expect_code(7)?;
    let late = cli.run(&["attach", "--no-stdin", "app", "late"])?;
    ensure!(late.stderr.contains("exit status is unknown"), "{late:?}");
    cli.output(&["stop", "app"])?;
    Ok(())
}

/// A container with a process that has ended, one that has not, and a pea.
fn with_processes(cli: &Cli, image: &str) -> Result<()> {
    create(cli, image, "app")?;
    let exec = ["exec", "app", "--detach", "--id"];
    let early = ["early", "--", "/bin/sh", "-c", "exit 7"];
    cli.output(&[&exec[..], &early].concat())?;
    cli.run(&["attach", "--no-stdin", "app", "early"])?
        .expect_code(7)?;
    let late = ["late", "--", "/bin/sleep", "1000"];
    cli.output(&[&exec[..], &late].concat())?;
    let pea = ["pea", "run", "app", "--image", image, "--own-limits", "--"];
    let script = ["/bin/sh", "-c", "echo up; exec sleep 1000"];
    // Its client leaves, it stays.
    cli.start(&[&pea[..], &script].concat())?.wait_stdout("up")
}

#[test]
fn a_supervisor_that_dies_is_told_and_cleaned_up_behind() {
    check(|world| {
        let mut app = App::start(world)?;
        app.cli().output(&["rm", "app"])?;
        let _ = app.running.finish()?;
        let (cli, image) = (app.server.cli(), app.image);
        cli.output(&["teardown", "wait"])?;
        for served in [true, false] {
            let before = Leaks::now(world, Some(&app.server));
            with_processes(&cli, &image)?;
            if served {
                let waiting = cli.start(&["attach", "--no-stdin", "app", "late"])?;
                signal_supervisor(world, "app", Signal::KILL)?;
                let told = waiting.finish()?;
                ensure!(told.stderr.contains("exit status is unknown"), "{told:?}");
            } else {
                app.server.kill()?;
                signal_supervisor(world, "app", Signal::KILL)?;
                app.server.restart()?;
            }
            expect_lost(&app.server, &image)?;
            // It is still so after another start, and nothing runs in it.
            app.server.kill()?;
            app.server.restart()?;
            expect_lost(&app.server, &image)?;
            cli.output(&["rm", "app"])?;
            before.expect_no_more(world, None)?;
        }
        create(&cli, &image, "app")?;
        cli.output(&["exec", "app", "--", "/bin/true"])?;
        cli.output(&["rm", "app"])?;
        Ok(())
    });
}

#[test]
fn what_happened_is_told_after_a_restart_too() {
    check(|world| {
        let mut server = world.server()?;
        let image = world.images()?.tar("app")?;
        let cli = server.cli();
        create(&cli, &image, "app")?;
        cli.run(&["exec", "app", "--", "/bin/sh", "-c", "exit 7"])?
            .expect_code(7)?;
        let told = |args: &[&str]| -> Result<Vec<(String, u64)>> {
            let text = cli.output(&[&["events", "--no-follow", "--json"], args].concat())?;
            let events = text.lines().map(serde_json::from_str::<Value>);
            let events = events.collect::<Result<Vec<_>, _>>()?;
            let name = |event: &Value| event["event"].as_str().unwrap_or_default().to_owned();
            let number = |event: &Value| event["sequence"].as_u64().unwrap_or_default();
            Ok(events
                .iter()
                .map(|event| (name(event), number(event)))
                .collect())
        };
        let before = told(&["app"])?;
        for _ in 0..2 {
            server.kill()?;
            server.restart()?;
            cli.output(&["inspect", "app"])?;
        }
        for after in [told(&["app"])?, told(&["--since", "1h"])?] {
            ensure!(after.starts_with(&before), "{before:?}, then {after:?}");
            let found = after.iter().filter(|(name, _)| name == "found").count();
            ensure!(found == 2, "{after:?}");
            ensure!(after.is_sorted_by_key(|(_, number)| *number), "{after:?}");
        }
        cli.output(&["rm", "app"])?;
        Ok(())
    });
}
