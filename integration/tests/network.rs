//! The network of containers as its users meet it: from inside, from outside, from each other.
//!
//! Each test has an internet of its own (see `Internet`), so that nothing here touches the network
//! of the machine, and copies run beside each other.

use std::io::ErrorKind;
use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use garden_integration::{
    HOST, HOST6, Internet, OUTSIDE, OUTSIDE6, Pod, Server, World, check, skip,
};
use serde_json::{Value, json};

/// The addresses that servers give by default.
const POOL: &str = "10.254.0.0/22";

fn container_in(internet: &Internet<'_>, server: &Server<'_>, network: &str) -> Result<Pod> {
    internet.container(server, &json!({ "network": network }))
}

fn destroy(server: &Server<'_>, pod: &Pod) -> Result<()> {
    server.delete(&format!("/containers/{}", pod.handle))?;
    settle(server)
}

/// Waits until nothing is left to take away.
fn settle(server: &Server<'_>) -> Result<()> {
    let outcome = server.cli().run(&["teardown", "wait"])?;
    outcome.expect_code(0).map(drop)
}

fn sh(server: &Server<'_>, pod: &Pod, script: &str) -> Result<String> {
    let words = ["exec", &pod.handle, "--", "/bin/sh", "-c", script];
    server.cli().output(&words)
}

fn pings(server: &Server<'_>, pod: &Pod, address: impl Into<IpAddr>) -> Result<bool> {
    let address = address.into();
    let ping = format!("ping -c 1 -W 1 {address} >/dev/null 2>&1; echo $?");
    Ok(sh(server, pod, &ping)?.trim() == "0")
}

#[test]
fn containers_reach_the_world_and_each_other() {
    check(|world| {
        let internet = Internet::new(world)?;
        let server = internet.server(&[])?;
        let (one, other) = (
            container_in(&internet, &server, "")?,
            container_in(&internet, &server, "")?,
        );
        internet.outside.serve(80)?;
        internet.host.serve(22)?;
        // The world sees the host, and so does a neighbour: in Guardian, too, all that leaves a subnet
        // is masqueraded.
        ensure!(one.machine.dial(OUTSIDE, 80)? == IpAddr::from(HOST));
        let seen = one.machine.dial(other.address, 8080)?;
        ensure!(
            other.info["HostIP"] == seen.to_string(),
            "{seen}: {}",
            other.info
        );
        ensure!(pings(&server, &one, OUTSIDE)? && pings(&server, &one, other.address)?);
        // Nobody reaches the host, by whichever of its addresses, nor from outside a container.
        one.machine.expect_no_answer(HOST, 22)?;
        let bridge: IpAddr = one.info["HostIP"].as_str().unwrap_or_default().parse()?;
        one.machine.expect_no_answer(bridge, 22)?;
        ensure!(internet.host.dial(one.address, 8080)? == bridge);
        ensure!(one.info["ExternalIP"] == HOST.to_string(), "{}", one.info);
        // What went through it is told in its metrics, from its point of view.
        let metrics = server.get(&format!("/containers/{}/metrics", one.handle))?;
        let (received, sent) = (
            &metrics["NetworkStat"]["RxBytes"],
            &metrics["NetworkStat"]["TxBytes"],
        );
        ensure!(
            received.as_u64() > Some(0) && sent.as_u64() > Some(0),
            "{metrics}"
        );
        Ok(())
    });
}

#[test]
fn an_operators_policy_holds_for_all() {
    check(|world| {
        let internet = Internet::new(world)?;
        let server = internet.server(&[
            "--allow-host-access",
            "--deny-network",
            POOL,
            "--deny-network",
            "192.0.2.2/32",
        ])?;
        let (one, other) = (
            container_in(&internet, &server, "")?,
            container_in(&internet, &server, "")?,
        );
        internet.outside.serve(80)?;
        internet.host.serve(22)?;
        one.machine.dial(HOST, 22)?;
        let refused = one.machine.expect_no_answer(OUTSIDE, 80)?;
        ensure!(refused == ErrorKind::ConnectionRefused, "{refused}");
        one.machine.expect_no_answer(other.address, 8080)?;
        ensure!(!pings(&server, &one, other.address)?);
        // Who is in one subnet talks freely.
        let together =
            ["10.9.0.0/24", "10.9.0.0/24"].map(|subnet| container_in(&internet, &server, subnet));
        let [third, fourth] = together;
        let (third, fourth) = (third?, fourth?);
        third.machine.dial(fourth.address, 8080)?;
        ensure!(pings(&server, &third, fourth.address)?);
        Ok(())
    });
}

