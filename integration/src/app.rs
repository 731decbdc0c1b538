//! A server with one container in it, whose first process waits: what most tests start from.

use anyhow::Result;

use crate::cli::{Cli, Outcome, Running};
use crate::rootfs::Rootfs;
use crate::server::Server;
use crate::world::World;

/// See `attacker/main.rs`.
const ATTACKER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/attacker"));

/// The container `app`, made of a busybox image, and its server.
pub struct App<'w> {
    /// The server that it is on.
    pub server: Server<'w>,
    /// The image that it was made from.
    pub image: String,
    /// The `garden run` that started it; its process ends when its stdin does.
    pub running: Running,
}

impl<'w> App<'w> {
    /// Starts the server and the container, and waits until its process runs.
    pub fn start(world: &'w World) -> Result<Self> {
        Self::start_on(world, world.server()?)
    }

    /// Starts the container on this server.
    pub fn start_on(world: &World, server: Server<'w>) -> Result<Self> {
        let image = world.images()?.tar("app")?;
        Self::start_of(server, image, &[])
    }

    /// Starts it with the program that attacks from inside in its image, and these flags.
    pub fn start_hostile(world: &'w World, flags: &[&str]) -> Result<Self> {
        let rootfs = Rootfs::busybox("hostile")?.file("bin/attacker", 0o755, ATTACKER);
        let image = world.images()?.tar_of("hostile", &rootfs)?;
        Self::start_of(world.server()?, image, flags)
    }

    /// Starts the container, made of this image.
    pub fn start_of(server: Server<'w>, image: String, flags: &[&str]) -> Result<Self> {
        let script = "echo $$ > /tmp/pid; echo up; cat > /tmp/ended";
        let run = ["run", "--image", &image, "--name", "app"];
        let command = ["--", "/bin/sh", "-c", script];
        let args = [run.as_slice(), flags, &command].concat();
        let running = server.cli().start(&args)?;
        running.wait_stdout("up")?;
        Ok(Self {
            server,
            image,
            running,
        })
    }

    /// Command lines for the server.
    pub fn cli(&self) -> Cli {
        self.server.cli()
    }

    /// What a script as root in the container wrote; it must succeed.
    pub fn exec(&self, script: &str) -> Result<String> {
        self.exec_as("root", script)
    }

    /// The same as another user.
    pub fn exec_as(&self, user: &str, script: &str) -> Result<String> {
        let args = ["exec", "app", "--user", user, "--", "/bin/sh", "-c", script];
        self.cli().output(&args)
    }

    /// What a script in a pea of the same image wrote; it must succeed.
    pub fn pea(&self, user: &str, script: &str) -> Result<String> {
        let outcome = self.run_pea(user, script)?;
        outcome.expect_code(0)?;
        Ok(outcome.stdout)
    }

    /// A script in a pea of the same image, run to its end.
    pub fn run_pea(&self, user: &str, script: &str) -> Result<Outcome> {
        let script = ["--", "/bin/sh", "-c", script];
        let pea = ["pea", "run", "app", "--image", &self.image, "--user", user];
        self.cli().run(&[pea.as_slice(), &script].concat())
    }

    /// Lets the container's process end, which must go well, and `garden run` remove it.
    pub fn end(self) -> Result<()> {
        self.running.finish()?.expect_code(0)?;
        Ok(())
    }
}
