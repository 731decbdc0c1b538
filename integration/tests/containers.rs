//! What a container is made of, seen from inside: its name, bind mounts, settings, ids, devices;
//! and from outside: properties, grace time, names and counts that are taken without races.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use garden_integration::{
    App, DEADLINE, Leaks, Rootfs, Server, World, check, lines_of, skip, status_field, wait_until,
};

/// Creates a container of the usual image with these flags.
fn create(world: &World, server: &Server<'_>, name: &str, flags: &[&str]) -> Result<()> {
    let image = world.images()?.tar("app")?;
    let args = ["create", "--image", &image, "--name", name];
    server.cli().output(&[args.as_slice(), flags].concat())?;
    Ok(())
}

fn exec(server: &Server<'_>, name: &str, script: &str) -> Result<String> {
    let args = ["exec", name, "--", "/bin/sh", "-c", script];
    server.cli().output(&args)
}

/// A mount on the host that goes away with this.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(place: PathBuf, options: &str) -> Result<Self> {
        fs::create_dir_all(&place)?;
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "none"])
            .arg(&place)
            .status()?;
        ensure!(status.success(), "cannot mount on {}", place.display());
        Ok(Self(place))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn its_name_is_known_inside_and_shared_with_peas() {
    check(|world| {
        let server = world.server()?;
        let handle = "a-handle-of-more-than-forty-nine-characters.its-end-is-its-name";
        create(world, &server, handle, &[])?;
        let name = &handle[handle.len() - 49..];
        let script = "hostname; cat /etc/hosts; stat -c '%u %a' /etc/hosts /etc/resolv.conf";
        let output = exec(&server, handle, script)?;
        let named = format!("127.0.0.1 {name}");
        let expected = [
            name,
            "127.0.0.1 localhost",
            "::1 localhost",
            &named,
            "0 644",
            "0 644",
        ];
        ensure!(lines_of(&output) == expected, "{output}");
        // Its root may write, others may not, and a pea sees what was written.
        exec(&server, handle, "echo 10.1.1.1 added >> /etc/hosts")?;
        let image = world.images()?.tar("app")?;
        let pea = ["pea", "run", handle, "--image", &image];
        let read = [&pea[..], &["--", "tail", "-n1", "/etc/hosts"]].concat();
        ensure!(server.cli().output(&read)? == "10.1.1.1 added\n");
        let script = "echo x >> /etc/hosts";
        let write = [&pea[..], &["-u", "vcap", "--", "sh", "-c", script]].concat();
        ensure!(server.cli().run(&write)?.code != Some(0), "vcap may write");
        Ok(())
    });
}

