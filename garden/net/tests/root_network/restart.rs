//! A server that comes back finds its network, and mends it.

use std::io::ErrorKind;
use std::net::TcpStream;

use garden_net::{PortRequest, Repair, Spec};

use crate::world::{HOST, OUTSIDE, World, has_nft};

fn with_port() -> Spec {
    Spec {
        ports: vec![
            PortRequest::default(),
            PortRequest {
                host: 0,
                container: 8080,
            },
        ],
        ..Spec::default()
    }
}

#[test]
fn what_is_in_use_stays_in_use() {
    let Some(world) = World::new("what_is_in_use_stays_in_use") else {
        return;
    };
    world.outside.serve(80);
    let network = world.start(World::options());
    let kept = world.container(&network, &with_port());
    let forgotten = world.container(&network, &with_port());
    let established = kept
        .machine
        .run(|| TcpStream::connect((OUTSIDE, 80)).unwrap());
    let mut options = World::options();
    options.port_offset = network.port_offset();
    drop(network);

    // Nothing to mend for the one that is known; of the other nothing remains.
    let start = world.start_with(options.clone(), vec![kept.lease.clone()]);
    assert!(
        start.repair.rebuilt.is_empty() && start.repair.foreign > 0,
        "{:?}",
        start.repair
    );
    assert_eq!(
        start.removed_links,
        [
            &forgotten.lease.names.host_interface,
            &forgotten.lease.names.bridge
        ]
        .map(String::clone)
    );
    let port = kept.lease.ports[1].host;
    assert_eq!(world.outside.dial(HOST, port), Ok(OUTSIDE.into()));
    assert_eq!(
        world.outside.dial(HOST, forgotten.lease.ports[1].host),
        Err(ErrorKind::ConnectionRefused)
    );
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut &established, &mut answer).unwrap();
    assert_eq!(answer, HOST.to_string());

    // Neither its address nor its ports are handed out, nor those of the one before.
    let next = world.container(&start.network, &with_port());
    assert_ne!(next.lease.subnet, kept.lease.subnet);
    assert_eq!(next.lease.ports[0].host, 61005);

    // The same records again: nothing to do at all.
    let leases = vec![kept.lease.clone(), next.lease.clone()];
    drop(start);
    let start = world.start_with(options.clone(), leases.clone());
    assert_eq!(
        (
            start.repair,
            start.removed_links.len(),
            start.rejected.len()
        ),
        (Repair::default(), 0, 0)
    );
    drop(start.network);

    // Two records that say the same: the second is told, the first works.
    let mut twin = kept.lease.clone();
    twin.names.id = "0123456789".to_owned();
    twin.names.host_interface = "w0123456789-0".to_owned();
    let start = world.start_with(options, [leases, vec![twin]].concat());
    assert_eq!(start.rejected.len(), 1);
    assert_eq!(
        start.rejected[0].reason.to_string(),
        "the requested IP is already allocated"
    );
    assert!(world.outside.dial(HOST, port).is_ok());
    // Removing the one that was rejected takes nothing from the other.
    world
        .host
        .run(|| start.network.remove(&start.rejected[0].lease).unwrap());
    assert!(world.outside.dial(HOST, port).is_ok());
}

#[test]
fn denied_networks_are_applied_anew() {
    let Some(world) = World::new("denied_networks_are_applied_anew") else {
        return;
    };
    world.outside.serve(80);
    let network = world.start(World::options());
    let container = world.container(&network, &Spec::default());
    assert!(container.machine.dial(OUTSIDE, 80).is_ok());
    drop(network);
    let mut options = World::options();
    options.deny = vec!["192.0.2.0/24".parse().unwrap()];
    drop(world.start_with(options.clone(), vec![container.lease.clone()]));
    assert_eq!(
        container.machine.dial(OUTSIDE, 80),
        Err(ErrorKind::ConnectionRefused)
    );
    options.deny = vec![
        "192.0.2.0/25".parse().unwrap(),
        "192.0.2.128/25".parse().unwrap(),
    ];
    drop(world.start_with(options, vec![container.lease.clone()]));
    assert_eq!(
        container.machine.dial(OUTSIDE, 80),
        Err(ErrorKind::ConnectionRefused)
    );
    drop(world.start_with(World::options(), vec![container.lease.clone()]));
    assert!(container.machine.dial(OUTSIDE, 80).is_ok());
}

