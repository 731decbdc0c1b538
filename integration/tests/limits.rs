//! Limits of containers and peas: as the kernel has them, seen from inside, and what happens to
//! those that hit them.

use anyhow::{Context as _, Result, ensure};
use garden_integration::{App, Cli, DEADLINE, Leaks, World, check, lines_of, skip, wait_until};
use serde_json::Value;

/// What a container sees of a limit: the file on v1 or on v2, whichever is there.
fn inside(v1: &str, v2: &str) -> String {
    format!("cat /sys/fs/cgroup/{v1} 2>/dev/null || cat /sys/fs/cgroup/{v2}")
}

fn memory() -> String {
    inside("memory/memory.limit_in_bytes", "memory.max")
}

fn pids() -> String {
    inside("pids/pids.max", "pids.max")
}

/// Shares as v1 counts them, or the weight that they are on v2.
fn shares() -> String {
    inside("cpu/cpu.shares", "cpu.weight")
}

/// The quota in microseconds.
fn quota() -> String {
    inside("cpu/cpu.cfs_quota_us", "cpu.max")
}

/// A container `app` with these options that only waits, and the image that it is made of.
fn create(world: &World, cli: &Cli, options: &[&str]) -> Result<String> {
    let image = world.images()?.tar("app")?;
    let args = ["create", "--quiet", "--image", &image, "--name", "app"];
    cli.output(&[args.as_slice(), options].concat())?;
    Ok(image)
}

fn exec(cli: &Cli, script: &str) -> Result<String> {
    let output = cli.output(&["exec", "app", "--", "/bin/sh", "-c", script])?;
    Ok(output.trim().to_owned())
}

fn pea(cli: &Cli, image: &str, options: &[&str], script: &str) -> Result<String> {
    let args = ["pea", "run", "app", "--image", image];
    let script = ["--", "/bin/sh", "-c", script];
    let output = cli.output(&[args.as_slice(), options, &script].concat())?;
    Ok(output.trim().to_owned())
}

fn json(cli: &Cli, args: &[&str]) -> Result<Value> {
    Ok(serde_json::from_str(&cli.output(args)?)?)
}

fn events(cli: &Cli) -> Result<Vec<String>> {
    let shown = json(cli, &["inspect", "app", "--json"])?;
    let events = shown["events"].as_array().context("no events")?;
    Ok(events
        .iter()
        .filter_map(|e| e.as_str().map(str::to_owned))
        .collect())
}

fn out_of_memory(cli: &Cli) -> Result<usize> {
    let events = events(cli)?;
    Ok(events
        .iter()
        .filter(|event| *event == "Out of memory")
        .count())
}

#[test]
fn limits_are_read_back_from_inside() {
    check(|world| {
        let server = world.server_with(&["--cpu-quota-per-share", "100"])?;
        let cli = server.cli();
        let options = ["--memory", "64M", "--pids", "50", "--cpu-shares", "128"];
        let image = create(world, &cli, &options)?;
        ensure!(exec(&cli, &memory())? == "67108864");
        ensure!(exec(&cli, &pids())? == "50");
        let shares_inside = exec(&cli, &shares())?;
        ensure!(
            ["128", "21"].contains(&shares_inside.as_str()),
            "{shares_inside}"
        );
        let quota_inside = exec(&cli, &quota())?;
        ensure!(
            ["12800", "12800 100000"].contains(&quota_inside.as_str()),
            "{quota_inside}"
        );
        // A pea within these limits sees them; what it has itself, if anything, is in its group.
        ensure!(pea(&cli, &image, &[], &memory())? == "67108864");
        // One beside them has its own, or none.
        let own = [
            "--own-limits",
            "--memory",
            "32M",
            "--pids",
            "9",
            "--cpus",
            "0.5",
        ];
        ensure!(pea(&cli, &image, &own, &memory())? == "33554432");
        let quota_inside = pea(&cli, &image, &own, &quota())?;
        ensure!(
            ["50000", "50000 100000"].contains(&quota_inside.as_str()),
            "{quota_inside}"
        );
        let none = pea(&cli, &image, &["--own-limits"], &memory())?;
        ensure!(none == "max" || none.len() > 15, "{none}");
        // Nobody inside may change them.
        let script = "for f in $(find /sys/fs/cgroup -name '*.max' -o -name '*limit_in_bytes'); do
            (echo 1 > $f) 2>/dev/null && echo $f; done; mkdir /sys/fs/cgroup/memory/x 2>/dev/null && echo x; echo";
        ensure!(
            exec(&cli, script)?.is_empty(),
            "limits can be changed from inside"
        );
        cli.output(&["rm", "app"])?;
        Ok(())
    });
}

