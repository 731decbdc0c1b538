//! Where peas are counted, what of their container's they have, and that nothing of them stays.

use anyhow::{Result, ensure};
use garden_integration::{App, Leaks, Rootfs, World, check, lines_of};
use serde_json::json;

/// The group of a process in the hierarchy that counts memory.
fn group_of_memory(cgroups: &str) -> Option<String> {
    let of = |wanted: &str| {
        lines_of(cgroups).into_iter().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let found = controllers
                .split(',')
                .any(|controller| controller == wanted);
            found.then(|| path.to_owned())
        })
    };
    of("memory").or_else(|| of(""))
}

#[test]
fn peas_are_counted_in_their_containers_group_privileged_or_not() {
    check(|world| {
        let server = world.server()?;
        let cli = server.cli();
        let image = world.images()?.tar("app")?;
        for (name, privileged) in [("plain", false), ("mighty", true)] {
            let create = ["create", "--quiet", "--image", &image, "--name", name];
            let options: &[&str] = if privileged { &["--privileged"] } else { &[] };
            cli.output(&[&create[..], options].concat())?;
            let show = ["--", "/bin/cat", "/proc/self/cgroup"];
            let run = ["pea", "run", name, "--image", &image];
            let nested = group_of_memory(&cli.output(&[&run[..], &show].concat())?);
            let below = format!("/garden-{}/{name}/", world.tag());
            ensure!(
                nested.clone().is_some_and(|g| g.contains(&below)),
                "{nested:?}"
            );
            let own = [&run[..], &["--own-limits"], &show].concat();
            let beside = group_of_memory(&cli.output(&own)?);
            let parent = format!("/garden-{}/", world.tag());
            ensure!(
                beside
                    .clone()
                    .is_some_and(|g| g.contains(&parent) && !g.contains(&below)),
                "{beside:?}"
            );
            cli.output(&["rm", name])?;
        }
        Ok(())
    });
}

#[test]
fn a_containers_limit_on_processes_holds_for_its_peas() {
    check(|world| {
        let server = world.server()?;
        let cli = server.cli();
        let image = world.images()?.tar("app")?;
        let create = [
            "create", "--quiet", "--image", &image, "--name", "app", "--pids", "12",
        ];
        cli.output(&create)?;
        let fork =
            "i=0; while [ $i -lt 20 ]; do sleep 1000 & i=$((i+1)); done 2>/dev/null; echo done";
        let run = ["pea", "run", "app", "--image", &image];
        let script = ["--", "/bin/sh", "-c", fork];
        let outcome = cli.run(&[&run[..], &script].concat())?;
        ensure!(
            outcome.code != Some(0),
            "20 forks within 12 processes: {outcome:?}"
        );
        let free = cli.run(&[&run[..], &["--own-limits"], &script].concat())?;
        free.expect_code(0)?;
        cli.output(&["rm", "app"])?;
        Ok(())
    });
}

#[test]
fn a_pea_does_not_have_its_containers_mounts_but_its_own() {
    check(|world| {
        let server = world.server()?;
        let cli = server.cli();
        let image = world.images()?.tar("app")?;
        let [of_container, of_pea] = ["container", "pea"].map(|name| world.directory().join(name));
        for directory in [&of_container, &of_pea] {
            std::fs::create_dir(directory)?;
            std::fs::write(directory.join("file"), directory.display().to_string())?;
        }
        server.post(
            "/containers",
            &json!({
                "handle": "app",
                "rootfs": image,
                "bind_mounts": [{"src_path": of_container, "dst_path": "/mnt/here", "mode": 0}],
            }),
        )?;
        let show = [
            "--",
            "/bin/sh",
            "-c",
            "cat /mnt/here/file 2>/dev/null || echo none",
        ];
        let inside = cli.output(&[&["exec", "app"][..], &show].concat())?;
        ensure!(inside.ends_with("container"), "{inside}");
        let run = ["pea", "run", "app", "--image", &image];
        ensure!(cli.output(&[&run[..], &show].concat())? == "none\n");
        let bind = format!("{}:/mnt/here:ro", of_pea.display());
        let mounted = cli.output(&[&run[..], &["-v", &bind], &show].concat())?;
        ensure!(mounted.ends_with("pea"), "{mounted}");
        let script = ["--", "/bin/sh", "-c", "echo x > /mnt/here/new"];
        let written = cli.run(&[&run[..], &["-v", &bind], &script].concat())?;
        ensure!(
            written.code != Some(0),
            "a read-only mount was written to: {written:?}"
        );
        cli.output(&["rm", "app"])?;
        Ok(())
    });
}

