//! Who reaches whom, with real connections.

use std::io::ErrorKind;
use std::net::IpAddr;

use garden_net::{PortRequest, Spec};

use crate::world::{HOST, HOST6, OUTSIDE, OUTSIDE6, World, spec};

fn mapped(host: u32, container: u32) -> Spec {
    Spec {
        ports: vec![PortRequest { host, container }],
        ..Spec::default()
    }
}

#[test]
fn a_mapped_port_leads_to_the_container_from_everywhere() {
    let Some(world) = World::new("a_mapped_port_leads_to_the_container_from_everywhere") else {
        return;
    };
    let network = world.start(World::options());
    let container = world.container(&network, &mapped(0, 8080));
    let port = container.lease.ports[0];
    assert_eq!((port.host, port.container), (61001, 8080));

    // From outside: the client's own address arrives.
    assert_eq!(world.outside.dial(HOST, port.host), Ok(OUTSIDE.into()));
    assert_eq!(world.host.dial(HOST, port.host), Ok(HOST.into()));
    // From itself: the answer must come back the way it went.
    assert_eq!(
        container.machine.dial(HOST, port.host),
        Ok(container.lease.gateway().into())
    );
    // From a neighbour in another subnet.
    let other = world.container(&network, &Spec::default());
    assert!(other.machine.dial(HOST, port.host).is_ok());
    // A port that leads nowhere.
    assert_eq!(
        world.outside.dial(HOST, 61002),
        Err(ErrorKind::ConnectionRefused)
    );

    let ((explicit, lease), same) = world.host.run(|| {
        let explicit = network
            .net_in(
                &container.lease,
                PortRequest {
                    host: 7000,
                    container: 8080,
                },
            )
            .unwrap();
        let same = network
            .net_in(
                &container.lease,
                PortRequest {
                    host: 8080,
                    container: 0,
                },
            )
            .unwrap();
        (explicit, same)
    });
    assert_eq!(lease.ports.len(), 2);
    assert_eq!(same.1.ports.len(), 3);
    assert_eq!(world.outside.dial(HOST, explicit.host), Ok(OUTSIDE.into()));
    assert_eq!(world.outside.dial(HOST, 8080), Ok(OUTSIDE.into()));
    let taken = world
        .host
        .run(|| {
            network.net_in(
                &other.lease,
                PortRequest {
                    host: 7000,
                    container: 1,
                },
            )
        })
        .unwrap_err();
    assert_eq!(taken.to_string(), "port already acquired: 7000");

    world.remove(&network, &container);
    assert_eq!(
        world.outside.dial(HOST, port.host),
        Err(ErrorKind::ConnectionRefused)
    );
}

#[test]
fn neighbours_of_one_subnet_share_a_bridge() {
    let Some(world) = World::new("neighbours_of_one_subnet_share_a_bridge") else {
        return;
    };
    let network = world.start(World::options());
    let first = world.container(
        &network,
        &Spec {
            network: "10.1.0.0/24".into(),
            ..mapped(0, 8080)
        },
    );
    let second = world.container(&network, &spec("10.1.0.0/24"));
    let apart = world.container(&network, &Spec::default());
    assert_eq!(first.lease.names.bridge, second.lease.names.bridge);

    // On one bridge nothing is rewritten.
    assert_eq!(
        second.machine.dial(first.lease.address, 8080),
        Ok(second.lease.address.into())
    );
    // By the host's port the answer must not take the short way.
    let port = first.lease.ports[0].host;
    assert_eq!(
        second.machine.dial(HOST, port),
        Ok(first.lease.gateway().into())
    );
    // Between subnets the bridge stands for the one that asks.
    assert_eq!(
        apart.machine.dial(first.lease.address, 8080),
        Ok(first.lease.gateway().into())
    );
    assert_eq!(
        first.machine.dial(apart.lease.address, 8080),
        Ok(apart.lease.gateway().into())
    );

    world.remove(&network, &first);
    assert!(world.links().contains(&second.lease.names.bridge));
    assert!(second.machine.dial(apart.lease.address, 8080).is_ok());
    world.remove(&network, &second);
    assert!(!world.links().contains(&second.lease.names.bridge));
    world.remove(&network, &apart);
    assert!(world.links().is_empty(), "{:?}", world.links());
}

#[test]
fn the_world_sees_the_host() {
    let Some(world) = World::new("the_world_sees_the_host") else {
        return;
    };
    let network = world.start(World::options());
    let container = world.container(&network, &Spec::default());
    world.outside.serve(80);
    assert_eq!(container.machine.dial(OUTSIDE, 80), Ok(HOST.into()));
}

