//! Configuration files of the server: obeyed, overridden, refused.

use anyhow::{Result, ensure};
use garden_integration::{World, check};
use serde_json::Value;

fn file(world: &World, name: &str, text: &str) -> Result<String> {
    let path = world.directory().join(name);
    std::fs::write(&path, text)?;
    Ok(path.to_string_lossy().into_owned())
}

#[test]
fn a_server_obeys_its_file() {
    check(|world| {
        let image = world.images()?.tar("base")?;
        let text = format!("[server]\ndefault-rootfs = {image}\nmax-containers = 1\n");
        let ini = file(world, "config.ini", &text)?;
        let server = world.server_with(&["--config", &ini])?;
        let cli = server.cli();
        cli.output(&["create", "--image", &image, "--name", "first"])?;
        let refused = cli.run(&["create", "--image", &image, "--name", "second"])?;
        refused.expect_code(125)?;
        ensure!(
            refused.stderr.contains("max containers reached"),
            "{refused:?}"
        );
        cli.output(&["rm", "first"])?;
        Ok(())
    });
}

#[test]
fn what_a_value_is_from_is_shown() {
    check(|world| {
        let cli = world.hosted();
        let toml = file(
            world,
            "c.toml",
            "max-containers = 7\ncollect-below = '3%'\n",
        )?;
        let said = cli.output(&[
            "config",
            "--config",
            &toml,
            "--collect-below",
            "4%",
            "--json",
        ])?;
        let all: Vec<Value> = serde_json::from_str(&said)?;
        let of = |flag: &str| {
            let found = all.iter().find(|one| one["flag"] == flag);
            found.map(|one| (one["values"][0].clone(), one["source"].clone()))
        };
        ensure!(
            of("max-containers") == Some(("7".into(), "file".into())),
            "{said}"
        );
        ensure!(
            of("collect-below") == Some(("4%".into(), "command line".into())),
            "{said}"
        );
        ensure!(
            of("collect-until") == Some(("10%".into(), "default".into())),
            "{said}"
        );
        let bad = file(world, "bad.ini", "[server]\nno-such-flag = 1\n")?;
        let refused = cli.run(&["server", "--config", &bad])?;
        refused
            .expect_code(125)?
            .expect_one_line(&["line 2", "--no-such-flag"])?;
        Ok(())
    });
}
