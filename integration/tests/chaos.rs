//! Random kill -9 of servers (also while they start), supervisors, zygotes, workers and peas, under a
//! mixed load.
//!
//! `GARDEN_CHAOS_KILLS` says how many (20 unless told), `GARDEN_CHAOS_SEED` repeats a run. What
//! must hold after each: no container is lost but one whose supervisor was killed, that one says so,
//! and every process in the others has ended with its own status, known to whoever asks, however
//! often the server was killed since. Now and then, and at the end, nothing may be left of all that
//! was removed: looked at by name, see [`Leaks`].

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use garden_integration::{
    App, DEADLINE, Leaks, Running, Server, Whom, World, check, kill_pid, signal_all, wait_until,
};
use rustix::process::Signal;
use serde_json::Value;

/// Kills in a run that nobody asked to be longer.
const KILLS: u64 = 20;
/// Containers that live at the same time.
const CONTAINERS: u64 = 3;
/// Rounds between two looks at what is left.
const CLEAN_EVERY: u64 = 25;
/// Statuses of a container that are asked for again later; more ended processes than a server
/// remembers would be too many.
const REMEMBERED: usize = 30;

/// A small generator (xorshift): a seed is all that is needed to repeat its choices.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        let index = self.below(choices.len() as u64);
        choices[usize::try_from(index).unwrap_or_default()]
    }
}

