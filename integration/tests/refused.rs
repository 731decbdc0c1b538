//! What cannot work is refused in one clear line, and leaves nothing behind.

use anyhow::{Result, ensure};
use garden_integration::{Leaks, Rootfs, Server, World, check};

/// Runs a command line that must be refused with this exit code and one line naming the words.
fn refused(
    world: &World,
    server: &Server<'_>,
    args: &[&str],
    code: i32,
    words: &[&str],
) -> Result<()> {
    let before = Leaks::now(world, Some(server));
    let outcome = server.cli().run(args)?;
    outcome.expect_code(code)?.expect_one_line(words)?;
    before.expect_no_more(world, Some(server))
}

/// A server that has run a container once, so that what it keeps for later is there.
fn warm<'w>(world: &'w World) -> Result<(Server<'w>, String)> {
    let server = world.server()?;
    let image = world.images()?.tar("app")?;
    server
        .cli()
        .output(&["run", "--image", &image, "--", "/bin/true"])?;
    Ok((server, image))
}

#[test]
fn a_missing_image() {
    check(|world| {
        let (server, _) = warm(world)?;
        let image = world.images()?.missing()?;
        let args = ["run", "--image", &image, "--", "/bin/true"];
        refused(world, &server, &args, 125, &[&image])
    });
}

#[test]
fn an_image_of_no_known_kind() {
    check(|world| {
        let (server, _) = warm(world)?;
        let args = ["run", "--image", "ftp://somewhere/x", "--", "/bin/true"];
        refused(world, &server, &args, 125, &["ftp"])
    });
}

#[test]
fn a_corrupt_tar() {
    check(|world| {
        let (server, _) = warm(world)?;
        let noise: Vec<u8> = (0..20_000_u32)
            .map(|n| (n.wrapping_mul(n) >> 3) as u8)
            .collect();
        let image = world.images()?.bytes("noise.tar", &noise)?;
        let args = ["run", "--image", &image, "--", "/bin/true"];
        refused(world, &server, &args, 125, &["noise.tar"])
    });
}

#[test]
fn a_tar_cut_short() {
    check(|world| {
        let (server, _) = warm(world)?;
        let whole = Rootfs::busybox("cut")?.tar()?;
        let image = world
            .images()?
            .bytes("cut.tar", &whole[..whole.len() / 2])?;
        let args = ["run", "--image", &image, "--", "/bin/true"];
        refused(world, &server, &args, 125, &["cut.tar"])
    });
}

#[test]
fn a_tar_that_climbs_out() {
    check(|world| {
        let (server, _) = warm(world)?;
        let rootfs = Rootfs::busybox("climb")?.file("../escaped", 0o644, b"out");
        let image = world.images()?.tar_of("climb", &rootfs)?;
        let args = ["run", "--image", &image, "--", "/bin/true"];
        refused(world, &server, &args, 125, &["../escaped"])?;
        Ok(())
    });
}

#[test]
fn a_tar_that_climbs_out_by_a_link() {
    check(|world| {
        let (server, _) = warm(world)?;
        let outside = world.directory().join("outside");
        std::fs::create_dir(&outside)?;
        let rootfs = Rootfs::busybox("link")?
            .symlink("way", &outside.display().to_string())
            .file("way/escaped", 0o644, b"out");
        let image = world.images()?.tar_of("link", &rootfs)?;
        // Whether it is refused or the link is replaced is the store's choice; out is out.
        server
            .cli()
            .run(&["run", "--image", &image, "--", "/bin/true"])?;
        ensure!(!outside.join("escaped").exists(), "it escaped");
        Ok(())
    });
}

#[test]
fn an_unknown_user() {
    check(|world| {
        let (server, image) = warm(world)?;
        let args = [
            "run",
            "--image",
            &image,
            "--user",
            "nobodyknows",
            "--",
            "/bin/true",
        ];
        refused(world, &server, &args, 125, &["nobodyknows"])
    });
}