#[test]
fn supplementary_groups_come_from_the_peas_image() {
    check(|world| {
        let app = App::start(world)?;
        let image = Rootfs::busybox("other")?
            .file("etc/passwd", 0o644, b"checker:x:4321:4321::/:/bin/sh\n")
            .file("etc/group", 0o644, b"checker:x:4321:\nlogs:x:77:checker\n");
        let image = world.images()?.tar_of("other", &image)?;
        let run = ["pea", "run", "app", "--image", &image, "--user", "checker"];
        let groups = app
            .cli()
            .output(&[&run[..], &["--", "/bin/id", "-G"]].concat())?;
        let mut groups: Vec<_> = groups.split_whitespace().collect();
        groups.sort_unstable();
        ensure!(groups == ["4321", "77"], "{groups:?}");
        app.end()
    });
}

#[test]
fn what_a_pea_cannot_be_made_of_is_said_and_leaves_nothing() {
    check(|world| {
        let app = App::start(world)?;
        app.pea("root", "true")?;
        let missing = world.images()?.missing()?;
        let broken = world
            .images()?
            .bytes("broken.tar", b"this is no tar archive")?;
        let before = Leaks::now(world, Some(&app.server));
        for (image, user, program, code, word) in [
            (&missing, "root", "/bin/true", 125, "nothing.tar"),
            (&broken, "root", "/bin/true", 125, "broken.tar"),
            (&app.image, "nobody-here", "/bin/true", 125, "nobody-here"),
            (&app.image, "root", "/bin/nothing", 127, "/bin/nothing"),
        ] {
            let args = [
                "pea", "run", "app", "--image", image, "--user", user, "--", program,
            ];
            let refused = app.cli().run(&args)?;
            refused.expect_code(code)?.expect_one_line(&[word])?;
        }
        before.expect_no_more(world, Some(&app.server))?;
        app.end()
    });
}

fn live_peas(world: &World, privileged: bool) -> Result<()> {
    let server = world.server()?;
    let cli = server.cli();
    let image = world.images()?.tar("app")?;
    // What a server keeps from its first container on.
    cli.output(&["run", "--image", &image, "--", "/bin/true"])?;
    let before = Leaks::now(world, Some(&server));
    let create = ["create", "--quiet", "--image", &image, "--name", "app"];
    let options: &[&str] = if privileged { &["--privileged"] } else { &[] };
    cli.output(&[&create[..], options].concat())?;
    let script = "sleep 1000 & setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo up; cat";
    let mut peas = Vec::new();
    for options in [
        &[][..],
        &["--own-limits"],
        &["--pids", "30"],
        &["--own-limits", "--memory", "64M"],
    ] {
        let run = ["pea", "run", "app", "--image", &image];
        let pea = cli.start(&[&run[..], options, &["--", "/bin/sh", "-c", script]].concat())?;
        pea.wait_stdout("up")?;
        peas.push(pea);
    }
    cli.output(&["rm", "app"])?;
    for pea in peas {
        pea.finish()?.expect_code(137)?;
    }
    before.expect_no_more(world, Some(&server))
}

#[test]
fn destroying_a_container_with_live_peas_leaves_nothing() {
    check(|world| live_peas(world, false));
}

#[test]
fn nor_does_destroying_a_privileged_one() {
    check(|world| live_peas(world, true));
}
