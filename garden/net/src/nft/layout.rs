//! The constant part of an instance's table: its sets, its base chains, and their rules.
//!
//! ```text
//! forward ── established, from a container's own address (`homes`) ────▶ accept
//!    ├────── another source behind one of our bridges ────────────────▶ drop
//!    ├────── interface . source in `containers` ──▶ container-ID ─────▶ accept what is open to it
//!    │                                         ◀── else back
//!    └────── from one of our bridges ──▶ default: denied networks ────▶ reject
//!                                                 else ───────────────▶ accept
//!
//! input ──── from one of our bridges ─▶ host: neighbour discovery; a source that is not the
//!                                       container's: drop; established; the operator's name
//!                                       servers; everything if the host is accessible; reject
//!
//! prerouting, output ── address . port in `ports` ─▶ dnat to what the map says
//! postrouting ── from `members`: redirected: masquerade (a container that reaches itself or a
//!                neighbour by the host's port must see the answer); within its own subnet:
//!                nothing; else masquerade
//! ```
//!
//! A packet costs the same with one container and with a thousand, and so does a container: it is
//! a chain and an element in each of these sets. Looking up interface and source together is what
//! keeps containers from using each other's addresses.
//!
//! Pure. All of it is written anew at each start, in one transaction.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::expr::{Base, Family, Meta, Program, Reject, Verdict};
use super::table::{Changes, Element, Hook, SetKind, Table, Value, data_type, set_flags};
use crate::cidr::{Cidr, Range, merge};

pub(super) const BRIDGES: &str = "bridges";
pub(super) const DEFAULT: &str = "default";
const HOST: &str = "host";

/// Bytes of an interface's name.
pub(super) const NAME_LENGTH: usize = 16;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP6: u8 = 58;
const DNS_PORT: u16 = 53;

/// Names of the sets of each family.
pub(super) struct Sets {
    /// Interface and source to the container's chain.
    pub(super) containers: &'static str,
    /// Interface and address: of a container, on its own bridge.
    pub(super) homes: &'static str,
    /// Addresses of containers.
    pub(super) members: &'static str,
    /// Host address and port to a container's.
    pub(super) ports: &'static str,
    denied: &'static str,
    servers: &'static str,
}

impl Sets {
    pub(super) fn of(family: Family) -> Self {
        match family {
            Family::V4 => Self {
                containers: "containers",
                homes: "homes",
                members: "members",
                ports: "ports",
                denied: "denied",
                servers: "nameservers",
            },
            Family::V6 => Self {
                containers: "containers6",
                homes: "homes6",
                members: "members6",
                ports: "ports6",
                denied: "denied6",
                servers: "nameservers6",
            },
        }
    }
}

/// What the operator decides about all containers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Policy {
    /// Containers may reach the host itself.
    pub(crate) host_access: bool,
    /// Rejected unless a NetOut rule says otherwise.
    pub(crate) denied: Vec<Cidr>,
    /// The same for IPv6: first and last address.
    pub(crate) denied6: Vec<(Ipv6Addr, Ipv6Addr)>,
    /// Name servers on the host that containers may always ask.
    pub(crate) servers: Vec<Ipv4Addr>,
    /// The same for IPv6.
    pub(crate) servers6: Vec<Ipv6Addr>,
}

/// Writes the whole constant part; `afresh` removes what is there first, containers and all.
pub(super) fn write(table: &Table, policy: &Policy, afresh: bool) -> Changes {
    let mut changes = Changes::default();
    table.create(&mut changes);
    if afresh {
        table.delete(&mut changes);
        table.create(&mut changes);
    }
    write_sets(table, &mut changes, policy);
    for (name, hook) in chains() {
        table.chain(&mut changes, name, hook, None, false);
        table.flush_chain(&mut changes, name);
    }
    write_forward(table, &mut changes);
    write_host(table, &mut changes, policy.host_access);
    write_nat(table, &mut changes);
    changes
}