#[test]
fn limits_change_while_a_container_runs() {
    check(|world| {
        let mut server = world.server()?;
        let cli = server.cli();
        create(world, &cli, &["--memory", "32M"])?;
        let changed = [
            "limits",
            "app",
            "--memory",
            "64M",
            "--pids",
            "40",
            "--cpus",
            "0.5",
            "--cpu-shares",
            "512",
            "--json",
        ];
        let shown = json(&cli, &changed)?;
        ensure!(shown["limits"]["memory_bytes"] == 64 << 20, "{shown}");
        ensure!(exec(&cli, &memory())? == "67108864");
        ensure!(exec(&cli, &pids())? == "40");
        ensure!(exec(&cli, &quota())?.starts_with("50000"));
        // Down, and away.
        cli.output(&[
            "limits", "app", "--memory", "48M", "--pids", "0", "--cpus", "0",
        ])?;
        ensure!(exec(&cli, &memory())? == "50331648");
        ensure!(exec(&cli, &pids())? == "max");
        ensure!(["-1", "max 100000"].contains(&exec(&cli, &quota())?.as_str()));
        // They are its limits from then on, also for the next server.
        server.kill()?;
        server.restart()?;
        let shown = json(&cli, &["limits", "app", "--json"])?;
        ensure!(shown["limits"]["memory_bytes"] == 48 << 20, "{shown}");
        ensure!(shown["limits"]["cpu_shares"] == 512, "{shown}");
        ensure!(shown["limits"]["pids"].is_null(), "{shown}");
        cli.output(&["rm", "app"])?;
        Ok(())
    });
}

#[test]
fn a_limit_below_what_is_in_use_is_refused_and_kills_nothing() {
    check(|world| {
        let server = world.server()?;
        let cli = server.cli();
        create(world, &cli, &["--memory", "64M"])?;
        // Memory that cannot be dropped.
        exec(
            &cli,
            "dd if=/dev/zero of=/dev/shm/held bs=1M count=30 2>/dev/null",
        )?;
        let refused = cli.run(&["limits", "app", "--memory", "8M", "--pids", "30"])?;
        refused
            .expect_code(125)?
            .expect_one_line(&["in use", "8388608"])?;
        // Nothing of the change holds, and nobody died.
        ensure!(exec(&cli, &memory())? == "67108864");
        ensure!(exec(&cli, &pids())? == "max");
        ensure!(out_of_memory(&cli)? == 0);
        cli.output(&["rm", "app"])?;
        Ok(())
    });
}

#[test]
fn impossible_limits_are_refused_before_anything_is_made() {
    check(|world| {
        let server = world.server()?;
        let cli = server.cli();
        let image = world.images()?.tar("app")?;
        let create = ["create", "--quiet", "--image", &image, "--name", "app"];
        let before = Leaks::now(world, Some(&server));
        for (options, word) in [
            (["--cpu-shares", "1"], "minimum allowed cpu-shares is 2"),
            (["--io-weight", "5"], "io weight"),
            (["--cpus", "0.001"], "CPU"),
        ] {
            let refused = cli.run(&[create.as_slice(), &options].concat())?;
            refused.expect_code(125)?.expect_one_line(&[word])?;
        }
        before.expect_no_more(world, Some(&server))
    });
}

#[test]
fn processes_of_a_pea_are_limited_within_its_container() {
    check(|world| {
        let app = App::start(world)?;
        let cli = app.cli();
        let fork =
            "i=0; while [ $i -lt 20 ]; do sleep 1000 & i=$((i+1)); done 2>/dev/null; echo done";
        let args = ["--pids", "5"];
        let outcome = {
            let pea = ["pea", "run", "app", "--image", &app.image];
            let script = ["--", "/bin/sh", "-c", fork];
            cli.run(&[pea.as_slice(), &args, &script].concat())?
        };
        ensure!(
            outcome.code != Some(0),
            "20 forks within 5 processes: {outcome:?}"
        );
        // The container itself may go on.
        ensure!(app.exec("sleep 0 & sleep 0 & wait; echo fine")? == "fine\n");
        app.end()
    });
}