#[test]
fn bind_mounts() {
    check(|world| {
        let server = world.server()?;
        let source = world.directory().join("source");
        fs::create_dir_all(source.join("dir"))?;
        fs::write(source.join("dir/file"), "content")?;
        fs::write(source.join("alone"), "alone")?;
        std::os::unix::fs::symlink("dir", source.join("link"))?;
        std::os::unix::fs::chown(source.join("dir"), Some(2000), Some(2000))?;
        let at = |name: &str, rest: &str| format!("{}{rest}", source.join(name).display());
        let binds = [
            at("dir", ":/new/deep:rw"),
            at("dir", ":/read:ro"),
            at("link", ":/linked"),
            at("alone", ":/etc/alone:ro"),
            at("", ":/all:rw"),
        ];
        let flags: Vec<_> = binds.iter().flat_map(|bind| ["-v", bind]).collect();
        create(world, &server, "app", &flags)?;
        let output = exec(
            &server,
            "app",
            "cat /new/deep/file /read/file /linked/file /etc/alone; echo; \
             (echo x > /read/new) 2>/dev/null || echo refused; \
             (echo x > /etc/alone) 2>/dev/null || echo refused",
        )?;
        let expected = ["contentcontentcontentalone", "refused", "refused"];
        ensure!(lines_of(&output) == expected, "{output}");
        // Root inside is nobody outside: it cannot write where only the host's root may.
        fs::set_permissions(&source, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let write = |user: &str, place: &str| {
            let script = format!("echo x > {place}/by-{user}");
            server
                .cli()
                .run(&["exec", "app", "-u", user, "--", "sh", "-c", &script])
        };
        ensure!(write("root", "/all")?.code != Some(0), "root inside wrote");
        write("vcap", "/new/deep")?.expect_code(0)?;
        ensure!(source.join("dir/by-vcap").exists());
        Ok(())
    });
}

#[test]
fn a_bind_mount_of_nothing_is_refused() {
    check(|world| {
        let server = world.server()?;
        create(world, &server, "warm", &[])?;
        server.cli().output(&["rm", "warm"])?;
        let before = Leaks::now(world, Some(&server));
        let image = world.images()?.tar("app")?;
        let nothing = format!("{}/nothing:/m", world.directory().display());
        let args = ["create", "--image", &image, "--name", "x", "-v", &nothing];
        let outcome = server.cli().run(&args)?;
        outcome.expect_code(125)?;
        outcome.expect_one_line(&["nothing", "must exist"])?;
        before.expect_no_more(world, Some(&server))
    });
}

/// The runtime is root with descriptors of the host while it looks at the image's files.
#[test]
fn links_of_an_image_lead_no_mount_to_the_host_or_into_procfs() {
    check(|world| {
        let server = world.server()?;
        let rootfs = Rootfs::busybox("app")?
            .symlink("magic", "/proc/self/cwd")
            .symlink("inner", "/proc/sys/kernel")
            .symlink("up", "../../..");
        let image = world.images()?.tar_of("links", &rootfs)?;
        let warm = ["create", "--image", &image, "--name", "warm"];
        server.cli().output(&warm)?;
        server.cli().output(&["rm", "warm"])?;
        let source = world.directory().join("source");
        fs::create_dir(&source)?;
        let before = Leaks::now(world, Some(&server));
        for place in ["/magic/made", "/inner"] {
            let bind = format!("{}:{place}", source.display());
            let args = ["create", "--image", &image, "--name", "x", "-v", &bind];
            let outcome = server.cli().run(&args)?;
            ensure!(outcome.code == Some(125), "{place}: {outcome:?}");
            before.expect_no_more(world, Some(&server))?;
        }
        let bind = format!("{}:/up/made", source.display());
        let args = ["create", "--image", &image, "--name", "y", "-v", &bind];
        server.cli().output(&args)?;
        ensure!(exec(&server, "y", "stat -c %F /made")? == "directory\n");
        Ok(())
    });
}

/// glibc would read users from the image, by libraries of the image if it said so, before the
/// container is confined (CVE-2019-14271 was that). Here it would read for ever.
#[test]
fn the_images_users_are_nothing_to_the_making_of_a_container() {
    check(|world| {
        let server = world.server()?;
        let rootfs = Rootfs::busybox("app")?.symlink("etc/nsswitch.conf", "/dev/zero");
        let image = world.images()?.tar_of("endless", &rootfs)?;
        let args = ["create", "--image", &image, "--name", "app"];
        server.cli().output(&args)?;
        ensure!(exec(&server, "app", "echo up")? == "up\n");
        Ok(())
    });
}

#[test]
fn a_bind_mount_keeps_what_its_source_forbids_and_gets_later_mounts() {
    check(|world| {
        let server = world.server()?;
        let place = world.directory().join("shared");
        let source = Mounted::tmpfs(place, "nosuid,nodev,noexec,noatime")?;
        let shared = Command::new("mount")
            .arg("--make-shared")
            .arg(&source.0)
            .status()?;
        ensure!(shared.success(), "cannot make the mount shared");
        fs::create_dir(source.0.join("later"))?;
        fs::create_dir(source.0.join("inner"))?;
        let bind = format!("{}:/m", source.0.display());
        create(world, &server, "plain", &["-v", &bind])?;
        create(world, &server, "power", &["-v", &bind, "--privileged"])?;
        for name in ["plain", "power"] {
            let table = exec(&server, name, "grep ' /m ' /proc/self/mountinfo")?;
            for flag in ["nosuid", "nodev", "noexec", "noatime"] {
                ensure!(table.contains(flag), "{name}: {flag} is lost: {table}");
            }
        }
        let later = Mounted::tmpfs(source.0.join("later"), "mode=755")?;
        fs::write(later.0.join("file"), "later")?;
        for name in ["plain", "power"] {
            let seen = exec(&server, name, "cat /m/later/file")?;
            ensure!(seen == "later", "{name}: {seen}");
        }
        // Nothing flows back.
        exec(&server, "power", "mount -t tmpfs none /m/inner")?;
        let table = fs::read_to_string("/proc/self/mountinfo")?;
        let inner = source.0.join("inner");
        ensure!(!table.contains(inner.to_str().context("a path")?));
        drop(later);
        server.cli().output(&["rm", "plain", "power"])?;
        Ok(())
    });
}

#[test]
fn settings_of_tcp_are_the_servers_or_the_hosts() {
    check(|world| {
        let server = world.server_with(&["--tcp-retries2", "9", "--tcp-keepalive-time", "77"])?;
        create(world, &server, "app", &[])?;
        let names = [
            "tcp_keepalive_time",
            "tcp_keepalive_intvl",
            "tcp_keepalive_probes",
            "tcp_retries1",
            "tcp_retries2",
        ];
        let files: Vec<_> = names
            .iter()
            .map(|name| format!("/proc/sys/net/ipv4/{name}"))
            .collect();
        let inside = exec(&server, "app", &format!("cat {}", files.join(" ")))?;
        let mut expected = Vec::new();
        for file in &files {
            expected.push(fs::read_to_string(file)?.trim().to_owned());
        }
        expected[0] = "77".to_owned();
        expected[4] = "9".to_owned();
        ensure!(lines_of(&inside) == expected, "{inside}");
        Ok(())
    });
}

#[test]
fn only_a_privileged_container_has_fuse() {
    check(|world| {
        let server = world.server()?;
        create(world, &server, "plain", &[])?;
        create(world, &server, "power", &["--privileged"])?;
        let look = "stat -c '%t:%T %a' /dev/fuse 2>/dev/null || echo none";
        ensure!(exec(&server, "plain", look)?.trim() == "none");
        ensure!(exec(&server, "power", look)?.trim() == "a:e5 666");
        let image = world.images()?.tar("app")?;
        let pea = [
            "pea", "run", "power", "--image", &image, "--", "sh", "-c", look,
        ];
        ensure!(server.cli().output(&pea)?.trim() == "a:e5 666");
        Ok(())
    });
}

#[test]
fn privileged_containers_can_be_forbidden() {
    check(|world| {
        let server = world.server_with(&["--disable-privileged-containers"])?;
        let image = world.images()?.tar("app")?;
        let args = ["create", "--image", &image, "--privileged"];
        let outcome = server.cli().run(&args)?;
        outcome.expect_code(125)?;
        outcome.expect_one_line(&["privileged container creation is disabled"])?;
        create(world, &server, "plain", &[])
    });
}

#[test]
fn no_new_privileges() {
    check(|world| {
        let server = world.server_with(&["--no-new-privileges"])?;
        let app = App::start_on(world, server)?;
        let own = "cat /proc/self/status";
        for status in [
            app.exec("cat /proc/1/status")?,
            app.exec(own)?,
            app.exec_as("vcap", own)?,
            app.pea("root", own)?,
        ] {
            ensure!(status_field(&status, "NoNewPrivs")? == "1", "{status}");
            ensure!(status_field(&status, "Seccomp")? == "2", "{status}");
        }
        let range = app.exec("cat /proc/sys/net/ipv4/ping_group_range")?;
        ensure!(range.split_whitespace().eq(["1", "65535"]), "{range}");
        create(world, &app.server, "power", &["--privileged"])?;
        let status = exec(&app.server, "power", own)?;
        ensure!(status_field(&status, "NoNewPrivs")? == "0", "{status}");
        app.end()
    });
}

#[test]
fn an_apparmor_profile_needs_apparmor() {
    check(|world| {
        let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled");
        if enabled.is_ok_and(|text| text.starts_with('Y')) {
            return confined_by_apparmor(world);
        }
        let Err(refused) = world.server_with(&["--apparmor", "garden-default"]) else {
            anyhow::bail!("the server runs without what it was told to use");
        };
        ensure!(format!("{refused:#}").contains("ended"), "{refused:#}");
        let log = world.server_log();
        ensure!(log.contains("AppArmor"), "{log}");
        Ok(())
    });
}

/// With a profile of the test's own, which forbids one file.
fn confined_by_apparmor(world: &World) -> Result<()> {
    let name = format!("garden-it-{}", world.tag());
    let profile = format!(
        "profile {name} flags=(attach_disconnected,mediate_deleted) {{\n  file,\n  network,\n  \
         capability,\n  signal,\n  deny /tmp/secret rw,\n}}\n"
    );
    let file = world.directory().join("profile");
    fs::write(&file, profile)?;
    let load = |flag: &str| {
        Command::new("apparmor_parser")
            .arg(flag)
            .arg(&file)
            .status()
    };
    match load("-r") {
        Ok(status) if status.success() => {}
        _ => return skip("apparmor_parser"),
    }
    let tried = (|| {
        let unknown = world.server_with(&["--apparmor", "garden-it-not-loaded"])?;
        let image = world.images()?.tar("app")?;
        let outcome = unknown.cli().run(&["create", "--image", &image])?;
        outcome.expect_one_line(&["garden-it-not-loaded", "load"])?;
        drop(unknown);
        let server = world.server_with(&["--apparmor", &name])?;
        let app = App::start_on(world, server)?;
        // A directory of its own since Linux 5.8.
        let label = |pid: &str| {
            let attributes = format!("/proc/{pid}/attr");
            format!("cat {attributes}/apparmor/current 2>/dev/null || cat {attributes}/current")
        };
        let own = label("self");
        for text in [
            app.exec(&label("1"))?,
            app.exec(&own)?,
            app.exec_as("vcap", &own)?,
            app.pea("root", &own)?,
        ] {
            ensure!(text.trim() == format!("{name} (enforce)"), "{text}");
        }
        let secret = "(echo x > /tmp/secret) 2>/dev/null && echo done || echo refused";
        ensure!(app.exec(secret)?.trim() == "refused");
        ensure!(app.pea("root", secret)?.trim() == "refused");
        create(world, &app.server, "power", &["--privileged"])?;
        let free = exec(&app.server, "power", secret)?;
        ensure!(free.trim() == "done", "privileged: {free}");
        // CVE-2019-16884, CVE-2023-28642: an image that leads the runtime's label astray, which then
        // says that all is well.
        let fake = Rootfs::busybox("fake")?
            .directory("fake", 0o755, 0)
            .directory("fake/self", 0o755, 0)
            .directory("fake/self/attr", 0o777, 0)
            .file("fake/self/attr/exec", 0o666, b"")
            .symlink("proc", "/fake");
        let fake = world.images()?.tar_of("fake", &fake)?;
        let command = ["--", "/bin/sh", "-c", secret];
        for start in [vec!["run"], vec!["pea", "run", "app"]] {
            let args = [&start[..], &["--image", &fake], &command].concat();
            let outcome = app.cli().run(&args)?;
            let confined = outcome.code != Some(0) || outcome.stdout.trim() == "refused";
            ensure!(confined, "{start:?}: {outcome:?}");
        }
        app.end()
    })();
    let _ = load("-R");
    tried
}

#[test]
fn each_has_ids_of_its_own_when_told_so() {
    check(|world| {
        let mut server = world.server_with(&["--ids-per-container", "65536"])?;
        let first_id = |server: &Server<'_>, name: &str| -> Result<u64> {
            let map = exec(server, name, "cat /proc/self/uid_map")?;
            let numbers: Vec<u64> = map
                .split_whitespace()
                .map(|word| word.parse().context("a number"))
                .collect::<Result<_>>()?;
            ensure!(numbers.len() == 3, "several ranges: {map}");
            ensure!(numbers[0] == 0 && numbers[2] == 65536, "{map}");
            Ok(numbers[1])
        };
        create(world, &server, "one", &[])?;
        create(world, &server, "two", &[])?;
        let (one, two) = (first_id(&server, "one")?, first_id(&server, "two")?);
        ensure!(one.abs_diff(two) >= 65536, "{one} and {two} overlap");
        // Peas live in it, and files are its root's; what is not in it is refused.
        let image = world.images()?.tar("app")?;
        let pea = ["pea", "run", "one", "--image", &image];
        let script = "cat /proc/self/uid_map; stat -c %u /bin /etc/hosts; touch /new";
        let seen = server
            .cli()
            .output(&[&pea[..], &["--", "sh", "-c", script]].concat())?;
        ensure!(seen.contains(&one.to_string()), "{seen}");
        ensure!(lines_of(&seen)[1..] == ["0", "0"], "{seen}");
        let beyond = ["exec", "one", "-u", "65536", "--", "true"];
        server.cli().run(&beyond)?.expect_one_line(&["65536"])?;
        // A new server neither changes what runs nor gives its ids to another.
        server.kill()?;
        server.restart()?;
        create(world, &server, "three", &[])?;
        let three = first_id(&server, "three")?;
        ensure!(three != one && three != two, "{three} is taken");
        let seen = server
            .cli()
            .output(&[&pea[..], &["--", "id", "-u"]].concat())?;
        ensure!(seen == "0\n" && first_id(&server, "one")? == one, "{seen}");
        Ok(())
    });
}

