//! Tar streams into and out of a container, against GNU tar as the other side.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use garden_integration::{App, World, check};

/// Runs a script on the host, with the command lines of the app's server in its environment.
fn shell(app: &App<'_>, script: &str) -> Result<String> {
    let output = app.cli().shell(script)?;
    output.expect_code(0)?;
    Ok(output.stdout)
}

/// What of a tree must survive: types, modes, sizes, times, link targets, contents.
fn listing(directory: &Path) -> Result<String> {
    let script = "find . -mindepth 1 ! -type l -printf '%y %m %s %T@ %n %p\\n' | sed 's/\\.[0-9]* / /' | sort
        find . -type l -printf '%p %l\\n' | sort
        find . -type f -exec sha256sum {} + | sort";
    let output = Command::new("/bin/sh")
        .args(["-c", script])
        .current_dir(directory)
        .output()?;
    ensure!(
        output.status.success(),
        "cannot list {}",
        directory.display()
    );
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // Sizes of directories are the file system's affair.
    let line = |line: &str| match line.strip_prefix("d ") {
        Some(rest) => {
            let words: Vec<_> = rest.split(' ').collect();
            format!("d {} {}", words[0], words[4..].join(" "))
        }
        None => line.to_owned(),
    };
    Ok(text.lines().map(line).collect::<Vec<_>>().join("\n"))
}

/// A tree with one of everything that a tar can hold without root.
fn tree(world: &World) -> Result<std::path::PathBuf> {
    let tree = world.directory().join("tree");
    let deep = tree
        .join("d".repeat(90))
        .join("e".repeat(90))
        .join("f".repeat(90));
    fs::create_dir_all(&deep)?;
    fs::write(deep.join("deep"), "deep")?;
    fs::write(tree.join("plain"), vec![b'p'; 300_000])?;
    fs::write(tree.join("empty"), "")?;
    fs::write(tree.join("line\nbreak and space"), "x")?;
    fs::hard_link(tree.join("plain"), tree.join("second"))?;
    symlink("plain", tree.join("inward"))?;
    symlink("../../etc/passwd", tree.join("outward"))?;
    symlink("/nowhere", tree.join("absolute"))?;
    let sparse = File::create(tree.join("sparse"))?;
    sparse.set_len(64 << 20)?;
    sparse.write_all_at(b"here", 8 << 20)?;
    sparse.write_all_at(&vec![b's'; 100_000], 32 << 20)?;
    fs::set_permissions(tree.join("empty"), fs::Permissions::from_mode(0o500))?;
    let closed = tree.join("closed");
    fs::create_dir(&closed)?;
    fs::write(closed.join("inside"), "inside")?;
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555))?;
    Ok(tree)
}

#[test]
fn round_trip_against_gnu_tar() {
    check(|world| {
        let app = App::start(world)?;
        let tree = tree(world)?;
        let expected = listing(&tree)?;
        for (number, format) in [
            "--format=gnu",
            "--format=pax",
            "--format=pax --sparse-version=0.1",
        ]
        .iter()
        .enumerate()
        {
            let back = world.directory().join(format!("back-{number}"));
            fs::create_dir(&back)?;
            let (from, to) = (tree.display(), back.display());
            shell(
                &app,
                &format!(
                    "tar -S {format} -C {from} -cf - . | $garden stream-in app /in-{number} &&
                    $garden stream-out app /in-{number}/ | tar -C {to} -xpf -"
                ),
            )?;
            let seen = listing(&back)?;
            ensure!(seen == expected, "{format}: {seen}\ninstead of {expected}");
            let blocks = fs::metadata(back.join("sparse"))?.blocks();
            ensure!(blocks < 2048, "{format}: no holes, {blocks} blocks");
            let held = app.exec(&format!("du -k /in-{number}/sparse"))?;
            let held: u64 = held.split_whitespace().next().context("no size")?.parse()?;
            ensure!(held < 1024, "{format}: {held} KiB inside");
        }
        app.end()
    });
}