#[test]
fn what_runs_out_of_memory_is_told_with_its_exit() {
    check(|world| {
        let server = world.server()?;
        let cli = server.cli();
        let image = create(world, &cli, &["--memory", "24M"])?;
        // Text that a shell holds in a variable, twice as much at each step.
        let hog = "a=0123456789abcdef; while true; do a=$a$a; done";
        let killed = cli.run(&["exec", "app", "--", "/bin/sh", "-c", hog])?;
        killed.expect_code(137)?;
        // It is known when the exit is.
        ensure!(out_of_memory(&cli)? == 1, "{:?}", events(&cli)?);
        // A pea within the container's limits is the container's memory, too.
        let args = [
            "pea", "run", "app", "--image", &image, "--", "/bin/sh", "-c", hog,
        ];
        cli.run(&args)?.expect_code(137)?;
        ensure!(out_of_memory(&cli)? == 2, "{:?}", events(&cli)?);
        // One with limits of its own is not.
        let own = [
            "--own-limits",
            "--memory",
            "16M",
            "--",
            "/bin/sh",
            "-c",
            hog,
        ];
        let beside = [&["pea", "run", "app", "--image", &image][..], &own].concat();
        cli.run(&beside)?.expect_code(137)?;
        ensure!(out_of_memory(&cli)? == 2, "{:?}", events(&cli)?);
        // An exit that has nothing to do with memory tells nothing.
        cli.run(&["exec", "app", "--", "/bin/sh", "-c", "kill -9 $$"])?
            .expect_code(137)?;
        ensure!(out_of_memory(&cli)? == 2, "{:?}", events(&cli)?);
        cli.output(&["rm", "app"])?;
        Ok(())
    });
}

#[test]
fn a_kill_that_ends_no_process_of_ours_is_told_too() {
    check(|world| {
        let mut server = world.server()?;
        let cli = server.cli();
        create(world, &cli, &["--memory", "24M"])?;
        let hog = "a=0123456789abcdef; while true; do a=$a$a; done";
        // The shell that we know of waits on; its child is killed.
        let parent = format!("echo up; while read line; do sh -c '{hog}'; echo ended; done");
        let mut running = cli.start(&["exec", "app", "--", "/bin/sh", "-c", &parent])?;
        running.wait_stdout("up")?;
        running.write("go\n")?;
        running.wait_stdout("ended")?;
        wait_until("the kill is told", DEADLINE, || {
            Ok(out_of_memory(&cli)? == 1)
        })?;
        drop(running);
        // Another one while there is no server, and one after the next has come.
        let script = format!(
            "while [ ! -e /tmp/go ]; do usleep 20000; done; sh -c '{hog}'; touch /tmp/first;
             while [ ! -e /tmp/again ]; do usleep 20000; done; sh -c '{hog}'; touch /tmp/second"
        );
        let detached = format!("({script}) </dev/null >/dev/null 2>&1 & echo $!");
        let pid = exec(&cli, &detached)?;
        exec(
            &cli,
            "(usleep 300000; touch /tmp/go) >/dev/null 2>&1 </dev/null &",
        )?;
        server.kill()?;
        wait_until("the second kill", DEADLINE, || Ok(counted(world)? == 2))?;
        server.restart()?;
        wait_until("it is told", DEADLINE, || Ok(out_of_memory(&cli)? == 2))?;
        exec(&cli, "touch /tmp/again")?;
        wait_until("the third is told", DEADLINE, || {
            Ok(out_of_memory(&cli)? == 3)
        })?;
        ensure!(!pid.is_empty());
        cli.output(&["rm", "app"])?;
        Ok(())
    });
}

#[test]
fn disks_are_read_and_written_at_the_rate_that_was_set() {
    check(|world| {
        if !std::path::Path::new("/sys/block")
            .read_dir()?
            .flatten()
            .any(|entry| {
                let name = entry.file_name();
                !["loop", "ram", "zram", "dm-"]
                    .iter()
                    .any(|k| name.to_string_lossy().starts_with(k))
            })
        {
            return skip("no disk that could be limited");
        }
        let server = world.server_with(&["--container-io-max-write-bps", "50M"])?;
        let cli = server.cli();
        create(world, &cli, &[])?;
        let rate = inside("blkio/blkio.throttle.write_bps_device", "io.max");
        ensure!(exec(&cli, &rate)?.contains("52428800"));
        cli.output(&["limits", "app", "--io-write", "20M"])?;
        ensure!(exec(&cli, &rate)?.contains("20971520"));
        // Without one of its own, the server's holds again.
        cli.output(&["limits", "app", "--io-write", "0"])?;
        ensure!(exec(&cli, &rate)?.contains("52428800"));
        cli.output(&["rm", "app"])?;
        Ok(())
    });
}

