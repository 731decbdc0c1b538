//! Tar streams into and out of a container, against GNU tar as the other side.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use garden_integration::{App, Leaks, World, check};

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

/// Sends a request and gives up the connection when `most` bytes of it went or `most_back` came.
fn cut_short(app: &App<'_>, request: &[u8], most: usize, most_back: usize) -> Result<Vec<u8>> {
    let mut stream = UnixStream::connect(app.server.socket())?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let _ = stream.write_all(&request[..most.min(request.len())]);
    let mut answer = Vec::new();
    if most >= request.len() {
        stream.take(most_back as u64).read_to_end(&mut answer)?;
    }
    Ok(answer)
}

fn put(destination: &str, user: &str, tar: &[u8]) -> Vec<u8> {
    let head = format!(
        "PUT /containers/app/files?destination={destination}&user={user} HTTP/1.1\r\nHost: x\r\n\
         Connection: close\r\nContent-Type: application/x-tar\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    let mut request = head.into_bytes();
    for piece in tar.chunks(70_000) {
        request.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        request.extend_from_slice(piece);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\n\r\n");
    request
}

fn get(source: &str, user: &str) -> Vec<u8> {
    format!(
        "GET /containers/app/files?source={source}&user={user} HTTP/1.1\r\nHost: x\r\n\
         Connection: close\r\n\r\n"
    )
    .into_bytes()
}

/// The status and the rest of an answer.
fn status(answer: &[u8]) -> (String, String) {
    let text = String::from_utf8_lossy(answer);
    let status = text.split(' ').nth(1).unwrap_or_default().to_owned();
    (status, text.into_owned())
}

#[test]
fn clients_leave_at_any_byte() {
    check(|world| {
        let app = App::start(world)?;
        app.exec(
            "mkdir /out; dd if=/dev/zero of=/out/big bs=1M count=3 2>/dev/null
            for i in $(seq 300); do echo $i >/out/$i; done",
        )?;
        let directory = world.directory().join("in");
        fs::create_dir(&directory)?;
        for number in 0..200 {
            fs::write(directory.join(number.to_string()), vec![b'n'; number * 20])?;
        }
        let tar = Command::new("tar")
            .arg("-C")
            .arg(&directory)
            .args(["-cf", "-", "."])
            .output()?;
        let (up, down) = (put("/in", "", &tar.stdout), get("/out/", ""));
        ensure!(status(&cut_short(&app, &up, up.len(), 9999)?).0 == "200");
        let before = Leaks::now(world, Some(&app.server));
        let whole = cut_short(&app, &down, down.len(), usize::MAX)?.len();
        // Steps that share no factor with a block, a chunk or a buffer.
        for number in 0..12 {
            cut_short(&app, &up, number * 7919 % up.len(), 0)?;
            cut_short(&app, &down, down.len(), number * 135_173 % whole)?;
            cut_short(&app, &down, number * 7 % down.len(), 0)?;
        }
        before.expect_no_more(world, Some(&app.server))?;
        ensure!(app.exec("cat /out/7")? == "7\n");
        ensure!(status(&cut_short(&app, &up, up.len(), 9999)?).0 == "200");
        app.end()
    });
}

#[test]
fn failures_have_a_status_and_a_text() {
    check(|world| {
        let app = App::start(world)?;
        app.exec(
            "mkdir /some /large; echo a >/some/a; echo b >/some/b; chmod 0 /some/a
            dd if=/dev/zero of=/large/a bs=1M count=4 2>/dev/null; mkdir -m 0 /large/closed
            chmod 755 /some /large; ln -s /etc/passwd /etc/way",
        )?;
        let tar = Command::new("tar")
            .args(["-C", "/etc", "-cf", "-", "hostname"])
            .output()?
            .stdout;
        let device = Command::new("tar")
            .args(["-C", "/dev", "-cf", "-", "null"])
            .output()?
            .stdout;
        let mut large = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(80 << 20);
        large.append_data(&mut header, "much", std::io::repeat(0).take(80 << 20))?;
        let large = large.into_inner()?;
        let mut garbage = tar.clone();
        garbage[20] ^= 1;
        let told: [(&str, Vec<u8>, &[&str]); 13] = [
            (
                "nobody",
                put("/x", "nobody-here", &tar),
                &["error streaming in", "nobody-here"],
            ),
            (
                "in a file",
                put("/etc/passwd/x", "", &tar),
                &["/etc/passwd/x", "Not a directory"],
            ),
            (
                "in a link",
                put("/etc/way/x", "", &tar),
                &["/etc/way/x", "Not a directory"],
            ),
            (
                "not allowed",
                put("/etc", "vcap", &tar),
                &["hostname", "Permission denied"],
            ),
            (
                "no space",
                put("/dev/full-up", "", &large),
                &["much", "No space left"],
            ),
            ("read-only", put("/proc/sys", "", &tar), &["hostname"]),
            ("a device", put("/x", "", &device), &["null", "devices"]),
            ("garbage", put("/x", "", &garbage), &["checksum"]),
            ("cut", put("/x", "", &tar[..600]), &["hostname"]),
            (
                "missing",
                get("/missing", ""),
                &["/missing", "No such file"],
            ),
            (
                "a file with a slash",
                get("/etc/passwd/", ""),
                &["/etc/passwd/", "Not a directory"],
            ),
            ("nobody reads", get("/etc", "nobody-here"), &["nobody-here"]),
            // Others may be read, but what is sent would be a part that nobody could tell from all.
            (
                "closed",
                get("/some", "vcap"),
                &["some/a", "Permission denied"],
            ),
        ];
        for (name, request, words) in told {
            let (status, text) = status(&cut_short(&app, &request, request.len(), 1 << 20)?);
            ensure!(status == "500", "{name}: {text}");
            for word in words {
                ensure!(text.contains(word), "{name}: {word:?} is not in {text:?}");
            }
        }
        // Behind the first bytes it is the missing end that tells.
        let request = get("/large", "vcap");
        let answer = cut_short(&app, &request, request.len(), usize::MAX)?;
        ensure!(answer.starts_with(b"HTTP/1.1 200 "), "the head is lost");
        ensure!(!answer.ends_with(b"0\r\n\r\n"), "a part ends like all");
        let outcome = (app.cli()).shell("$garden stream-out app /large -u vcap | wc -c")?;
        ensure!(outcome.stderr.contains("/large"), "{outcome:?}");
        app.end()
    });
}

#[test]
fn a_stopped_container_has_its_files() {
    check(|world| {
        let server = world.server()?;
        let image = world.images()?.tar("app")?;
        server
            .cli()
            .output(&["create", "--image", &image, "--name", "app"])?;
        server
            .cli()
            .output(&["exec", "app", "--", "sh", "-c", "echo kept >/kept"])?;
        server.cli().output(&["stop", "app"])?;
        let outcome = server.cli().shell(
            "set -e; tar -C /etc -cf - hostname | $garden stream-in app /put
            $garden stream-out app /put | tar -t; $garden stream-out app /kept | tar -xO",
        )?;
        outcome.expect_code(0)?;
        ensure!(
            outcome.stdout == "put/\nput/hostname\nkept\n",
            "{outcome:?}"
        );
        server.cli().output(&["rm", "app"])?;
        let outcome = server.cli().run(&["stream-out", "app", "/kept"])?;
        outcome.expect_code(125)?;
        Ok(())
    });
}

#[test]
fn links_of_an_archive_do_not_lead_each_other() {
    check(|world| {
        let app = App::start(world)?;
        // `first` is made at once, `second` at the end, and the third would go through both.
        let mut tar = tar::Builder::new(Vec::new());
        for (name, target) in [
            ("first", "second"),
            ("second", "/etc"),
            ("first/third", "/nowhere"),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            tar.append_link(&mut header, name, target)?;
        }
        let request = put("/into", "", &tar.into_inner()?);
        let (status, text) = status(&cut_short(&app, &request, request.len(), 9999)?);
        ensure!(status == "500" && text.contains("first/third"), "{text}");
        let seen = app.exec("ls -d /etc/third 2>/dev/null || echo clean")?;
        ensure!(seen == "clean\n", "{seen}");
        // Devices and sockets: the first are described, the others mean nothing elsewhere.
        let seen = shell(&app, "$garden stream-out app /dev/null | tar -tv")?;
        ensure!(seen.starts_with("crw-rw-rw-"), "{seen}");
        app.end()
    });
}