#[test]
fn who_owns_what_and_where() {
    check(|world| {
        let app = App::start(world)?;
        let directory = world.directory().join("mine");
        fs::create_dir(&directory)?;
        fs::write(directory.join("file"), "x")?;
        fs::set_permissions(directory.join("file"), fs::Permissions::from_mode(0o6777))?;
        let from = directory.display();
        shell(
            &app,
            &format!(
                "tar -C {from} -cf - file | $garden stream-in app /made/here --user vcap &&
                tar -C {from} -cf - file | $garden stream-in app below --user vcap"
            ),
        )?;
        let seen = app.exec("stat -c '%U %a' /made /made/here /made/here/file ~vcap/below/file")?;
        ensure!(
            seen == "vcap 755\nvcap 755\nvcap 755\nvcap 755\n",
            "owners and modes: {seen}"
        );
        let names = shell(
            &app,
            "$garden stream-out app /made/here | tar -t; $garden stream-out app /made/here/ | tar -t;
            $garden stream-out app /made/here/file | tar -t; $garden stream-out app below --user vcap | tar -t",
        )?;
        ensure!(
            names == "here/\nhere/file\n./\n./file\nfile\nbelow/\nbelow/file\n",
            "{names}"
        );
        app.end()
    });
}

#[test]
fn what_goes_wrong_is_told() {
    check(|world| {
        let app = App::start(world)?;
        let cli = app.cli();
        let outcome = cli.run(&["stream-out", "app", "/missing"])?;
        ensure!(
            outcome.code == Some(125) && outcome.stderr.contains("/missing"),
            "{outcome:?}"
        );
        let outcome = cli.shell("head -c 5000 /dev/urandom | $garden stream-in app /junk")?;
        ensure!(
            outcome.code == Some(125) && outcome.stderr.contains("tar"),
            "{outcome:?}"
        );
        let outcome = cli.shell(
            "tar -cf - /bin/sh 2>/dev/null | $garden stream-in app /etc/x --user nobody-here",
        )?;
        ensure!(
            outcome.code == Some(125) && outcome.stderr.contains("nobody-here"),
            "{outcome:?}"
        );
        let outcome =
            cli.shell("tar -C / -cf - etc/hostname | $garden stream-in app / --user vcap")?;
        ensure!(
            outcome.stderr.contains("etc/hostname"),
            "the entry is not named: {outcome:?}"
        );
        let outcome =
            cli.shell("tar -C / -cf - etc | head -c 3000 | $garden stream-in app /cut")?;
        ensure!(
            outcome.code == Some(125),
            "a cut archive is taken: {outcome:?}"
        );
        // What vcap cannot read is never taken for nothing. (How much of the rest arrived before the
        // connection broke depends on its buffers.)
        app.exec(
            "mkdir /some; echo a >/some/a; echo b >/some/b; chmod 0 /some/a; chmod 755 /some",
        )?;
        let outcome = cli.run(&["stream-out", "app", "/some/", "--user", "vcap"])?;
        ensure!(outcome.code == Some(125), "{outcome:?}");
        app.end()
    });
}

#[test]
fn an_early_close_ends_it() {
    check(|world| {
        let app = App::start(world)?;
        app.exec("dd if=/dev/zero of=/big bs=1M count=64 2>/dev/null")?;
        let seen = shell(
            &app,
            "$garden stream-out app /big | head -c 1000 | wc -c; echo fine",
        )?;
        ensure!(seen == "1000\nfine\n", "{seen}");
        ensure!(app.exec("echo alive")? == "alive\n");
        app.end()
    });
}

#[test]
fn an_archives_own_links_lead_nowhere() {
    check(|world| {
        let app = App::start(world)?;
        let directory = world.directory().join("trap");
        fs::create_dir_all(directory.join("real"))?;
        fs::write(directory.join("real/owned"), "x")?;
        let from = directory.display();
        // First a link out of the destination, then an entry through it.
        let outcome = app.cli().shell(&format!(
            "cd {from} && ln -s /etc way && tar -cf one.tar way && rm way && mv real way &&
            tar -rf one.tar way/owned && $garden stream-in app /into <one.tar"
        ))?;
        ensure!(outcome.code == Some(125), "the trap was taken: {outcome:?}");
        let seen = app.exec("ls /etc/owned 2>/dev/null || echo clean")?;
        ensure!(seen == "clean\n", "{seen}");
        let outcome = app.cli().shell(&format!(
            "cd {from} && tar -P --transform 's,way,../../etc,' -cf two.tar way/owned &&
            $garden stream-in app /into <two.tar"
        ))?;
        ensure!(outcome.stderr.contains("'..'"), "{outcome:?}");
        app.end()
    });
}
