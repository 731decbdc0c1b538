//! A failure at any step leaves nothing.

use std::os::fd::AsFd;

use garden_net::{NetOutRule, NetworkError, PortRequest, Protocol, Spec};

use crate::world::{Machine, PATIENCE, World, has_nft, spec};

#[test]
fn a_failure_leaves_nothing() {
    let Some(world) = World::new("a_failure_leaves_nothing") else {
        return;
    };
    let network = world.start(World::options());
    let before = has_nft("a_failure_leaves_nothing").then(|| world.ruleset());
    let spec = Spec {
        ports: vec![PortRequest {
            host: 7000,
            container: 1,
        }],
        rules: vec![NetOutRule::default()],
        ..Spec::default()
    };
    let attempt = |namespace: &std::os::fd::OwnedFd| {
        world
            .host
            .run(|| network.add("h", namespace.as_fd(), &spec))
            .unwrap_err()
    };

    // No namespace at all: the pair cannot be made.
    let no_namespace = std::fs::File::open("/dev/null").unwrap().into();
    let error = attempt(&no_namespace);
    assert!(
        error.to_string().starts_with("cannot make the veth pair w"),
        "{error}"
    );
    // A namespace with a way out of its own: the last step fails.
    let occupied = Machine::new();
    occupied.ip("link add dummy0 type bridge");
    occupied.ip("link set dummy0 up");
    occupied.ip("route add default dev dummy0");
    let error = attempt(occupied.fd());
    assert!(
        error
            .to_string()
            .starts_with("cannot add the default route of w"),
        "{error}"
    );

    assert!(network.settle(PATIENCE));
    assert!(world.links().is_empty(), "{:?}", world.links());
    assert!(
        !occupied.ip("-o link").contains("@"),
        "{}",
        occupied.ip("-o link")
    );
    if let Some(before) = before {
        assert_eq!(world.ruleset(), before);
    }
    // Address and port are free: the next one gets a port asked for by number.
    let next = Machine::new();
    world
        .host
        .run(|| network.add("h", next.fd().as_fd(), &spec))
        .unwrap();
}

#[test]
fn bad_requests_are_refused_before_anything_is_made() {
    let Some(world) = World::new("bad_requests_are_refused_before_anything_is_made") else {
        return;
    };
    let network = world.start(World::options());
    let before = network.messages_sent();
    let machine = Machine::new();
    let refused = |spec: &Spec| {
        world
            .host
            .run(|| network.add("h", machine.fd().as_fd(), spec))
            .unwrap_err()
            .to_string()
    };
    assert_eq!(refused(&spec("banana")), "invalid CIDR address: banana/30");
    assert!(refused(&spec("192.0.2.0/24")).contains("is not one of hosts"));
    let protocol = NetOutRule {
        protocol: Protocol::Icmp6,
        ..NetOutRule::default()
    };
    assert_eq!(
        refused(&Spec {
            rules: vec![protocol],
            ..Spec::default()
        }),
        "invalid protocol: 4"
    );
    let twice = PortRequest {
        host: 7000,
        container: 1,
    };
    assert_eq!(
        refused(&Spec {
            ports: vec![twice, twice],
            ..Spec::default()
        }),
        "port already acquired: 7000"
    );
    let beyond = PortRequest {
        host: 70000,
        container: 1,
    };
    assert!(
        refused(&Spec {
            ports: vec![beyond],
            ..Spec::default()
        })
        .starts_with("port 70000 is out of range")
    );
    assert_eq!(network.messages_sent(), before);
    let next = world.container(
        &network,
        &Spec {
            ports: vec![twice],
            ..Spec::default()
        },
    );
    world.remove(&network, &next);
    let gone = world
        .host
        .run(|| network.net_in(&next.lease, PortRequest::default()))
        .unwrap_err();
    assert!(matches!(gone, NetworkError::Unknown { .. }));
}

/// Many at once, in one subnet and in many: bridges come and go, nobody loses one.
#[test]
fn many_come_and_go_at_once() {
    let Some(world) = World::new("many_come_and_go_at_once") else {
        return;
    };
    let network = world.start(World::options());
    let addresses = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (world, network, addresses) = (&world, &network, &addresses);
            scope.spawn(move || {
                for round in 0..6 {
                    let spec = if (thread + round) % 2 == 0 {
                        spec("10.1.0.0/24")
                    } else {
                        Spec::default()
                    };
                    let machine = Machine::new();
                    let lease = world
                        .host
                        .run(|| network.add("h", machine.fd().as_fd(), &spec))
                        .unwrap();
                    // Its gateway answers (with a refusal): the bridge is there.
                    let answer = machine.dial(lease.gateway(), 1).unwrap_err();
                    assert_eq!(answer, std::io::ErrorKind::HostUnreachable);
                    addresses.lock().unwrap().push(lease.address);
                    world.host.run(|| network.remove(&lease)).unwrap();
                }
            });
        }
    });
    assert!(network.settle(PATIENCE));
    assert!(world.links().is_empty(), "{:?}", world.links());
    let mut pool: Vec<_> = addresses
        .into_inner()
        .unwrap()
        .into_iter()
        .filter(|address| address.octets()[1] == 254)
        .collect();
    let count = pool.len();
    pool.sort_unstable();
    pool.dedup();
    // Freed ones are not handed out again while others were never used.
    assert_eq!(pool.len(), count);
}
