//! `garden pull`, `doctor`, and the bars that a person sees.

use std::num::NonZero;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use garden_integration::{DEADLINE, World, check, skip, wait_until};
use serde_json::Value;

#[test]
fn an_image_is_there_before_it_is_needed() {
    check(|world| {
        let server = world.server()?;
        let cli = server.cli();
        let image = world.images()?.oci("layered")?;
        let said = cli.output(&["pull", &image])?;
        ensure!(said.starts_with(&format!("{image}: 2 layers, ")), "{said}");
        ensure!(said.lines().count() == 1, "{said}");
        let pulled: Value = serde_json::from_str(&cli.output(&["pull", "--json", &image])?)?;
        ensure!(
            pulled["layers"] == 2 && pulled["bytes"].as_u64() > Some(0),
            "{pulled}"
        );
        ensure!(
            pulled["id"]
                .as_str()
                .is_some_and(|id| id.starts_with("sha256:"))
        );
        ensure!(cli.output(&["pull", "--quiet", &image])?.is_empty());
        // The source may go: what was pulled is used as long as the source says the same.
        let said = cli.output(&["run", "--image", &image, "--", "cat", "/etc/second"])?;
        ensure!(said == "second layer", "{said}");
        let missing = world.images()?.missing()?;
        let outcome = cli.run(&["pull", &missing])?;
        outcome.expect_code(125)?.expect_one_line(&[&missing])?;
        Ok(())
    });
}

#[test]
fn without_a_server_the_store_itself_is_filled() {
    check(|world| {
        let groot = world.grootfs()?;
        groot.init(&[])?;
        let image = world.images()?.oci("layered")?;
        let cli = world.hosted();
        let said = cli.output(&["pull", &image])?;
        ensure!(said.starts_with(&format!("{image}: 2 layers, ")), "{said}");
        ensure!(groot.names("layers").len() == 2);
        // A process that nobody waits for makes them durable.
        wait_until("the layers are durable", DEADLINE, || {
            let layers = groot.store().join("layers");
            let durable = |name: &String| layers.join(name).join("durable").exists();
            Ok(groot.names("layers").iter().all(durable))
        })?;
        let store = groot.store_text();
        let said = cli.output(&["doctor", "--store", store])?;
        for line in [
            "kernel",
            "overlay",
            "1 images, 2 layers, 0 root filesystems",
        ] {
            ensure!(said.contains(line), "{said}");
        }
        let rows: Value =
            serde_json::from_str(&cli.output(&["doctor", "--json", "--store", store])?)?;
        let rows = rows.as_array().context("no list")?;
        ensure!(
            rows.iter()
                .all(|row| row["check"].is_string() && row["found"].is_string())
        );
        let said = cli.output(&["rootfs", "--store", store, "check"])?;
        ensure!(said.ends_with("all is well\n"), "{said}");
        damage(world, &groot)
    });
}

/// A damaged file is found, and the layer taken out of the way.
fn damage(world: &World, groot: &garden_integration::Grootfs) -> Result<()> {
    let layers = groot.store().join("layers");
    let names = groot.names("layers");
    let file = names
        .iter()
        .map(|name| layers.join(name).join("tree/etc/second"))
        .find(|file| file.exists())
        .context("no such file")?;
    std::fs::write(&file, "second laYer")?;
    let outcome = groot.run(&["check"])?;
    outcome.expect_code(1)?;
    ensure!(outcome.stdout.contains("etc/second"), "{outcome:?}");
    groot.run(&["check", "--repair"])?.expect_code(0)?;
    ensure!(groot.output(&["check"])?.ends_with("all is well\n"));
    let image = world.images()?.oci("layered")?;
    let root = groot.create_mounted(&image, "a")?;
    ensure!(std::fs::read_to_string(root.join("etc/second"))? == "second layer");
    groot.output(&["delete", "a"])?;
    groot.wait_until_cleared()
}

#[test]
fn bars_are_drawn_on_a_terminal_only() {
    check(|world| {
        if Command::new("script").arg("--version").output().is_err() {
            return skip("script(1), for a terminal");
        }
        let groot = world.grootfs()?;
        groot.init(&[])?;
        let image = world.images()?.oci("layered")?;
        let program = groot.program().replace("/grootfs", "/garden");
        std::os::unix::fs::symlink(std::fs::read_link(groot.program())?, &program)?;
        let on_terminal = |command: &str| {
            let command = format!("{program} --socket /nowhere {command}");
            let output = Command::new("script")
                .args(["--quiet", "--return", "--command", &command, "/dev/null"])
                .env("TERM", "xterm")
                .stdin(Stdio::null())
                .env("GARDEN_IT_TAG", world.tag())
                .output()?;
            ensure!(output.status.success(), "{output:?}");
            Ok::<_, anyhow::Error>(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let pull = |flags: &str| format!("pull {flags} --store {} {image}", groot.store_text());
        let seen = on_terminal(&pull(""))?;
        ensure!(seen.contains("2 of 2 layers"), "{seen:?}");
        let left = screen(&seen);
        ensure!(left.starts_with(&format!("{image}: 2 layers, ")), "{left}");
        ensure!(left.lines().count() == 1, "{left}");
        let seen = on_terminal(&pull("--quiet"))?;
        ensure!(seen.is_empty(), "{seen:?}");
        // What the command says has the screen to itself.
        let image = world.images()?.oci("other")?;
        let seen = on_terminal(&format!(
            "run --runtime-dir {0}/run --store {0}/store --tag {1} --image {image} -- cat /etc/second",
            world.directory().join("own").display(),
            world.tag()
        ))?;
        ensure!(seen.contains("2 of 2 layers"), "{seen:?}");
        ensure!(screen(&seen) == "second layer", "{}", screen(&seen));
        Ok(())
    });
}

/// What a person sees on a terminal at the end.
fn screen(written: &str) -> String {
    let (rows, columns) = const { (NonZero::new(24).unwrap(), NonZero::new(200).unwrap()) };
    let mut terminal = vt100::Parser::new(rows, columns, 0);
    terminal.process(written.as_bytes());
    terminal.screen().contents()
}
