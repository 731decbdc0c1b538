//! What is rejected, dropped, let through and logged.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

use garden_net::{NetOutRule, Protocol, Spec};

use crate::world::{OUTSIDE, World, has_nft, spec};

fn tcp(start: Ipv4Addr, port: u16) -> NetOutRule {
    NetOutRule {
        protocol: Protocol::Tcp,
        networks: vec![(start.into(), start.into())],
        ports: vec![(port, port)],
        ..NetOutRule::default()
    }
}

fn range(start: &str, end: &str) -> (IpAddr, IpAddr) {
    (start.parse().unwrap(), end.parse().unwrap())
}

#[test]
fn a_rule_leads_through_a_denied_network() {
    let Some(world) = World::new("a_rule_leads_through_a_denied_network") else {
        return;
    };
    let mut options = World::options();
    options.deny = vec![
        "192.0.2.0/24".parse().unwrap(),
        "192.0.2.128/25".parse().unwrap(),
        "203.0.113.0/24".parse().unwrap(),
    ];
    let network = world.start(options);
    for port in [80, 81, 82, 83] {
        world.outside.serve(port);
    }
    let allowed = Spec {
        rules: vec![tcp(OUTSIDE, 80)],
        ..Spec::default()
    };
    let container = world.container(&network, &allowed);
    let refused = Err(ErrorKind::ConnectionRefused);
    assert!(container.machine.dial(OUTSIDE, 80).is_ok());
    assert_eq!(container.machine.dial(OUTSIDE, 81), refused);

    // Later, and several at once, with ranges that need a set.
    let several = NetOutRule {
        networks: vec![
            range("192.0.2.2", "192.0.2.9"),
            range("198.51.100.0", "255.255.255.255"),
        ],
        ports: vec![(81, 81), (83, 90)],
        ..tcp(OUTSIDE, 81)
    };
    let ping = NetOutRule {
        protocol: Protocol::Icmp,
        icmp: Some((8, None)),
        ..NetOutRule::default()
    };
    let lease = world
        .host
        .run(|| network.net_out(&container.lease, &[several, ping]))
        .unwrap();
    assert_eq!(lease.rules.len(), 3);
    assert!(container.machine.dial(OUTSIDE, 81).is_ok());
    assert_eq!(container.machine.dial(OUTSIDE, 82), refused);
    assert!(container.machine.dial(OUTSIDE, 83).is_ok());

    // One rule without a meaning, and none of them counts.
    let wrong = NetOutRule {
        ports: vec![(1, 1)],
        ..NetOutRule::default()
    };
    let error = world
        .host
        .run(|| network.net_out(&container.lease, &[tcp(OUTSIDE, 82), wrong]))
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "Ports cannot be specified for Protocol ALL"
    );
    assert_eq!(container.machine.dial(OUTSIDE, 82), refused);

    // A neighbour has no part in it.
    let other = world.container(&network, &Spec::default());
    assert_eq!(other.machine.dial(OUTSIDE, 80), refused);
}

#[test]
fn denied_networks_do_not_reach_into_the_own_subnet() {
    let Some(world) = World::new("denied_networks_do_not_reach_into_the_own_subnet") else {
        return;
    };
    let mut options = World::options();
    options.deny = vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
    let network = world.start(options);
    let first = world.container(&network, &spec("10.1.0.0/24"));
    let second = world.container(&network, &spec("10.1.0.0/24"));
    let apart = world.container(&network, &Spec::default());
    assert!(first.machine.dial(second.lease.address, 8080).is_ok());
    assert_eq!(
        first.machine.dial(apart.lease.address, 8080),
        Err(ErrorKind::ConnectionRefused)
    );
}

/// What a container sends with an address that is not its own arrives nowhere.
#[test]
fn a_spoofed_source_is_dropped() {
    let Some(world) = World::new("a_spoofed_source_is_dropped") else {
        return;
    };
    let mut options = World::options();
    options.allow_host_access = true;
    let network = world.start(options);
    let container = world.container(&network, &spec("10.1.0.0/24"));
    let other = world.container(&network, &Spec::default());
    // A stranger's, a neighbour's in another subnet, one of the own subnet's that nobody has.
    for source in [
        "203.0.113.9".parse().unwrap(),
        other.lease.address,
        "10.1.0.77".parse().unwrap(),
    ] {
        container.machine.ip(&format!(
            "address add {source}/32 dev {}",
            container.lease.names.container_interface
        ));
        for (machine, address) in [(&world.outside, OUTSIDE), (&world.host, crate::world::HOST)] {
            let receiver = machine.run(|| UdpSocket::bind((address, 0)).unwrap());
            receiver
                .set_read_timeout(Some(Duration::from_secs(20)))
                .unwrap();
            let target = receiver.local_addr().unwrap();
            container.machine.run(|| {
                UdpSocket::bind((source, 0))
                    .unwrap()
                    .send_to(b"spoofed", target)
                    .unwrap();
                UdpSocket::bind((container.lease.address, 0))
                    .unwrap()
                    .send_to(b"honest", target)
                    .unwrap();
            });
            // In order: had the first one come through, it would be the first.
            let mut buffer = [0; 16];
            let (length, _) = receiver.recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"honest", "from {source} to {address}");
        }
    }
}

