//! `garden` as GrootFS: called through a link of that name, with a store of the test's own.
//!
//! The link is what Guardian would be configured with. The store is the test's, so that what is
//! left in it counts as left behind.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cli::{Cli, Outcome};
use crate::wait::{DEADLINE, wait_until};
use crate::world::World;

/// The id map of an unprivileged store as BOSH has it: root is the highest id.
pub const MAPPED: &[&str] = &[
    "--uid-mapping",
    "0:4294967294:1",
    "--uid-mapping",
    "1:1:4294967293",
    "--gid-mapping",
    "0:4294967294:1",
    "--gid-mapping",
    "1:1:4294967293",
];

/// A command line with a store.
pub struct Grootfs {
    cli: Cli,
    link: PathBuf,
    store: PathBuf,
}

impl Grootfs {
    pub(crate) fn new(world: &World, store: &str) -> Result<Self> {
        let mut cli = world.cli();
        let link = world.directory().join("grootfs");
        if !link.exists() {
            symlink(&cli.program, &link)?;
        }
        cli.program.clone_from(&link);
        Ok(Self {
            cli,
            link,
            store: world.directory().join(store),
        })
    }

    /// The program.
    pub fn program(&self) -> &str {
        self.link.to_str().unwrap_or_default()
    }

    /// The store's directory.
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// The same as a flag's value.
    pub fn store_text(&self) -> &str {
        self.store.to_str().unwrap_or_default()
    }

    /// Runs a command on the store.
    pub fn run(&self, args: &[&str]) -> Result<Outcome> {
        self.run_plain(&[&["--store", self.store_text()], args].concat())
    }

    /// Runs a command line as it is.
    pub fn run_plain(&self, args: &[&str]) -> Result<Outcome> {
        self.cli.run(args)
    }

    /// Runs a command that must succeed, and gives what it printed.
    pub fn output(&self, args: &[&str]) -> Result<String> {
        let outcome = self.run(args)?;
        outcome.expect_code(0)?;
        ensure!(outcome.stderr.is_empty(), "it logged: {outcome:?}");
        Ok(outcome.stdout)
    }

    /// Makes the store.
    pub fn init(&self, flags: &[&str]) -> Result<()> {
        let said = self.output(&[&["init-store"], flags].concat())?;
        ensure!(said.is_empty(), "init-store said {said:?}");
        Ok(())
    }

    /// Makes a root filesystem.
    pub fn create(&self, flags: &[&str], image: &str, id: &str) -> Result<Value> {
        let said = self.output(&[&["create"], flags, &[image, id]].concat())?;
        ensure!(said.lines().count() == 1, "not one line: {said:?}");
        serde_json::from_str(&said).with_context(|| format!("not JSON: {said:?}"))
    }

    /// Makes one, and gives its root path, at which it is mounted.
    pub fn create_mounted(&self, image: &str, id: &str) -> Result<PathBuf> {
        let fragment = self.create(&[], image, id)?;
        let path = fragment["root"]["path"].as_str().context("no root.path")?;
        ensure!(is_mount_point(Path::new(path))?, "{path} is not mounted");
        Ok(path.into())
    }

    /// Names in a directory of the store.
    pub fn names(&self, directory: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.store.join(directory));
        let mut names: Vec<_> = (entries.into_iter().flatten().flatten())
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// Waits until the trash is empty: a process of its own empties it.
    pub fn wait_until_cleared(&self) -> Result<()> {
        wait_until("the trash is empty", DEADLINE, || {
            Ok(self.names("trash").is_empty())
        })
    }
}

/// A store that was made, and an image.
pub fn ready(world: &World, flags: &[&str]) -> Result<(Grootfs, String)> {
    let groot = world.grootfs()?;
    groot.init(flags)?;
    Ok((groot, world.images()?.tar("app")?))
}

/// Whether something is mounted there.
pub fn is_mount_point(path: &Path) -> Result<bool> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let path = path.to_str().context("a path that is no UTF-8")?;
    Ok(mounts
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(path)))
}
