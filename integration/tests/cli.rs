//! The command line as a person who knows docker types it: words, exit codes, keys, logs, pods.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context, Result, ensure};
use garden_integration::{App, Cli, DEADLINE, Leaks, World, check, wait_until};
use rustix::process::Signal;
use serde_json::Value;

#[test]
fn docker_words_need_no_dashes_and_no_flag_for_the_image() {
    check(|world| {
        let app = App::start(world)?;
        let cli = app.cli();
        let image = app.image.as_str();
        ensure!(cli.output(&["run", "--rm", image, "echo", "-n", "--name"])? == "--name");
        ensure!(cli.output(&["run", image, "--", "echo", "x"])? == "x\n");
        let said = cli.output(&[
            "exec",
            "-u",
            "vcap",
            "app",
            "sh",
            "-c",
            "id -u; echo $0",
            "-x",
        ])?;
        ensure!(said == "2000\n-x\n", "{said}");
        let said = cli.output(&["pea", "run", "app", image, "cat", "/etc/image"])?;
        ensure!(said == "app", "{said}");
        let mut own = cli.clone();
        own.set("GARDEN_IT_WORD", "from outside");
        let args = [
            "exec",
            "-e",
            "GARDEN_IT_WORD",
            "app",
            "sh",
            "-c",
            "echo $GARDEN_IT_WORD",
        ];
        ensure!(own.output(&args)? == "from outside\n");
        let missing = cli.run(&["exec", "-e", "GARDEN_IT_NONE", "app", "true"])?;
        missing.expect_code(2)?;
        let none = cli.run(&["run", image])?;
        none.expect_code(125)?.expect_one_line(&["no command"])?;
        app.end()
    });
}

#[test]
fn exit_codes_are_dockers() {
    check(|world| {
        let app = App::start(world)?;
        for (program, code) in [("/nonesuch", 127), ("/etc/passwd", 126)] {
            app.cli()
                .run(&["exec", "app", program])?
                .expect_code(code)?;
            app.cli()
                .run(&["run", &app.image, program])?
                .expect_code(code)?;
        }
        app.cli().run(&["exec", "none", "true"])?.expect_code(125)?;
        app.cli()
            .run(&["exec", "app", "sh", "-c", "kill -9 $$"])?
            .expect_code(137)?;
        app.end()
    });
}

#[test]
fn a_read_only_root_is_one() {
    check(|world| {
        let server = world.server()?;
        let image = world.images()?.tar("ro")?;
        let data = world.directory().join("data");
        fs::create_dir(&data)?;
        // The container's root is somebody else here.
        fs::set_permissions(&data, fs::Permissions::from_mode(0o777))?;
        let volume = format!("{}:/data", data.display());
        let script = "echo x > /data/written && ! echo x > /root-file";
        let args = [
            "run",
            "--read-only",
            "-v",
            &volume,
            &image,
            "sh",
            "-c",
            script,
        ];
        server.cli().run(&args)?.expect_code(0)?;
        ensure!(fs::read_to_string(data.join("written"))? == "x\n");
        Ok(())
    });
}

/// Waits until the log of a process holds a text.
fn logged(cli: &Cli, args: &[&str], text: &str) -> Result<String> {
    let mut shown = String::new();
    let args = [&["logs"], args].concat();
    wait_until(&format!("{args:?} has {text:?}"), DEADLINE, || {
        shown = cli.output(&args)?;
        Ok(shown.contains(text))
    })?;
    Ok(shown)
}

