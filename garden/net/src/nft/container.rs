//! A container's part of the table: its chain, its own sets, and its elements in the shared ones.
//!
//! Pure. What a container adds and takes away is a fixed number of messages plus one for each rule
//! that stays a rule ([`crate::reach`]), however many other containers there are.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::expr::{Base, Family, Meta, Program, SetRef, Verdict};
use super::layout::{BRIDGES, NAME_LENGTH, Ordered, Sets, intervals, member};
use super::table::{ANONYMOUS_NAME, Changes, Element, SetKind, Table, Value, data_type, set_flags};
use crate::cidr::Range;
use crate::lease::{Lease, MappedPort};
use crate::reach::{Address, Plan, Reach};
use crate::rules::{Destination, Match, Protocol, log_prefix};

/// The host's addresses whose ports lead to containers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct External {
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Option<Ipv6Addr>,
}

/// An element of a container, and the set it is in.
pub(super) type Owned = (&'static str, Element);

/// The sets of a container's own, in one family.
struct OwnSets {
    family: Family,
    networks: String,
    services: String,
}

impl OwnSets {
    fn of(lease: &Lease, family: Family) -> Self {
        let suffix = if family == Family::V4 { "" } else { "6" };
        Self {
            family,
            networks: format!("networks{suffix}-{}", lease.names.id),
            services: format!("services{suffix}-{}", lease.names.id),
        }
    }

    fn create(&self, table: &Table, changes: &mut Changes) {
        let (address, networks, services): (_, &[u32], &[u32]) = match self.family {
            Family::V4 => (data_type::IPV4, &[4], &[1, 4, 2]),
            Family::V6 => (data_type::IPV6, &[16], &[1, 16, 2]),
        };
        let set = |flags, key_type, parts| SetKind {
            flags,
            key_type,
            parts,
            data: None,
        };
        table.set(
            changes,
            &self.networks,
            &set(set_flags::INTERVAL, address, networks),
        );
        let key = data_type::pair(
            data_type::pair(data_type::PROTOCOL, address),
            data_type::SERVICE,
        );
        let flags = set_flags::INTERVAL | set_flags::CONCATENATION;
        table.set(changes, &self.services, &set(flags, key, services));
    }

    fn write_rules(&self, table: &Table, changes: &mut Changes, chain: &str) {
        table.rule(changes, chain, |rule| {
            rule.family(self.family)
                .destination(self.family, 0)
                .is_in(0, self.networks.as_str().into())
                .verdict(Verdict::Accept);
        });
        table.rule(changes, chain, |rule| {
            rule.family(self.family)
                .meta(Meta::Protocol, 0)
                .destination(self.family, 1)
                .destination_port(1 + self.family.length() / 4)
                .is_in(0, self.services.as_str().into())
                .verdict(Verdict::Accept);
        });
    }

    /// Brings the elements from what they are to what they should be; from nothing, adds all.
    fn fill<T: Address + Ordered>(
        &self,
        table: &Table,
        changes: &mut Changes,
        before: Option<&Reach<T>>,
        after: &Reach<T>,
    ) {
        if before.is_none_or(|before| before.networks != after.networks) {
            if before.is_some() {
                table.flush_set(changes, &self.networks);
            }
            table.add(changes, &self.networks, &intervals(&after.networks));
        }
        if before.is_none_or(|before| before.services != after.services) {
            if before.is_some() {
                table.flush_set(changes, &self.services);
            }
            table.add(changes, &self.services, &services(after));
        }
    }
}

/// Services as elements: from one key to another, part by part.
fn services<T: Address + Ordered>(reach: &Reach<T>) -> Vec<Element> {
    let key = |protocol: u8, address: T, port: u16| {
        [
            &[protocol, 0, 0, 0][..],
            &address.bytes(),
            &port.to_be_bytes(),
            &[0, 0],
        ]
        .concat()
    };
    let element = |one: &crate::reach::Service<T>| Element {
        key: key(one.protocol, one.network.0, one.ports.0),
        value: Value::Until(key(one.protocol, one.network.1, one.ports.1)),
    };
    reach.services.iter().map(element).collect()
}

fn families(lease: &Lease) -> impl Iterator<Item = Family> {
    std::iter::once(Family::V4).chain(lease.ipv6.map(|_| Family::V6))
}

/// Makes a container's chain; its elements come last, when everything they lead to is there.
pub(super) fn add(
    table: &Table,
    changes: &mut Changes,
    lease: &Lease,
    plan: &Plan,
    external: External,
) {
    let chain = lease.names.chain();
    for family in families(lease) {
        OwnSets::of(lease, family).create(table, changes);
    }
    fill(table, changes, lease, None, plan);
    table.chain(changes, &chain, None, Some(&lease.handle), true);
    write_chain(table, changes, lease, plan);
    table.add(changes, BRIDGES, &[member(&padded(&lease.names.bridge))]);
    for (set, element) in elements(lease, external) {
        table.add(changes, set, &[element]);
    }
}

fn fill(table: &Table, changes: &mut Changes, lease: &Lease, before: Option<&Plan>, after: &Plan) {
    OwnSets::of(lease, Family::V4).fill(table, changes, before.map(|before| &before.v4), &after.v4);
    if let Some(v6) = &after.v6 {
        let before = before.and_then(|before| before.v6.as_ref());
        OwnSets::of(lease, Family::V6).fill(table, changes, before, v6);
    }
}

fn write_chain(table: &Table, changes: &mut Changes, lease: &Lease, plan: &Plan) {
    write_plain(table, changes, lease, &plan.plain);
    for family in families(lease) {
        OwnSets::of(lease, family).write_rules(table, changes, &lease.names.chain());
    }
}

/// How many rules and elements of its own sets a container has: what is compared after a restart.
pub(super) fn sizes(lease: &Lease, plan: &Plan) -> (usize, Vec<(String, usize)>) {
    let mut sets = Vec::new();
    let v4 = OwnSets::of(lease, Family::V4);
    sets.push((v4.networks, plan.v4.networks.len()));
    sets.push((v4.services, plan.v4.services.len()));
    if let Some(reach) = &plan.v6 {
        let v6 = OwnSets::of(lease, Family::V6);
        sets.push((v6.networks, reach.networks.len()));
        sets.push((v6.services, reach.services.len()));
    }
    (plan.plain.len() + sets.len(), sets)
}

/// Whether a set is a container's own.
pub(super) fn is_own_set(name: &str) -> bool {
    name.starts_with("networks") || name.starts_with("services")
}

/// Lets a container reach more than before. Only what differs is written: usually some elements.
pub(super) fn allow(
    table: &Table,
    changes: &mut Changes,
    lease: &Lease,
    before: &Plan,
    after: &Plan,
) {
    match after.plain.strip_prefix(before.plain.as_slice()) {
        Some(new) => write_plain(table, changes, lease, new),
        // What were elements became rules: there were too many pieces.
        None => {
            table.flush_chain(changes, &lease.names.chain());
            write_chain(table, changes, lease, after);
        }
    }
    fill(table, changes, lease, Some(before), after);
}

/// Puts rules in front of those that the chain has; of several, the last comes first.
fn write_plain(table: &Table, changes: &mut Changes, lease: &Lease, matches: &[Match]) {
    let chain = lease.names.chain();
    for one in matches {
        let networks = match &one.destination {
            Destination::Anywhere => None,
            Destination::V4(ranges) => condition(table, changes, ranges, data_type::IPV4, &[4]),
            Destination::V6(ranges) => condition(table, changes, ranges, data_type::IPV6, &[16]),
        };
        let ports = condition(table, changes, &one.ports, data_type::SERVICE, &[2]);
        table.rule_in_front(changes, &chain, |rule| {
            write_match(rule, one, networks.as_ref(), ports.as_ref(), &lease.handle);
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
    if let Some((kind, code)) = one.icmp {
        rule.payload(Base::Transport, 0, 1, 0).equals(0, &[kind]);
        if let Some(code) = code {
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

/// Removes a container's elements, then its chain and its sets. Its bridge's stays: as long as the
/// bridge is there, what comes from it is looked at.
pub(super) fn remove(table: &Table, changes: &mut Changes, lease: &Lease, external: External) {
    for (set, element) in elements(lease, external) {
        table.remove(changes, set, &[key_of(element)]);
    }
    table.delete_chain(changes, &lease.names.chain());
    for family in families(lease) {
        let own = OwnSets::of(lease, family);
        table.delete_set(changes, &own.networks);
        table.delete_set(changes, &own.services);
    }
}

/// Removes a bridge's element.
pub(super) fn forget_bridge(table: &Table, changes: &mut Changes, bridge: &str) {
    table.remove(changes, BRIDGES, &[member(&padded(bridge))]);
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
            value: Value::Jump(lease.names.chain()),
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
