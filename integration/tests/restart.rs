//! A server that is killed and started again while many processes run: every status and every byte
//! is there.

use std::fs;

use anyhow::{Result, ensure};
use garden_integration::{DEADLINE, check, wait_until};

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
