//! Which devices can be used, tried from inside: by what every container has, by rules, by nodes of
//! the host. The same on a host that restricts them by cgroup v1 and on one that does by programs.
//!
//! The unlisted device is the kernel's log: every host has it, and opening it for writing alone,
//! which is all that is done with it here, needs no capability and changes nothing.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use garden_integration::{App, DEADLINE, Server, World, check, wait_until};
use rustix::fs::{CWD, FileType, Mode};

/// Opens and makes what no container may use; each line says how it went.
const UNLISTED: &str = "
    try() { (\"$@\") 2>&1 >/dev/null | grep -q 'not permitted' && echo refused || echo done; }
    opens() { : >$1; }
    reads() { : <$1; }
    rm -f /tmp/log /tmp/mem /tmp/disk
    mknod /tmp/log c 1 11; mknod /tmp/mem c 1 1; mknod /tmp/disk b 259 77
    echo w $(try opens /tmp/log) r $(try reads /tmp/log) mem $(try reads /tmp/mem) disk $(try reads /tmp/disk)
";
/// What it says where nothing but the usual devices may be used.
const ALL_REFUSED: &str = "w refused r refused mem refused disk refused";
/// What it says where the log may be written.
const LOG_OPENED: &str = "w done r refused mem refused disk refused";
/// Looks at, and uses, what every container has.
const USUAL: &str =
    "for node in null zero full random urandom tty; do stat -c '%F' /dev/$node; done | sort -u
    head -c 1 /dev/zero | wc -c; head -c 1 /dev/urandom | wc -c; echo x >/dev/null && echo written";
const USUAL_SEEN: &str = "character special file\n1\n1\nwritten";

fn create(world: &World, server: &Server<'_>, name: &str, flags: &[&str]) -> Result<()> {
    let image = world.images()?.tar("app")?;
    let args = ["create", "--image", &image, "--name", name];
    server.cli().output(&[args.as_slice(), flags].concat())?;
    Ok(())
}

/// What a script writes in an exec, in a pea that shares its container's group, and in one with a
/// group beside it.
fn everywhere(world: &World, server: &Server<'_>, name: &str, script: &str) -> Result<[String; 3]> {
    let image = world.images()?.tar("app")?;
    let command = ["--", "/bin/sh", "-c", script];
    let pea = ["pea", "run", name, "--image", &image];
    let beside = ["--own-limits"];
    let cli = server.cli();
    let all = [
        cli.output(&[&["exec", name], command.as_slice()].concat())?,
        cli.output(&[pea.as_slice(), &command].concat())?,
        cli.output(&[pea.as_slice(), &beside, &command].concat())?,
    ];
    Ok(all.map(|text| text.trim().to_owned()))
}

fn expect(world: &World, server: &Server<'_>, name: &str, script: &str, seen: &str) -> Result<()> {
    for text in everywhere(world, server, name, script)? {
        ensure!(text == seen, "{name}: {text}, not {seen}");
    }
    Ok(())
}

/// A node of the kernel's log that everybody may open, so that only rules are in the way.
fn node(world: &World, name: &str) -> Result<String> {
    let path = world.directory().join(name);
    let mode = Mode::from_raw_mode(0o666);
    let log = rustix::fs::makedev(1, 11);
    rustix::fs::mknodat(CWD, &path, FileType::CharacterDevice, mode, log)?;
    rustix::fs::chmod(&path, mode)?;
    Ok(path.to_str().context("a path that is no UTF-8")?.to_owned())
}

#[test]
fn the_usual_devices_and_no_others() {
    check(|world| {
        let server = world.server()?;
        create(world, &server, "plain", &[])?;
        create(world, &server, "power", &["--privileged"])?;
        expect(world, &server, "plain", USUAL, USUAL_SEEN)?;
        expect(world, &server, "power", USUAL, USUAL_SEEN)?;
        // Its root may make every node, and open none.
        expect(world, &server, "power", UNLISTED, ALL_REFUSED)?;
        let made = "rm -f /tmp/x; mknod /tmp/x b 8 0 2>/dev/null && echo made || echo refused";
        expect(world, &server, "power", made, "made")?;
        expect(world, &server, "plain", made, "refused")?;
        Ok(())
    });
}

#[test]
fn a_rule_opens_a_device() {
    check(|world| {
        let mut server = world.server()?;
        let rule = ["--privileged", "--device-cgroup-rule", "c 1:11 w"];
        create(world, &server, "power", &rule)?;
        create(world, &server, "other", &["--privileged"])?;
        expect(world, &server, "power", UNLISTED, LOG_OPENED)?;
        expect(world, &server, "other", UNLISTED, ALL_REFUSED)?;
        // The next server finds them as they were, and restricts what is new in the same way.
        server.kill()?;
        server.restart()?;
        expect(world, &server, "power", UNLISTED, LOG_OPENED)?;
        expect(world, &server, "other", UNLISTED, ALL_REFUSED)?;
        server.cli().output(&["rm", "power", "other"])?;
        Ok(())
    });
}

#[test]
fn a_rule_takes_a_device_away() {
    check(|world| {
        let server = world.server()?;
        let rule = ["--device-cgroup-rule", "deny c 1:5 r"];
        create(world, &server, "less", &rule)?;
        let script = "(: </dev/zero) 2>/dev/null && echo read; (: >/dev/zero) && echo written;
            (: <>/dev/zero) 2>/dev/null && echo both; head -c 1 /dev/urandom | wc -c";
        expect(world, &server, "less", script, "written\n1")?;
        Ok(())
    });
}

#[test]
fn a_node_of_the_host_appears() {
    check(|world| {
        let server = world.server()?;
        let log = node(world, "log")?;
        let device = format!("{log}:/dev/sub/messages:w");
        let script = "stat -c '%F %t:%T' /dev/sub/messages; (: >/dev/sub/messages) && echo opened
            (: </dev/sub/messages) 2>/dev/null || echo refused";
        let seen = "character special file 1:b\nopened\nrefused";
        for (name, flags) in [("plain", vec![]), ("power", vec!["--privileged"])] {
            let flags = [flags.as_slice(), &["--device", &device]].concat();
            create(world, &server, name, &flags)?;
            expect(world, &server, name, script, seen)?;
        }
        // The node is that container's own: the host's keeps its mode.
        let cli = server.cli();
        cli.output(&["exec", "power", "--", "chmod", "0", "/dev/sub/messages"])?;
        let args = ["exec", "plain", "--", "chmod", "0", "/dev/sub/messages"];
        ensure!(cli.run(&args)?.code != Some(0));
        let mode = rustix::fs::stat(log.as_str())?.st_mode;
        ensure!(mode & 0o777 == 0o666, "{mode:o}");
        Ok(())
    });
}

#[test]
fn what_has_become_another_device_is_not_given() {
    check(|world| {
        let server = world.server()?;
        let log = node(world, "log")?;
        create(
            world,
            &server,
            "plain",
            &["--device", &format!("{log}:/dev/messages")],
        )?;
        std::fs::remove_file(&log)?;
        let mode = Mode::from_raw_mode(0o666);
        let memory = rustix::fs::makedev(1, 1);
        rustix::fs::mknodat(CWD, &log, FileType::CharacterDevice, mode, memory)?;
        let image = world.images()?.tar("app")?;
        let pea = ["pea", "run", "plain", "--image", &image, "--", "true"];
        server
            .cli()
            .run(&pea)?
            .expect_one_line(&["device", "another"])?;
        Ok(())
    });
}

#[test]
fn what_cannot_be_given_is_refused() {
    check(|world| {
        let app = App::start(world)?;
        let image = world.images()?.tar("app")?;
        let node = node(world, "log")?;
        for (flag, value, words) in [
            ("--device", "/dev/not-there", ["device", "exist"]),
            (
                "--device",
                "/etc/passwd:/dev/x",
                ["no device", "/etc/passwd"],
            ),
            ("--device", "/dev/zero:/dev/null", ["/dev/null", "own"]),
            ("--device", &format!("{node}:/etc/x"), ["/etc/x", "/dev"]),
            (
                "--device",
                &format!("{node}:/dev/../x"),
                ["/dev/../x", "dots"],
            ),
            ("--device-cgroup-rule", "c 1:11", ["c 1:11", "rule"]),
            ("--device-cgroup-rule", "x 1:11 r", ["x 1:11", "rule"]),
        ] {
            let args = ["create", "--image", &image, "--name", "bad", flag, value];
            let outcome = app.cli().run(&args)?;
            ensure!(outcome.code != Some(0), "{value}: {outcome:?}");
            for word in words {
                ensure!(outcome.stderr.contains(word), "{value}: {outcome:?}");
            }
        }
        let runs = app.cli().output(&["ls"])?;
        ensure!(!runs.contains("bad"), "{runs}");
        // The name is free at once.
        create(
            world,
            &app.server,
            "bad",
            &["--device", &format!("{node}:/dev/x")],
        )?;
        app.cli().output(&["rm", "bad"])?;
        wait_until("its groups are gone", DEADLINE, || {
            let name = format!("garden-{}/own/bad", world.tag());
            let devices = Path::new("/sys/fs/cgroup/devices").join(name);
            Ok(!devices.exists())
        })?;
        app.end()
    });
}
