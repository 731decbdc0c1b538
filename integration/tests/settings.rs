//! Configuration files of the server: obeyed, overridden, refused.

use anyhow::{Result, ensure};
use garden_integration::{World, check};
use serde_json::Value;

fn file(world: &World, name: &str, text: &str) -> Result<String> {
    let path = world.directory().join(name);
    std::fs::write(&path, text)?;
    Ok(path.to_string_lossy().into_owned())
}

#[test]
fn a_server_obeys_its_file() {
    check(|world| {
        let image = world.images()?.tar("base")?;
        let text = format!("[server]\ndefault-rootfs = {image}\nmax-containers = 1\n");
        let ini = file(world, "config.ini", &text)?;
        let server = world.server_with(&["--config", &ini])?;
        let cli = server.cli();
        cli.output(&["create", "--image", &image, "--name", "first"])?;
        let refused = cli.run(&["create", "--image", &image, "--name", "second"])?;
        refused.expect_code(125)?;
        ensure!(
            refused.stderr.contains("max containers reached"),
            "{refused:?}"
        );
        cli.output(&["rm", "first"])?;
        Ok(())
    });
}

#[test]
fn what_a_value_is_from_is_shown() {
    check(|world| {
        let cli = world.hosted();
        let toml = file(
            world,
            "c.toml",
            "max-containers = 7\ncollect-below = '3%'\n",
        )?;
        let said = cli.output(&[
            "config",
            "--config",
            &toml,
            "--collect-below",
            "4%",
            "--json",
        ])?;
        let all: Vec<Value> = serde_json::from_str(&said)?;
        let of = |flag: &str| {
            let found = all.iter().find(|one| one["flag"] == flag);
            found.map(|one| (one["values"][0].clone(), one["source"].clone()))
        };
        ensure!(
            of("max-containers") == Some(("7".into(), "file".into())),
            "{said}"
        );
        ensure!(
            of("collect-below") == Some(("4%".into(), "command line".into())),
            "{said}"
        );
        ensure!(
            of("collect-until") == Some(("10%".into(), "default".into())),
            "{said}"
        );
        let bad = file(world, "bad.ini", "[server]\nno-such-flag = 1\n")?;
        let refused = cli.run(&["server", "--config", &bad])?;
        refused
            .expect_code(125)?
            .expect_one_line(&["line 2", "--no-such-flag"])?;
        Ok(())
    });
}

/// What must become of a flag of Guardian's.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    /// It means here what it means there.
    Obeyed,
    /// It is taken, and said to do nothing.
    Unused,
    /// It is refused, with something to do.
    Refused,
    /// Another part of the product, which may not be there yet.
    Network,
}
use Fate::{Network, Obeyed, Refused, Unused};

/// All flags of `gdn server`, each with a value ("" for a switch).
const GUARDIAN: [(&str, &str, Fate); 86] = [
    ("log-level", "debug", Obeyed),
    ("bind-ip", "127.0.0.1", Obeyed),
    ("bind-port", "7777", Obeyed),
    ("bind-socket", "/tmp/garden.sock", Obeyed),
    ("debug-bind-ip", "127.0.0.1", Obeyed),
    ("debug-bind-port", "17013", Obeyed),
    ("tag", "t1", Obeyed),
    ("skip-setup", "", Unused),
    ("read-header-timeout", "30s", Obeyed),
    ("depot", "/var/run/gdn/depot", Obeyed),
    ("properties-path", "/x/props.json", Unused),
    ("console-sockets-path", "/x", Unused),
    ("cleanup-process-dirs-on-wait", "", Obeyed),
    ("disable-privileged-containers", "", Obeyed),
    ("device-cgroup-rule", "c 1:3 rwm", Network),
    ("uid-map-start", "1", Obeyed),
    ("uid-map-length", "0", Obeyed),
    ("gid-map-start", "1", Unused),
    ("gid-map-length", "0", Unused),
    ("default-rootfs", "/x.tar", Obeyed),
    ("default-grace-time", "5m", Obeyed),
    ("destroy-containers-on-startup", "", Obeyed),
    ("apparmor", "garden-default", Obeyed),
    ("no-new-privileges", "", Obeyed),
    ("assets-dir", "/var/gdn/assets", Unused),
    ("dadoo-bin", "/x", Unused),
    ("nstar-bin", "/x", Unused),
    ("tar-bin", "/x", Unused),
    ("init-bin", "/x", Unused),
    ("iptables-bin", "/sbin/iptables", Unused),
    ("iptables-restore-bin", "/sbin/iptables-restore", Unused),
    ("runtime-plugin", "runc", Unused),
    ("runtime-plugin-extra-arg", "--debug", Refused),
    ("no-image-plugin", "", Unused),
    ("image-plugin", "/x", Obeyed),
    ("image-plugin-extra-arg", "--x", Obeyed),
    ("privileged-image-plugin", "/x", Obeyed),
    ("privileged-image-plugin-extra-arg", "--x", Obeyed),
    ("docker-registry", "registry-1.docker.io", Unused),
    ("insecure-docker-registry", "10.0.0.1:5000", Obeyed),
    ("network-pool", "10.254.0.0/22", Network),
    ("allow-host-access", "", Network),
    ("deny-network", "10.0.0.0/8", Network),
    ("dns-server", "8.8.8.8", Network),
    ("additional-dns-server", "8.8.4.4", Network),
    ("additional-host-entry", "1.2.3.4 name", Network),
    ("external-ip", "192.0.2.1", Network),
    ("port-pool-start", "61001", Network),
    ("port-pool-size", "4534", Network),
    ("port-pool-properties-path", "/x", Unused),
    ("mtu", "1400", Network),
    ("network-plugin", "/x", Network),
    ("network-plugin-extra-arg", "--x", Network),
    ("enable-container-network-metrics", "", Network),
    ("cpu-quota-per-share", "10", Obeyed),
    ("default-container-blockio-weight", "100", Obeyed),
    ("container-io-max-read-bps", "1000000", Obeyed),
    ("container-io-max-write-bps", "1000000", Obeyed),
    ("container-io-max-read-iops", "100", Obeyed),
    ("container-io-max-write-iops", "100", Obeyed),
    ("max-containers", "250", Obeyed),
    ("disable-swap-limit", "", Obeyed),
    ("metrics-emission-interval", "1m", Unused),
    ("dropsonde-origin", "garden-linux", Unused),
    ("dropsonde-destination", "127.0.0.1:3457", Unused),
    ("cpu-entitlement-per-share", "0.5", Obeyed),
    ("containerd-socket", "/x", Unused),
    ("use-containerd-for-processes", "", Unused),
    ("enable-cpu-throttling", "", Obeyed),
    ("cpu-throttling-check-interval", "15", Obeyed),
    ("tcp-keepalive-time", "60", Obeyed),
    ("tcp-keepalive-interval", "10", Obeyed),
    ("tcp-keepalive-probes", "5", Obeyed),
    ("tcp-retries1", "3", Obeyed),
    ("tcp-retries2", "15", Obeyed),
    // Values that stand for the default, which Guardian's installations write down all the time.
    ("max-containers", "0", Obeyed),
    ("read-header-timeout", "0s", Obeyed),
    ("default-grace-time", "0", Obeyed),
    ("cpu-quota-per-share", "0", Obeyed),
    ("container-io-max-read-bps", "0", Obeyed),
    ("tcp-retries2", "0", Obeyed),
    ("cpu-entitlement-per-share", "0", Obeyed),
    ("default-rootfs", "", Obeyed),
    ("apparmor", "", Obeyed),
    ("log-level", "fatal", Obeyed),
    ("log-level", "error", Obeyed),
];

