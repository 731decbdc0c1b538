//! How a container's rules become elements of sets.
//!
//! The kernel checks every rule of a table each time that a rule is added to it, so a container
//! with twenty rules would make the next one's start dearer. Elements of sets are not checked that
//! way. Rules that only let through need no order among them, so they become two sets: networks
//! that are open whatever the protocol, and networks with a protocol and ports. The kernel refuses
//! elements that overlap, while rules may: [`plan`] cuts them into pieces that do not.
//!
//! What stays a rule ([`Plan::plain`]): ICMP, which has no ports; and from the first rule that logs
//! on everything, because then the order tells what is logged.
//!
//! Pure, and the same for the same rules: after a restart the plan is made again and compared.

use crate::cidr::{Range, Successor, merge};
use crate::rules::{Destination, Match, Protocol};

/// Beyond this many pieces a container's rules stay rules: rules that overlap in ever new ways
/// must not multiply.
const MOST_PIECES: usize = 4096;

/// What a container's rules are to the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Rules, oldest first; the newest comes first in the chain.
    pub(crate) plain: Vec<Match>,
    pub(crate) v4: Reach<u32>,
    pub(crate) v6: Option<Reach<u128>>,
}

/// What is open to a container in one family.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Reach<T> {
    /// Whatever the protocol. Merged.
    pub(crate) networks: Vec<Range<T>>,
    /// No two have a packet in common.
    pub(crate) services: Vec<Service<T>>,
}

/// Some ports of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Service<T> {
    /// As packets have it.
    pub(crate) protocol: u8,
    pub(crate) network: Range<T>,
    pub(crate) ports: Range<u16>,
}

/// An address as a number.
pub(crate) trait Address: Successor {
    /// Every address.
    const ALL: Range<Self>;
    /// What of a destination is of this family.
    fn of(destination: &Destination) -> &[Range<Self>];
}

impl Address for u32 {
    const ALL: Range<Self> = (0, Self::MAX);
    fn of(destination: &Destination) -> &[Range<Self>] {
        match destination {
            Destination::Anywhere => &[Self::ALL],
            Destination::V4(ranges) => ranges,
            Destination::V6(_) => &[],
        }
    }
}

impl Address for u128 {
    const ALL: Range<Self> = (0, Self::MAX);
    fn of(destination: &Destination) -> &[Range<Self>] {
        match destination {
            Destination::Anywhere => &[Self::ALL],
            Destination::V6(ranges) => ranges,
            Destination::V4(_) => &[],
        }
    }
}

/// Plans a container's rules, oldest first; its own subnets are open to it in any case.
pub(crate) fn plan(matches: &[Match], subnet: Range<u32>, subnet6: Option<Range<u128>>) -> Plan {
    let first_log = matches
        .iter()
        .position(|one| one.log)
        .unwrap_or(matches.len());
    let (silent, ordered) = matches.split_at(first_log);
    let (plain, sets): (Vec<&Match>, Vec<&Match>) = silent
        .iter()
        .partition(|one| matches!(one.protocol, Protocol::Icmp | Protocol::Icmp6));
    let v4 = reach(&sets, subnet);
    let v6 = subnet6.map(|subnet| reach(&sets, subnet));
    if let (Some(v4), Some(v6)) = (v4, v6.map_or(Some(None), |v6| v6.map(Some))) {
        let plain = plain.into_iter().chain(ordered).cloned().collect();
        return Plan { plain, v4, v6 };
    }
    Plan {
        plain: matches.to_vec(),
        v4: only(subnet),
        v6: subnet6.map(only),
    }
}

fn only<T>(subnet: Range<T>) -> Reach<T> {
    Reach {
        networks: vec![subnet],
        services: Vec::new(),
    }
}

/// One rule: its ports, and its networks of one family.
type Open<'a, T> = (&'a [Range<u16>], &'a [Range<T>]);
/// Ports between two cuts, and what is open there.
type Segment<T> = (Range<u16>, Vec<Range<T>>);

/// None if there would be too many pieces.
fn reach<T: Address>(matches: &[&Match], subnet: Range<T>) -> Option<Reach<T>> {
    let of = |protocol| matches.iter().filter(move |one| one.protocol == protocol);
    let open = of(Protocol::All).flat_map(|one| T::of(&one.destination));
    let mut result = Reach {
        networks: merge(open.copied().chain([subnet]).collect()),
        services: Vec::new(),
    };
    for (protocol, number) in [(Protocol::Tcp, 6), (Protocol::Udp, 17)] {
        let rules: Vec<Open<'_, T>> = of(protocol)
            .map(|one| (ports(one), T::of(&one.destination)))
            .filter(|(_, networks)| !networks.is_empty())
            .collect();
        for (ports, networks) in segments(&rules)? {
            let services = networks.into_iter().map(|network| Service {
                protocol: number,
                network,
                ports,
            });
            result.services.extend(services);
        }
    }
    (result.services.len() + result.networks.len() <= MOST_PIECES).then_some(result)
}

fn ports(one: &Match) -> &[Range<u16>] {
    if one.ports.is_empty() {
        &[(0, u16::MAX)]
    } else {
        &one.ports
    }
}