#[test]
fn what_runs_in_the_background_can_be_read_also_after_a_restart() {
    check(|world| {
        let mut server = world.server()?;
        let image = world.images()?.tar("bg")?;
        let cli = server.cli();
        let script = "echo one; echo wrong >&2; while [ ! -e /tmp/go ]; do sleep 0.05; done; \
                      echo two; echo three; exit 4";
        let name = cli.output(&["run", "-d", "--name", "bg", &image, "sh", "-c", script])?;
        ensure!(name == "bg\n");
        logged(&cli, &["bg"], "one")?;
        ensure!(
            !cli.output(&["logs", "bg"])?.contains("wrong"),
            "on standard output"
        );
        server.kill()?;
        server.restart()?;
        ensure!(cli.output(&["logs", "bg"])?.contains("one"));
        let follow = cli.start(&["logs", "-f", "bg"])?;
        follow.wait_stdout("one")?;
        cli.output(&["exec", "bg", "touch", "/tmp/go"])?;
        // The end of the process is the end of its log.
        let followed = follow.finish()?;
        followed.expect_code(0)?;
        ensure!(followed.stdout == "one\ntwo\nthree\n", "{followed:?}");
        ensure!(cli.output(&["logs", "-n", "1", "bg"])? == "three\n");
        let quiet = cli.run(&["logs", "bg", "nonesuch"])?;
        quiet.expect_code(125)?.expect_one_line(&["nonesuch"])?;
        // Nothing is kept of what a client of Garden's API runs.
        cli.output(&["exec", "bg", "--id", "other", "true"])?;
        ensure!(!cli.output(&["logs", "--list", "bg"])?.contains("other"));
        cli.output(&["rm", "-f", "bg", "nonesuch"])?;
        Ok(())
    });
}

#[test]
fn much_output_is_bounded_and_the_last_of_it_kept() {
    check(|world| {
        let server = world.server()?;
        let image = world.images()?.tar("much")?;
        let cli = server.cli();
        let script = "seq 1 1000000; echo finished";
        cli.output(&["run", "-d", "--name", "much", &image, "sh", "-c", script])?;
        let shown = logged(&cli, &["much"], "finished")?;
        ensure!(shown.len() < 1_100_000, "{} bytes", shown.len());
        ensure!(shown.ends_with("1000000\nfinished\n"));
        cli.output(&["rm", "much"])?;
        Ok(())
    });
}

#[test]
fn a_container_keeps_its_command_for_later() {
    check(|world| {
        let server = world.server()?;
        let image = world.images()?.tar("job")?;
        let cli = server.cli();
        let create = [
            "create",
            "--name",
            "job",
            "-u",
            "vcap",
            &image,
            "sh",
            "-c",
            "id -u; exit 3",
        ];
        cli.output(&create)?;
        let attached = cli.run(&["start", "-a", "job"])?;
        attached.expect_code(3)?;
        ensure!(attached.stdout == "2000\n");
        cli.output(&["start", "job"])?;
        logged(&cli, &["job"], "2000")?;
        cli.output(&["create", "--name", "bare", "--image", &image])?;
        let bare = cli.run(&["start", "bare"])?;
        bare.expect_code(125)?
            .expect_one_line(&["garden exec bare"])?;
        cli.output(&["rm", "job", "bare"])?;
        Ok(())
    });
}

#[test]
fn the_detach_keys_leave_a_process_running() {
    check(|world| {
        let server = world.server()?;
        let image = world.images()?.tar("keys")?;
        let cli = server.cli();
        let script = "echo up; while read line; do echo got $line; [ $line = end ] && exit 5; done";
        let run = ["run", "-it", "--name", "keys", &image, "sh", "-c", script];
        let mut terminal = cli.start_on_terminal(&run, (80, 24))?;
        terminal.wait_for("up")?;
        terminal.write("\x10\x11")?;
        ensure!(terminal.wait_end()? == Some(0), "{}", terminal.text());
        ensure!(!terminal.is_raw()?, "the terminal stays raw");
        terminal.wait_for("garden attach -t keys main")?;
        let mut again = cli.start_on_terminal(&["attach", "-t", "keys"], (80, 24))?;
        // What is typed before it is attached waits in the terminal.
        again.write("word\r")?;
        again.wait_for("got word")?;
        again.write("end\r")?;
        ensure!(again.wait_end()? == Some(5), "{}", again.text());
        ensure!(!again.is_raw()?, "the terminal stays raw");
        cli.output(&["rm", "keys"])?;
        Ok(())
    });
}