#[test]
fn host_ports_lead_to_containers() {
    check(|world| {
        let internet = Internet::new(world)?;
        let mut server = internet.server(&[])?;
        let spec = json!({ "netin": [
            { "host_port": 0, "container_port": 8080 },
            { "host_port": 7070, "container_port": 8080 },
        ] });
        let pod = internet.container(&server, &spec)?;
        let pool = pod.host_port(8080)?;
        ensure!(pool >= 61001, "{pool}");
        let other = container_in(&internet, &server, "")?;
        for port in [pool, 7070] {
            ensure!(internet.outside.dial(HOST, port)? == IpAddr::from(OUTSIDE));
            // A neighbour, the host, and itself, by the host's address.
            other.machine.dial(HOST, port)?;
            internet.host.dial(HOST, port)?;
            pod.machine.dial(HOST, port)?;
        }
        let later = server.post(
            &format!("/containers/{}/net/in", pod.handle),
            &json!({ "container_port": 8080 }),
        )?;
        let later = u16::try_from(later["host_port"].as_u64().context("no port")?)?;
        ensure!(later > pool, "{later} after {pool}");
        internet.outside.dial(HOST, later)?;
        let (status, text) = server.try_post(
            &format!("/containers/{}/net/in", other.handle),
            &json!({ "host_port": 7070, "container_port": 8080 }),
        )?;
        ensure!(
            status == 500 && text.contains("port already acquired: 7070"),
            "{text}"
        );

        // A server that comes back knows them all, and does not hand them out.
        server.kill()?;
        internet.outside.dial(HOST, later)?;
        server.restart()?;
        let again = Pod::find(world, &server, pod.handle.clone())?;
        let ports = again.info["MappedPorts"].as_array().context("no ports")?;
        ensure!(ports.len() == 3, "{}", again.info);
        for port in [pool, 7070, later] {
            internet.outside.dial(HOST, port)?;
        }
        let next = server.post(
            &format!("/containers/{}/net/in", other.handle),
            &json!({ "container_port": 8080 }),
        )?;
        ensure!(next["host_port"].as_u64() > Some(later.into()), "{next}");
        destroy(&server, &pod)?;
        internet.outside.expect_no_answer(HOST, 7070)?;
        Ok(())
    });
}

