//! The program as stock Guardian runs it: a link named `grootfs`, a process for each call.
//!
//! Commands, exit codes, texts and JSON are compared with what GrootFS's callers know.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use garden_integration::{
    DEADLINE, Grootfs, Leaks, MAPPED, check, is_mount_point, ready, wait_until,
};
use serde_json::{Value, json};

/// Runs a command that must fail with this text on its standard output.
fn fails(groot: &Grootfs, args: &[&str], text: &str) -> Result<()> {
    says(groot, args, 1, text)
}

fn says(groot: &Grootfs, args: &[&str], code: i32, text: &str) -> Result<()> {
    let outcome = groot.run(args)?;
    outcome.expect_code(code)?;
    ensure!(
        outcome.stdout == format!("{text}\n"),
        "expected {text:?}: {outcome:?}"
    );
    ensure!(outcome.stderr.is_empty(), "it logged: {outcome:?}");
    Ok(())
}

#[test]
fn a_store_must_be_made_first_and_may_be_made_twice() {
    check(|world| {
        let groot = world.grootfs()?;
        let image = world.images()?.tar("app")?;
        let store = groot.store_text().to_owned();
        let missing = format!("no store found at {store}");
        fails(&groot, &["list"], &missing)?;
        says(&groot, &["clean"], 0, &missing)?;
        let unmade = "Store path is not initialized. Please run init-store.";
        fails(&groot, &["create", &image, "a"], unmade)?;
        says(
            &groot,
            &["delete", "a"],
            0,
            "Image `a` not found. Skipping delete.",
        )?;
        ensure!(!groot.store().exists(), "a store was made by looking");

        groot.init(MAPPED)?;
        groot.init(MAPPED)?;
        groot.create(&[], &image, "a")?;
        groot.init(MAPPED)?;
        ensure!(
            groot.names("rootfs") == ["a"],
            "making it again lost what is in it"
        );
        let other = ["init-store", "--uid-mapping", "0:100:1"];
        let differ = "provided UID mappings do not match those already configured in the store";
        fails(&groot, &other, differ)?;
        fails(&groot, &["init-store"], differ)?;
        let groups = [&["init-store"], &MAPPED[..4], &["--gid-mapping", "0:1:1"]].concat();
        fails(&groot, &groups, &differ.replace("UID", "GID"))?;
        let wrong = ["init-store", "--uid-mapping", "0:1"];
        let outcome = groot.run(&wrong)?;
        outcome.expect_code(1)?;
        ensure!(
            outcome.stdout.starts_with("parsing uid-mapping: "),
            "{outcome:?}"
        );

        says(&groot, &["delete", "a"], 0, "Image a deleted")?;
        groot.wait_until_cleared()
    });
}

#[test]
fn what_create_prints_is_a_fragment_of_a_bundle() {
    check(|world| {
        let before = Leaks::now(world, None);
        let (groot, image) = ready(world, &[])?;
        let fragment = groot.create(&[], &image, "a")?;
        let root = groot.store().join("rootfs/a/rootfs");
        let expected = json!({
            "ociVersion": "",
            "process": {"user": {"uid": 0, "gid": 0}, "env": [], "cwd": ""},
            "root": {"path": root},
            "mounts": [],
        });
        ensure!(fragment == expected, "{fragment}");
        ensure!(is_mount_point(&root)?, "not mounted");
        ensure!(fs::read_to_string(root.join("etc/image"))? == "app");

        let layout = world.images()?.oci("layered")?;
        let fragment = groot.create(&[], &layout, "b")?;
        ensure!(fragment["process"]["env"] == json!(["FROM_IMAGE=yes"]));
        let root = groot.store().join("rootfs/b/rootfs");
        ensure!(fs::read_to_string(root.join("etc/second"))? == "second layer");
        ensure!(!root.join("etc/gone").exists(), "a whiteout has no effect");

        let list = groot.output(&["list"])?;
        let directory = |id: &str| groot.store().join("rootfs").join(id);
        let (a, b) = (directory("a"), directory("b"));
        ensure!(
            list == format!("{}\n{}\n", a.display(), b.display()),
            "{list}"
        );
        // By its path, with or without what is mounted there; and by its id.
        let a = a.to_str().context("path")?;
        says(&groot, &["delete", a], 0, "Image a deleted")?;
        let root = root.to_str().context("path")?;
        says(&groot, &["delete", root], 0, "Image b deleted")?;
        says(&groot, &["list"], 0, "Store empty")?;
        groot.wait_until_cleared()?;
        groot.output(&["delete-store"])?;
        before.expect_no_more(world, None)
    });
}

