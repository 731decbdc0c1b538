//! What the kernel has of a table, and what must change for it to be what the records say.
//!
//! After a restart, and when somebody has emptied the ruleset, containers' chains and elements are
//! compared with the records: what no record knows goes, what is missing or different is made
//! anew. [`read`] asks the kernel, [`difference`] is pure.

use std::collections::{HashMap, HashSet};

use rustix::io::Errno;

use super::container::{self, External, is_own_set, key_of};
use super::expr::Family;
use super::layout::{BRIDGES, Sets, member};
use super::table::{Changes, Element, Table, Value, kind};
use crate::lease::Lease;
use crate::names::is_container_chain;
use crate::netlink::message::{Reader, text};
use crate::netlink::{Refusal, Socket};
use crate::reach::Plan;

/// Bytes of netfilter's header in front of attributes.
const HEADER: usize = 4;

/// Chains with the number of their rules, and the elements of each set.
#[derive(Debug, Default)]
pub(super) struct Found {
    chains: HashMap<String, usize>,
    /// Containers' own sets, with the number of their elements.
    own_sets: HashMap<String, usize>,
    elements: HashMap<&'static str, HashMap<Vec<u8>, Stored>>,
}

/// What an element leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stored {
    Nothing,
    Data(Vec<u8>),
    Chain(String),
}

impl From<&Value> for Stored {
    fn from(value: &Value) -> Self {
        match value {
            Value::Nothing | Value::End | Value::Until(_) => Self::Nothing,
            Value::Data(data) => Self::Data(data.clone()),
            Value::Jump(chain) => Self::Chain(chain.clone()),
        }
    }
}

/// The sets with elements of containers.
fn sets() -> impl Iterator<Item = &'static str> {
    let of = |family| {
        let sets = Sets::of(family);
        [sets.containers, sets.homes, sets.members, sets.ports]
    };
    Family::BOTH.into_iter().flat_map(of).chain([BRIDGES])
}

/// Asks the kernel; a table that is not there has nothing.
pub(super) fn read(socket: &mut Socket, table: &Table) -> Result<Found, Refusal> {
    let mut found = Found::default();
    // A dump of chains covers all tables: this one's have its name in attribute 1.
    let mut chains = HashSet::new();
    let request = table.message(kind::GET_CHAIN, 0);
    let each = |payload: &[u8]| {
        let attributes = Reader::behind(payload, HEADER);
        if attributes.get(1).map(text).as_deref() == Some(&table.name) {
            chains.extend(attributes.get(3).map(text));
        }
    };
    absent_is_empty(socket.dump(&request, each))?;
    found.chains = chains.into_iter().map(|chain| (chain, 0)).collect();

    let mut rules = HashSet::new();
    let each = |payload: &[u8]| {
        let attributes = Reader::behind(payload, HEADER);
        if attributes.get(1).map(text).as_deref() == Some(&table.name) {
            let handle = attributes.get(3).map(<[u8]>::to_vec);
            rules.extend(attributes.get(2).map(text).zip(handle));
        }
    };
    absent_is_empty(socket.dump(&table.message(kind::GET_RULE, 0), each))?;
    for (chain, _) in rules {
        *found.chains.entry(chain).or_default() += 1;
    }

    for set in sets() {
        let mut elements = HashMap::new();
        elements_of(socket, table, set, |element| {
            elements.extend(stored(element))
        })?;
        found.elements.insert(set, elements);
    }
    read_own_sets(socket, table, &mut found)?;
    Ok(found)
}

fn read_own_sets(socket: &mut Socket, table: &Table, found: &mut Found) -> Result<(), Refusal> {
    let mut names = HashSet::new();
    let each = |payload: &[u8]| {
        let attributes = Reader::behind(payload, HEADER);
        if attributes.get(1).map(text).as_deref() == Some(&table.name) {
            names.extend(attributes.get(2).map(text).filter(|name| is_own_set(name)));
        }
    };
    absent_is_empty(socket.dump(&table.message(kind::GET_SET, 0), each))?;
    for name in names {
        // Where an interval ends is no element of its own.
        let mut keys = HashSet::new();
        elements_of(socket, table, &name, |element| {
            let ends = element
                .get(3)
                .is_some_and(|flags| flags.last().is_some_and(|bits| bits & 1 != 0));
            keys.extend(
                element
                    .inner(1)
                    .get(1)
                    .filter(|_| !ends)
                    .map(<[u8]>::to_vec),
            );
        })?;
        found.own_sets.insert(name, keys.len());
    }
    Ok(())
}