/// Cuts ports where any rule begins or ends, and says which networks are open between two cuts.
/// None as soon as there are too many pieces: the work is bounded with the result.
fn segments<T: Address>(rules: &[Open<'_, T>]) -> Option<Vec<Segment<T>>> {
    let mut cuts: Vec<u16> = rules
        .iter()
        .flat_map(|(ports, _)| ports.iter())
        .flat_map(|(start, end)| std::iter::once(*start).chain(end.checked_add(1)))
        .collect();
    cuts.sort_unstable();
    cuts.dedup();
    let mut result: Vec<Segment<T>> = Vec::new();
    let mut pieces = 0;
    for (index, start) in cuts.iter().enumerate() {
        let end = cuts.get(index + 1).map_or(u16::MAX, |next| next - 1);
        let covers = |ports: &[Range<u16>]| {
            ports
                .iter()
                .any(|(first, last)| (*first..=*last).contains(start))
        };
        let open = rules
            .iter()
            .filter(|(ports, _)| covers(ports))
            .flat_map(|(_, networks)| networks.iter());
        let networks = merge(open.copied().collect());
        if networks.is_empty() {
            continue;
        }
        match result.last_mut() {
            Some((ports, same)) if ports.1.checked_add(1) == Some(*start) && *same == networks => {
                ports.1 = end
            }
            _ => {
                pieces += networks.len();
                if pieces > MOST_PIECES {
                    return None;
                }
                result.push(((*start, end), networks));
            }
        }
    }
    Some(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SUBNET: Range<u32> = (1000, 1003);

    fn rule(protocol: Protocol, networks: Vec<Range<u32>>, ports: Vec<Range<u16>>) -> Match {
        let destination = if networks.is_empty() {
            Destination::Anywhere
        } else {
            Destination::V4(merge(networks))
        };
        Match {
            protocol,
            destination,
            ports: merge(ports),
            icmp: None,
            log: false,
        }
    }

    #[test]
    fn overlapping_rules_are_cut_into_pieces() {
        let rules = [
            rule(Protocol::Tcp, vec![(10, 20)], vec![(80, 90)]),
            rule(Protocol::Tcp, vec![(15, 30)], vec![(85, 95)]),
            rule(Protocol::All, vec![(5, 6)], vec![]),
        ];
        let plan = plan(&rules, SUBNET, None);
        assert_eq!(plan.v4.networks, [(5, 6), SUBNET]);
        let pieces: Vec<_> = plan
            .v4
            .services
            .iter()
            .map(|one| (one.ports, one.network))
            .collect();
        assert_eq!(
            pieces,
            [
                ((80, 84), (10, 20)),
                ((85, 90), (10, 30)),
                ((91, 95), (15, 30))
            ]
        );
        assert!(plan.plain.is_empty() && plan.v6.is_none());
    }

    #[test]
    fn order_counts_from_the_first_that_logs() {
        let tcp = |port| rule(Protocol::Tcp, vec![(10, 20)], vec![(port, port)]);
        let logs = Match {
            log: true,
            ..tcp(81)
        };
        let ping = rule(Protocol::Icmp, vec![(10, 20)], vec![]);
        let plan = plan(
            &[tcp(80), ping.clone(), logs.clone(), tcp(82)],
            SUBNET,
            None,
        );
        assert_eq!(plan.plain, [ping, logs, tcp(82)]);
        assert_eq!(plan.v4.services.len(), 1);
    }

    #[test]
    fn anywhere_is_so_in_both_families() {
        let all = plan(&[rule(Protocol::All, vec![], vec![])], SUBNET, Some((7, 8)));
        assert_eq!(all.v4.networks, [u32::ALL]);
        assert_eq!(all.v6.unwrap().networks, [u128::ALL]);
    }

    #[test]
    fn what_would_multiply_stays_rules() {
        let networks: Vec<_> = (0..100).map(|number| (number * 10, number * 10)).collect();
        let mut rules = vec![rule(Protocol::Udp, networks, vec![])];
        rules.extend((0..100).map(|number| {
            rule(
                Protocol::Udp,
                vec![(5000 + number * 2, 5000 + number * 2)],
                vec![(1000, 1000 + u16::try_from(number).unwrap())],
            )
        }));
        let plan = plan(&rules, SUBNET, None);
        assert_eq!(plan.plain, rules);
        assert_eq!(plan.v4, only(SUBNET));
    }

    proptest! {
        /// The same packets pass as by the rules one after the other, and no two pieces overlap.
        #[test]
        fn pieces_are_the_rules(specs in prop::collection::vec((0u8..3, 0u32..30, 0u32..12, 0u16..30, 0u16..12), 0..8)) {
            let rules: Vec<Match> = specs
                .iter()
                .map(|(kind, network, length, port, ports)| match kind {
                    0 => rule(Protocol::All, vec![(*network, network + length)], vec![]),
                    1 => rule(Protocol::Tcp, vec![(*network, network + length)], vec![(*port, port + ports)]),
                    _ => rule(Protocol::Udp, if *length == 0 { vec![] } else { vec![(*network, network + length)] }, if *ports == 0 { vec![] } else { vec![(*port, port + ports)] }),
                })
                .collect();
            let reach = plan(&rules, SUBNET, None).v4;
            let within = |range: Range<u32>, address| (range.0..=range.1).contains(&address);
            for (protocol, number) in [(Protocol::Tcp, 6u8), (Protocol::Udp, 17)] {
                for address in 0u32..45 {
                    for port in 0u16..45 {
                        let by_rules = rules.iter().any(|one| {
                            (one.protocol == Protocol::All || one.protocol == protocol)
                                && u32::of(&one.destination).iter().any(|range| within(*range, address))
                                && ports(one).iter().any(|range| (range.0..=range.1).contains(&port))
                        });
                        let pieces = reach.services.iter().filter(|one| {
                            one.protocol == number && within(one.network, address) && (one.ports.0..=one.ports.1).contains(&port)
                        });
                        let pieces = pieces.count();
                        prop_assert!(pieces <= 1);
                        let open = reach.networks.iter().any(|range| within(*range, address));
                        prop_assert_eq!(by_rules, open || pieces == 1);
                    }
                }
            }
        }
    }
}