#[test]
fn mistakes_are_told_in_known_words() {
    check(|world| {
        let (groot, image) = ready(world, &[])?;
        groot.create(&[], &image, "a")?;
        let text = "image for id `a` already exists";
        fails(&groot, &["create", &image, "a"], text)?;
        let text = "id `x/y` contains invalid characters: `/`";
        fails(&groot, &["create", &image, "x/y"], text)?;
        let usage = "invalid arguments - usage: create [options] <image> <id>";
        fails(&groot, &["create", &image], usage)?;
        fails(&groot, &["create", &image, "b", "c"], usage)?;
        fails(&groot, &["create"], usage)?;
        fails(&groot, &["delete"], "id was not specified")?;
        fails(&groot, &["stats", "nobody"], "Image `nobody` not found.")?;
        let outside = "path `/elsewhere/rootfs/a` is outside store path";
        fails(&groot, &["stats", "/elsewhere/rootfs/a"], outside)?;
        says(&groot, &["delete", "/elsewhere/rootfs/a"], 0, outside)?;
        says(
            &groot,
            &["delete", "nobody"],
            0,
            "Image `nobody` not found. Skipping delete.",
        )?;
        says(
            &groot,
            &["delete", ".."],
            0,
            "Image `..` not found. Skipping delete.",
        )?;
        let negative = "invalid argument: disk limit cannot be negative";
        fails(
            &groot,
            &["create", "--disk-limit-size-bytes", "-1", &image, "b"],
            negative,
        )?;
        let negative = "invalid argument: clean threshold cannot be negative";
        fails(&groot, &["clean", "--threshold-bytes", "-1"], negative)?;
        let both = "with-clean and without-clean cannot be used together";
        fails(
            &groot,
            &["create", "--with-clean", "--without-clean", &image, "b"],
            both,
        )?;
        let missing = world.images()?.missing()?;
        fails(
            &groot,
            &["create", &missing, "b"],
            "Image source doesn't exist",
        )?;
        fails(
            &groot,
            &["create", "oci:///nowhere/at/all", "b"],
            "Image source doesn't exist",
        )?;
        let directory = world.images()?.directory("dir")?;
        let text = "invalid base image: directory provided instead of a tar file";
        fails(&groot, &["create", &directory, "b"], text)?;
        let outcome = groot.run(&["create", "--no-such-flag", &image, "b"])?;
        outcome.expect_code(1)?;
        let text = "Incorrect Usage: flag provided but not defined: -no-such-flag";
        ensure!(outcome.stdout.starts_with(text), "{outcome:?}");
        ensure!(
            groot.names("rootfs") == ["a"],
            "a refused create left something"
        );
        ensure!(groot.names("tmp").is_empty(), "{:?}", groot.names("tmp"));
        groot.output(&["delete", "a"])?;
        groot.wait_until_cleared()
    });
}

#[test]
fn flags_are_read_as_go_reads_them() {
    check(|world| {
        let (groot, image) = ready(world, &[])?;
        let store = format!("-store={}", groot.store_text());
        let outcome = groot.run_plain(&[&store, "create", "-with-mount", &image, "-x"])?;
        outcome.expect_code(0)?;
        ensure!(groot.names("rootfs") == ["-x"]);
        let outcome = groot.run_plain(&["--log-level", "noise", "list"])?;
        outcome.expect_code(1)?;
        for help in [&["--help"][..], &["help"], &[]] {
            let outcome = groot.run_plain(help)?;
            outcome.expect_code(0)?;
            ensure!(outcome.stdout.contains("init-store"), "{outcome:?}");
            ensure!(!outcome.stdout.contains("maintain"), "{outcome:?}");
        }
        let outcome = groot.run_plain(&["create", "--help"])?;
        outcome.expect_code(0)?;
        ensure!(
            outcome.stdout.contains("--disk-limit-size-bytes"),
            "{outcome:?}"
        );
        let outcome = groot.run_plain(&["--version"])?;
        ensure!(
            outcome.stdout.starts_with("grootfs version "),
            "{outcome:?}"
        );
        groot.output(&["delete", "--", "-x"])?;
        groot.wait_until_cleared()
    });
}

