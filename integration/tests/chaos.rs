//! Random kill -9 of servers, supervisors, zygotes and peas under a mixed load.
//!
//! `GARDEN_CHAOS_KILLS` says how many (20 unless told), `GARDEN_CHAOS_SEED` repeats a run. What
//! must hold after each: no container is lost but one whose supervisor was killed, and every
//! process in the others ends with its own status, known to whoever asks. At the end nothing may
//! be left of all that was removed.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use garden_integration::{App, Leaks, Running, Server, World, check, wait_until};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;

/// Kills in a run that nobody asked to be longer.
const KILLS: u64 = 20;
/// Containers that live at the same time.
const CONTAINERS: u64 = 3;

/// A small generator (xorshift): a seed is all that is needed to repeat its choices.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// A process whose exit status must be told, whatever is killed meanwhile.
struct Promise {
    container: String,
    process: String,
    code: i32,
}

struct Chaos<'w> {
    world: &'w World,
    server: Server<'w>,
    image: String,
    random: Random,
    made: u64,
    /// The containers that must be there.
    containers: Vec<String>,
    killed: BTreeMap<&'static str, u64>,
}

#[test]
fn random_kills_lose_nothing() {
    check(|world| {
        let kills = number("GARDEN_CHAOS_KILLS").unwrap_or(KILLS);
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let seed = number("GARDEN_CHAOS_SEED").unwrap_or(u64::from(since.subsec_nanos())) | 1;
        println!("seed {seed}, {kills} kills");
        let mut app = App::start(world)?;
        app.pea("root", "true")?;
        app.cli().output(&["rm", "app"])?;
        app.server.kill()?;
        app.server.restart()?;
        let before = Leaks::now(world, None);
        let App { server, image, .. } = app;
        let mut chaos = Chaos {
            world,
            server,
            image,
            random: Random(seed),
            made: 0,
            containers: Vec::new(),
            killed: BTreeMap::new(),
        };
        for round in 0..kills {
            chaos
                .round()
                .with_context(|| format!("seed {seed}, round {round}"))?;
        }
        println!("killed {:?}", chaos.killed);
        for name in std::mem::take(&mut chaos.containers) {
            chaos.server.cli().output(&["rm", &name])?;
        }
        chaos.server.kill()?;
        chaos.server.restart()?;
        before.expect_no_more(world, None)
    });
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

impl Chaos<'_> {
    /// A load, one kill at any moment of it, and a look at what became of everything.
    fn round(&mut self) -> Result<()> {
        while (self.containers.len() as u64) < CONTAINERS {
            let name = self.name();
            let args = ["create", "--image", &self.image, "--name", &name];
            self.server.cli().output(&args)?;
            self.containers.push(name);
        }
        let promises = self.promises()?;
        let (load, new, old) = self.load()?;
        // The moment itself is the point, so this is a time and no condition.
        std::thread::sleep(Duration::from_micros(self.random.below(60_000)));
        let lost = self.kill(&new)?;
        for running in load {
            // With what code it ends depends on what was killed, and when.
            running.finish()?;
        }
        self.expect_containers(lost.as_deref(), &old)?;
        for promise in promises {
            if lost.as_ref() != Some(&promise.container) {
                self.keep(&promise)?;
            }
        }
        // What was being made or removed has no end that could be foretold.
        for name in [Some(new), Some(old), lost].into_iter().flatten() {
            self.containers.retain(|other| *other != name);
            self.remove(&name)?;
        }
        Ok(())
    }

    fn name(&mut self) -> String {
        self.made += 1;
        format!("c{}", self.made)
    }

    /// A process in each container that ends soon.
    fn promises(&mut self) -> Result<Vec<Promise>> {
        let mut promises = Vec::new();
        for container in self.containers.clone() {
            let code = 1 + i32::try_from(self.random.below(100))?;
            let script = format!("sleep 0.0{}; exit {code}", self.random.below(10));
            let args = [
                "exec", &container, "--detach", "--", "/bin/sh", "-c", &script,
            ];
            let process = self.server.cli().output(&args)?.trim().to_owned();
            promises.push(Promise {
                container,
                process,
                code,
            });
        }
        Ok(promises)
    }

    /// Starts one of everything; returns also the name being created and the one being removed.
    fn load(&mut self) -> Result<(Vec<Running>, String, String)> {
        let cli = self.server.cli();
        let (new, old) = (self.name(), self.containers.remove(0));
        let busy = self.containers.first().context("no container")?;
        let image = &self.image;
        let mut stream = cli.start(&["stream-in", busy, "/tmp"])?;
        // Two empty blocks: a whole archive of nothing.
        let _ = stream.write(&"\0".repeat(1024));
        let load = vec![
            stream,
            cli.start(&["create", "--image", image, "--name", &new])?,
            cli.start(&["rm", &old])?,
            cli.start(&["exec", busy, "--", "/bin/true"])?,
            cli.start(&[
                "pea",
                "run",
                busy,
                "--image",
                image,
                "--",
                "/bin/sleep",
                "0.05",
            ])?,
        ];
        Ok((load, new, old))
    }

    /// Kills something; returns the container that may be lost by it.
    fn kill(&mut self, new: &str) -> Result<Option<String>> {
        let busy = self.containers.first().context("no container")?.clone();
        match self.random.below(4) {
            0 => {
                self.note("server");
                self.server.kill()?;
                self.server.restart()?;
            }
            1 => {
                self.note("zygote");
                kill_all(self.world, |comm| comm == "garden-shim");
            }
            2 => {
                self.note("pea");
                for pid in self.peas(&busy)? {
                    send_kill(pid);
                }
            }
            _ => {
                self.note("shim");
                let victim = if self.random.below(2) == 0 {
                    new
                } else {
                    &busy
                };
                let title = format!("gn:{victim}");
                kill_all(self.world, |comm| comm == title);
                return Ok((victim == busy).then_some(busy));
            }
        }
        Ok(None)
    }

    fn note(&mut self, what: &'static str) {
        *self.killed.entry(what).or_default() += 1;
    }

    fn peas(&self, container: &str) -> Result<Vec<i32>> {
        let shown = self
            .server
            .cli()
            .output(&["inspect", container, "--json"])?;
        let shown: Value = serde_json::from_str(&shown)?;
        let processes = shown["processes"].as_array().context("no processes")?;
        let peas = processes.iter().filter(|process| process["pea"] == true);
        peas.map(|pea| Ok(i32::try_from(pea["pid"].as_i64().context("no pid")?)?))
            .collect()
    }

    fn expect_containers(&self, lost: Option<&str>, old: &str) -> Result<()> {
        let listed = self.server.cli().output(&["ls"])?;
        let listed: Vec<_> = listed
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        for name in &self.containers {
            let excused = lost == Some(name.as_str()) || name == old;
            ensure!(
                excused || listed.contains(&name.as_str()),
                "{name} is lost; there are {listed:?}"
            );
        }
        Ok(())
    }

    fn keep(&self, promise: &Promise) -> Result<()> {
        // Of the one that was being removed there is nobody to ask.
        if !self.containers.contains(&promise.container) {
            return Ok(());
        }
        let args = ["attach", &promise.container, &promise.process];
        let outcome = self.server.cli().run(&args)?;
        outcome.expect_code(promise.code)?;
        Ok(())
    }

    /// Removes a container that may be there, or half there.
    fn remove(&self, name: &str) -> Result<()> {
        let mut last = String::new();
        let what = format!("{name} is gone");
        let waited = wait_until(&what, Duration::from_secs(20), || {
            let outcome = self.server.cli().run(&["rm", name])?;
            let gone = outcome.code == Some(0) || outcome.stderr.contains("unknown handle");
            outcome.stderr.trim().clone_into(&mut last);
            Ok(gone)
        });
        waited.with_context(|| format!("garden rm said: {last}"))
    }
}

/// Kills the world's supervisors of such a name. Each is known by a file that it has open in the
/// world's directory.
fn kill_all(world: &World, wanted: impl Fn(&str) -> bool) {
    let tag = world.tag();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if !wanted(comm.trim_end()) {
            continue;
        }
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let named = String::from_utf8_lossy(&command).contains(tag);
        let files = fs::read_dir(entry.path().join("fd"));
        let open = files.into_iter().flatten().flatten().any(|file| {
            fs::read_link(file.path()).is_ok_and(|path| path.to_string_lossy().contains(tag))
        });
        if named || open {
            send_kill(pid);
        }
    }
}

fn send_kill(pid: i32) {
    let Some(pid) = Pid::from_raw(pid) else {
        return;
    };
    if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) {
        let _ = pidfd_send_signal(&pidfd, Signal::KILL);
    }
}