#[test]
fn a_missing_executable() {
    check(|world| {
        let (server, image) = warm(world)?;
        let args = ["run", "--image", &image, "--", "/bin/nonesuch"];
        refused(world, &server, &args, 127, &["/bin/nonesuch"])
    });
}

#[test]
fn a_file_that_is_no_program() {
    check(|world| {
        let (server, image) = warm(world)?;
        let args = ["run", "--image", &image, "--", "/etc/passwd"];
        refused(world, &server, &args, 126, &["/etc/passwd"])
    });
}

#[test]
fn a_memory_limit_in_no_known_unit() {
    check(|world| {
        let (server, image) = warm(world)?;
        let before = Leaks::now(world, Some(&server));
        let args = [
            "run",
            "--image",
            &image,
            "--memory",
            "12q",
            "--",
            "/bin/true",
        ];
        let outcome = server.cli().run(&args)?;
        outcome.expect_code(2)?;
        ensure!(outcome.stderr.contains("12q"), "{outcome:?}");
        ensure!(
            outcome.stderr.contains("64M"),
            "no valid form is named: {outcome:?}"
        );
        before.expect_no_more(world, Some(&server))
    });
}

#[test]
fn a_handle_with_a_slash() {
    check(|world| {
        let (server, image) = warm(world)?;
        let before = Leaks::now(world, Some(&server));
        let args = ["run", "--image", &image, "--name", "a/b", "--", "/bin/true"];
        let outcome = server.cli().run(&args)?;
        ensure!(matches!(outcome.code, Some(2 | 125)), "{outcome:?}");
        ensure!(outcome.stderr.contains("a/b"), "{outcome:?}");
        before.expect_no_more(world, Some(&server))
    });
}

#[test]
fn a_second_container_of_the_same_name() {
    check(|world| {
        let (server, image) = warm(world)?;
        let args = [
            "run",
            "--image",
            &image,
            "--name",
            "twin",
            "--",
            "/bin/sh",
            "-c",
            "echo up; read line",
        ];
        let mut first = server.cli().start(&args)?;
        first.wait_stdout("up")?;
        refused(world, &server, &args, 125, &["twin"])?;
        first.write("go on\n")?;
        first.finish()?.expect_code(0)?;
        Ok(())
    });
}

#[test]
fn a_container_that_is_not_there() {
    check(|world| {
        let (server, image) = warm(world)?;
        refused(
            world,
            &server,
            &["exec", "ghost", "--", "/bin/true"],
            125,
            &["ghost"],
        )?;
        let pea = ["pea", "run", "ghost", "--image", &image, "--", "/bin/true"];
        refused(world, &server, &pea, 125, &["ghost"])?;
        refused(world, &server, &["rm", "ghost"], 125, &["ghost"])
    });
}

#[test]
fn a_pea_that_cannot_start() {
    check(|world| {
        let (server, image) = warm(world)?;
        let app = [
            "run",
            "--image",
            &image,
            "--name",
            "app",
            "--",
            "/bin/sh",
            "-c",
            "echo up; cat",
        ];
        let running = server.cli().start(&app)?;
        running.wait_stdout("up")?;
        let pea = |image: &str, user: &str, program: &str, code, words: &[&str]| {
            let args = [
                "pea", "run", "app", "--image", image, "--user", user, "--", program,
            ];
            refused(world, &server, &args, code, words)
        };
        let missing = world.images()?.missing()?;
        // The first pea that works brings what is kept: nothing may be added after it.
        server
            .cli()
            .output(&["pea", "run", "app", "--image", &image, "--", "/bin/true"])?;
        pea(&missing, "root", "/bin/true", 125, &[&missing])?;
        pea(&image, "nobodyknows", "/bin/true", 125, &["nobodyknows"])?;
        pea(&image, "root", "/bin/nonesuch", 127, &["/bin/nonesuch"])?;
        running.finish()?.expect_code(0)?;
        Ok(())
    });
}

#[test]
fn no_server() {
    check(|world| {
        let outcome = world.hosted().run(&["ls"])?;
        outcome
            .expect_code(125)?
            .expect_one_line(&["nowhere.sock"])?;
        Ok(())
    });
}