#[test]
fn the_command_line_wins_over_the_file() {
    check(|world| {
        let (groot, image) = ready(world, &[])?;
        let file = world.directory().join("config.yml");
        let text = format!(
            "store: {}\ntardis_bin: /nowhere/tardis\nunknown: [1]\ncreate:\n  without_mount: true\n  \
             insecure_registries: [a:1]\ninit:\n  store_size_bytes: 12345\n",
            groot.store_text()
        );
        fs::write(&file, text)?;
        let config = file.to_str().context("path")?;
        let outcome = groot.run_plain(&["--config", config, "create", &image, "a"])?;
        outcome.expect_code(0)?;
        let fragment: Value = serde_json::from_str(&outcome.stdout)?;
        ensure!(fragment["mounts"][0]["destination"] == "/", "{fragment}");
        let flags = ["--config", config, "create", "--with-mount", &image, "b"];
        let outcome = groot.run_plain(&flags)?;
        outcome.expect_code(0)?;
        let fragment: Value = serde_json::from_str(&outcome.stdout)?;
        ensure!(fragment["mounts"] == json!([]), "{fragment}");
        let outcome = groot.run_plain(&["--config", config, "capacity"])?;
        ensure!(outcome.stdout == "{\"capacity\":12345}\n", "{outcome:?}");
        let real: Value = serde_json::from_str(&groot.output(&["capacity"])?)?;
        ensure!(real["capacity"].as_u64() > Some(1 << 20), "{real}");
        let outcome = groot.run_plain(&["--config", "/nowhere.yml", "list"])?;
        outcome.expect_code(1)?;
        ensure!(
            outcome.stdout.starts_with("invalid config path: "),
            "{outcome:?}"
        );
        fs::write(&file, "create: 7")?;
        let outcome = groot.run_plain(&["--config", config, "list"])?;
        ensure!(
            outcome.stdout.starts_with("invalid config file: "),
            "{outcome:?}"
        );
        for id in ["a", "b"] {
            groot.output(&["delete", id])?;
        }
        groot.wait_until_cleared()
    });
}

#[test]
fn stats_have_guardians_shape() {
    check(|world| {
        let (groot, image) = ready(world, &[])?;
        let root = groot.create_mounted(&image, "a")?;
        fs::write(root.join("written"), vec![7; 1 << 20])?;
        let stats: Value = serde_json::from_str(&groot.output(&["stats", "a"])?)?;
        let usage = stats["disk_usage"].as_object().context("no disk_usage")?;
        let names = [
            "committed_space_bytes",
            "exclusive_bytes_used",
            "quota_size_bytes",
            "total_bytes_used",
        ];
        let mut known: Vec<_> = usage.keys().map(String::as_str).collect();
        known.sort_unstable();
        ensure!(known == names, "{stats}");
        let number = |name: &str| usage[name].as_u64().unwrap_or(0);
        ensure!(number("total_bytes_used") > number("exclusive_bytes_used"));
        ensure!(number("quota_size_bytes") == 0);
        groot.output(&["generate-volume-size-metadata"])?;
        groot.output(&["delete", "a"])?;
        groot.wait_until_cleared()
    });
}