#[test]
fn properties_and_grace_times_outlive_the_server() {
    check(|world| {
        let mut server = world.server()?;
        create(world, &server, "kept", &["--property", "color=green"])?;
        create(world, &server, "other", &["--property", "color=red"])?;
        create(world, &server, "idle", &["--grace-time", "2"])?;
        server.kill()?;
        server.restart()?;
        let green = ["ls", "--quiet", "--filter", "color=green"];
        ensure!(server.cli().output(&green)? == "kept\n");
        let all = server.cli().output(&["inspect", "other", "--json"])?;
        ensure!(all.contains("red"), "{all}");
        wait_until("the unused container is gone", DEADLINE, || {
            Ok(!server.cli().output(&["ls", "-q"])?.contains("idle"))
        })?;
        ensure!(server.cli().output(&["ls", "-q"])?.contains("kept"));
        Ok(())
    });
}

#[test]
fn no_more_than_the_most_and_no_name_twice() {
    check(|world| {
        let server = world.server_with(&["--max-containers", "3"])?;
        let image = world.images()?.tar("app")?;
        let mut racing = Vec::new();
        for number in 0..8 {
            // Two of each name.
            let name = format!("c{}", number / 2);
            let args = ["create", "--image", &image, "--name", &name];
            racing.push(server.cli().start(&args)?);
        }
        let mut made = 0;
        for run in racing {
            let outcome = run.finish()?;
            if outcome.code == Some(0) {
                made += 1;
                continue;
            }
            let known = ["already in use", "max containers reached"];
            let fine = known.iter().any(|text| outcome.stderr.contains(text));
            ensure!(fine, "{outcome:?}");
        }
        ensure!(made == 3, "{made} were made");
        let listed = server.cli().output(&["ls", "-q"])?;
        ensure!(lines_of(&listed).len() == 3, "{listed}");
        for name in lines_of(&listed) {
            ensure!(exec(&server, name, "echo up")? == "up\n");
        }
        Ok(())
    });
}

#[test]
fn a_default_image() {
    check(|world| {
        let image = world.images()?.tar("standard")?;
        let server = world.server_with(&["--default-rootfs", &image])?;
        let output = server.cli().output(&["run", "-", "cat", "/etc/image"])?;
        ensure!(output == "standard", "{output}");
        let mut server = server;
        server.kill()?;
        drop(server);
        let without = world.server()?;
        let outcome = without.cli().run(&["run", "-", "true"])?;
        outcome.expect_code(125)?;
        outcome.expect_one_line(&["no image"])?;
        ensure!(Path::new(&image).exists());
        Ok(())
    });
}

#[test]
fn orphans_are_reaped() {
    check(|world| {
        let server = world.server()?;
        create(world, &server, "app", &[])?;
        exec(&server, "app", "for i in 1 2 3 4 5; do (true &) ; done")?;
        wait_until("init has reaped them", DEADLINE, || {
            let states = exec(&server, "app", "grep -h ^State: /proc/[0-9]*/status")?;
            Ok(!states.contains("zombie"))
        })
    });
}
