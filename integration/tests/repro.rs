//! `garden repro`: it runs, tells what it measured, and leaves nothing.

use anyhow::{Result, ensure};
use garden_integration::check;
use serde_json::Value;

#[test]
fn unmounts_are_timed_in_every_way() {
    check(|world| {
        let cli = world.hosted();
        let said = cli.output(&[
            "repro",
            "unmount",
            "--mounts",
            "2",
            "--megabytes",
            "3",
            "--json",
        ])?;
        let report: Value = serde_json::from_str(&said)?;
        let ways = report["ways"].as_array().map_or(0, Vec::len);
        ensure!(ways == 4, "{said}");
        ensure!(report["setting"]["file_system"] == "ext4", "{said}");
        for way in report["ways"].as_array().into_iter().flatten() {
            let ended = way["ended"].as_array().map_or(0, Vec::len);
            ensure!(ended == 2 || way["way"] == "volatile", "{way}");
        }
        ensure!(report["verdict"].is_string());
        Ok(())
    });
}

#[test]
fn a_directory_is_left_as_it_was() {
    check(|world| {
        let cli = world.hosted();
        let directory = world.directory().join("here");
        std::fs::create_dir(&directory)?;
        let text = directory.to_string_lossy();
        let said = cli.output(&[
            "repro",
            "unmount",
            "--on",
            &text,
            "--mounts",
            "1",
            "--megabytes",
            "1",
            "--way",
            "plain",
            "--way",
            "volatile",
        ])?;
        ensure!(
            said.contains("WAY") && said.to_lowercase().contains("affected:"),
            "{said}"
        );
        ensure!(std::fs::read_dir(&directory)?.next().is_none());
        Ok(())
    });
}

#[test]
fn what_cannot_be_is_refused() {
    check(|world| -> Result<()> {
        let cli = world.hosted();
        let outcome = cli.run(&["repro", "unmount", "--on", "/nowhere-at-all"])?;
        outcome.expect_code(125)?;
        let outcome = cli.run(&["repro", "unmount", "--on", "/", "--fs", "xfs"])?;
        outcome.expect_code(2)?;
        Ok(())
    });
}
