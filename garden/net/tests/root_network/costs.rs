//! A container costs the same with one neighbour and with two hundred: counted, not timed.

use std::os::fd::AsFd;

use garden_net::{MappedPort, NetOutRule, PortRequest, Protocol, Repair, Spec};

use crate::world::{Machine, PATIENCE, World};

#[test]
fn the_two_hundredth_costs_what_the_first_did() {
    let Some(world) = World::new("the_two_hundredth_costs_what_the_first_did") else {
        return;
    };
    let network = world.start(World::options());
    let rule = |number: u8| NetOutRule {
        protocol: Protocol::Tcp,
        networks: vec![([192, 0, 2, number].into(), [192, 0, 2, number].into())],
        ports: vec![(80, 90)],
        ..NetOutRule::default()
    };
    let spec = Spec {
        rules: (0..20).map(rule).collect(),
        ports: vec![PortRequest::default()],
        ..Spec::default()
    };
    let add = || {
        let machine = Machine::new();
        let before = network.messages_sent();
        let lease = world
            .host
            .run(|| network.add("h", machine.fd().as_fd(), &spec))
            .unwrap();
        (machine, lease, network.messages_sent() - before)
    };
    let all: Vec<_> = (0..200).map(|_| add()).collect();
    assert!(
        all.iter().all(|(_, _, sent)| *sent == all[0].2),
        "{:?}",
        all.iter().map(|one| one.2).collect::<Vec<_>>()
    );

    let cost = |work: &mut dyn FnMut()| {
        let before = network.messages_sent();
        work();
        network.messages_sent() - before
    };
    let rules = [rule(77)];
    let last = &all[199].1;
    world.host.run(|| {
        // A transaction is its begin, what it changes (here: a set is emptied and filled), its end.
        assert_eq!(
            cost(&mut || drop(network.net_out(last, &rules).unwrap())),
            4
        );
        assert_eq!(
            cost(&mut || drop(network.net_in(last, PortRequest::default()).unwrap())),
            3
        );
        let removals: Vec<u64> = all
            .iter()
            .take(30)
            .map(|one| {
                cost(&mut || {
                    network.remove(&one.1).unwrap();
                    assert!(network.settle(PATIENCE));
                })
            })
            .collect();
        assert!(
            removals.iter().all(|sent| *sent == removals[0]),
            "{removals:?}"
        );
    });

    // A start that finds everything as it should be changes nothing.
    drop(network);
    let records = all.iter().skip(30).map(|(_, lease, _)| lease.clone());
    let mut records: Vec<_> = records.collect();
    let last = records.last_mut().unwrap();
    last.rules.extend(rules);
    last.ports.push(MappedPort {
        host: 61201,
        container: 61201,
    });
    let start = world.start_with(World::options(), records);
    assert_eq!(start.repair, Repair::default());
    assert!(start.removed_links.is_empty() && start.rejected.is_empty());
}