/// Flags whose empty value is a value.
const TEXTS: [&str; 2] = ["default-rootfs", "apparmor"];

#[test]
fn every_flag_of_guardian_has_a_fate() {
    check(|world| {
        let cli = world.hosted();
        for (flag, value, fate) in GUARDIAN {
            let switch = value.is_empty() && !TEXTS.contains(&flag);
            let word = match switch {
                true => format!("--{flag}"),
                false => format!("--{flag}={value}"),
            };
            let mut words = vec!["config", "--json", &word];
            // Arguments of a program are nothing without it.
            let program = flag
                .strip_suffix("-extra-arg")
                .filter(|one| one.ends_with("image-plugin"));
            let program = program.map(|program| format!("--{program}=/x"));
            words.extend(program.as_deref());
            let said = cli.run(&words)?;
            let unknown = said.stderr.contains("unexpected argument");
            if fate == Network && unknown {
                println!("SKIPPED every_flag_of_guardian_has_a_fate: there is no --{flag} yet");
                continue;
            }
            if fate == Refused {
                said.expect_code(125)?.expect_one_line(&[flag, ":"])?;
                continue;
            }
            said.expect_code(0)?;
            let all: Vec<Value> = serde_json::from_str(&said.stdout)?;
            let given: Vec<_> = all
                .iter()
                .filter(|one| one["source"] == "command line")
                .collect();
            let shown = given.iter().any(|one| {
                let value = if switch { "true" } else { value };
                one["values"]
                    .as_array()
                    .is_some_and(|all| all.iter().any(|one| one == value))
            });
            ensure!(shown, "--{flag}: {given:?}");
            let noted = given.iter().any(|one| one["note"].is_string());
            ensure!(noted == (fate == Unused), "--{flag}: {given:?}");
        }
        Ok(())
    });
}

#[test]
fn guardians_own_file_is_obeyed_whole() {
    check(|world| {
        let cli = world.hosted();
        let mut text = "; as a release writes it\n[server]\n".to_owned();
        for (flag, value, fate) in GUARDIAN {
            if matches!(fate, Obeyed | Unused) && flag != "no-image-plugin" {
                let value = if value.is_empty() && !TEXTS.contains(&flag) {
                    "true"
                } else {
                    value
                };
                text.push_str(&format!("{flag} = {value}\n"));
            }
        }
        // Each flag that is no list is there once.
        let mut seen = std::collections::HashSet::new();
        let once = |line: &&str| {
            !line.contains(" = ") || seen.insert(line.split(" = ").next().map(str::to_owned))
        };
        let text: Vec<_> = text.lines().filter(once).collect();
        let ini = file(world, "config.ini", &(text.join("\n") + "\n"))?;
        let said = cli.output(&["config", "--config", &ini, "--json"])?;
        let all: Vec<Value> = serde_json::from_str(&said)?;
        let from_file = all.iter().filter(|one| one["source"] == "file").count();
        ensure!(from_file > 50, "{said}");
        let apart = "[server]\nuid-map-start = 100\ngid-map-start = 200\n";
        let apart = file(world, "apart.ini", apart)?;
        let refused = cli.run(&["config", "--config", &apart])?;
        refused
            .expect_code(125)?
            .expect_one_line(&["--gid-map-start", "--uid-map-start"])?;
        Ok(())
    });
}