#[test]
fn rules_open_what_is_denied() {
    check(|world| {
        let internet = Internet::new(world)?;
        let mut server = internet.server(&["--deny-network", "0.0.0.0/0"])?;
        for port in [80, 81, 90, 99] {
            internet.outside.serve(port)?;
        }
        let tcp = |ports: Value| json!({ "protocol": 1, "networks": [{ "start": OUTSIDE }], "ports": ports });
        let rule = tcp(json!([{ "start": 80, "end": 80 }]));
        let pod = internet.container(&server, &json!({ "netout_rules": [rule] }))?;
        let refused = |port| pod.machine.expect_no_answer(OUTSIDE, port).map(drop);
        pod.machine.dial(OUTSIDE, 80)?;
        refused(81)?;
        ensure!(!pings(&server, &pod, OUTSIDE)?);

        let out = |path: &str, body: &Value| {
            server.try_post(&format!("/containers/{}/net/out{path}", pod.handle), body)
        };
        // Ranges of addresses and ports; pings; datagrams.
        let range = json!({ "protocol": 1, "networks": [{ "start": "192.0.2.2", "end": "192.0.2.9" }],
                            "ports": [{ "start": 90, "end": 95 }] });
        let ping = json!({ "protocol": 3, "icmps": { "type": 8, "code": 0 } });
        let udp = json!({ "protocol": 2, "ports": [{ "start": 53, "end": 53 }] });
        ensure!(out("/bulk", &json!([range, ping]))? == (200, "{}\n".to_owned()));
        pod.machine.dial(OUTSIDE, 90)?;
        refused(81)?;
        ensure!(pings(&server, &pod, OUTSIDE)?);
        ensure!(
            !pod.machine
                .reaches_by_udp(&internet.outside, OUTSIDE.into(), 53)?
        );
        ensure!(out("", &udp)?.0 == 200);
        ensure!(
            pod.machine
                .reaches_by_udp(&internet.outside, OUTSIDE.into(), 53)?
        );
        ensure!(
            !pod.machine
                .reaches_by_udp(&internet.outside, OUTSIDE.into(), 54)?
        );

        // One that means nothing, and none of its list holds.
        let wrong = json!([tcp(json!([{ "start": 81, "end": 81 }])),
                           { "protocol": 0, "ports": [{ "start": 1, "end": 2 }] }]);
        let (status, text) = out("/bulk", &wrong)?;
        ensure!(
            status == 500 && text.contains("Ports cannot be specified for Protocol ALL"),
            "{text}"
        );
        refused(81)?;
        let logged = json!({ "protocol": 1, "ports": [{ "start": 81, "end": 81 }], "log": true });
        ensure!(out("", &logged)?.0 == 200);
        pod.machine.dial(OUTSIDE, 81)?;
        if let Some(rules) = internet.ruleset() {
            let prefix: String = pod.handle.chars().take(28).collect();
            ensure!(
                rules.contains(&format!("log prefix \"{prefix} \"")),
                "{rules}"
            );
        }

        // All of it outlives the server.
        server.kill()?;
        server.restart()?;
        for port in [80, 81, 90] {
            pod.machine.dial(OUTSIDE, port)?;
        }
        refused(99)?;
        let everything =
            server.try_post(&format!("/containers/{}/net/out", pod.handle), &json!({}))?;
        ensure!(everything.0 == 200, "{everything:?}");
        pod.machine.dial(OUTSIDE, 99).map(drop)
    });
}

#[test]
fn containers_are_told_names() {
    check(|world| {
        let internet = Internet::new(world)?;
        let server = internet.server(&[
            "--dns-server",
            "192.0.2.53",
            "--additional-dns-server",
            "192.0.2.54",
            "--additional-host-entry",
            "192.0.2.9 db",
        ])?;
        let pod = internet.container(&server, &json!({ "handle": "named" }))?;
        let address = pod.address;
        let hosts = sh(&server, &pod, "cat /etc/hosts")?;
        ensure!(
            hosts == format!("127.0.0.1 localhost\n{address} named\n192.0.2.9 db\n"),
            "{hosts:?}"
        );
        let resolv = sh(&server, &pod, "cat /etc/resolv.conf")?;
        ensure!(
            resolv == "nameserver 192.0.2.53\nnameserver 192.0.2.54\n",
            "{resolv:?}"
        );
        // A pea sees the same files, and root may change them for all.
        sh(&server, &pod, "echo 192.0.2.10 more >> /etc/hosts")?;
        let image = world.images()?.tar("app")?;
        let words = [
            "pea",
            "run",
            "named",
            "--image",
            &image,
            "--",
            "/bin/sh",
            "-c",
            "cat /etc/hosts",
        ];
        let seen = server.cli().output(&words)?;
        ensure!(seen == format!("{hosts}192.0.2.10 more\n"), "{seen:?}");
        Ok(())
    });
}