/// A process whose exit status must be told, whatever is killed meanwhile.
#[derive(Clone)]
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
    /// Kept promises, to be asked again.
    kept: Vec<Promise>,
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
            kept: Vec::new(),
            killed: BTreeMap::new(),
        };
        for round in 0..kills {
            let place = || format!("seed {seed}, round {round}");
            chaos.round().with_context(place)?;
            if (round + 1) % CLEAN_EVERY == 0 {
                println!("round {}: killed {:?}", round + 1, chaos.killed);
                chaos.clean(&before).with_context(place)?;
            }
        }
        println!("killed {:?}", chaos.killed);
        chaos.clean(&before)?;
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
            self.server.cli().output(&self.create_words(&name))?;
            self.containers.push(name);
        }
        let promises = self.promises()?;
        let (load, new, old) = self.load()?;
        // The moment itself is the point, so this is a time and no condition.
        std::thread::sleep(Duration::from_micros(self.random.below(60_000)));
        let lost = self.kill(&new)?;
        let may_be_gone = |name: &String| *name == old || lost.as_ref() == Some(name);
        for running in load {
            // With what code it ends depends on what was killed, and when.
            running.finish()?;
        }
        self.expect_containers(lost.as_deref())?;
        for promise in promises {
            if !may_be_gone(&promise.container) {
                self.keep(&promise)?;
                self.kept.push(promise);
            }
        }
        (self.kept).retain(|promise| !may_be_gone(&promise.container));
        self.ask_again()?;
        // What was being made or removed has no end that could be foretold.
        for name in [Some(new), Some(old), lost].into_iter().flatten() {
            self.remove(&name)?;
        }
        Ok(())
    }

    fn name(&mut self) -> String {
        self.made += 1;
        format!("c{}", self.made)
    }

    /// Every third container is privileged.
    fn create_words<'a>(&'a self, name: &'a str) -> Vec<&'a str> {
        let mut words = vec!["create", "--quiet", "--image", &self.image, "--name", name];
        if self.made.is_multiple_of(3) {
            words.push("--privileged");
        }
        words
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
        let end: &[&str] =
            self.random
                .one_of(&[&["rm"][..], &["rm"], &["stop"], &["stop", "--kill"]]);
        let own: &[&str] = self
            .random
            .one_of(&[&[][..], &["--own-limits", "--memory", "64M"]]);
        let image = &self.image;
        let mut stream = cli.start(&["stream-in", busy, "/tmp"])?;
        // Two empty blocks: a whole archive of nothing.
        let _ = stream.write(&"\0".repeat(1024));
        let pea = ["pea", "run", busy, "--image", image];
        let program = ["--", "/bin/sleep", "0.05"];
        let load = vec![
            stream,
            cli.start(&["stream-out", busy, "/bin/"])?,
            cli.start(&self.create_words(&new))?,
            cli.start(&[end, &[&old]].concat())?,
            cli.start(&["exec", busy, "--", "/bin/true"])?,
            cli.start(&[&pea[..], own, &program].concat())?,
        ];
        Ok((load, new, old))
    }

    /// Kills something; returns the container that may be lost by it.
    fn kill(&mut self, new: &str) -> Result<Option<String>> {
        let busy = self.containers.first().context("no container")?.clone();
        let victim = if self.random.below(2) == 0 {
            new.to_owned()
        } else {
            busy.clone()
        };
        match self.random.below(6) {
            0 => {
                self.note("server");
                self.server.kill()?;
                self.server.restart()?;
            }
            1 => {
                self.note("starting server");
                self.server.kill()?;
                let after = Duration::from_micros(self.random.below(300_000));
                self.server.restart_cut_short(after)?;
                self.server.restart()?;
            }
            2 => {
                self.note("zygote");
                signal_all(self.world, Signal::KILL, Whom::Zygote);
            }
            3 => {
                self.note("pea");
                for pid in self.peas(&busy)? {
                    kill_pid(pid);
                }
            }
            4 => {
                self.note("worker");
                signal_all(self.world, Signal::KILL, Whom::Worker(&victim));
            }
            _ => {
                self.note("shim");
                signal_all(self.world, Signal::KILL, Whom::Supervisor(&victim));
                // Half of the time also when nobody looks.
                if self.random.below(2) == 0 {
                    self.server.kill()?;
                    self.server.restart()?;
                }
                return Ok((victim == busy).then_some(busy));
            }
        }
        Ok(None)
    }

    fn note(&mut self, what: &'static str) {
        *self.killed.entry(what).or_default() += 1;
    }

    fn inspect(&self, container: &str) -> Result<Value> {
        let args = ["inspect", container, "--json"];
        Ok(serde_json::from_str(&self.server.cli().output(&args)?)?)
    }

    fn peas(&self, container: &str) -> Result<Vec<i32>> {
        let shown = self.inspect(container)?;
        let processes = shown["processes"].as_array().context("no processes")?;
        let peas = processes.iter().filter(|process| process["pea"] == true);
        peas.map(|pea| Ok(i32::try_from(pea["pid"].as_i64().context("no pid")?)?))
            .collect()
    }

    fn expect_containers(&self, lost: Option<&str>) -> Result<()> {
        let listed = self.server.cli().output(&["ls", "--quiet"])?;
        let listed: Vec<_> = listed.lines().collect();
        for name in &self.containers {
            ensure!(
                listed.contains(&name.as_str()),
                "{name} is lost; there are {listed:?}"
            );
        }
        let Some(lost) = lost else { return Ok(()) };
        wait_until("a dead supervisor is noticed", DEADLINE, || {
            let events = self.inspect(lost)?["events"].to_string();
            Ok(events.contains("Supervisor died"))
        })
    }

    fn keep(&self, promise: &Promise) -> Result<()> {
        let args = ["attach", &promise.container, &promise.process];
        let outcome = self.server.cli().run(&args)?;
        outcome.expect_code(promise.code)?;
        Ok(())
    }

    /// Asks once more for the status of a process that ended in any earlier round.
    fn ask_again(&mut self) -> Result<()> {
        if self.kept.is_empty() {
            return Ok(());
        }
        let index = self.random.below(self.kept.len() as u64);
        let promise = self.kept[usize::try_from(index)?].clone();
        self.keep(&promise).context("a status that was told before")
    }

    /// Removes a container that may be there, or half there.
    fn remove(&mut self, name: &str) -> Result<()> {
        self.containers.retain(|other| other != name);
        self.kept.retain(|promise| promise.container != name);
        let most = REMEMBERED * self.containers.len();
        self.kept.drain(..self.kept.len().saturating_sub(most));
        let mut last = String::new();
        let what = format!("{name} is gone");
        let waited = wait_until(&what, Duration::from_secs(60), || {
            let outcome = self.server.cli().run(&["rm", name])?;
            let gone = outcome.code == Some(0) || outcome.stderr.contains("unknown handle");
            outcome.stderr.trim().clone_into(&mut last);
            Ok(gone)
        });
        waited.with_context(|| format!("garden rm said: {last}"))
    }

    /// Removes everything and looks at what is left.
    fn clean(&mut self, before: &Leaks) -> Result<()> {
        for name in self.containers.clone() {
            self.remove(&name)?;
        }
        self.server.cli().output(&["teardown", "wait"])?;
        before.expect_no_more(self.world, None)
    }
}
