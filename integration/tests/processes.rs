//! Processes in a container: streams, users, directories, limits, names, attaching.

use std::fs;

use anyhow::ensure;
use garden_integration::{App, DEADLINE, Rootfs, check, lines_of, status_field, wait_until};
use rustix::process::Signal;

#[test]
fn a_stream_can_be_opened_again_by_its_user() {
    check(|world| {
        let app = App::start(world)?;
        let script = "echo out > /dev/stdout; echo err > /dev/stderr; cat /dev/stdin";
        for user in ["root", "vcap", "1234:567"] {
            let args = ["exec", "app", "-u", user, "--", "sh", "-c", script];
            let outcome = app.cli().run(&args)?;
            outcome.expect_code(0)?;
            ensure!(outcome.stdout == "out\n", "{user}: {outcome:?}");
            ensure!(outcome.stderr == "err\n", "{user}: {outcome:?}");
        }
        ensure!(app.pea("vcap", "echo out > /dev/stdout")? == "out\n");
        app.end()
    });
}

#[test]
fn users_in_all_forms() {
    check(|world| {
        let app = App::start(world)?;
        let script = "echo $(id -u):$(id -g):$(id -G | tr ' ' ,):$HOME:$USER";
        for (user, expected) in [
            ("root", "0:0:0:/root:root"),
            ("vcap", "2000:2000:2000,3000:/home/vcap:vcap"),
            ("2000", "2000:2000:2000,3000:/home/vcap:2000"),
            ("1234", "1234:0:0:/:1234"),
            ("vcap:extra", "2000:3000:3000:/home/vcap:vcap:extra"),
            ("vcap:7", "2000:7:7:/home/vcap:vcap:7"),
            ("1234:567", "1234:567:567:/:1234:567"),
            ("0:5", "0:5:5:/root:0:5"),
        ] {
            let seen = app.exec_as(user, script)?;
            ensure!(seen.trim() == expected, "{user}: {seen}");
            let seen = app.pea(user, script)?;
            ensure!(seen.trim() == expected, "{user} in a pea: {seen}");
        }
        for unknown in ["nobodyknows", "vcap:nobodyknows", "2147483648"] {
            let args = ["exec", "app", "-u", unknown, "--", "true"];
            let outcome = app.cli().run(&args)?;
            outcome.expect_code(125)?;
            let name = unknown.rsplit(':').next().unwrap_or(unknown);
            outcome.expect_one_line(&[name])?;
        }
        app.end()
    });
}

/// `/proc/self/limits` calls them so; the values are below what any host gives.
const LIMITS: [(&str, &str, u64); 15] = [
    ("as", "Max address space", 1 << 30),
    ("core", "Max core file size", 4096),
    ("cpu", "Max cpu time", 1000),
    ("data", "Max data size", 1 << 29),
    ("fsize", "Max file size", 1 << 28),
    ("locks", "Max file locks", 17),
    ("memlock", "Max locked memory", 1 << 16),
    ("msgqueue", "Max msgqueue size", 1 << 15),
    ("nice", "Max nice priority", 0),
    ("nofile", "Max open files", 123),
    ("nproc", "Max processes", 321),
    ("rss", "Max resident set", 1 << 27),
    ("rtprio", "Max realtime priority", 0),
    ("sigpending", "Max pending signals", 45),
    ("stack", "Max stack size", 1 << 20),
];

#[test]
fn resource_limits() {
    check(|world| {
        let app = App::start(world)?;
        let flags: Vec<_> = LIMITS
            .iter()
            .map(|(name, _, value)| format!("--ulimit={name}={value}"))
            .collect();
        let flags: Vec<_> = flags.iter().map(String::as_str).collect();
        let end = ["--", "cat", "/proc/self/limits"];
        let exec = [&["exec", "app"], &flags[..], &end].concat();
        let pea = ["pea", "run", "app", "--image", &app.image];
        let pea = [&pea, &flags[..], &end].concat();
        for args in [exec, pea] {
            let table = app.cli().output(&args)?;
            for (_, title, value) in LIMITS {
                let line = table.lines().find(|line| line.starts_with(title));
                let line = line.unwrap_or_default();
                let mut words = line[title.len()..].split_whitespace();
                let value = value.to_string();
                ensure!(words.next() == Some(&value), "soft: {line}");
                ensure!(words.next() == Some(&value), "hard: {line}");
            }
        }
        let odd = ["exec", "app", "--ulimit", "teeth=3", "--", "true"];
        let outcome = app.cli().run(&odd)?;
        outcome.expect_code(2)?;
        let told = ["teeth", "nofile"]
            .iter()
            .all(|word| outcome.stderr.contains(word));
        ensure!(told, "{outcome:?}");
        app.end()
    });
}