#[test]
fn a_create_that_fails_leaves_no_network() {
    check(|world| {
        let internet = Internet::new(world)?;
        let server = internet.server(&[])?;
        let first = internet.container(
            &server,
            &json!({ "network": "10.9.0.5/24", "netin": [{ "host_port": 7070, "container_port": 1 }] }),
        )?;
        ensure!(first.address.to_string() == "10.9.0.5");
        let before = (internet.links()?, internet.ruleset());
        let image = json!({ "uri": world.images()?.tar("app")? });
        let overlaps = "the requested subnet (10.254.0.0/28) overlaps the dynamic allocation range";
        for (spec, text) in [
            (
                json!({ "network": "banana" }),
                "invalid CIDR address: banana",
            ),
            (json!({ "network": "10.254.0.0/28" }), overlaps),
            (
                json!({ "network": "10.9.0.5/24" }),
                "the requested IP is already allocated",
            ),
            (
                json!({ "network": "10.9.0.1/24" }),
                "must not equal the gateway IP",
            ),
            (
                json!({ "network": "10.9.0.255/24" }),
                "must not equal the broadcast IP",
            ),
            (
                json!({ "netin": [{ "host_port": 0, "container_port": 2 },
                                  { "host_port": 7070, "container_port": 1 }] }),
                "port already acquired: 7070",
            ),
            (
                json!({ "netout_rules": [{ "protocol": 3, "ports": [{ "start": 1, "end": 1 }] }] }),
                "Ports cannot be specified for Protocol ICMP",
            ),
            (
                json!({ "netout_rules": [{ "protocol": 4 }] }),
                "invalid protocol: 4",
            ),
        ] {
            let mut spec = spec;
            spec["image"] = image.clone();
            spec["handle"] = "failing".into();
            let (status, said) = server.try_post("/containers", &spec)?;
            ensure!(
                status == 500 && said.contains(text),
                "{spec}: {status} {said}"
            );
        }
        settle(&server)?;
        let listed = server.get("/containers")?;
        ensure!(listed["Handles"] == json!([first.handle]), "{listed}");
        ensure!((internet.links()?, internet.ruleset()) == before);
        destroy(&server, &first)?;
        ensure!(internet.links()?.is_empty(), "{:?}", internet.links()?);
        Ok(())
    });
}

#[test]
fn addresses_are_not_handed_out_again_at_once() {
    check(|world| {
        let internet = Internet::new(world)?;
        let mut server = internet.server(&["--network-pool", "10.5.0.0/28"])?;
        let capacity = server.get("/capacity")?;
        ensure!(capacity["max_containers"] == 4, "{capacity}");
        let first = container_in(&internet, &server, "")?;
        destroy(&server, &first)?;
        server.kill()?;
        server.restart()?;
        let mut seen = vec![first.address];
        for _ in 0..3 {
            let next = container_in(&internet, &server, "")?;
            seen.push(next.address);
        }
        let fourth = container_in(&internet, &server, "")?;
        let image = json!({ "uri": world.images()?.tar("app")? });
        let (_, text) = server.try_post("/containers", &json!({ "image": image }))?;
        ensure!(
            text.contains("insufficient subnets remaining in the pool"),
            "{text}"
        );
        seen.push(fourth.address);
        seen.sort();
        seen.dedup();
        ensure!(seen.len() == 4, "{seen:?}");
        Ok(())
    });
}

#[test]
fn containers_have_ipv6_where_the_operator_wants_it() {
    check(|world| {
        let internet = Internet::new(world)?;
        let external = HOST6.to_string();
        let server = internet.server(&[
            "--network-ipv6",
            "fd12:3456::",
            "--external-ipv6",
            &external,
            "--deny-network",
            "2001:db8::2/128",
        ])?;
        let rules = json!([
            { "protocol": 1, "networks": [{ "start": OUTSIDE6 }], "ports": [{ "start": 80, "end": 80 }] },
            { "protocol": 4 },
        ]);
        let spec = json!({ "netout_rules": rules, "netin": [{ "container_port": 8080 }] });
        let pod = internet.container(&server, &spec)?;
        let other = container_in(&internet, &server, "")?;
        internet.outside.serve(80)?;
        internet.outside.serve(81)?;
        ensure!(pod.machine.dial(OUTSIDE6, 80)? == IpAddr::from(HOST6));
        pod.machine.expect_no_answer(OUTSIDE6, 81)?;
        ensure!(pings(&server, &pod, OUTSIDE6)?);
        other.machine.dial(pod.address6()?, 8080)?;
        internet.outside.dial(HOST6, pod.host_port(8080)?)?;
        let hosts = sh(&server, &pod, "cat /etc/hosts")?;
        ensure!(hosts.contains("::1 localhost\n"), "{hosts}");
        ensure!(
            hosts.contains(&format!("{} {}\n", pod.address6()?, tail(&pod.handle))),
            "{hosts}"
        );
        destroy(&server, &pod)?;
        destroy(&server, &other)?;
        ensure!(internet.links()?.is_empty());
        Ok(())
    });
}

fn tail(handle: &str) -> &str {
    &handle[handle.len().saturating_sub(49)..]
}

