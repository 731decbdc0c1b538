//! Stopping and destroying: every process of every kind is reached, whoever waits is told, and
//! nothing that resists keeps a container alive.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use garden_integration::{App, Cli, DEADLINE, Leaks, Running, Server, World, check, wait_until};

/// Runs a script in each way in which a process can be in a container: beside its first one, as a
/// pea in its group, and as a pea with limits of its own. Returns when all of them said `up`.
fn one_of_each(cli: &Cli, image: &str, script: &str) -> Result<Vec<(&'static str, Running)>> {
    let words = ["--", "/bin/sh", "-c", script];
    let ways: [(&str, &[&str]); 3] = [
        ("a process", &["exec", "app"]),
        ("a pea", &["pea", "run", "app", "--image", image]),
        (
            "a pea with its own limits",
            &["pea", "run", "app", "--image", image, "--own-limits"],
        ),
    ];
    let mut all = Vec::new();
    for (what, way) in ways {
        let running = cli.start(&[way, &words].concat())?;
        running.wait_stdout("up")?;
        all.push((what, running));
    }
    Ok(all)
}

fn all_end_with(code: i32, all: Vec<(&'static str, Running)>) -> Result<()> {
    for (what, running) in all {
        running.finish()?.expect_code(code).context(what)?;
    }
    Ok(())
}

/// A server with a container `app` that runs nothing yet, and its image.
fn with_container(world: &World) -> Result<(Server<'_>, String)> {
    let server = world.server()?;
    let image = world.images()?.tar("app")?;
    create(&server.cli(), &image)?;
    Ok((server, image))
}

fn create(cli: &Cli, image: &str) -> Result<String> {
    cli.output(&["create", "--quiet", "--image", image, "--name", "app"])
}

const POLITE: &str = "echo up; sleep 1000 & wait; exit 1";
const STUBBORN: &str = "trap '' TERM; echo up; while :; do sleep 1; done";

#[test]
fn a_stop_reaches_every_process_and_pea() {
    check(|world| {
        let app = App::start(world)?;
        let cli = app.cli();
        // A sleep that a shell leaves behind is ended as well.
        let all = one_of_each(&cli, &app.image, "echo up; exec sleep 1000")?;
        cli.output(&["stop", "app"])?;
        all_end_with(143, all)?;
        app.running.finish()?.expect_code(143)?;
        Ok(())
    });
}

#[test]
fn a_stopped_container_can_be_used() {
    check(|world| {
        let (server, image) = with_container(world)?;
        let cli = server.cli();
        let all = one_of_each(&cli, &image, POLITE)?;
        cli.output(&["stop", "--kill", "app"])?;
        all_end_with(137, all)?;
        ensure!(cli.output(&["inspect", "app"])?.contains("stopped"));
        let said = cli.output(&["exec", "app", "--", "/bin/echo", "still there"])?;
        ensure!(said == "still there\n", "{said}");
        // With nothing to end, it is no error either.
        cli.output(&["stop", "app"])?;
        cli.output(&["rm", "app"])?;
        Ok(())
    });
}

#[test]
fn what_ignores_sigterm_is_killed_in_the_end() {
    check(|world| {
        let (server, image) = with_container(world)?;
        let cli = server.cli();
        let all = one_of_each(&cli, &image, STUBBORN)?;
        cli.output(&["stop", "app"])?;
        all_end_with(137, all)?;
        cli.output(&["rm", "app"])?;
        Ok(())
    });
}

#[test]
fn a_destroy_tells_every_client_and_leaves_nothing() {
    check(|world| {
        let server = world.server()?;
        let image = world.images()?.tar("app")?;
        let cli = server.cli();
        for round in 0..2 {
            let before = Leaks::now(world, Some(&server));
            create(&cli, &image)?;
            let all = one_of_each(&cli, &image, STUBBORN)?;
            cli.output(&["rm", "app"])?;
            all_end_with(137, all)?;
            cli.output(&["teardown", "wait"])?;
            // The first round makes what a server keeps.
            if round > 0 {
                before.expect_no_more(world, Some(&server))?;
            }
        }
        Ok(())
    });
}

#[test]
fn many_destroys_at_once_are_one() {
    check(|world| {
        let (server, image) = with_container(world)?;
        let cli = server.cli();
        let all = one_of_each(&cli, &image, STUBBORN)?;
        let clients: Vec<_> = (0..6)
            .map(|_| cli.start(&["rm", "app"]))
            .collect::<Result<_>>()?;
        let mut done = 0;
        for client in clients {
            let outcome = client.finish()?;
            if outcome.code == Some(0) {
                done += 1;
                continue;
            }
            let known = ["container already being destroyed", "unknown handle: app"];
            ensure!(
                known.iter().any(|text| outcome.stderr.contains(text)),
                "{outcome:?}"
            );
        }
        ensure!(done == 1, "{done} of them destroyed it");
        all_end_with(137, all)
    });
}

#[test]
fn a_frozen_container_is_destroyed() {
    check(|world| {
        let (server, image) = with_container(world)?;
        let cli = server.cli();
        let all = one_of_each(&cli, &image, POLITE)?;
        let below = format!("garden-{}/app", world.tag());
        let frozen = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .map(|root| PathBuf::from(root).join(&below))
            .into_iter()
            .find(|group| group.join("cgroup.freeze").exists());
        let Some(group) = frozen else {
            return garden_integration::skip("cgroup v2, to freeze a container");
        };
        std::fs::write(group.join("cgroup.freeze"), "1")?;
        wait_until("the container is frozen", DEADLINE, || {
            let events = std::fs::read_to_string(group.join("cgroup.events"))?;
            Ok(events.contains("frozen 1"))
        })?;
        cli.output(&["rm", "app"])?;
        all_end_with(137, all)
    });
}

#[test]
fn a_container_frozen_by_the_v1_freezer_is_destroyed() {
    check(|world| {
        let freezer = PathBuf::from("/sys/fs/cgroup/freezer");
        if !freezer.join("cgroup.procs").exists() {
            return garden_integration::skip("the cgroup v1 freezer");
        }
        let (server, image) = with_container(world)?;
        let cli = server.cli();
        let all = one_of_each(&cli, &image, POLITE)?;
        // Swept with everything that carries the tag, if this fails.
        let group = freezer.join(format!("frozen-{}", world.tag()));
        std::fs::create_dir(&group)?;
        let shown = cli.output(&["inspect", "app", "--json"])?;
        let shown: serde_json::Value = serde_json::from_str(&shown)?;
        let processes = shown["processes"].as_array().context("no processes")?;
        ensure!(processes.len() == 3, "{shown}");
        for process in processes {
            let pid = process["pid"].as_i64().context("no pid")?.to_string();
            std::fs::write(group.join("cgroup.procs"), pid)?;
        }
        std::fs::write(group.join("freezer.state"), "FROZEN")?;
        wait_until("they are frozen", DEADLINE, || {
            let state = std::fs::read_to_string(group.join("freezer.state"))?;
            Ok(state.trim() == "FROZEN")
        })?;
        cli.output(&["rm", "app"])?;
        all_end_with(137, all)?;
        wait_until("nothing is left in the group", DEADLINE, || {
            Ok(std::fs::remove_dir(&group).is_ok())
        })
    });
}

/// A process of the host that sits in a group keeps the group from being removed: on v1, where it
/// can be in one hierarchy only and is not killed with the container.
#[test]
fn what_cannot_be_taken_away_is_shown_and_keeps_nobody() {
    check(|world| {
        let (mut server, image) = with_container(world)?;
        let cli = server.cli();
        let group = PathBuf::from(format!("/sys/fs/cgroup/memory/garden-{}/app", world.tag()));
        if !group.exists() {
            return garden_integration::skip("cgroup v1, where a group may be busy");
        }
        let mut guest = std::process::Command::new("sleep").arg("1000").spawn()?;
        let stays = || -> Result<()> {
            std::fs::write(group.join("cgroup.procs"), guest.id().to_string())?;
            cli.output(&["rm", "app"])?;
            wait_until("its cgroup is said to be busy", DEADLINE, || {
                let left = cli.output(&["teardown", "ls"])?;
                Ok(left.contains("cgroup") && left.contains("cannot remove the cgroup"))
            })?;
            // The handle is free, and the teardown of others goes by.
            create(&cli, &image)?;
            cli.output(&["rm", "app"])?;
            wait_until("only the busy one is left", DEADLINE, || {
                Ok(cli.output(&["teardown", "ls"])?.lines().count() == 2)
            })
        };
        let stayed = stays();
        // It outlives a restart, and ends when what blocks it does.
        server.kill()?;
        server.restart()?;
        let left = server.cli().output(&["teardown", "ls"])?;
        guest.kill()?;
        guest.wait()?;
        stayed?;
        ensure!(left.contains("app"), "{left}");
        server.cli().output(&["teardown", "wait"])?;
        ensure!(!group.exists());
        Ok(())
    });
}