#[test]
fn a_terminal_is_given_back_whatever_ends_the_command() {
    check(|world| {
        let app = App::start(world)?;
        for signal in [Signal::HUP, Signal::TERM] {
            let args = ["exec", "-it", "app", "sh", "-c", "echo up; sleep 1000"];
            let mut terminal = app.cli().start_on_terminal(&args, (80, 24))?;
            terminal.wait_for("up")?;
            ensure!(terminal.is_raw()?);
            terminal.signal(signal)?;
            // Its process is killed, which is its end.
            ensure!(terminal.wait_end()? == Some(137), "{}", terminal.text());
            ensure!(
                !terminal.is_raw()?,
                "the terminal stays raw after {signal:?}"
            );
        }
        app.end()
    });
}

#[test]
fn lists_have_what_runs() {
    check(|world| {
        let app = App::start(world)?;
        let cli = app.cli();
        let pea = [
            "pea", "run", "-d", "--id", "side", "app", &app.image, "sleep", "1000",
        ];
        cli.output(&pea)?;
        let ids = cli.output(&["ps", "-q", "app"])?;
        ensure!(ids == "main\nside\n", "{ids}");
        ensure!(cli.output(&["ps", "-q"])? == "app\n");
        let top: Value = serde_json::from_str(&cli.output(&["top", "app", "--json"])?)?;
        let top = top.as_array().context("no list")?;
        let named = |id: &str| top.iter().any(|process| process["id"] == id);
        ensure!(named("main") && named("side"), "{top:?}");
        let stats = cli.output(&["stats", "--no-stream", "--json", "app"])?;
        let stats: Value = serde_json::from_str(&stats)?;
        ensure!(
            stats[0]["container"] == "app" && stats[1]["pea"] == "side",
            "{stats}"
        );
        cli.output(&["prop", "set", "app", "team", "-x-"])?;
        ensure!(cli.output(&["prop", "get", "app", "team"])? == "-x-\n");
        ensure!(cli.output(&["ls", "-q", "--filter", "team=-x-"])? == "app\n");
        cli.output(&["prop", "rm", "app", "team"])?;
        ensure!(!cli.output(&["prop", "ls", "app"])?.contains("team"));
        let mut shell = cli.start(&["shell", "app", "-u", "vcap"])?;
        shell.write("id -u; exit 6\n")?;
        let shell = shell.finish()?;
        shell.expect_code(6)?;
        ensure!(shell.stdout == "2000\n", "{shell:?}");
        app.end()
    });
}

/// The steps of a timeline.
fn steps(cli: &Cli, name: &str) -> Result<Vec<String>> {
    let life: Value = serde_json::from_str(&cli.output(&["timeline", name, "--json"])?)?;
    let lines = life["lines"].as_array().context("no lines")?;
    let step = |line: &Value| Some(line["step"].as_str()?.to_owned());
    Ok(lines.iter().filter_map(step).collect())
}

#[test]
fn a_life_is_told_after_it_is_over() {
    check(|world| {
        let server = world.server()?;
        let image = world.images()?.tar("life")?;
        let cli = server.cli();
        let follow = ["run", "--name", "life", &image, "true"];
        cli.output(&follow)?;
        let wanted = [
            "create",
            "rootfs",
            "cgroup",
            "shim",
            "init",
            "start",
            "process",
            "exit known",
            "destroyed",
            "teardown: unmount",
            "teardown: records",
        ];
        wait_until("the whole life is told", DEADLINE, || {
            let told = steps(&cli, "life")?;
            Ok(wanted
                .iter()
                .all(|step| told.iter().any(|told| told == step)))
        })?;
        let text = cli.output(&["timeline", "life"])?;
        ensure!(
            text.contains("main: process") && text.contains("code 0"),
            "{text}"
        );
        let picture = world.directory().join("life.svg");
        let path = picture.to_string_lossy();
        cli.output(&["timeline", "life", "--svg", &path])?;
        ensure!(fs::read_to_string(&picture)?.starts_with("<svg"));
        // Another one of the name has a life of its own.
        cli.output(&["create", "--name", "life", "--image", &image])?;
        ensure!(!steps(&cli, "life")?.contains(&"destroyed".to_owned()));
        let none = cli.run(&["timeline", "nonesuch"])?;
        none.expect_code(125)?.expect_one_line(&["nonesuch"])?;
        cli.output(&["rm", "life"])?;
        Ok(())
    });
}

