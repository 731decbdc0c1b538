//! One test's own world, and the frame that every test runs in.
//!
//! [`check`] makes a [`World`], runs the test in it, shows the logs of its servers when it failed,
//! and removes everything with its tag whatever happened. Tests of one process run beside each
//! other, so every name comes from the world's tag.

use std::any::Any;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};

use crate::cli::Cli;
use crate::grootfs::Grootfs;
use crate::images::Images;
use crate::server::Server;
use crate::sweep;

static STALE: Once = Once::new();
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Lines of a server's log that a failure shows.
const LOG_LINES: usize = 60;

/// What one test may call its own.
pub struct World {
    tag: String,
    directory: PathBuf,
    program: PathBuf,
}

/// Why a test cannot run on this host.
#[derive(Debug)]
struct Skip(String);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this host lacks what the test needs: {}", self.0)
    }
}

impl std::error::Error for Skip {}

/// Ends a test as skipped, with the reason: what the host lacks.
///
/// # Errors
/// Always: the error that [`check`] knows.
pub fn skip<T>(reason: &str) -> Result<T> {
    Err(anyhow::Error::new(Skip(reason.to_owned())))
}

/// Runs a test in a world of its own.
///
/// # Panics
/// When the test failed; that is how libtest is told.
pub fn check(test: impl FnOnce(&World) -> Result<()>) {
    let name = std::thread::current().name().unwrap_or("test").to_owned();
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED {name}: it needs root");
        return;
    }
    STALE.call_once(sweep::stale);
    let world = match World::new() {
        Ok(world) => world,
        Err(error) => panic!("no world for {name}: {error:#}"),
    };
    let result = catch_unwind(AssertUnwindSafe(|| test(&world)));
    let failure = match &result {
        Ok(Ok(())) => None,
        Ok(Err(error)) if error.is::<Skip>() => {
            if let Some(Skip(reason)) = error.downcast_ref() {
                println!("SKIPPED {name}: {reason}");
            }
            None
        }
        Ok(Err(error)) => Some(format!("{error:#}")),
        Err(panic) => Some(panic_text(panic.as_ref())),
    };
    if failure.is_some() {
        world.show_log();
    }
    drop(world);
    if let Some(failure) = failure {
        println!("{name}: {failure}");
        // Past the hook of panics, whose backtrace would be that of this line.
        resume_unwind(Box::new(failure));
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "a panic without a text".to_owned())
}

impl World {
    fn new() -> Result<Self> {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let tag = sweep::tag(count);
        let program = program()?;
        let directory = sweep::claim(&tag)?;
        Ok(Self {
            tag,
            directory,
            program,
        })
    }

    /// The text that all names of this world on the host contain.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// A directory of its own.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Images for it.
    pub fn images(&self) -> Result<Images> {
        Images::new(self.directory.join("images"))
    }

    /// Starts a server in it.
    pub fn server(&self) -> Result<Server<'_>> {
        Server::start(self, &[])
    }

    /// Starts a server in it with further options.
    pub fn server_with(&self, options: &[&str]) -> Result<Server<'_>> {
        Server::start(self, options)
    }

    /// Starts a server in it whose process is in this cgroup v2 group.
    pub fn server_in(&self, group: &Path) -> Result<Server<'_>> {
        Server::start_in(self, group)
    }

    /// Command lines without a server: each hosts one of its own for as long as it lives.
    pub fn hosted(&self) -> Cli {
        let mut cli = self.cli();
        // Nothing listens there, so that no server of the host is used by mistake.
        let nowhere = self.directory.join("nowhere.sock");
        cli.env.extend([
            ("GARDEN_SOCKET", nowhere.into()),
            ("GARDEN_RUNTIME_DIR", self.runtime_dir().into()),
            ("GARDEN_STORE", self.store().into()),
            ("GARDEN_TAG", OsString::from(&self.tag)),
        ]);
        cli
    }

    /// The program as GrootFS, with the world's store.
    pub fn grootfs(&self) -> Result<Grootfs> {
        Grootfs::new(self, "store")
    }

    /// The same with another store.
    pub fn grootfs_in(&self, store: &str) -> Result<Grootfs> {
        Grootfs::new(self, store)
    }

    pub(crate) fn cli(&self) -> Cli {
        Cli {
            program: self.program.clone(),
            env: self.env(),
        }
    }

    /// What marks a process as this world's, so that it is swept away with it.
    pub fn marks(&self) -> Vec<(&'static str, OsString)> {
        self.env()
    }

    /// What marks every process of this world.
    pub(crate) fn env(&self) -> Vec<(&'static str, OsString)> {
        vec![
            ("GARDEN_IT_TAG", OsString::from(&self.tag)),
            // The machine's own network is nobody's to change; see `Internet` for those with one.
            ("GARDEN_NETWORK", "none".into()),
        ]
    }

    /// The built program, for a test that starts it in a way of its own; with [`World::marks`].
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Where the records of its servers are.
    pub fn runtime_dir(&self) -> PathBuf {
        self.directory.join("run")
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.directory.join("store")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.directory.join("server.log")
    }

    /// What the world's servers logged.
    pub fn server_log(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    fn show_log(&self) {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
            println!("server: {line}");
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        sweep::tagged(&self.tag);
    }
}

/// The built program: `GARDEN_BIN`, else the one of the build that this test belongs to.
fn program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("GARDEN_BIN") {
        return Ok(path.into());
    }
    // target/<profile>/deps/<test>: the programs of the same profile are one up.
    let test = std::env::current_exe()?;
    let profile = test.ancestors().nth(2).context("no target directory")?;
    let program = profile.join("garden");
    for needed in [&program, &profile.join("garden-shim")] {
        ensure!(
            needed.exists(),
            "{} is missing: run cargo build first",
            needed.display()
        );
    }
    Ok(program)
}