#[test]
fn new_connections_are_logged_once() {
    let Some(world) = World::new("new_connections_are_logged_once") else {
        return;
    };
    if !has_nft("new_connections_are_logged_once") {
        return;
    }
    let network = world.start(World::options());
    world.outside.serve(80);
    let logged = NetOutRule {
        log: true,
        ..tcp(OUTSIDE, 80)
    };
    let container = world.container(
        &network,
        &Spec {
            rules: vec![logged],
            ..Spec::default()
        },
    );
    for _ in 0..3 {
        assert!(container.machine.dial(OUTSIDE, 80).is_ok());
    }
    let chain = format!(
        "list chain inet garden container-{}",
        container.lease.names.id
    );
    let rules = world.host.command("nft", &chain);
    // A connection is a dozen packets; only its first comes here.
    assert!(rules.contains("counter packets 3 "), "{rules}");
    assert!(
        rules.contains("log prefix \"a-handle-of-more-than-28-cha \" accept"),
        "{rules}"
    );
}

/// nft(8) reads what we wrote, as what we meant.
#[test]
fn the_ruleset_reads_as_meant() {
    let Some(world) = World::new("the_ruleset_reads_as_meant") else {
        return;
    };
    if !has_nft("the_ruleset_reads_as_meant") {
        return;
    }
    let mut options = World::options();
    options.deny = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
    options.ipv6 = Some("fd12::".parse().unwrap());
    let network = world.start(options);
    let ranges = NetOutRule {
        ports: vec![(0, 9), (80, 80)],
        networks: vec![range("0.0.0.0", "0.0.0.5"), range("9.0.0.0", "9.0.0.0")],
        ..tcp(OUTSIDE, 1)
    };
    let udp = |networks| NetOutRule {
        protocol: Protocol::Udp,
        networks,
        ..NetOutRule::default()
    };
    let rules = vec![
        udp(vec![range("1.0.0.0", "1.0.0.9")]),
        NetOutRule {
            networks: vec![range("172.16.0.0", "172.31.255.255")],
            ..NetOutRule::default()
        },
        NetOutRule {
            protocol: Protocol::Icmp,
            icmp: Some((8, Some(0))),
            ..NetOutRule::default()
        },
        ranges.clone(),
        NetOutRule {
            log: true,
            ..tcp(OUTSIDE, 90)
        },
        ranges,
        udp(vec![range("fd00::1", "fd00::9")]),
    ];
    let ports = vec![garden_net::PortRequest {
        host: 7000,
        container: 8080,
    }];
    let container = world.container(
        &network,
        &Spec {
            rules,
            ports,
            ..Spec::default()
        },
    );
    let text = world.ruleset();
    println!("{text}");
    let id = &container.lease.names.id;
    for line in [
        "iifname . ip saddr vmap @containers",
        "iifname @bridges iifname . ip saddr != @homes drop",
        "iifname @bridges goto default",
        "iifname @bridges goto host",
        "ct state established,related accept",
        "ip daddr @denied reject",
        "elements = { 10.0.0.0/8 }",
        "elements = { fd00::/8 }",
        "reject with icmpx",
        "dnat ip to ip daddr . tcp dport map @ports",
        "192.0.2.1 . 7000 : 10.254.0.2 . 8080",
        "icmp type echo-request icmp code",
        // The container's own subnet, and the one rule for all protocols.
        "elements = { 10.254.0.0/30, 172.16.0.0/12 }",
        "elements = { fd12::afe:0/126 }",
        "17 . 1.0.0.0-1.0.0.9 . 0-65535",
        "elements = { \"wbrdg-0afe0000\" }",
        "6 . 9.0.0.0 . 0-9",
        "6 . 0.0.0.0-0.0.0.5 . 80",
        // From the first rule that logs on, rules are rules.
        "log prefix \"a-handle-of-more-than-28-cha \" accept",
        "ip daddr { 0.0.0.0-0.0.0.5, 9.0.0.0 } tcp dport { 0-9, 80 } accept",
        "ip6 daddr fd00::1-fd00::9 meta l4proto 17 accept",
        "masquerade",
    ] {
        assert!(text.contains(line), "no {line:?}");
    }
    let jump = format!(
        "\"{}\" . 10.254.0.2 : jump container-{id}",
        container.lease.names.bridge
    );
    assert!(text.contains(&jump), "no {jump:?}");
    // Newest first.
    let at = |line: &str| text.find(line).unwrap();
    assert!(at("ip6 daddr fd00::1-fd00::9") < at("log prefix"));
    assert!(at("log prefix") < at("icmp type echo-request"));
}
