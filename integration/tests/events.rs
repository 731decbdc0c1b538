//! The stream of events, as `garden events` shows it.

use anyhow::{Context, Result, ensure};
use garden_integration::{App, check};
use rustix::process::Signal;
use serde_json::Value;

fn parsed(text: &str) -> Result<Vec<Value>> {
    let lines = text.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().context(text.to_owned())
}

#[test]
fn a_life_is_told_in_order() {
    check(|world| {
        let server = world.server()?;
        let listening = server.cli().start(&["events", "--json", "--since", "1h"])?;
        let app = App::start_on(world, server)?;
        app.run_pea("root", "exit 7")?.expect_code(7)?;
        app.cli().output(&["stop", "app", "--kill"])?;
        let _ = app.running.finish()?;
        listening.wait_stdout("\"handle\":\"app\",\"event\":\"teardown_done\"")?;
        listening.signal(Signal::INT)?;
        let outcome = listening.finish()?;
        outcome.expect_code(130)?;
        let events = parsed(&outcome.stdout)?;
        let mine = events.iter().filter(|event| event["handle"] == "app");
        let names: Vec<_> = mine
            .clone()
            .filter_map(|event| event["event"].as_str())
            .collect();
        let at = |name: &str| names.iter().position(|event| *event == name);
        let order = [
            "created",
            "started",
            "pea_started",
            "pea_exited",
            "stopped",
            "destroyed",
        ];
        let places: Vec<_> = order.iter().map(|name| at(name)).collect();
        ensure!(
            places.iter().all(Option::is_some) && places.is_sorted(),
            "{names:?}"
        );
        let mut mine = mine;
        let exited = mine
            .find(|event| event["event"] == "pea_exited")
            .context("no exit")?;
        ensure!(exited["code"] == 7 && exited["oom"] == false, "{exited}");
        let numbers: Vec<_> = events
            .iter()
            .filter_map(|event| event["sequence"].as_u64())
            .collect();
        ensure!(
            numbers.windows(2).all(|pair| pair[0] < pair[1]),
            "{numbers:?}"
        );
        Ok(())
    });
}

#[test]
fn what_is_remembered_can_be_chosen() {
    check(|world| {
        let app = App::start(world)?;
        app.exec("exit 0")?;
        let past = ["events", "app", "--no-follow", "--json"];
        let all = parsed(&app.cli().output(&past)?)?;
        ensure!(all.iter().all(|event| event["handle"] == "app"), "{all:?}");
        ensure!(
            all.iter().any(|event| event["event"] == "created"),
            "{all:?}"
        );
        let only = [past.as_slice(), &["--kind", "exited"]].concat();
        let only = parsed(&app.cli().output(&only)?)?;
        ensure!(!only.is_empty() && only.iter().all(|event| event["event"] == "exited"));
        let other = ["events", "other", "--no-follow", "--json"];
        ensure!(app.cli().output(&other)?.is_empty());
        app.end()
    });
}

#[test]
fn a_server_that_stops_ends_the_stream() {
    check(|world| {
        let mut server = world.server()?;
        let listening = server.cli().start(&["events"])?;
        server.terminate()?;
        listening.finish()?;
        Ok(())
    });
}