#[test]
fn swap_may_be_left_alone() {
    check(|world| {
        let server = world.server_with(&["--disable-swap-limit"])?;
        let cli = server.cli();
        create(world, &cli, &["--memory", "64M"])?;
        let swap = inside("memory/memory.memsw.limit_in_bytes", "memory.swap.max");
        let outcome = cli.run(&["exec", "app", "--", "/bin/sh", "-c", &swap])?;
        if outcome.code != Some(0) {
            return skip("the kernel does not count swap");
        }
        let limit = outcome.stdout.trim().to_owned();
        ensure!(limit == "max" || limit.len() > 15, "{limit}");
        cli.output(&["rm", "app"])?;
        Ok(())
    });
}

#[test]
fn who_uses_more_cpu_than_its_share_goes_behind_the_others() {
    check(|world| {
        let options = [
            "--enable-cpu-throttling",
            "--cpu-throttling-check-interval",
            "1",
            "--cpu-entitlement-per-share",
            "0.0001",
        ];
        let mut server = world.server_with(&options)?;
        let cli = server.cli();
        let image = create(world, &cli, &["--cpu-shares", "1000", "--memory", "64M"])?;
        // Another one that is entitled to what it uses, and uses some.
        let other = ["create", "--quiet", "--image", &image, "--name", "other"];
        cli.output(&[other.as_slice(), &["--cpu-shares", "200000"]].concat())?;
        let busy = "while true; do :; done";
        let _busy = cli.start(&["exec", "app", "--", "/bin/sh", "-c", busy])?;
        let tick =
            "while true; do i=0; while [ $i -lt 200 ]; do i=$((i+1)); done; usleep 20000; done";
        let _tick = cli.start(&["exec", "other", "--", "/bin/sh", "-c", tick])?;
        let lowered = || -> Result<bool> {
            let shown = json(&cli, &["limits", "app", "--json"])?;
            Ok(shown["throttled"] == true)
        };
        wait_until("it is put behind", DEADLINE, lowered)?;
        // Its other limits stay, and it is still told the share that it asked for.
        ensure!(exec(&cli, &memory())? == "67108864");
        let shown = json(&cli, &["limits", "app", "--json"])?;
        ensure!(shown["limits"]["cpu_shares"] == 1000, "{shown}");
        let shown = json(&cli, &["limits", "other", "--json"])?;
        ensure!(shown["throttled"] == false, "{shown}");
        // A server without the option gives it its share back.
        server.kill()?;
        server.forget_options();
        server.restart()?;
        let own = ["1000", "99"];
        ensure!(own.contains(&exec(&cli, &shares())?.as_str()));
        for name in ["app", "other"] {
            cli.output(&["rm", name])?;
        }
        Ok(())
    });
}

#[test]
fn a_delegated_part_of_the_hierarchy_is_not_left() {
    check(|world| {
        let Some(mount) = unified() else {
            return skip("no cgroup v2");
        };
        // What systemd does for a unit with `Delegate=yes`.
        let unit = mount.join(format!("{}-unit.service", world.tag()));
        std::fs::create_dir(&unit)?;
        let flags = rustix::fs::XattrFlags::empty();
        if rustix::fs::setxattr(&unit, "user.delegate", b"1", flags).is_err() {
            rustix::fs::setxattr(&unit, "trusted.delegate", b"1", flags)?;
        }
        let server = world.server_in(&unit)?;
        let cli = server.cli();
        create(world, &cli, &["--memory", "64M"])?;
        ensure!(exec(&cli, &memory())? == "67108864");
        let group = format!("garden-{}", world.tag());
        ensure!(
            unit.join(&group).join("app/init").is_dir(),
            "not in the unit"
        );
        ensure!(!mount.join(&group).exists(), "groups outside the unit");
        let own = std::fs::read_to_string(unit.join("cgroup.procs"))?;
        ensure!(
            lines_of(&own).is_empty(),
            "processes in the unit itself: {own}"
        );
        cli.output(&["rm", "app"])?;
        Ok(())
    });
}

/// How often the kernel says that it killed in the container.
fn counted(world: &World) -> Result<u64> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let v1 = table.lines().find(|line| {
        let options = line.split_once(" - cgroup ").map(|(_, rest)| rest);
        options.is_some_and(|rest| rest.split([' ', ',']).any(|option| option == "memory"))
    });
    let file = match v1.and_then(|line| line.split(' ').nth(4)) {
        Some(mount) => std::path::Path::new(mount)
            .join(format!("garden-{}/app/memory.oom_control", world.tag())),
        None => unified()
            .context("no cgroups")?
            .join(format!("garden-{}/app/memory.events", world.tag())),
    };
    let text = std::fs::read_to_string(file)?;
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    Ok(count.context("no counter")?.trim().parse()?)
}

fn unified() -> Option<std::path::PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = table.lines().find(|line| line.contains(" - cgroup2 "))?;
    line.split(' ').nth(4).map(Into::into)
}
