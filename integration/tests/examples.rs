//! Every example in the help of every command, run as it stands there.
//!
//! `garden examples` lists them, and a unit test of the command line holds every command to have
//! one. They run in one directory with the files that they speak of, against one server with the
//! containers that they speak of; what one of them took away is there again for the next.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, bail, ensure};
use garden_integration::{Cli, World, check};

/// Not run here, but elsewhere: the beginning of the line, and where.
const ELSEWHERE: [(&str, &str); 6] = [
    ("garden server", "every test starts servers"),
    (
        "garden setup",
        "it is about the whole host; tests/serving.rs",
    ),
    (
        "garden cleanup",
        "it is about the whole host; tests/serving.rs",
    ),
    ("garden scale", "it takes minutes; ci/bars"),
    ("garden repro", "it needs a disk of its own; tests/repro.rs"),
    ("garden pull", "they need registries; tests/pull.rs"),
];

/// Those that go on until they are interrupted: the whole line.
const ENDLESS: [&str; 2] = ["garden events", "garden attach web"];

/// Those that may have something to report about this host: the beginning of the line.
const MAY_FAIL: [(&str, i32); 2] = [("garden doctor", 1), ("garden wait db", 124)];

/// Places of a real host, and what stands for them here.
const PLACES: [(&str, &str); 1] = [("/etc/garden.toml", "garden.toml")];

#[test]
fn every_example_of_the_help_works() {
    check(|world| {
        let server = world.server()?;
        let cli = in_directory(world, server.cli())?;
        let listed = cli.output(&["examples"])?;
        let mut unused: BTreeSet<&str> = ELSEWHERE.iter().map(|(line, _)| *line).collect();
        unused.extend(ENDLESS);
        unused.extend(MAY_FAIL.iter().map(|(line, _)| *line));
        let mut failed = Vec::new();
        let mut count = 0;
        for listed in listed.lines() {
            let (_, line) = listed.split_once('\t').context("no tab")?;
            unused.retain(|known| !line.starts_with(known));
            if ELSEWHERE.iter().any(|(begin, _)| line.starts_with(begin)) {
                continue;
            }
            prepare(world, &cli, line)?;
            if let Err(error) = run(world, &cli, line) {
                failed.push(format!("{line}\n    {error:#}"));
            }
            // What an example has made is not what the next ones speak of.
            if let Some((_, made)) = line.split_once("--name ") {
                let name = made.split(' ').next().unwrap_or_default();
                cli.output(&["rm", "-f", name])?;
            }
            count += 1;
        }
        ensure!(failed.is_empty(), "examples fail:\n{}", failed.join("\n"));
        ensure!(count > 40, "only {count} examples were found");
        ensure!(unused.is_empty(), "no example is like {unused:?} any more");
        Ok(())
    });
}

/// Makes the files that examples speak of.
fn in_directory(world: &World, mut cli: Cli) -> Result<Cli> {
    let at = |name: &str| world.directory().join(name);
    let image = world.images()?.tar("busybox")?;
    fs::copy(&image, at("busybox.tar"))?;
    fs::copy(&image, at("probe.tar"))?;
    fs::copy(
        concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/pod.toml"),
        at("pod.toml"),
    )?;
    fs::create_dir(at("app"))?;
    fs::write(at("app/server"), "#!/bin/sh\n")?;
    fs::write(at("garden.toml"), "max-containers = 10\n")?;
    fs::write(at("config.ini"), "[server]\nmax-containers = 10\n")?;
    let check =
        r#"[{"name": "alive", "role": "liveness", "probe": {"exec": {"path": "/bin/true"}}}]"#;
    fs::write(at("checks.json"), check)?;
    cli.set("GARDEN_STORE", &at("store").to_string_lossy());
    Ok(cli)
}

fn file(world: &World, name: &str) -> String {
    world.directory().join(name).to_string_lossy().into_owned()
}

/// Makes the containers that an example speaks of.
fn prepare(world: &World, cli: &Cli, line: &str) -> Result<()> {
    let there = cli.output(&["ls", "-q"])?;
    let word = |name: &str| line.split(' ').any(|word| word == name);
    for name in ["web", "db", "job"] {
        let made = line.contains(&format!("--name {name}"));
        let exists = there.lines().any(|known| known == name);
        if made && exists {
            cli.output(&["rm", name])?;
        }
        if made || exists || !word(name) && !line.contains(&format!(" {name} ")) {
            continue;
        }
        let home = "mkdir -p /home/vcap/app; chown -R vcap /home/vcap";
        let script = match name {
            "web" => format!("{home}; touch /tmp/ok; echo up; exec sleep 10000"),
            "db" => "seq 1 20; exec sleep 10000".to_owned(),
            _ => "exit 0".to_owned(),
        };
        let image = file(world, "busybox.tar");
        let words = [image.as_str(), "sh", "-c", &script];
        match name {
            "job" => cli.output(&[&["create", "--name", name][..], &words].concat())?,
            _ => {
                let health = ["--health-cmd", "true", "--health-start-interval", "20ms"];
                let run = ["run", "-d", "--name", name];
                cli.output(&[&run[..], &health, &words].concat())?
            }
        };
    }
    if line.starts_with("garden health") || line.starts_with("garden wait web") {
        let checks = file(world, "checks.json");
        cli.output(&["health", "set", "web", &checks])?;
    }
    Ok(())
}

fn run(world: &World, cli: &Cli, line: &str) -> Result<()> {
    let mut line = line.to_owned();
    for (real, here) in PLACES {
        line = line.replace(real, here);
    }
    let endless = ENDLESS.contains(&line.as_str());
    let limit = if endless { "timeout -s INT 0.3 " } else { "" };
    // The programs beside it are found by its directory.
    let script = format!(
        "cd '{}' && PATH=$(dirname \"$garden\"):$PATH && {limit}{line}",
        world.directory().display()
    );
    let outcome = cli.shell(&script)?;
    let code = outcome.code.context("it was killed")?;
    let allowed = MAY_FAIL.iter().find(|(begin, _)| line.starts_with(begin));
    match code {
        0 if !endless => Ok(()),
        // timeout(1) says that it had to interrupt it.
        124 if endless => Ok(()),
        code if allowed.is_some_and(|(_, allowed)| code == *allowed) => Ok(()),
        _ => bail!("{outcome:?}"),
    }
}