#[test]
fn a_resource_limit_above_the_servers_own() {
    check(|world| {
        let app = App::start(world)?;
        let own = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let Some(own) = own.maximum else {
            return garden_integration::skip("a limit on open files");
        };
        let more = (own + 1).to_string();
        let flag = format!("nofile={more}");
        let status = fs::read_to_string("/proc/self/status")?;
        let effective = u64::from_str_radix(status_field(&status, "CapEff")?, 16)?;
        let most: u64 = fs::read_to_string("/proc/sys/fs/nr_open")?.trim().parse()?;
        let may = effective & (1 << 24) != 0 && own < most;
        for kind in ["exec", "pea"] {
            let start: &[&str] = match kind {
                "exec" => &["exec", "app"],
                _ => &["pea", "run", "app", "--image", &app.image],
            };
            let end = ["--ulimit", &flag, "--", "sh", "-c", "ulimit -Hn"];
            let outcome = app.cli().run(&[start, &end].concat())?;
            if may {
                ensure!(outcome.stdout.trim() == more, "{kind}: {outcome:?}");
            } else {
                outcome.expect_code(125)?;
                outcome.expect_one_line(&["nofile", &more, "CAP_SYS_RESOURCE"])?;
            }
        }
        app.end()
    });
}

#[test]
fn a_working_directory_is_made_inside_and_never_outside() {
    check(|world| {
        let server = world.server()?;
        let outside = world.directory().join("outside");
        fs::create_dir_all(&outside)?;
        let up = "../../../../../../../..";
        let image = world.images()?.tar_of(
            "links",
            &Rootfs::busybox("links")?
                .symlink("absolute", outside.to_str().unwrap_or_default())
                .symlink("relative", &format!("{up}{}", outside.display())),
        )?;
        let create = ["create", "--image", &image, "--name", "app"];
        server.cli().output(&create)?;
        for link in ["absolute", "relative"] {
            let directory = format!("/{link}/new");
            let args = ["exec", "app", "-u", "vcap", "-w", &directory, "--", "pwd"];
            // A dangling link inside: the directory behind it is not there. That is refused, or
            // made inside; never followed to the host.
            let _ = server.cli().run(&args)?;
            ensure!(!outside.join("new").exists(), "{link} leads outside");
        }
        let below = format!("{up}/made/here");
        let args = ["exec", "app", "-u", "vcap", "-w", &below, "--"];
        let script = ["sh", "-c", "pwd; stat -c %u /made /made/here"];
        let output = server.cli().output(&[&args[..], &script].concat())?;
        ensure!(
            lines_of(&output) == ["/made/here", "2000", "2000"],
            "{output}"
        );
        for start in [
            &["exec", "app"][..],
            &["pea", "run", "app", "--image", &image],
        ] {
            let wrong = [start, &["-w", "/etc/passwd", "--", "true"]].concat();
            let outcome = server.cli().run(&wrong)?;
            outcome.expect_code(125)?;
            outcome.expect_one_line(&["/etc/passwd", "ot a directory"])?;
        }
        Ok(())
    });
}

#[test]
fn where_a_process_begins() {
    check(|world| {
        let app = App::start(world)?;
        ensure!(app.exec_as("vcap", "pwd")? == "/home/vcap\n");
        ensure!(app.pea("vcap", "pwd")? == "/\n");
        app.end()
    });
}

