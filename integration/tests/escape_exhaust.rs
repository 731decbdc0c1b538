//! Using up what a container may use: processes, descriptors, memory behind files, arguments. It must
//! be the container's own affair; the server and the other containers go on, and what did it can be
//! removed.

use anyhow::{Context, Result, ensure};
use garden_integration::{App, check, lines_of};

/// That another container, and new ones, are as if nothing was.
fn others_live(app: &App<'_>) -> Result<()> {
    let cli = app.cli();
    let args = ["run", "--image", &app.image, "--", "/bin/echo", "alive"];
    ensure!(cli.output(&args)?.trim() == "alive");
    let listed = cli.output(&["ls"])?;
    ensure!(listed.contains("app"), "{listed}");
    Ok(())
}

#[test]
fn a_fork_bomb_stays_within_its_limit() {
    check(|world| {
        let app = App::start_hostile(world, &["--pids", "40"])?;
        let bomb = app
            .cli()
            .start(&["exec", "app", "--", "/bin/attacker", "forks"])?;
        bomb.wait_stdout("forked ")?;
        // Nothing more fits, which is said, and nobody else notices.
        let script = "(/bin/true) && echo room";
        let fork = ["exec", "app", "--", "/bin/sh", "-c", script];
        let outcome = app.cli().run(&fork)?;
        ensure!(!outcome.stdout.contains("room"), "{outcome:?}");
        others_live(&app)?;
        // Removed with everything in it, although there is no room to run anything there.
        app.cli().output(&["rm", "app"])?;
        let outcome = bomb.finish()?;
        let forked = outcome
            .stdout
            .trim()
            .strip_prefix("forked ")
            .context("a number")?;
        let forked: u32 = forked.parse()?;
        ensure!((1..40).contains(&forked), "{forked} processes of 40");
        Ok(())
    });
}

#[test]
fn descriptors_are_ones_own() {
    check(|world| {
        let app = App::start_hostile(world, &[])?;
        let hungry = [
            "exec",
            "app",
            "--ulimit",
            "nofile=1024",
            "--",
            "/bin/attacker",
            "files",
        ];
        let before = app.server.open_files();
        let holders: Vec<_> = (0..3)
            .map(|_| app.cli().start(&hungry))
            .collect::<Result<_>>()?;
        for holder in &holders {
            holder.wait_stdout("full 24")?;
        }
        others_live(&app)?;
        ensure!(app.exec("echo alive")?.trim() == "alive");
        let now = app.server.open_files();
        ensure!(
            now < before + 100,
            "the server pays: {before} files before, {now} now"
        );
        for holder in holders {
            holder.finish()?.expect_code(0)?;
        }
        app.end()
    });
}

/// What lies in the file systems of memory that every container has counts to its memory.
#[test]
fn files_in_memory_are_counted() {
    check(|world| {
        let app = App::start_hostile(world, &["--memory", "64M"])?;
        let script = |place: &str| {
            format!(
                "dd if=/dev/zero of={place}/x bs=1M count=200 2>/dev/null; wc -c <{place}/x; rm -f {place}/x"
            )
        };
        let most = 64_u64 << 20;
        for place in ["/dev/shm", "/dev"] {
            let command = script(place);
            for args in [
                vec!["exec", "app", "--", "/bin/sh", "-c", &command],
                vec![
                    "pea", "run", "app", "--image", &app.image, "--", "/bin/sh", "-c", &command,
                ],
            ] {
                let outcome = app.cli().run(&args)?;
                // Killed with its shell, or just dd: then what it wrote is told.
                let written = lines_of(&outcome.stdout)
                    .first()
                    .map(|text| text.parse::<u64>());
                let within = !matches!(written, Some(Ok(bytes)) if bytes > most);
                ensure!(within, "{place}: {outcome:?}");
                ensure!(
                    written.is_some() || outcome.code != Some(0),
                    "{place}: {outcome:?}"
                );
            }
        }
        others_live(&app)?;
        Ok(())
    });
}

#[test]
fn arguments_and_environments_of_any_size() {
    check(|world| {
        let app = App::start_hostile(world, &[])?;
        let long = "x".repeat(100_000);
        // 100 kB, 1 MB and what is more than the kernel takes with a small stack.
        for (count, stack) in [(1, "unlimited"), (10, "unlimited"), (14, "262144")] {
            let mut args = vec!["exec", "app", "--ulimit"];
            let limit = format!("stack={stack}");
            args.extend([limit.as_str(), "--", "/bin/sh", "-c", "echo $#", "sh"]);
            args.extend(std::iter::repeat_n(long.as_str(), count));
            let outcome = app.cli().run(&args)?;
            let told = outcome.code == Some(0) && outcome.stdout.trim() == count.to_string();
            ensure!(
                told || outcome.code != Some(0),
                "{count}: {}",
                outcome.stdout
            );
            ensure!(
                told || count == 14,
                "{count} times 100 kB: {}",
                outcome.stderr
            );
        }
        let variables: Vec<String> = (0..5000).map(|n| format!("VARIABLE_{n}=value")).collect();
        let mut args = vec!["exec", "app"];
        for variable in &variables {
            args.extend(["--env", variable]);
        }
        args.extend(["--", "/bin/sh", "-c", "env | grep -c VARIABLE_"]);
        ensure!(app.cli().output(&args)?.trim() == "5000");
        others_live(&app)?;
        app.end()
    });
}

/// Signals to the first process, which is Garden's, and to all that can be seen.
#[test]
fn signals_do_not_leave_the_container() {
    check(|world| {
        let app = App::start_hostile(world, &[])?;
        for signal in ["KILL", "STOP", "TERM", "SEGV"] {
            let script = format!(
                "kill -{signal} 1 2>/dev/null; kill -{signal} 0 2>/dev/null; kill -{signal} -- -1"
            );
            for args in [
                vec!["exec", "app", "--", "/bin/sh", "-c", &script],
                vec![
                    "pea", "run", "app", "--image", &app.image, "--", "/bin/sh", "-c", &script,
                ],
            ] {
                // Whoever stops itself is ended from outside.
                if signal != "STOP" {
                    app.cli().run(&args)?;
                }
            }
            ensure!(app.exec("kill -STOP 1; kill -KILL 1; echo alive")?.trim() == "alive");
        }
        others_live(&app)
    });
}
