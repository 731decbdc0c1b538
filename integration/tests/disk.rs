//! Disk limits and usage, from the command line down to the kernel and back.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use garden_integration::{Cli, DEADLINE, Leaks, World, check, skip, wait_until};
use serde_json::Value;

fn inspect(cli: &Cli, name: &str) -> Result<Value> {
    Ok(serde_json::from_str(
        &cli.output(&["inspect", "--json", name])?,
    )?)
}

/// Bytes that a container has written.
fn written(cli: &Cli, name: &str) -> Result<u64> {
    let disk = &inspect(cli, name)?["disk"];
    Ok(disk["exclusive_bytes"].as_u64().unwrap_or_default())
}

/// Puts the world's store on a btrfs with quota, which the world unmounts in its end.
fn store_on_btrfs(world: &World) -> Result<()> {
    let (image, store) = (
        world.directory().join("disk"),
        world.directory().join("store"),
    );
    std::fs::File::create(&image)?.set_len(600 << 20)?;
    std::fs::create_dir(&store)?;
    let run = |program: &str, args: &[&Path]| {
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{path}:/usr/sbin:/sbin");
        let done = Command::new(program).args(args).env("PATH", path).output();
        done.is_ok_and(|done| done.status.success())
    };
    if !run("mkfs.btrfs", &["-q".as_ref(), &image]) {
        return skip("no mkfs.btrfs");
    }
    // Numbers as of a second ago.
    let options = ["-t", "btrfs", "-o", "loop,commit=1"].map(Path::new);
    if !run("mount", &[&options[..], &[&image, &store]].concat()) {
        return skip("cannot mount btrfs from a file");
    }
    let on = ["quota", "enable"].map(Path::new);
    ensure!(
        run("btrfs", &[&on[..], &[&store]].concat()),
        "no quota on btrfs"
    );
    Ok(())
}

#[test]
fn a_limit_holds_for_containers_and_peas() {
    check(|world| {
        store_on_btrfs(world)?;
        let server = world.server()?;
        let cli = server.cli();
        let image = world.images()?.tar("app")?;
        let create = ["create", "--image", &image, "--name", "web"];
        cli.output(&[&create[..], &["--disk", "16M", "--disk-exclusive"]].concat())?;
        let fill = |mb: u32| format!("dd if=/dev/zero of=/tmp/{mb} bs=1000000 count={mb}");
        cli.output(&["exec", "web", "--", "/bin/sh", "-c", &fill(6)])?;
        let full = cli.run(&["exec", "web", "--", "/bin/sh", "-c", &fill(30)])?;
        full.expect_code(1)?;
        ensure!(full.stderr.contains("quota"), "{full:?}");

        // A pea has a root filesystem and a limit of its own.
        let pea = [
            "pea",
            "run",
            "web",
            "--image",
            &image,
            "--disk",
            "8M",
            "--disk-exclusive",
            "--",
        ];
        let run = |script: &str| cli.run(&[&pea[..], &["/bin/sh", "-c", script]].concat());
        run(&fill(3))?.expect_code(0)?;
        run(&fill(20))?.expect_code(1)?;
        let wrong = ["--disk", "100", "--", "/bin/true"];
        let small = cli.run(&[&["pea", "run", "web", "--image", &image], &wrong[..]].concat())?;
        small
            .expect_code(125)?
            .expect_one_line(&["disk limit is smaller than volume size", "100"])?;

        wait_until("what was written is counted", DEADLINE, || {
            Ok(written(&cli, "web")? >= 6_000_000)
        })?;
        let shown = inspect(&cli, "web")?;
        ensure!(written(&cli, "web")? <= 16 << 20, "{shown}");
        ensure!(shown["disk_limit"]["bytes"] == 16 << 20, "{shown}");
        ensure!(shown["events"] == Value::Array(Vec::new()), "{shown}");
        let text = cli.output(&["inspect", "web"])?;
        ensure!(text.contains("disk limit 16.0M written"), "{text}");
        cli.output(&["rm", "web"])?;
        Ok(())
    });
}

#[test]
fn a_limit_that_nobody_holds_is_told_or_refused() {
    check(|world| {
        let server = world.server()?;
        let cli = server.cli();
        let image = world.images()?.tar("app")?;
        cli.output(&["create", "--image", &image, "--name", "web", "--disk", "1G"])?;
        let shown = inspect(&cli, "web")?;
        let events = shown["events"].to_string();
        if !events.contains("Disk limit is not enforced") {
            cli.output(&["rm", "web"])?;
            return skip("the file system of the tests has quota");
        }
        ensure!(shown["disk_limit"]["bytes"] == 1 << 30, "{shown}");
        ensure!(shown["disk"]["total_bytes"].as_u64() > Some(0), "{shown}");
        cli.output(&["rm", "web"])?;
        drop(server);

        let strict = world.server_with(&["--without-quota", "refuse"])?;
        let cli = strict.cli();
        cli.output(&["run", "--image", &image, "--", "/bin/true"])?;
        let before = Leaks::now(world, Some(&strict));
        let refused = cli.run(&["run", "--image", &image, "--disk", "1G", "--", "/bin/true"])?;
        refused
            .expect_code(125)?
            .expect_one_line(&["the disk limit cannot be enforced"])?;
        before.expect_no_more(world, Some(&strict))
    });
}
