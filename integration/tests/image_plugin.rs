//! The server with image plugins instead of its own store: ours, called as GrootFS, and scripts that
//! misbehave.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use garden_integration::{DEADLINE, Grootfs, Leaks, MAPPED, Server, World, check, wait_until};

/// A plugin that is a script: it notes how it was called, then does as the script says.
fn script(world: &World, name: &str, text: &str) -> Result<String> {
    let path = world.directory().join(name);
    let log = world.directory().join("calls");
    let text = format!(
        "#!/bin/sh\necho \"{name} $*\" >> {}\n{text}\n",
        log.display()
    );
    fs::write(&path, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path.to_str().context("path")?.to_owned())
}

/// How scripts were called, a line each.
fn calls(world: &World) -> String {
    fs::read_to_string(world.directory().join("calls")).unwrap_or_default()
}

/// Two stores made as BOSH makes them, and a server that uses both.
fn served(world: &World) -> Result<(Server<'_>, Grootfs, Grootfs)> {
    let (mapped, plain) = (world.grootfs_in("mapped")?, world.grootfs_in("plain")?);
    mapped.init(MAPPED)?;
    plain.init(&[])?;
    let flags = |kind: &str, groot: &Grootfs| {
        [
            format!("--{kind}image-plugin={}", groot.program()),
            format!("--{kind}image-plugin-extra-arg=--store"),
            format!("--{kind}image-plugin-extra-arg={}", groot.store_text()),
        ]
    };
    let options = [flags("", &mapped), flags("privileged-", &plain)].concat();
    let options: Vec<_> = options.iter().map(String::as_str).collect();
    Ok((world.server_with(&options)?, mapped, plain))
}

#[test]
fn containers_run_on_what_plugins_make() {
    check(|world| {
        let (mut server, mapped, plain) = served(world)?;
        let image = world.images()?.oci("layered")?;
        server
            .cli()
            .output(&["run", "--image", &image, "--", "/bin/true"])?;
        mapped.wait_until_cleared()?;
        let before = Leaks::now(world, Some(&server));
        let cli = server.cli();
        let script = "cat /etc/second; echo; echo $FROM_IMAGE; id -u; echo x > /written";
        let run = ["run", "--image", &image, "--", "sh", "-c", script];
        let said = cli.output(&run)?;
        ensure!(said == "second layer\nyes\n0\n", "{said:?}");
        let run = [
            "run",
            "--privileged",
            "--image",
            &image,
            "--",
            "sh",
            "-c",
            script,
        ];
        let said = cli.output(&run)?;
        ensure!(said == "second layer\nyes\n0\n", "{said:?}");

        // One of each, a pea in one of them, and a server that goes and comes back.
        cli.output(&["create", "--image", &image, "--name", "u"])?;
        cli.output(&["create", "--privileged", "--image", &image, "--name", "p"])?;
        ensure!(mapped.names("rootfs").len() == 1 && plain.names("rootfs").len() == 1);
        ensure!(cli.output(&["exec", "u", "--", "cat", "/etc/second"])? == "second layer");
        server.kill()?;
        server.restart()?;
        let cli = server.cli();
        ensure!(cli.output(&["exec", "p", "--", "cat", "/etc/second"])? == "second layer");
        let pea = [
            "pea",
            "run",
            "u",
            "--image",
            &image,
            "--",
            "cat",
            "/etc/second",
        ];
        ensure!(cli.output(&pea)? == "second layer");
        for name in ["u", "p"] {
            cli.output(&["rm", name])?;
        }
        wait_until("the plugins have nothing left", DEADLINE, || {
            Ok(mapped.names("rootfs").is_empty() && plain.names("rootfs").is_empty())
        })?;
        mapped.wait_until_cleared()?;
        plain.wait_until_cleared()?;
        before.expect_no_more(world, Some(&server))
    });
}

#[test]
fn a_kind_without_a_plugin_has_the_servers_store() {
    check(|world| {
        let mapped = world.grootfs_in("mapped")?;
        mapped.init(MAPPED)?;
        let server = world.server_with(&[
            "--image-plugin",
            mapped.program(),
            "--image-plugin-extra-arg=--store",
            "--image-plugin-extra-arg",
            mapped.store_text(),
            "--default-rootfs",
            &world.images()?.tar("fallback")?,
        ])?;
        let cli = server.cli();
        let image = world.images()?.tar("app")?;
        let run = [
            "run",
            "--privileged",
            "--image",
            &image,
            "--",
            "cat",
            "/etc/image",
        ];
        ensure!(cli.output(&run)? == "app");
        ensure!(mapped.names("layers").is_empty(), "the plugin was asked");
        let run = ["run", "--image", &image, "--", "cat", "/etc/image"];
        ensure!(cli.output(&run)? == "app");
        ensure!(
            mapped.names("layers").len() == 1,
            "the plugin was not asked"
        );
        mapped.wait_until_cleared()
    });
}