#[test]
fn several_are_attached_and_one_comes_late() {
    check(|world| {
        let app = App::start(world)?;
        let script = "while read line; do [ $line = more ] && exit 7; echo got $line; done";
        let start = ["exec", "app", "--id", "job", "--detach", "--"];
        let id = app
            .cli()
            .output(&[&start[..], &["sh", "-c", script]].concat())?;
        ensure!(id == "job\n", "{id}");
        let again = app
            .cli()
            .run(&["exec", "app", "--id", "job", "--", "true"])?;
        again.expect_code(125)?;
        again.expect_one_line(&["process ID 'job' already in use"])?;
        let attach = ["attach", "app", "job"];
        // What ends first would end the input: this one only listens.
        let listener = app.cli().start(&["attach", "app", "job", "--no-stdin"])?;
        let mut speaker = app.cli().start(&attach)?;
        // Said again until the listener is there to hear it.
        wait_until("it says something to both", DEADLINE, || {
            speaker.write("hello\n")?;
            Ok(listener.has_stdout("got hello\n"))
        })?;
        speaker.wait_stdout("got hello\n")?;
        speaker.write("more\n")?;
        for attached in [listener, speaker] {
            attached.finish()?.expect_code(7)?;
        }
        // It is remembered, and its name can be had again.
        app.cli().run(&attach)?.expect_code(7)?;
        app.cli()
            .run(&["exec", "app", "--id", "job", "--", "sh", "-c", "exit 3"])?
            .expect_code(3)?;
        app.cli().run(&attach)?.expect_code(3)?;
        app.end()
    });
}

#[test]
fn what_has_ended_is_forgotten_when_told_so() {
    check(|world| {
        let server = world.server_with(&["--cleanup-process-dirs-on-wait"])?;
        let app = App::start_on(world, server)?;
        let records = || {
            let directory = world.directory().join("run/containers/app/processes");
            Ok::<_, anyhow::Error>(fs::read_dir(directory)?.count())
        };
        let before = records()?;
        for start in [
            &["exec", "app"][..],
            &["pea", "run", "app", "--image", &app.image],
        ] {
            let args = [start, &["--id", "job", "--", "sh", "-c", "exit 5"]].concat();
            app.cli().run(&args)?.expect_code(5)?;
            let outcome = app.cli().run(&["attach", "app", "job"])?;
            outcome.expect_one_line(&["unknown process: job"])?;
        }
        wait_until(
            "its records are gone",
            DEADLINE,
            || Ok(records()? == before),
        )?;
        app.end()
    });
}

#[test]
fn a_signal_overtakes_input_that_is_not_read() {
    check(|world| {
        let app = App::start(world)?;
        let script = "trap 'echo ended; exit 13' TERM; echo up; while :; do sleep 0.1; done";
        let start = ["exec", "app", "--", "sh", "-c", script];
        let mut running = app.cli().start(&start)?;
        running.wait_stdout("up")?;
        // More than a pipe holds, and less than all that waits on the way.
        running.write(&"x".repeat(1 << 20))?;
        running.signal(Signal::INT)?;
        // An interrupted command kills its process.
        running.finish()?.expect_code(137)?;
        app.end()
    });
}

#[test]
fn output_goes_on_after_the_end_of_input() {
    check(|world| {
        let app = App::start(world)?;
        let script = "cat > /dev/null; sleep 0.1; echo after; echo err >&2; exit 4";
        let outcome = app.cli().run(&["exec", "app", "--", "sh", "-c", script])?;
        outcome.expect_code(4)?;
        ensure!(
            outcome.stdout == "after\n" && outcome.stderr == "err\n",
            "{outcome:?}"
        );
        app.end()
    });
}

#[test]
fn start_errors_tell_what_is_wrong_for_peas_too() {
    check(|world| {
        let app = App::start(world)?;
        app.exec(
            "echo x > /tmp/data; printf '#!/no/such/interpreter\\n' > /tmp/script; \
                  chmod +x /tmp/script; mkdir /tmp/directory",
        )?;
        for (program, code, word) in [
            ("nonesuch", 127, "executable file not found in $PATH"),
            ("/bin/nonesuch", 127, "no such file or directory"),
            ("/etc/passwd", 126, "ermission denied"),
            ("/etc", 126, "ermission denied"),
        ] {
            for start in [
                &["exec", "app"][..],
                &["pea", "run", "app", "--image", &app.image],
            ] {
                let outcome = app.cli().run(&[start, &["--", program]].concat())?;
                outcome.expect_code(code)?;
                outcome.expect_one_line(&[program, word])?;
            }
        }
        let outcome = app.cli().run(&["exec", "app", "--", "/tmp/script"])?;
        outcome.expect_code(126)?;
        outcome.expect_one_line(&["interpreter"])?;
        app.end()
    });
}
