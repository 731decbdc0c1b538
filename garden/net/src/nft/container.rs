//! A container's part of the table: its chain, and its elements in the sets.
//!
//! Pure. What a container adds and takes away is a fixed number of messages plus one for each of
//! its rules (three where a rule lists several ranges), however many other containers there are.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::expr::{Base, Family, Program, SetRef, Verdict};
use super::layout::{BRIDGES, DEFAULT, NAME_LENGTH, Ordered, Sets, intervals, member};
use super::table::{ANONYMOUS_NAME, Changes, Element, Table, Value, data_type};
use crate::cidr::Range;
use crate::lease::{Lease, MappedPort};
use crate::rules::{Destination, Match, Protocol, log_prefix};

/// The host's addresses whose ports lead to containers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct External {
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Option<Ipv6Addr>,
}

/// An element of a container, and the set it is in.
pub(super) type Owned = (&'static str, Element);

/// Makes a container's chain; its elements come last, when everything they lead to is there.
pub(super) fn add(
    table: &Table,
    changes: &mut Changes,
    lease: &Lease,
    matches: &[Match],
    external: External,
) {
    let chain = lease.names.chain();
    table.chain(changes, &chain, None, Some(&lease.handle), true);
    allow(table, changes, lease, matches);
    table.rule(changes, &chain, |rule| {
        rule.family(Family::V4)
            .destination(Family::V4, 0)
            .mask(0, &lease.subnet.mask().octets())
            .equals(0, &lease.subnet.network().octets())
            .verdict(Verdict::Accept);
    });
    if let Some(ipv6) = lease.ipv6 {
        let mask = u128::MAX
            .checked_shl(128 - u32::from(ipv6.prefix.min(128)))
            .unwrap_or(0);
        let network = u128::from(ipv6.address) & mask;
        table.rule(changes, &chain, |rule| {
            rule.family(Family::V6)
                .destination(Family::V6, 0)
                .mask(0, &mask.to_be_bytes())
                .equals(0, &network.to_be_bytes())
                .verdict(Verdict::Accept);
        });
    }
    table.rule(changes, &chain, |rule| {
        rule.verdict(Verdict::Goto(DEFAULT));
    });
    table.add(changes, BRIDGES, &[member(&padded(&lease.names.bridge))]);
    for (set, element) in elements(lease, external) {
        table.add(changes, set, &[element]);
    }
}

/// How many rules [`add`] makes.
pub(super) fn rules(lease: &Lease, matches: &[Match]) -> usize {
    matches.len() + 2 + usize::from(lease.ipv6.is_some())
}

/// Puts rules in front of those that the container has; of several, the last comes first.
pub(super) fn allow(table: &Table, changes: &mut Changes, lease: &Lease, matches: &[Match]) {
    let chain = lease.names.chain();
    for one in matches {
        let networks = match &one.destination {
            Destination::Anywhere => None,
            Destination::V4(ranges) => condition(table, changes, ranges, data_type::IPV4, &[4]),
            Destination::V6(ranges) => condition(table, changes, ranges, data_type::IPV6, &[16]),
        };
        let ports = condition(table, changes, &one.ports, data_type::SERVICE, &[2]);
        table.rule_in_front(changes, &chain, |rule| {
            write_match(rule, one, networks.as_ref(), ports.as_ref(), &lease.handle)
        });
    }
}

/// What a value must be for a rule to count.
enum Condition {
    Range(Vec<u8>, Vec<u8>),
    Set(u32),
}

fn condition<T: Ordered>(
    table: &Table,
    changes: &mut Changes,
    ranges: &[Range<T>],
    key: u32,
    parts: &'static [u32],
) -> Option<Condition> {
    match ranges {
        [] => None,
        [(start, end)] => Some(Condition::Range(start.bytes(), end.bytes())),
        several => Some(Condition::Set(table.anonymous_set(
            changes,
            key,
            parts,
            &intervals(several),
        ))),
    }
}

fn check(rule: &mut Program<'_>, condition: &Condition) {
    match condition {
        Condition::Range(start, end) => rule.between(0, start, end),
        Condition::Set(id) => rule.is_in(
            0,
            SetRef {
                name: ANONYMOUS_NAME,
                id: Some(*id),
            },
        ),
    };
}

fn write_match(
    rule: &mut Program<'_>,
    one: &Match,
    networks: Option<&Condition>,
    ports: Option<&Condition>,
    handle: &str,
) {
    let family = match (&one.destination, one.protocol) {
        (Destination::V4(_), _) | (_, Protocol::Icmp) => Some(Family::V4),
        (Destination::V6(_), _) | (_, Protocol::Icmp6) => Some(Family::V6),
        _ => None,
    };
    if let Some(family) = family {
        rule.family(family);
    }
    if let (Some(family), Some(networks)) = (family, networks) {
        check(rule.destination(family, 0), networks);
    }
    let number = match one.protocol {
        Protocol::All => None,
        Protocol::Tcp => Some(6),
        Protocol::Udp => Some(17),
        Protocol::Icmp => Some(1),
        Protocol::Icmp6 => Some(58),
    };
    if let Some(number) = number {
        rule.protocol(number);
    }
    if let Some(ports) = ports {
        check(rule.destination_port(0), ports);
    }
    if let Some(icmp) = one.icmp {
        rule.payload(Base::Transport, 0, 1, 0)
            .equals(0, &[icmp.kind]);
        if let Some(code) = icmp.code {
            rule.payload(Base::Transport, 1, 1, 0).equals(0, &[code]);
        }
    }
    if one.log {
        // Established connections never come here: each is logged once, when it begins. The
        // counter is for people who ask why nothing is logged.
        rule.counter().log(&log_prefix(handle));
    }
    rule.verdict(Verdict::Accept);
}

/// Removes a container's elements, then its chain; the bridge's element with its last container.
pub(super) fn remove(
    table: &Table,
    changes: &mut Changes,
    lease: &Lease,
    external: External,
    with_bridge: bool,
) {
    for (set, element) in elements(lease, external) {
        table.remove(changes, set, &[key_of(element)]);
    }
    if with_bridge {
        table.remove(changes, BRIDGES, &[member(&padded(&lease.names.bridge))]);
    }
    table.delete_chain(changes, &lease.names.chain());
}

/// Leads host ports to a container.
pub(super) fn map(
    table: &Table,
    changes: &mut Changes,
    lease: &Lease,
    ports: &[MappedPort],
    external: External,
) {
    for port in ports {
        for (set, element) in port_elements(lease, *port, external) {
            table.add(changes, set, &[element]);
        }
    }
}

/// Every element of a container but its bridge's.
pub(super) fn elements(lease: &Lease, external: External) -> Vec<Owned> {
    let v4 = Sets::of(Family::V4);
    let mut all = Vec::new();
    home_elements(&mut all, &v4, lease, &lease.address.octets());
    if let Some(ipv6) = lease.ipv6 {
        home_elements(
            &mut all,
            &Sets::of(Family::V6),
            lease,
            &ipv6.address.octets(),
        );
    }
    all.extend(
        lease
            .ports
            .iter()
            .flat_map(|port| port_elements(lease, *port, external)),
    );
    all
}

fn home_elements(all: &mut Vec<Owned>, sets: &Sets, lease: &Lease, address: &[u8]) {
    let home = [&padded(&lease.names.bridge)[..], address].concat();
    all.push((sets.members, member(address)));
    all.push((sets.homes, member(&home)));
    all.push((
        sets.containers,
        Element {
            key: home,
            value: Value::Goto(lease.names.chain()),
        },
    ));
}

fn port_elements(lease: &Lease, port: MappedPort, external: External) -> Vec<Owned> {
    let element = |host: &[u8], container: &[u8]| Element {
        key: with_port(host, port.host),
        value: Value::Data(with_port(container, port.container)),
    };
    let v4 = (
        Sets::of(Family::V4).ports,
        element(&external.v4.octets(), &lease.address.octets()),
    );
    let v6 = external.v6.zip(lease.ipv6).map(|(host, lease)| {
        let element = element(&host.octets(), &lease.address.octets());
        (Sets::of(Family::V6).ports, element)
    });
    std::iter::once(v4).chain(v6).collect()
}

/// An address and a port side by side, each filling whole registers.
fn with_port(address: &[u8], port: u16) -> Vec<u8> {
    [address, &port.to_be_bytes()[..], &[0, 0]].concat()
}

/// An interface's name as the kernel compares it.
pub(super) fn padded(name: &str) -> [u8; NAME_LENGTH] {
    let mut bytes = [0; NAME_LENGTH];
    for (place, byte) in bytes.iter_mut().zip(name.bytes()) {
        *place = byte;
    }
    bytes
}

/// An element as it is named when it is removed.
pub(super) fn key_of(element: Element) -> Element {
    Element {
        value: Value::Nothing,
        ..element
    }
}