#[test]
fn what_a_plugin_says_is_quoted_and_logged() {
    check(|world| {
        let plugin = script(
            world,
            "plugin",
            r#"echo '{"timestamp":"1","level":"info","source":"groot","message":"groot.hm","data":{"n":7}}' >&2
               echo 'plain words' >&2
               case $1 in
                 create) echo 'no such image, sorry'; exit 3 ;;
               esac"#,
        )?;
        let server = world.server_with(&["--image-plugin", &plugin])?;
        let before = Leaks::now(world, Some(&server));
        let image = "docker:///library/nothing#1.2#3";
        let outcome = server.cli().run(&["run", "--image", image, "--", "true"])?;
        outcome.expect_code(125)?.expect_one_line(&[
            "running image plugin create: no such image, sorry: exit status 3",
        ])?;
        let asked = calls(world);
        let first = asked.lines().next().unwrap_or_default();
        let expected = "plugin create docker:///library/nothing:1.2#3 ";
        ensure!(first.starts_with(expected), "{asked}");
        let log = world.server_log();
        for part in [
            "groot.hm",
            "\\\"n\\\":7",
            "plain words",
            "original_timestamp",
        ] {
            ensure!(log.contains(part), "{part} is not in the log");
        }
        before.expect_no_more(world, Some(&server))
    });
}

#[test]
fn answers_that_cannot_be_used_leave_nothing() {
    check(|world| {
        let answers = [
            ("garbage", "parsing image plugin create: garbage"),
            ("{}", "no absolute root.path"),
            (r#"{"root":{"path":"/nowhere/at/all"}}"#, "/nowhere/at/all"),
            (
                r#"{"root":{"path":"/"},"mounts":[{"destination":"/x","type":"tmpfs"}]}"#,
                "tmpfs",
            ),
        ];
        let answer = world.directory().join("answer");
        let text = format!("case $1 in create) cat {} ;; esac", answer.display());
        let plugin = script(world, "plugin", &text)?;
        let server = world.server_with(&["--image-plugin", &plugin])?;
        for (text, expected) in answers {
            fs::write(&answer, text)?;
            let before = Leaks::now(world, Some(&server));
            let outcome = (server.cli()).run(&["run", "--image", "any", "--", "true"])?;
            outcome.expect_code(125)?.expect_one_line(&[expected])?;
            let asked = calls(world);
            ensure!(
                asked.contains("plugin delete "),
                "it was not deleted: {asked}"
            );
            before.expect_no_more(world, Some(&server))?;
        }
        Ok(())
    });
}

#[test]
fn a_plugin_that_hangs_is_ended_when_told_how_long_it_may_take() {
    check(|world| {
        let text = "case $1 in create) sleep 1000 ;; esac";
        let plugin = script(world, "plugin", text)?;
        let options = ["--image-plugin", &plugin, "--image-plugin-timeout", "1"];
        let server = world.server_with(&options)?;
        let before = Leaks::now(world, Some(&server));
        let outcome = (server.cli()).run(&["run", "--image", "any", "--", "true"])?;
        outcome
            .expect_code(125)?
            .expect_one_line(&["killed after 1 s"])?;
        before.expect_no_more(world, Some(&server))
    });
}

#[test]
fn a_plain_directory_and_an_overlay_are_as_good_as_a_mount() {
    check(|world| {
        let root = world.images()?.directory("root")?;
        // A plugin's trees belong to the container's root, so that mount points can be made.
        let owned = Command::new("chown")
            .args(["-R", "4294967294:4294967294", &root])
            .status()?;
        ensure!(owned.success());
        let work = world.directory().join("overlay");
        for name in ["upper", "work", "rootfs"] {
            fs::create_dir_all(work.join(name))?;
        }
        let extra = world.directory().join("extra");
        fs::create_dir(&extra)?;
        fs::write(extra.join("file"), "from the plugin")?;
        let answer = format!(
            r#"{{"root":{{"path":"{root}"}},"process":{{"env":["A=b"]}},"mounts":[
                 {{"destination":"/extra","type":"bind","source":"{}","options":["ro","rbind"]}}]}}"#,
            extra.display()
        );
        fs::write(world.directory().join("plain"), answer)?;
        let answer = format!(
            r#"{{"root":{{"path":"{work}/rootfs"}},"process":{{"env":null}},"mounts":[
                 {{"destination":"/","type":"overlay","source":"overlay","options":[
                   "lowerdir={root},upperdir={work}/upper,workdir={work}/work"]}}]}}"#,
            work = work.display()
        );
        fs::write(world.directory().join("overlaid"), answer)?;
        let text = |name: &str| {
            let answer = world.directory().join(name);
            format!("case $1 in create) cat {} ;; esac", answer.display())
        };
        let plain = script(world, "plugin-plain", &text("plain"))?;
        let overlaid = script(world, "plugin-overlaid", &text("overlaid"))?;
        let server = world.server_with(&[
            "--privileged-image-plugin",
            &overlaid,
            "--image-plugin",
            &plain,
        ])?;
        let run = |flags: &[&str], script: &str| {
            let args = [
                &["run", "--image", "any"],
                flags,
                &["--", "sh", "-c", script],
            ];
            server.cli().output(&args.concat())
        };
        let said = run(
            &[],
            "cat /etc/image; echo; echo $A; cat /extra/file; ! echo x > /extra/y",
        )?;
        ensure!(said == "root\nb\nfrom the plugin", "{said:?}");
        let said = run(&["--privileged"], "echo written > /made; cat /etc/image")?;
        ensure!(said == "root", "{said:?}");
        ensure!(fs::read_to_string(work.join("upper/made"))? == "written\n");
        ensure!(!std::path::Path::new(&root).join("made").exists());
        // Both plugins are asked to delete, the one for unprivileged containers first.
        wait_until("both were asked to delete both", DEADLINE, || {
            Ok(calls(world).matches(" delete ").count() == 4)
        })?;
        let asked = calls(world);
        let deletes: Vec<_> = asked
            .lines()
            .filter(|line| line.contains(" delete "))
            .filter_map(|line| line.split(' ').next())
            .collect();
        let expected = ["plugin-plain", "plugin-overlaid"].repeat(2);
        ensure!(deletes == expected, "{asked}");
        Ok(())
    });
}