#[test]
fn a_ruleset_that_somebody_emptied_is_mended() {
    let test = "a_ruleset_that_somebody_emptied_is_mended";
    let Some(world) = World::new(test) else {
        return;
    };
    if !has_nft(test) {
        return;
    }
    world.outside.serve(80);
    let mut options = World::options();
    options.deny = vec!["192.0.2.0/24".parse().unwrap()];
    let network = world.start(options);
    let rule = garden_net::NetOutRule {
        protocol: garden_net::Protocol::Tcp,
        ..Default::default()
    };
    let container = world.container(
        &network,
        &Spec {
            rules: vec![rule],
            ..with_port()
        },
    );
    let id = &container.lease.names.id;
    let harms = [
        "flush ruleset".to_owned(),
        "flush table inet garden".to_owned(),
        format!("flush chain inet garden container-{id}"),
        format!("flush set inet garden networks-{id}"),
        format!("flush set inet garden services-{id}"),
        "flush set inet garden homes".to_owned(),
        "flush map inet garden ports".to_owned(),
        "flush set inet garden bridges".to_owned(),
    ];
    for harm in harms {
        world.host.command("nft", &harm);
        let repair = world.host.run(|| network.repair()).unwrap();
        assert_eq!(
            repair.rebuilt,
            std::slice::from_ref(&container.lease.handle),
            "after {harm}"
        );
        assert!(container.machine.dial(OUTSIDE, 80).is_ok(), "after {harm}");
        assert!(
            world
                .outside
                .dial(HOST, container.lease.ports[1].host)
                .is_ok(),
            "after {harm}"
        );
    }
    // What belongs to nobody goes.
    world
        .host
        .command("nft", "add chain inet garden container-0000000000");
    world
        .host
        .command("nft", "add element inet garden members { 10.9.9.9 }");
    world.host.command("nft", "add element inet garden containers { wbrdg-00000000 . 10.9.9.9 : jump container-0000000000 }");
    let repair = world.host.run(|| network.repair()).unwrap();
    assert_eq!(
        repair,
        Repair {
            foreign: 3,
            rebuilt: Vec::new()
        }
    );
    // A table of another kind under our name gives way.
    world.host.command("nft", "delete table inet garden");
    world.host.command("nft", "add table inet garden");
    world
        .host
        .command("nft", "add set inet garden homes { type inet_service; }");
    assert_eq!(
        world.host.run(|| network.repair()).unwrap().rebuilt.len(),
        1
    );
    assert!(container.machine.dial(OUTSIDE, 80).is_ok());

    // A removal does not mind that everything is gone.
    world.host.command("nft", "flush ruleset");
    world.remove(&network, &container);
    world.remove(&network, &container);
}

/// The next owner of an address, or of a port, must not get the connections of the one before.
#[test]
fn connections_end_before_somebody_gets_the_address() {
    let test = "connections_end_before_somebody_gets_the_address";
    let Some(world) = World::new(test) else {
        return;
    };
    world.outside.serve(80);
    let network = world.start(World::options());
    let port = PortRequest {
        host: 7000,
        container: 8080,
    };
    // Of one or of many: the kernel is asked differently.
    for count in [1, 6] {
        let with = |address: usize, ports: Vec<PortRequest>| Spec {
            network: format!("10.1.0.{address}/24"),
            ports,
            ..Spec::default()
        };
        let containers: Vec<_> = (0..count)
            .map(|number| world.container(&network, &with(10 + number, Vec::new())))
            .collect();
        let mapped = world.container(&network, &with(9, vec![port]));
        let out: Vec<_> = containers
            .iter()
            .map(|container| {
                container
                    .machine
                    .run(|| TcpStream::connect((OUTSIDE, 80)).unwrap())
            })
            .collect();
        let inwards = world
            .outside
            .run(|| TcpStream::connect((HOST, 7000)).unwrap());
        let others = world
            .host
            .run(|| TcpStream::connect((OUTSIDE, 80)).unwrap());
        let remembered = || {
            world
                .host
                .run(|| std::fs::read_to_string("/proc/thread-self/net/nf_conntrack"))
        };
        let Ok(before) = remembered() else {
            println!("SKIPPED {test}: no /proc/net/nf_conntrack");
            return;
        };
        let of_containers = |text: &str| {
            text.lines()
                .filter(|line| line.contains("src=10.1.0."))
                .count()
        };
        assert_eq!(of_containers(&before), count + 1, "{before}");
        for container in containers.iter().chain([&mapped]) {
            world.remove(&network, container);
        }
        let again = if count == 1 {
            with(10, Vec::new())
        } else {
            with(99, vec![port])
        };
        let next = world.container(&network, &again);
        let after = remembered().unwrap();
        assert_eq!(of_containers(&after), 0, "{after}");
        // Others keep theirs.
        assert!(after.contains("src=192.0.2.1 dst=192.0.2.2"), "{after}");
        world.remove(&network, &next);
        drop((out, inwards, others));
    }
}