fn elements_of(
    socket: &mut Socket,
    table: &Table,
    set: &str,
    mut each: impl FnMut(Reader<'_>),
) -> Result<(), Refusal> {
    let mut request = table.message(kind::GET_ELEMENTS, 0);
    request.text(2, set);
    let each = |payload: &[u8]| {
        for (_, element) in Reader::behind(payload, HEADER).inner(3) {
            each(Reader(element));
        }
    };
    absent_is_empty(socket.dump(&request, each))
}

fn stored(element: Reader<'_>) -> Option<(Vec<u8>, Stored)> {
    let key = element.inner(1).get(1)?.to_vec();
    let data = element.inner(2);
    let value = match (data.get(1), data.inner(2).get(2)) {
        (Some(value), _) => Stored::Data(value.to_vec()),
        (None, Some(chain)) => Stored::Chain(text(chain)),
        (None, None) => Stored::Nothing,
    };
    Some((key, value))
}

fn absent_is_empty(result: Result<(), Refusal>) -> Result<(), Refusal> {
    match result {
        Err(refusal) if refusal.errno == Errno::NOENT => Ok(()),
        other => other,
    }
}

/// What must change, and for how many containers.
#[derive(Debug, Default)]
pub(super) struct Difference {
    pub(super) changes: Changes,
    /// Chains and elements that nobody knows.
    pub(super) foreign: usize,
    /// Handles of containers whose rules were incomplete.
    pub(super) rebuilt: Vec<String>,
}

/// Compares what was found with the records, each with its rules compiled.
pub(super) fn difference(
    table: &Table,
    found: &Found,
    leases: &[(Lease, Plan)],
    external: External,
) -> Difference {
    let mut result = Difference::default();
    let broken: Vec<&(Lease, Plan)> = leases
        .iter()
        .filter(|(lease, plan)| !found.is_whole(lease, plan, external))
        .collect();

    // Elements lead to chains, so they go first: those of nobody, and those of what is made anew.
    let mut wanted: HashMap<&str, HashMap<Vec<u8>, Stored>> = HashMap::new();
    for (lease, _) in leases {
        for (set, element) in container::elements(lease, external) {
            wanted
                .entry(set)
                .or_default()
                .insert(element.key.clone(), Stored::from(&element.value));
        }
        let bridge = container::padded(&lease.names.bridge).to_vec();
        wanted
            .entry(BRIDGES)
            .or_default()
            .insert(bridge, Stored::Nothing);
    }
    let mut remove: HashMap<&'static str, HashSet<Vec<u8>>> = HashMap::new();
    for (set, elements) in &found.elements {
        for (key, value) in elements {
            if wanted.get(set).and_then(|wanted| wanted.get(key)) != Some(value) {
                result.foreign += 1;
                remove.entry(set).or_default().insert(key.clone());
            }
        }
    }
    for (lease, _) in &broken {
        for (set, element) in container::elements(lease, external) {
            if found
                .elements
                .get(set)
                .is_some_and(|elements| elements.contains_key(&element.key))
            {
                remove.entry(set).or_default().insert(element.key);
            }
        }
    }
    for (set, keys) in remove {
        let elements: Vec<Element> = keys.into_iter().map(|key| key_of(member(&key))).collect();
        table.remove(&mut result.changes, set, &elements);
    }

    let whole: HashSet<String> = leases
        .iter()
        .map(|(lease, _)| lease.names.chain())
        .collect();
    for chain in found
        .chains
        .keys()
        .filter(|chain| is_container_chain(chain) && !whole.contains(*chain))
    {
        result.foreign += 1;
        table.delete_chain(&mut result.changes, chain);
    }
    for (lease, _) in &broken {
        let chain = lease.names.chain();
        if found.chains.contains_key(&chain) {
            table.delete_chain(&mut result.changes, &chain);
        }
    }
    // Sets go when no chain uses them any more.
    let kept: HashSet<String> = leases
        .iter()
        .filter(|(lease, plan)| found.is_whole(lease, plan, external))
        .flat_map(|(lease, plan)| container::sizes(lease, plan).1)
        .map(|(set, _)| set)
        .collect();
    for set in found.own_sets.keys().filter(|set| !kept.contains(*set)) {
        table.delete_set(&mut result.changes, set);
    }
    for (lease, plan) in broken {
        container::add(table, &mut result.changes, lease, plan, external);
        result.rebuilt.push(lease.handle.clone());
    }
    result
}

impl Found {
    fn is_whole(&self, lease: &Lease, plan: &Plan, external: External) -> bool {
        let has = |set: &str, key: &[u8], value: &Stored| {
            self.elements
                .get(set)
                .and_then(|elements| elements.get(key))
                == Some(value)
        };
        let (rules, sets) = container::sizes(lease, plan);
        self.chains.get(&lease.names.chain()) == Some(&rules)
            && sets
                .iter()
                .all(|(set, size)| self.own_sets.get(set) == Some(size))
            && has(
                BRIDGES,
                &container::padded(&lease.names.bridge),
                &Stored::Nothing,
            )
            && container::elements(lease, external)
                .iter()
                .all(|(set, element)| has(set, &element.key, &Stored::from(&element.value)))
    }
}
