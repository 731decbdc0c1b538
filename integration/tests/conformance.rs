//! The wire API as the stock Go client speaks it: an independent client in Python
//! (`integration/conformance`) plays the worked exchanges, the traps and the oddities.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use garden_integration::{Internet, Server, World, check, skip};

#[test]
fn the_worked_exchanges() {
    check(|world| play(world, "test_worked"));
}

#[test]
fn the_traps() {
    check(|world| play(world, "test_traps"));
}

#[test]
fn the_oddities() {
    check(|world| play(world, "test_oddities"));
}

#[test]
fn the_network() {
    check(|world| {
        let internet = Internet::new(world)?;
        let server = internet.server(&[])?;
        play_against(world, "test_network", &server)
    });
}

#[test]
fn what_the_description_of_the_api_says() {
    check(|world| play(world, "test_schema"));
}

#[test]
fn clients_that_no_server_should_have() {
    check(|world| play(world, "test_abuse"));
}

/// Runs one of the modules against a server of its own.
fn play(world: &World, module: &str) -> Result<()> {
    let server = world.server()?;
    play_against(world, module, &server)
}

fn play_against(world: &World, module: &str, server: &Server<'_>) -> Result<()> {
    if Command::new("python3").arg("--version").output().is_err() {
        return skip("python3");
    }
    let image = world.images()?.tar("conformance")?;
    let output = Command::new("python3")
        .args(["-B", "-m", "unittest", "--verbose", module])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance"))
        .env("GARDEN_CONFORMANCE_SOCKET", server.socket())
        .env("GARDEN_CONFORMANCE_IMAGE", image)
        .env("GARDEN_CONFORMANCE_DIR", world.directory())
        .env("GARDEN_CONFORMANCE_PID", server.pid().to_string())
        .output()
        .context("running the client")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    ensure!(!said.contains("Ran 0 tests"), "{said}");
    Ok(())
}