#[test]
fn twenty_creates_of_a_new_image_at_once() {
    check(|world| {
        let (groot, _) = ready(world, MAPPED)?;
        let image = world.images()?.oci("layered")?;
        let outcomes: Vec<Result<Value>> = std::thread::scope(|scope| {
            let create = |number| {
                let (groot, image) = (&groot, &image);
                scope.spawn(move || groot.create(&[], image, &format!("c{number}")))
            };
            let all: Vec<_> = (0..20).map(create).collect();
            all.into_iter()
                .map(|thread| thread.join().expect("no panic"))
                .collect()
        });
        for outcome in outcomes {
            let fragment = outcome?;
            let path = fragment["root"]["path"].as_str().context("no path")?;
            ensure!(is_mount_point(Path::new(path))?, "{path}");
            ensure!(fs::read_to_string(Path::new(path).join("etc/second"))? == "second layer");
        }
        ensure!(
            groot.names("layers").len() == 2,
            "{:?}",
            groot.names("layers")
        );
        // The same id from many at once: one of them has it, and nobody takes it from the other.
        let won = std::thread::scope(|scope| {
            let create = || scope.spawn(|| groot.run(&["create", &image, "same"]));
            let all: Vec<_> = (0..5).map(|_| create()).collect();
            let ended = all
                .into_iter()
                .map(|thread| thread.join().expect("no panic"));
            ended
                .filter(|outcome| outcome.as_ref().is_ok_and(|o| o.code == Some(0)))
                .count()
        });
        ensure!(won == 1, "{won} creates of one id succeeded");
        ensure!(is_mount_point(&groot.store().join("rootfs/same/rootfs"))?);
        let ids = groot.names("rootfs");
        std::thread::scope(|scope| {
            let groot = &groot;
            let delete = |id| scope.spawn(move || groot.output(&["delete", id]));
            let all: Vec<_> = ids.iter().map(|id| delete(id)).collect();
            all.into_iter()
                .try_for_each(|thread| thread.join().expect("no panic").map(drop))
        })?;
        ensure!(groot.names("rootfs").is_empty());
        groot.wait_until_cleared()
    });
}

#[test]
fn a_delete_removes_nothing_through_a_mount() {
    check(|world| {
        let (groot, image) = ready(world, &[])?;
        let root = groot.create_mounted(&image, "a")?;
        let kept = world.directory().join("kept");
        fs::create_dir(&kept)?;
        fs::write(kept.join("file"), "kept")?;
        // In the root filesystem, and in what it is made of.
        for place in [root.join("mnt"), groot.store().join("rootfs/a/upper/host")] {
            fs::create_dir_all(&place)?;
            let status = Command::new("mount")
                .arg("--bind")
                .args([&kept, &place])
                .status()?;
            ensure!(status.success(), "mount failed");
        }
        // Open files do not matter either.
        let open = fs::File::create(root.join("open"))?;
        groot.output(&["delete", "a"])?;
        ensure!(!groot.store().join("rootfs/a").exists());
        let root = groot.create_mounted(&image, "a")?;
        ensure!(!root.join("open").exists(), "the old one came back");
        drop(open);
        wait_until("the trash was worked on", DEADLINE, || {
            let left = groot.names("trash");
            Ok(left.len() <= 1)
        })?;
        ensure!(fs::read_to_string(kept.join("file"))? == "kept");
        groot.output(&["delete", "a"])?;
        Ok(())
    });
}

#[test]
fn a_create_of_a_known_image_leaves_nothing_to_clear_up() {
    check(|world| {
        let (groot, image) = ready(world, MAPPED)?;
        groot.create(&[], &image, "a")?;
        groot.wait_until_cleared()?;
        // Whatever it put aside would be there now, and cost it time.
        groot.create(&[], &image, "b")?;
        ensure!(
            groot.names("trash").is_empty(),
            "{:?}",
            groot.names("trash")
        );
        ensure!(groot.names("tmp").is_empty(), "{:?}", groot.names("tmp"));
        for id in ["a", "b"] {
            groot.output(&["delete", id])?;
        }
        groot.wait_until_cleared()
    });
}