#[test]
fn the_host_is_out_of_reach_unless_allowed() {
    let Some(world) = World::new("the_host_is_out_of_reach_unless_allowed") else {
        return;
    };
    world.host.serve(80);
    world.host.serve(53);
    let network = world.start(World::options());
    let container = world.container(&network, &Spec::default());
    let unreachable = Err(ErrorKind::HostUnreachable);
    assert_eq!(container.machine.dial(HOST, 80), unreachable);
    assert_eq!(
        container.machine.dial(container.lease.gateway(), 80),
        unreachable
    );
    // The host reaches the container, and its answers come back.
    assert!(world.host.dial(container.lease.address, 8080).is_ok());

    let mut options = World::options();
    options.name_servers = vec![HOST.into(), HOST.into()];
    let network = world
        .start_with(options, vec![container.lease.clone()])
        .network;
    assert!(container.machine.dial(HOST, 53).is_ok());
    assert_eq!(container.machine.dial(HOST, 80), unreachable);

    let mut options = World::options();
    options.allow_host_access = true;
    drop(network);
    world.start_with(options, vec![container.lease.clone()]);
    assert!(container.machine.dial(HOST, 80).is_ok());
}

#[test]
fn ipv6_is_a_twin() {
    let Some(world) = World::new("ipv6_is_a_twin") else {
        return;
    };
    let mut options = World::options();
    options.ipv6 = Some("fd12:3456:789a::".parse().unwrap());
    options.external6 = Some(HOST6);
    let network = world.start(options);
    let container = world.container(&network, &mapped(0, 8080));
    let other = world.container(&network, &Spec::default());
    world.outside.serve(80);
    world.host.serve(80);

    // The world's own link first: a neighbour that is asked for too early is unreachable for a while.
    let ready = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while world.host.dial(OUTSIDE6, 80) != Ok(HOST6.into()) {
        assert!(std::time::Instant::now() < ready, "the world has no IPv6");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let v6 = |lease: &garden_net::Lease| lease.ipv6.unwrap();
    assert_eq!(container.machine.dial(OUTSIDE6, 80), Ok(HOST6.into()));
    assert_eq!(
        world.outside.dial(HOST6, container.lease.ports[0].host),
        Ok(OUTSIDE6.into())
    );
    assert_eq!(
        container.machine.dial(HOST6, container.lease.ports[0].host),
        Ok(v6(&container.lease).gateway.into())
    );
    let seen: IpAddr = v6(&container.lease).gateway.into();
    assert_eq!(
        other.machine.dial(v6(&container.lease).address, 8080),
        Ok(seen)
    );
    // Which error a rejected IPv6 connection gets differs between kernels.
    let refused = container.machine.dial(HOST6, 80).unwrap_err();
    assert!(
        matches!(
            refused,
            ErrorKind::PermissionDenied | ErrorKind::HostUnreachable
        ),
        "{refused:?}"
    );
}

#[test]
fn without_ipv6_a_bridge_has_none() {
    let Some(world) = World::new("without_ipv6_a_bridge_has_none") else {
        return;
    };
    let network = world.start(World::options());
    let container = world.container(&network, &Spec::default());
    let bridge = &container.lease.names.bridge;
    assert!(
        !world
            .host
            .ip(&format!("address show dev {bridge}"))
            .contains("inet6")
    );
    assert!(
        world
            .host
            .ip(&format!("-d link show dev {bridge}"))
            .contains("mcast_snooping 0")
    );
}

#[test]
fn both_ends_have_the_mtu() {
    let Some(world) = World::new("both_ends_have_the_mtu") else {
        return;
    };
    world.host.ip("link set out mtu 1400");
    let mut options = World::options();
    options.mtu = world
        .host
        .run(|| garden_net::detect::mtu(0, HOST.into()))
        .unwrap();
    assert_eq!(options.mtu, 1400);
    let network = world.start(options);
    let container = world.container(&network, &Spec::default());
    assert!(
        world
            .host
            .ip("-o link")
            .lines()
            .any(|line| line.contains(&container.lease.names.host_interface)
                && line.contains("mtu 1400"))
    );
    assert!(container.machine.ip("-o link").contains("mtu 1400"));
    let lost = world
        .host
        .run(|| garden_net::detect::mtu(0, OUTSIDE.into()))
        .unwrap_err();
    assert!(lost.to_string().contains("set --mtu"), "{lost}");
    // No way out: nothing to detect. With one: the address of that link.
    assert!(
        world
            .host
            .run(garden_net::detect::external_address)
            .unwrap_err()
            .to_string()
            .contains("--external-ip")
    );
    world.host.ip(&format!("route add default via {OUTSIDE}"));
    assert_eq!(
        world
            .host
            .run(garden_net::detect::external_address)
            .unwrap(),
        HOST
    );
}
