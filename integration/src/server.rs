//! A server of a test's own: started, killed, started again.
//!
//! Its socket, runtime directory, store, tag and log all belong to the test's [`World`]. It writes
//! its log to a file that the world shows when the test fails. Killing it leaves its containers be,
//! as the product promises; the world removes them in the end.

use std::fs::OpenOptions;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::cli::{Cli, ended_within_deadline};
use crate::internet::Machine;
use crate::wait::{DEADLINE, wait_until};
use crate::world::World;
use crate::{http, proc};

/// A running server, or the place of one that was killed.
pub struct Server<'w> {
    world: &'w World,
    socket: PathBuf,
    options: Vec<String>,
    /// The cgroup v2 group that it is started in, if not the test's own.
    group: Option<PathBuf>,
    /// The network that it is started in, if not the test's own.
    machine: Option<Machine>,
    child: Option<Child>,
}

impl<'w> Server<'w> {
    pub(crate) fn start(world: &'w World, options: &[&str]) -> Result<Self> {
        let mut server = Self {
            world,
            socket: world.directory().join("s.sock"),
            options: options.iter().map(|&option| option.to_owned()).collect(),
            group: None,
            machine: None,
            child: None,
        };
        server.restart()?;
        Ok(server)
    }

    pub(crate) fn start_on(world: &'w World, machine: &Machine, options: &[&str]) -> Result<Self> {
        let mut server = Self {
            world,
            socket: world.directory().join("s.sock"),
            options: options.iter().map(|&option| option.to_owned()).collect(),
            group: None,
            machine: Some(machine.clone()),
            child: None,
        };
        server.restart()?;
        Ok(server)
    }

    pub(crate) fn start_in(world: &'w World, group: &Path) -> Result<Self> {
        let mut server = Self {
            world,
            socket: world.directory().join("s.sock"),
            options: Vec::new(),
            group: Some(group.to_owned()),
            machine: None,
            child: None,
        };
        server.restart()?;
        Ok(server)
    }

    /// The next start is one without further options.
    pub fn forget_options(&mut self) {
        self.options.clear();
    }

    /// Starts it anew in the same place and waits until it serves. It must not run.
    pub fn restart(&mut self) -> Result<()> {
        let mut child = self.spawn()?;
        let pid = child.id();
        let served = wait_until("the server listens", DEADLINE, || {
            if let Some(status) = child.try_wait()? {
                anyhow::bail!("the server ended at once: {status}");
            }
            Ok(UnixStream::connect(&self.socket).is_ok())
        });
        self.child = Some(child);
        served.with_context(|| format!("starting the server, pid {pid}"))
    }

    /// Starts it anew and ends it with SIGKILL after a while, wherever it is then.
    pub fn restart_cut_short(&mut self, after: Duration) -> Result<()> {
        let mut child = self.spawn()?;
        // The moment itself is the point, so this is a time and no condition.
        std::thread::sleep(after);
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    fn spawn(&self) -> Result<Child> {
        ensure!(self.child.is_none(), "the server is still running");
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.world.log())?;
        let mut command = match &self.group {
            None => Command::new(self.world.program()),
            Some(group) => {
                // Joined by a shell, which then becomes the server.
                let mut command = Command::new("/bin/sh");
                let join = "echo $$ >\"$0/cgroup.procs\" && exec \"$@\"";
                command
                    .args(["-c", join])
                    .arg(group)
                    .arg(self.world.program());
                command
            }
        };
        command
            .arg("server")
            .arg("--socket")
            .arg(&self.socket)
            .arg("--runtime-dir")
            .arg(self.world.runtime_dir())
            .arg("--store")
            .arg(self.world.store())
            .args(["--tag", self.world.tag()])
            .args(&self.options)
            .envs(self.world.env())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let mut start = || command.spawn().context("starting a server");
        match &self.machine {
            None => start(),
            Some(machine) => machine.run(start),
        }
    }

    /// Ends it with SIGKILL, as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the server is not running")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Ends it with SIGTERM, as an operator would; it must end well.
    pub fn terminate(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the server is not running")?;
        let pid = Pid::from_raw(child.id().cast_signed()).context("no pid")?;
        kill_process(pid, Signal::TERM)?;
        if !ended_within_deadline(&child)? {
            child.kill()?;
            child.wait()?;
            anyhow::bail!("the server did not end after SIGTERM");
        }
        let status = child.wait()?;
        ensure!(status.success(), "the server ended with {status}");
        Ok(())
    }

    /// Command lines for this server.
    pub fn cli(&self) -> Cli {
        let mut cli = self.world.cli();
        cli.env.push(("GARDEN_SOCKET", self.socket.clone().into()));
        cli
    }

    /// Asks it by HTTP, as any client may; the answer must be a success.
    pub fn get(&self, target: &str) -> Result<Value> {
        http::ask(&self.socket, "GET", target, None)
    }

    /// The same with something to tell it.
    pub fn post(&self, target: &str, body: &Value) -> Result<Value> {
        http::ask(&self.socket, "POST", target, Some(body))
    }

    /// The same, where a refusal is what is looked for: the status and the text.
    pub fn try_post(&self, target: &str, body: &Value) -> Result<(u16, String)> {
        http::exchange(&self.socket, "POST", target, Some(body))
    }

    /// Takes something away.
    pub fn delete(&self, target: &str) -> Result<Value> {
        http::ask(&self.socket, "DELETE", target, None)
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its pid; 0 when it does not run.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// The number of files that it has open; 0 when it does not run.
    pub fn open_files(&self) -> usize {
        self.child
            .as_ref()
            .map_or(0, |child| proc::open_files(child.id().cast_signed()))
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