#[test]
fn credentials_and_preloaded_layers_reach_a_plugin() {
    check(|world| {
        let text = r#"case $1 in create)
                 eval "uri=\${$(($#-1))}"
                 case $uri in oci://*) cat ${uri#oci://}/index.json >&2; ls ${uri#oci://}/blobs/sha256 >&2 ;; esac
                 echo 'enough'; exit 1 ;; esac"#;
        let plugin = script(world, "plugin", text)?;
        let server = world.server_with(&["--image-plugin", &plugin])?;
        let base = world.images()?.tar("base")?;
        let digest = "0".repeat(64);
        let image = format!(
            "preloaded+layer://{base}?layer=http://127.0.0.1:9/x&layer_path=/home&layer_digest={digest}"
        );
        let outcome = (server.cli()).run(&["run", "--image", &image, "--", "true"])?;
        outcome.expect_code(125)?.expect_one_line(&["enough"])?;
        let asked = calls(world);
        ensure!(asked.contains("plugin create oci:///"), "{asked}");
        ensure!(
            world.server_log().contains("manifests"),
            "the layout was not there"
        );
        let outcome = (server.cli()).run(&["pull", &image])?;
        outcome
            .expect_code(125)?
            .expect_one_line(&["image plugin"])?;
        Ok(())
    });
}

#[test]
fn a_raw_directory_is_nobodys_image() {
    check(|world| {
        let plugin = script(world, "plugin", "case $1 in create) exit 1 ;; esac")?;
        let server = world.server_with(&["--privileged-image-plugin", &plugin])?;
        let root = world.images()?.directory("root")?;
        let before = Leaks::now(world, Some(&server));
        let image = format!("raw://{root}");
        let script = "cat /etc/image; echo made > /made";
        let run = [
            "run",
            "--privileged",
            "--image",
            &image,
            "--",
            "sh",
            "-c",
            script,
        ];
        ensure!(server.cli().output(&run)? == "root");
        ensure!(
            !calls(world).contains("create"),
            "the plugin was asked to make it"
        );
        ensure!(fs::read_to_string(format!("{root}/made"))? == "made\n");
        before.expect_no_more(world, Some(&server))?;
        ensure!(std::path::Path::new(&root).join("bin/busybox").exists());
        Ok(())
    });
}