/// Every chain but those of containers.
pub(super) fn chains() -> [(&'static str, Option<Hook>); 7] {
    let hook = |kind, number, priority| {
        Some(Hook {
            kind,
            number,
            priority,
        })
    };
    [
        (DEFAULT, None),
        (HOST, None),
        ("forward", hook("filter", 2, 0)),
        ("input", hook("filter", 1, 0)),
        ("prerouting", hook("nat", 0, -100)),
        ("output", hook("nat", 3, -100)),
        ("postrouting", hook("nat", 4, 100)),
    ]
}

fn write_sets(table: &Table, changes: &mut Changes, policy: &Policy) {
    let set = |flags, key_type, parts, data| SetKind {
        flags,
        key_type,
        parts,
        data,
    };
    for family in Family::BOTH {
        let names = Sets::of(family);
        let (address, parts): (_, [&'static [u32]; 3]) = match family {
            Family::V4 => (data_type::IPV4, [&[4], &[16, 4], &[4, 4]]),
            Family::V6 => (data_type::IPV6, [&[16], &[16, 16], &[16, 4]]),
        };
        let [single, with_interface, with_port] = parts;
        let home = data_type::pair(data_type::INTERFACE, address);
        let port = data_type::pair(address, data_type::SERVICE);
        let verdict = Some((data_type::VERDICT, 0));
        table.set(
            changes,
            names.containers,
            &set(set_flags::MAP, home, with_interface, verdict),
        );
        table.set(changes, names.homes, &set(0, home, with_interface, None));
        table.set(changes, names.members, &set(0, address, single, None));
        let target = Some((port, family.length() + 4));
        table.set(
            changes,
            names.ports,
            &set(set_flags::MAP, port, with_port, target),
        );
        table.set(
            changes,
            names.denied,
            &set(set_flags::INTERVAL, address, single, None),
        );
        table.set(changes, names.servers, &set(0, address, single, None));
    }
    table.set(changes, BRIDGES, &set(0, data_type::INTERFACE, &[16], None));

    let (v4, v6) = (Sets::of(Family::V4), Sets::of(Family::V6));
    for names in [&v4, &v6] {
        table.flush_set(changes, names.denied);
        table.flush_set(changes, names.servers);
    }
    let denied = policy
        .denied
        .iter()
        .map(|cidr| (u32::from(cidr.network()), u32::from(cidr.broadcast())));
    table.add(changes, v4.denied, &intervals(&merge(denied.collect())));
    let denied = policy
        .denied6
        .iter()
        .map(|(start, end)| (u128::from(*start), u128::from(*end)));
    table.add(changes, v6.denied, &intervals(&merge(denied.collect())));
    let servers: Vec<_> = policy
        .servers
        .iter()
        .map(|server| member(&server.octets()))
        .collect();
    table.add(changes, v4.servers, &servers);
    let servers: Vec<_> = policy
        .servers6
        .iter()
        .map(|server| member(&server.octets()))
        .collect();
    table.add(changes, v6.servers, &servers);
}

fn write_forward(table: &Table, changes: &mut Changes) {
    for family in Family::BOTH {
        table.rule(changes, "forward", |rule| {
            rule.home(family, Meta::InterfaceIn)
                .is_in(0, Sets::of(family).homes.into())
                .is_established()
                .verdict(Verdict::Accept);
        });
    }
    for family in Family::BOTH {
        table.rule(changes, "forward", |rule| {
            from_our_bridges(rule)
                .home(family, Meta::InterfaceIn)
                .is_not_in(0, Sets::of(family).homes.into())
                .verdict(Verdict::Drop);
        });
    }
    for family in Family::BOTH {
        table.rule(changes, "forward", |rule| {
            rule.home(family, Meta::InterfaceIn)
                .verdict_map(0, Sets::of(family).containers.into());
        });
    }
    table.rule(changes, "forward", |rule| {
        from_our_bridges(rule).verdict(Verdict::Goto(DEFAULT));
    });
    for family in Family::BOTH {
        table.rule(changes, DEFAULT, |rule| {
            rule.family(family)
                .destination(family, 0)
                .is_in(0, Sets::of(family).denied.into())
                .reject(Reject::PortUnreachable);
        });
    }
    table.rule(changes, DEFAULT, |rule| {
        rule.verdict(Verdict::Accept);
    });
}

fn write_host(table: &Table, changes: &mut Changes, host_access: bool) {
    table.rule(changes, "input", |rule| {
        from_our_bridges(rule).verdict(Verdict::Goto(HOST));
    });
    // Without solicitations and advertisements (types 135 and 136) nobody finds the gateway. They
    // come from addresses that are not the container's, so they precede the check of these.
    table.rule(changes, HOST, |rule| {
        rule.family(Family::V6)
            .protocol(ICMP6)
            .payload(Base::Transport, 0, 1, 0)
            .between(0, &[135], &[136])
            .verdict(Verdict::Accept);
    });
    for family in Family::BOTH {
        table.rule(changes, HOST, |rule| {
            rule.home(family, Meta::InterfaceIn)
                .is_not_in(0, Sets::of(family).homes.into())
                .verdict(Verdict::Drop);
        });
    }
    table.rule(changes, HOST, |rule| {
        rule.is_established().verdict(Verdict::Accept);
    });
    for family in Family::BOTH {
        for protocol in [UDP, TCP] {
            table.rule(changes, HOST, |rule| {
                rule.family(family)
                    .protocol(protocol)
                    .destination_port(0)
                    .equals(0, &DNS_PORT.to_be_bytes())
                    .destination(family, 0)
                    .is_in(0, Sets::of(family).servers.into())
                    .verdict(Verdict::Accept);
            });
        }
    }
    table.rule(changes, HOST, |rule| {
        if host_access {
            rule.verdict(Verdict::Accept);
        } else {
            rule.reject(Reject::AdministrativelyProhibited);
        }
    });
}

fn write_nat(table: &Table, changes: &mut Changes) {
    for chain in ["prerouting", "output"] {
        for family in Family::BOTH {
            // The key takes an address and a port, and so does what the map has for it.
            let words = family.length() / 4;
            table.rule(changes, chain, |rule| {
                rule.family(family)
                    .protocol(TCP)
                    .destination(family, 0)
                    .destination_port(words)
                    .map(0, Sets::of(family).ports.into(), 8)
                    .dnat(family, 8, 8 + words);
            });
        }
    }
    for family in Family::BOTH {
        let names = Sets::of(family);
        table.rule(changes, "postrouting", |rule| {
            rule.family(family)
                .source(family, 0)
                .is_in(0, names.members.into())
                .was_redirected()
                .masquerade();
        });
        table.rule(changes, "postrouting", |rule| {
            rule.home(family, Meta::InterfaceOut)
                .is_in(0, names.homes.into())
                .verdict(Verdict::Accept);
        });
        table.rule(changes, "postrouting", |rule| {
            rule.family(family)
                .source(family, 0)
                .is_in(0, names.members.into())
                .masquerade();
        });
    }
}

fn from_our_bridges<'a, 'b>(rule: &'a mut Program<'b>) -> &'a mut Program<'b> {
    rule.meta(Meta::InterfaceIn, 0).is_in(0, BRIDGES.into())
}

/// An element that is only its key.
pub(super) fn member(key: &[u8]) -> Element {
    Element {
        key: key.to_vec(),
        value: Value::Nothing,
    }
}

/// A value as the kernel compares it: most significant byte first.
pub(super) trait Ordered: crate::cidr::Successor {
    fn bytes(self) -> Vec<u8>;
    const LOWEST: Self;
}

impl Ordered for u16 {
    const LOWEST: Self = 0;
    fn bytes(self) -> Vec<u8> {
        self.to_be_bytes().to_vec()
    }
}

impl Ordered for u32 {
    const LOWEST: Self = 0;
    fn bytes(self) -> Vec<u8> {
        self.to_be_bytes().to_vec()
    }
}

impl Ordered for u128 {
    const LOWEST: Self = 0;
    fn bytes(self) -> Vec<u8> {
        self.to_be_bytes().to_vec()
    }
}

/// Merged ranges as elements of an interval set: where each begins, and where none is any more.
pub(super) fn intervals<T: Ordered>(ranges: &[Range<T>]) -> Vec<Element> {
    let element = |key: T, value| Element {
        key: key.bytes(),
        value,
    };
    let mut elements = Vec::with_capacity(ranges.len() * 2 + 1);
    // nft(8) begins with what is in front of the first, and so does what it expects to read.
    if ranges.first().is_some_and(|first| first.0 > T::LOWEST) {
        elements.push(element(T::LOWEST, Value::End));
    }
    for (start, end) in ranges {
        elements.push(element(*start, Value::Nothing));
        if let Some(next) = end.next() {
            elements.push(element(next, Value::End));
        }
    }
    elements
}
