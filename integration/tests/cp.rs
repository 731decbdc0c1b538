//! `garden cp`: docker's habits, at both ends.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;

use anyhow::{Result, ensure};
use garden_integration::{App, Outcome, check};

/// Runs the script in a directory of the host.
fn at(app: &App<'_>, directory: &Path, script: &str) -> Result<Outcome> {
    app.cli()
        .shell(&format!("cd {} && {script}", directory.display()))
}

fn good(app: &App<'_>, directory: &Path, script: &str) -> Result<String> {
    let outcome = at(app, directory, script)?;
    outcome.expect_code(0)?;
    Ok(outcome.stdout)
}

fn refused(app: &App<'_>, directory: &Path, script: &str, word: &str) -> Result<()> {
    let outcome = at(app, directory, script)?;
    ensure!(
        outcome.code == Some(125) && outcome.stderr.contains(word),
        "{script}: {outcome:?}"
    );
    Ok(())
}

#[test]
fn out_of_a_container() {
    check(|world| {
        let app = App::start(world)?;
        app.exec(
            "mkdir -p /src/d; echo one >/src/f; echo two >/src/d/g; ln -s f /src/link; ln -s src /way
            chown 2000:2000 /src/f; chmod 4711 /src/f; mkdir -m 711 /src/e; touch -d @1000 /src/e
            ln -s /src/none /src/dangling; mkfifo /src/d/pipe
            dd if=/dev/zero of=/src/holes bs=1 count=1 seek=100M 2>/dev/null",
        )?;
        let here = world.directory().join("here");
        fs::create_dir(&here)?;
        // A file: under its name, another name, in a directory, over a file, over a link's target.
        good(
            &app,
            &here,
            "mkdir in && echo old >old && echo old >target && ln -s target lead
            for to in . new in old lead; do $garden cp app:/src/f $to || exit 1; done",
        )?;
        for name in ["f", "new", "in/f", "old", "target"] {
            ensure!(fs::read(here.join(name))? == b"one\n", "{name}");
        }
        ensure!(fs::read_link(here.join("lead"))? == Path::new("target"));
        let stat = fs::metadata(here.join("f"))?;
        ensure!((stat.mode() & 0o7777, stat.uid()) == (0o711, 0), "{stat:?}");
        good(&app, &here, "$garden cp -a app:/src/f archived")?;
        let stat = fs::metadata(here.join("archived"))?;
        ensure!(
            (stat.mode() & 0o7777, stat.uid()) == (0o4711, 2000),
            "{stat:?}"
        );
        // A directory: as one that is missing, into one that exists, only its content.
        let seen = good(&app, &here, "mkdir a b && $garden cp app:/src as && $garden cp app:src/ a &&
            $garden cp app:/src/. b && find as a b | sort | grep -v -e link -e dangling -e holes -e pipe")?;
        let tree = |root: &str| format!("{root}\n{root}/d\n{root}/d/g\n{root}/e\n{root}/f\n");
        ensure!(
            seen == format!("a\n{}{}{}", tree("a/src"), tree("as"), tree("b")),
            "{seen}"
        );
        let stat = fs::metadata(here.join("as/e"))?;
        ensure!(
            (stat.mode() & 0o7777, stat.mtime()) == (0o711, 1000),
            "{stat:?}"
        );
        let stat = fs::metadata(here.join("as/holes"))?;
        ensure!(
            stat.len() == (100 << 20) + 1 && stat.blocks() < 1000,
            "{stat:?}"
        );
        ensure!(fs::read_link(here.join("as/dangling"))? == Path::new("/src/none"));
        // Links: themselves, what they lead to, and a slash that asks for a directory.
        good(
            &app,
            &here,
            "$garden cp app:/src/link l1 && $garden cp -L app:/src/link l2 &&
            $garden cp app:/way w1 && $garden cp -L app:/way w2 && $garden cp app:/way/ w3",
        )?;
        ensure!(fs::read_link(here.join("l1"))? == Path::new("f"));
        ensure!(
            fs::read(here.join("l2"))? == b"one\n"
                && fs::symlink_metadata(here.join("l2"))?.is_file()
        );
        ensure!(fs::read_link(here.join("w1"))? == Path::new("src"));
        ensure!(here.join("w2/d/g").exists() && here.join("w3/d/g").exists());
        // A tar.
        let seen = good(
            &app,
            &here,
            "$garden cp app:/src/d - | tar -t; $garden cp app:/src/d/. - | tar -t",
        )?;
        ensure!(
            seen.lines().count() == 6 && seen.starts_with("d/\n") && seen.contains("./g\n"),
            "{seen}"
        );
        // What makes no sense.
        for (script, word) in [
            ("$garden cp app:/none x", "/none does not exist"),
            ("$garden cp app:/src/f/ x", "no directory"),
            ("$garden cp app:/src/f none/x", "none"),
            ("$garden cp app:/src/f x/", "no directory"),
            ("$garden cp app:/src f", "cannot copy the directory"),
            (
                "$garden cp app:/src/f /dev/null",
                "neither a file nor a directory",
            ),
            ("$garden cp app:/src/f app:/x", "two steps"),
            ("$garden cp f x", "neither side"),
            ("$garden cp gone:/src/f x", "gone"),
            ("$garden cp -u vcap app:/root x", "Permission denied"),
        ] {
            refused(&app, &here, script, word)?;
        }
        ensure!(!here.join("x").exists());
        app.end()
    });
}

#[test]
fn into_a_container() {
    check(|world| {
        let app = App::start(world)?;
        let here = world.directory().join("here");
        fs::create_dir_all(here.join("src/d"))?;
        fs::write(here.join("src/f"), "one\n")?;
        fs::write(here.join("src/d/g"), "two\n")?;
        symlink("f", here.join("src/link"))?;
        chown(here.join("src/f"), Some(2000), Some(3000))?;
        fs::set_permissions(here.join("src/f"), fs::Permissions::from_mode(0o4715))?;
        app.exec("mkdir -p /to/in; echo old >/to/old; ln -s to /way; mkdir -m 777 /open")?;
        good(&app, &here, "$garden cp src/f app:/to/new && $garden cp src/f app:/to/in &&
            $garden cp src/f app:/way/old && $garden cp src/f app:/way && $garden cp src app:/to/as &&
            $garden cp src app:/to/in && $garden cp src/. app:/to/in/ && (cd src && $garden cp . app:/to/dot) &&
            $garden cp -L src/link app:/to/followed && $garden cp src/link app:/to/link &&
            $garden cp -u vcap src app:/open && $garden cp -a src app:/to/kept &&
            tar -C src -cf - f | $garden cp - app:/to/as/d")?;
        let seen = app.exec(
            "cd /to; cat new in/f old f as/f in/src/f in/f dot/d/g followed as/d/f; readlink link",
        )?;
        ensure!(
            seen == "one\none\none\none\none\none\none\ntwo\none\none\nf\n",
            "{seen}"
        );
        let seen = app.exec("cd /; stat -c '%a %u %g' to/new open/src/f to/kept/f to/kept/d/g")?;
        ensure!(
            seen == "715 0 0\n715 2000 2000\n4715 2000 3000\n644 0 0\n",
            "{seen}"
        );
        for (script, word) in [
            ("$garden cp none app:/to/x", "none"),
            ("$garden cp src/f app:/none/x", "/none is no directory"),
            ("$garden cp src/f app:/to/x/", "no directory"),
            ("$garden cp src/f/ app:/to/x", "no directory"),
            ("$garden cp src app:/to/old", "cannot copy the directory"),
            ("tar -c src | $garden cp - app:/to/x", "no directory"),
            ("$garden cp -u vcap src/f app:/to/x", "Permission denied"),
            ("$garden cp -a -u vcap src/f app:/to/x", ""),
        ] {
            let outcome = at(&app, &here, script)?;
            ensure!(
                outcome.code != Some(0) && outcome.stderr.contains(word),
                "{script}: {outcome:?}"
            );
        }
        // Not the half of something.
        let seen = app.exec("test -e /to/x || echo clean")?;
        ensure!(seen == "clean\n", "{seen}");
        app.end()
    });
}

/// A container whose processes move things about while they are copied: the host stays as it is.
#[test]
fn a_container_that_plays_tricks() {
    check(|world| {
        let app = App::start(world)?;
        let here = world.directory().join("here");
        let victim = world.directory().join("victim");
        fs::create_dir(&here)?;
        fs::create_dir(&victim)?;
        fs::write(victim.join("kept"), "kept")?;
        let path = victim.display();
        app.exec(&format!(
            "mkdir -p /trick/a; for i in $(seq 200); do echo got >/trick/a/kept$i; done; echo got >/trick/a/kept
            ln -s {path} /trick/b; ln -s ../victim /trick/c
            (while test -d /trick; do mv /trick/a /trick/x; mv /trick/b /trick/a; mv /trick/a /trick/b; mv /trick/x /trick/a; done) >/dev/null 2>&1 &"
        ))?;
        for round in 0..15 {
            // It may fail or not: a directory that becomes a link between two looks is told.
            at(
                &app,
                &here,
                &format!(
                    "$garden cp app:/trick r; $garden cp app:/trick/. r; $garden cp -L app:/trick/a s{round}"
                ),
            )?;
        }
        app.exec("mv /trick /gone; sleep 0.1; rm -rf /gone")?;
        let names: Vec<_> = fs::read_dir(&victim)?.collect::<std::io::Result<_>>()?;
        ensure!(
            names.len() == 1 && fs::read(victim.join("kept"))? == b"kept",
            "{names:?}"
        );
        app.end()
    });
}

#[test]
fn a_person_sees_how_far_it_is() {
    check(|world| {
        let app = App::start(world)?;
        app.exec("dd if=/dev/zero of=/big bs=1M count=8 2>/dev/null")?;
        let to = world.directory().join("big").display().to_string();
        let mut terminal = app
            .cli()
            .start_on_terminal(&["cp", "app:/big", &to], (100, 20))?;
        ensure!(terminal.wait_end()? == Some(0));
        terminal.wait_for("copied app:/big to")?;
        let mut terminal = app
            .cli()
            .start_on_terminal(&["cp", "-q", &to, "app:/big"], (100, 20))?;
        ensure!(terminal.wait_end()? == Some(0));
        ensure!(!terminal.text().contains("copied"), "{:?}", terminal.text());
        app.end()
    });
}