/// The example of the documentation, in a directory where its image is.
fn pod(world: &World) -> Result<String> {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/pod.toml"))?;
    fs::copy(
        world.images()?.tar("shop")?,
        world.directory().join("busybox.tar"),
    )?;
    let file = world.directory().join("pod.toml");
    fs::write(&file, text)?;
    Ok(file.to_string_lossy().into_owned())
}

#[test]
fn a_pod_is_made_once_and_taken_away() {
    check(|world| {
        let server = world.server()?;
        let cli = server.cli();
        let file = pod(world)?;
        ensure!(cli.output(&["up", &file, "--wait", "2m"])? == "shop\n");
        ensure!(cli.output(&["ps", "-q", "shop"])? == "main\nwatch\n");
        ensure!(cli.output(&["exec", "shop", "sh", "-c", "echo $GREETING"])? == "hello\n");
        logged(&cli, &["shop", "watch"], "watching")?;
        let age = |cli: &Cli| cli.output(&["ps", "shop"]);
        let before = age(&cli)?;
        cli.output(&["up", &file])?;
        ensure!(age(&cli)? == before, "it was made again");
        // What has ended is started again.
        cli.output(&["exec", "shop", "sh", "-c", "kill $(pidof sleep)"])?;
        wait_until("its process has ended", DEADLINE, || {
            Ok(!cli.output(&["ps", "-q", "shop"])?.contains("main"))
        })?;
        cli.output(&["up", &file])?;
        ensure!(cli.output(&["ps", "-q", "shop"])?.contains("main"));
        let other = fs::read_to_string(&file)?.replace("hello", "goodbye");
        fs::write(&file, other)?;
        let refused = cli.run(&["up", &file])?;
        refused.expect_code(125)?.expect_one_line(&["--replace"])?;
        cli.output(&["up", &file, "--replace"])?;
        ensure!(cli.output(&["exec", "shop", "sh", "-c", "echo $GREETING"])? == "goodbye\n");
        for _ in 0..2 {
            cli.output(&["down", &file])?;
        }
        ensure!(cli.output(&["ls", "-q"])?.is_empty());
        Ok(())
    });
}

#[test]
fn a_pod_that_cannot_be_made_whole_is_not_made() {
    check(|world| {
        let server = world.server()?;
        let cli = server.cli();
        let file = pod(world)?;
        let good = fs::read_to_string(&file)?;
        cli.output(&["up", &file])?;
        cli.output(&["down", &file])?;
        let before = Leaks::now(world, Some(&server));
        let broken = good.replace(
            "\"sh\", \"-c\", \"echo watching",
            "\"/nonesuch\", \"-c\", \"",
        );
        ensure!(broken != good);
        fs::write(&file, broken)?;
        let failed = cli.run(&["up", &file])?;
        failed
            .expect_code(127)?
            .expect_one_line(&["the pod is not made", "cannot start watch"])?;
        ensure!(cli.output(&["ls", "-q"])?.is_empty());
        before.expect_no_more(world, Some(&server))?;
        fs::write(&file, good.replace("memory = \"64M\"", "memory = \"lots\""))?;
        let wrong = cli.run(&["up", &file])?;
        wrong
            .expect_code(125)?
            .expect_one_line(&["pod.toml", "line", "memory", "not a size"])?;
        Ok(())
    });
}