#[test]
fn logs_are_lagers_and_only_when_asked_for() {
    check(|world| {
        let (groot, image) = ready(world, &[])?;
        let file = world.directory().join("log");
        let flags = ["--log-file", file.to_str().context("path")?, "create"];
        let secret = ["--username", "me", "--password", "hunter2"];
        let outcome = groot.run(&[&flags[..], &secret, &[&image, "a"]].concat())?;
        outcome.expect_code(0)?;
        let outcome = groot.run(&["--log-level", "debug", "create", &image, "a"])?;
        outcome.expect_code(1)?;
        let text = fs::read_to_string(&file)?;
        ensure!(!text.is_empty() && !text.contains("hunter2"), "{text}");
        for line in text.lines().chain(outcome.stderr.lines()) {
            let line: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
            ensure!(
                line["source"] == "grootfs" && line["data"].is_object(),
                "{line}"
            );
            let message = line["message"].as_str().context("no message")?;
            ensure!(message.starts_with("grootfs."), "{line}");
        }
        ensure!(
            outcome.stderr.contains("\"level\":\"error\""),
            "{outcome:?}"
        );
        groot.output(&["delete", "a"])?;
        groot.wait_until_cleared()
    });
}

#[test]
fn a_clean_takes_what_nobody_uses() {
    check(|world| {
        let (groot, image) = ready(world, &[])?;
        groot.create(&[], &image, "a")?;
        let other = world.images()?.oci("layered")?;
        groot.create(&[], &other, "b")?;
        groot.output(&["delete", "b"])?;
        let skipped = "threshold not reached: skipping clean";
        says(
            &groot,
            &["clean", "--threshold-bytes", "99999999999"],
            0,
            skipped,
        )?;
        ensure!(groot.names("layers").len() == 3);
        says(&groot, &["clean"], 0, "clean completed")?;
        ensure!(
            groot.names("layers").len() == 1,
            "{:?}",
            groot.names("layers")
        );
        // At the end of a create, in a process of its own.
        groot.create(&[], &other, "b")?;
        groot.output(&["delete", "b"])?;
        groot.create(&["--with-clean"], &image, "c")?;
        wait_until("unused layers are gone", DEADLINE, || {
            Ok(groot.names("layers").len() == 1)
        })?;
        for id in ["a", "c"] {
            groot.output(&["delete", id])?;
        }
        groot.wait_until_cleared()
    });
}

#[test]
fn a_store_goes_with_all_that_is_in_it() {
    check(|world| {
        let before = Leaks::now(world, None);
        let (groot, image) = ready(world, &[])?;
        groot.output(&["delete-store"])?;
        groot.output(&["delete-store"])?;
        groot.init(&[])?;
        let root = groot.create_mounted(&image, "a")?;
        fs::write(root.join("written"), "x")?;
        groot.create(&[], &image, "b")?;
        groot.output(&["delete-store"])?;
        ensure!(!groot.store().exists() && !is_mount_point(&root)?);
        before.expect_no_more(world, None)?;
        // Whatever else is named by mistake stays.
        fs::create_dir(groot.store())?;
        fs::write(groot.store().join("precious"), "x")?;
        groot.run(&["delete-store"])?.expect_code(1)?;
        ensure!(groot.store().join("precious").exists());
        fs::remove_dir_all(groot.store())?;
        Ok(())
    });
}

#[test]
fn a_limit_must_have_room_for_the_image() {
    check(|world| {
        let (groot, image) = ready(world, &[])?;
        let outcome = groot.run(&["create", "--disk-limit-size-bytes", "1000", &image, "a"])?;
        outcome.expect_code(1)?;
        ensure!(groot.names("rootfs").is_empty() && groot.names("tmp").is_empty());
        // Now that its layers are known.
        groot.create(&[], &image, "b")?;
        let outcome = groot.run(&["create", "--disk-limit-size-bytes", "1000", &image, "a"])?;
        outcome.expect_code(1)?;
        let text = "disk limit is smaller than volume size";
        ensure!(outcome.stdout.starts_with(text), "{outcome:?}");
        let exclusive = [
            "--disk-limit-size-bytes",
            "1000000",
            "--exclude-image-from-quota",
        ];
        groot.create(&exclusive, &image, "a")?;
        let stats: Value = serde_json::from_str(&groot.output(&["stats", "a"])?)?;
        ensure!(
            stats["disk_usage"]["quota_size_bytes"] == 1_000_000,
            "{stats}"
        );
        for id in ["a", "b"] {
            groot.output(&["delete", id])?;
        }
        groot.wait_until_cleared()
    });
}