/// Servers that are killed while containers come and go, at a different instant each time.
#[test]
fn a_killed_server_leaks_no_network() {
    check(|world| {
        let internet = Internet::new(world)?;
        let mut server = internet.server(&["--deny-network", "192.0.2.2/32"])?;
        let pod = internet.container(&server, &json!({ "handle": "stays" }))?;
        let image = world.images()?.tar("app")?;
        for round in 0..6_u32 {
            let cli = server.cli();
            let script = format!(
                "for n in 1 2 3; do (while :; do $garden create --image {image} --name c$n -p :80 \
                 >/dev/null 2>&1 || exit; $garden rm c$n >/dev/null 2>&1 || exit; done) & done; wait"
            );
            let churn = std::thread::spawn(move || cli.shell(&script));
            // Not for anything to have happened: so that it is another instant each time.
            std::thread::sleep(std::time::Duration::from_millis(u64::from(90 + round * 47)));
            server.kill()?;
            churn.join().map_err(|_| anyhow::anyhow!("a panic"))??;
            server.restart()?;
        }
        ensure!(pings(&server, &pod, HOST)? || pod.machine.dial(pod.address, 8080).is_ok());
        let listed = server.get("/containers")?;
        for handle in listed["Handles"].as_array().context("no list")? {
            let handle = handle.as_str().unwrap_or_default();
            server.delete(&format!("/containers/{handle}"))?;
        }
        settle(&server)?;
        ensure!(internet.links()?.is_empty(), "{:?}", internet.links()?);
        match internet.ruleset() {
            Some(rules) => ensure!(!rules.contains("chain container-"), "{rules}"),
            None => return skip("the command nft"),
        }
        Ok(())
    });
}

#[test]
fn ports_and_rules_by_the_command_line() {
    check(|world| {
        let internet = Internet::new(world)?;
        let server = internet.server(&["--deny-network", "192.0.2.2/32"])?;
        let image = world.images()?.tar("app")?;
        let garden = |words: &[&str]| server.cli().output(words);
        garden(&[
            "create",
            "--image",
            &image,
            "--name",
            "web",
            "--network",
            "10.7.0.0/24",
            "-p",
            "7070:8080",
            "-p",
            ":81",
        ])?;
        let pod = Pod::find(world, &server, "web".to_owned())?;
        ensure!(pod.address.to_string() == "10.7.0.2", "{}", pod.address);
        pod.machine.serve(8080)?;
        internet.outside.serve(80)?;
        internet.outside.dial(HOST, 7070)?;
        let listed: Value = serde_json::from_str(&garden(&["port", "web", "--json"])?)?;
        ensure!(
            listed[0] == json!({ "host_port": 7070, "container_port": 8080 }),
            "{listed}"
        );
        let added = garden(&["port", "web", ":8080"])?;
        let port = added
            .lines()
            .nth(1)
            .and_then(|line| line.split_whitespace().next());
        internet
            .outside
            .dial(HOST, port.context("no port")?.parse()?)?;
        pod.machine.expect_no_answer(OUTSIDE, 80)?;
        garden(&[
            "net-out",
            "web",
            "--protocol",
            "tcp",
            "--to",
            "192.0.2.0/24",
            "--port",
            "80",
        ])?;
        pod.machine.dial(OUTSIDE, 80)?;
        let wrong = server.cli().run(&["net-out", "web", "--port", "80"])?;
        wrong.expect_one_line(&["Ports cannot be specified for Protocol ALL"])?;
        Ok(())
    });
}

/// Two servers of one host are told apart by their tags, and one tag has one server.
#[test]
fn a_tag_has_one_server() {
    check(|world: &World| {
        let internet = Internet::new(world)?;
        let _server = internet.server(&[])?;
        let elsewhere = world.directory().join("elsewhere");
        let words = [
            "server".to_owned(),
            format!("--socket={}/s", elsewhere.display()),
            format!("--runtime-dir={}", elsewhere.display()),
            format!("--store={}", world.directory().join("store2").display()),
            format!("--tag={}2", world.tag()),
            "--network=built-in".to_owned(),
            "--network-tag=n".to_owned(),
        ];
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let second = internet.host.run(|| world.hosted().run(&words))?;
        ensure!(second.code != Some(0), "{second:?}");
        ensure!(
            second.stderr.contains("has the network tag \"n\""),
            "{second:?}"
        );
        Ok(())
    });
}
