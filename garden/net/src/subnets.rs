//! Which subnet and which address a container gets.
//!
//! A container that asks for nothing gets a /30 of the pool for itself; one that names a network
//! outside of the pool shares it with all who name the same. The rules and the texts are
//! Guardian's; different is that a freed subnet is handed out last, not first.
//!
//! Pure: the owner ([`crate::Network`]) locks it for the length of a call and never while it
//! talks to the kernel. Nothing here depends on how many containers there are, but for a
//! logarithm.

use std::collections::{BTreeMap, HashSet};
use std::net::Ipv4Addr;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use crate::cidr::{Cidr, CidrError};
use crate::rotation::Rotation;

/// The subnets of the pool: gateway, one container, and the two that are no hosts.
const POOL_PREFIX: u8 = 30;

/// Why there is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    /// The network asked for cannot be read.
    #[error(transparent)]
    Cidr(#[from] CidrError),
    /// Every /30 of the pool is in use.
    #[error("insufficient subnets remaining in the pool")]
    InsufficientSubnets,
    /// Every address of the subnet is in use.
    #[error("insufficient IPs remaining in the pool")]
    InsufficientIps,
    /// Another container has it.
    #[error("the requested IP is already allocated")]
    IpAlreadyAllocated,
    /// It is not one of the subnet's.
    #[error("the requested IP is not within the subnet")]
    IpNotWithinSubnet,
    /// It is the bridge's.
    #[error("a container IP must not equal the gateway IP")]
    IpEqualsGateway,
    /// It is the last of the subnet.
    #[error("a container IP must not equal the broadcast IP")]
    IpEqualsBroadcast,
    /// Networks of one's own lie outside of the pool.
    #[error("the requested subnet ({0}) overlaps the dynamic allocation range ({1})")]
    OverlapsPool(Cidr, Cidr),
    /// Two different subnets cannot have an address in common.
    #[error("the requested subnet ({0}) overlaps an existing subnet ({1})")]
    OverlapsExisting(Cidr, Cidr),
    /// No container can be reached there.
    #[error(
        "the requested subnet ({0}) is not one of hosts: loopback, multicast and 0.0.0.0/8 are not"
    )]
    NotForHosts(Cidr),
}

/// What a container asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Any subnet of the pool.
    Dynamic,
    /// Any address of this subnet.
    Subnet(Cidr),
    /// This address of this subnet.
    Address(Ipv4Addr, Cidr),
}

impl Request {
    /// Reads the `network` of a container: empty, `a.b.c.d` (a /30 around it) or `a.b.c.d/n`.
    ///
    /// # Errors
    /// [`SubnetError::Cidr`] with Go's text, [`SubnetError::NotForHosts`].
    pub fn parse(text: &str) -> Result<Self, SubnetError> {
        if text.is_empty() {
            return Ok(Self::Dynamic);
        }
        let (address, subnet) = if text.contains('/') {
            Cidr::parse_address(text)?
        } else {
            Cidr::parse_address(&format!("{text}/{POOL_PREFIX}"))?
        };
        let network = subnet.network();
        if network.is_loopback() || network.is_multicast() || network.octets()[0] == 0 {
            return Err(SubnetError::NotForHosts(subnet));
        }
        Ok(if address == network {
            Self::Subnet(subnet)
        } else {
            Self::Address(address, subnet)
        })
    }
}

/// An address in a subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assignment {
    /// The subnet; its bridge has the subnet's gateway.
    pub subnet: Cidr,
    /// The container's address.
    pub address: Ipv4Addr,
}

/// A subnet with containers in it.
#[derive(Debug)]
struct Occupied {
    subnet: Cidr,
    addresses: HashSet<Ipv4Addr>,
    /// Distance from the network's address at which the search for a free one begins: behind the
    /// one handed out last.
    cursor: u32,
    gate: Arc<Mutex<()>>,
}

/// The subnets and addresses of one instance.
#[derive(Debug)]
pub struct Subnets {
    pool: Cidr,
    rotation: Rotation,
    /// By network address. No two overlap, so neighbours tell all about a third.
    occupied: BTreeMap<Ipv4Addr, Occupied>,
}

impl Subnets {
    /// A pool, all of it free.
    #[must_use]
    pub fn new(pool: Cidr) -> Self {
        Self {
            pool,
            rotation: Rotation::new(pool_size(pool), 0),
            occupied: BTreeMap::new(),
        }
    }

    /// How many containers the pool has room for.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        u64::from(self.rotation.total())
    }

    /// Hands out an address.
    ///
    /// # Errors
    /// Any of [`SubnetError`] but that of reading a text.
    pub fn acquire(&mut self, request: Request) -> Result<Assignment, SubnetError> {
        match request {
            Request::Dynamic => {
                let index = self
                    .rotation
                    .next()
                    .ok_or(SubnetError::InsufficientSubnets)?;
                let network = Ipv4Addr::from(u32::from(self.pool.network()) + index * 4);
                let subnet = Cidr::around(network, POOL_PREFIX);
                self.occupy(subnet).any()
            }
            Request::Subnet(subnet) => {
                self.check_static(subnet)?;
                let result = self.occupy(subnet).any();
                self.forget_if_empty(subnet);
                result
            }
            Request::Address(address, subnet) => {
                self.check_static(subnet)?;
                let result = self.occupy(subnet).exactly(address);
                self.forget_if_empty(subnet);
                result
            }
        }
    }

    /// Marks as in use what a record says. To be called before the first [`Subnets::acquire`];
    /// what lies outside of the pool of today, or across its grid, is respected all the same.
    ///
    /// # Errors
    /// Two records say the same, or overlapping things.
    pub fn restore(&mut self, assignment: Assignment) -> Result<(), SubnetError> {
        let subnet = assignment.subnet;
        if let Some(other) = self.overlapping(subnet).filter(|other| *other != subnet) {
            return Err(SubnetError::OverlapsExisting(subnet, other));
        }
        let result = self.occupy(subnet).exactly(assignment.address);
        self.forget_if_empty(subnet);
        result?;
        for index in self.pool_indices(subnet) {
            self.rotation.begin_behind(index);
            self.rotation.take(index);
        }
        Ok(())
    }

    /// Gives an address back, and its subnet with the last of its addresses. Nothing happens if it
    /// was free.
    pub fn release(&mut self, assignment: Assignment) {
        let network = assignment.subnet.network();
        let Some(occupied) = self.occupied.get_mut(&network) else {
            return;
        };
        if occupied.subnet == assignment.subnet && occupied.addresses.remove(&assignment.address) {
            self.forget_if_empty(assignment.subnet);
        }
    }

    /// Whether nobody is in a subnet but who has one of these addresses.
    #[must_use]
    pub fn has_only(&self, subnet: Cidr, addresses: &HashSet<Ipv4Addr>) -> bool {
        self.occupied
            .get(&subnet.network())
            .is_none_or(|occupied| occupied.addresses.is_subset(addresses))
    }

    /// The lock of a subnet's bridge: making and removing it excludes each other there, and
    /// nowhere else.
    #[must_use]
    pub fn gate(&self, assignment: Assignment) -> Arc<Mutex<()>> {
        self.occupied
            .get(&assignment.subnet.network())
            .map_or_else(Arc::default, |occupied| Arc::clone(&occupied.gate))
    }

    fn check_static(&self, subnet: Cidr) -> Result<(), SubnetError> {
        if subnet.overlaps(&self.pool) {
            return Err(SubnetError::OverlapsPool(subnet, self.pool));
        }
        match self.overlapping(subnet) {
            Some(other) if other != subnet => Err(SubnetError::OverlapsExisting(subnet, other)),
            _ => Ok(()),
        }
    }

    fn overlapping(&self, subnet: Cidr) -> Option<Cidr> {
        let before = self.occupied.range(..=subnet.network()).next_back();
        let behind = self.occupied.range(subnet.network()..).next();
        before
            .into_iter()
            .chain(behind)
            .map(|(_, occupied)| occupied.subnet)
            .find(|other| other.overlaps(&subnet))
    }

    fn occupy(&mut self, subnet: Cidr) -> &mut Occupied {
        self.occupied
            .entry(subnet.network())
            .or_insert_with(|| Occupied {
                subnet,
                addresses: HashSet::new(),
                cursor: 1,
                gate: Arc::default(),
            })
    }

    fn forget_if_empty(&mut self, subnet: Cidr) {
        let empty = self
            .occupied
            .get(&subnet.network())
            .is_some_and(|occupied| occupied.addresses.is_empty());
        if empty {
            self.occupied.remove(&subnet.network());
            for index in self.pool_indices(subnet) {
                self.rotation.release(index);
            }
        }
    }

    /// The /30s of the pool that a subnet covers or touches.
    fn pool_indices(&self, subnet: Cidr) -> Range<u32> {
        if !subnet.overlaps(&self.pool) {
            return 0..0;
        }
        let base = u32::from(self.pool.network());
        let first = u32::from(subnet.network().max(self.pool.network())) - base;
        let last = u32::from(subnet.broadcast().min(self.pool.broadcast())) - base;
        first / 4..(last / 4 + 1).min(self.rotation.total())
    }
}

impl Occupied {
    /// The next free address, around the end of the subnet.
    fn any(&mut self) -> Result<Assignment, SubnetError> {
        let base = u32::from(self.subnet.network());
        // Addresses of containers are at the distances 2..end: 0 names the network, 1 is the
        // gateway, `end` is the broadcast address.
        let end = u32::from(self.subnet.broadcast()) - base;
        let room = end.saturating_sub(2);
        if u32::try_from(self.addresses.len()).unwrap_or(u32::MAX) >= room {
            return Err(SubnetError::InsufficientIps);
        }
        loop {
            self.cursor = if self.cursor + 1 < end {
                (self.cursor + 1).max(2)
            } else {
                2
            };
            let address = Ipv4Addr::from(base + self.cursor);
            if self.addresses.insert(address) {
                return Ok(Assignment {
                    subnet: self.subnet,
                    address,
                });
            }
        }
    }

    fn exactly(&mut self, address: Ipv4Addr) -> Result<Assignment, SubnetError> {
        let subnet = self.subnet;
        if address == subnet.broadcast() {
            return Err(SubnetError::IpEqualsBroadcast);
        }
        if address == subnet.gateway() {
            return Err(SubnetError::IpEqualsGateway);
        }
        if !subnet.contains(address) {
            return Err(SubnetError::IpNotWithinSubnet);
        }
        if address == subnet.network() || !self.addresses.insert(address) {
            return Err(SubnetError::IpAlreadyAllocated);
        }
        Ok(Assignment { subnet, address })
    }
}

fn pool_size(pool: Cidr) -> u32 {
    match pool.prefix() {
        prefix @ 0..=POOL_PREFIX => 1 << (POOL_PREFIX - prefix),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn subnets() -> Subnets {
        Subnets::new("10.254.0.0/22".parse().unwrap())
    }

    fn acquire(subnets: &mut Subnets, text: &str) -> Result<String, String> {
        Request::parse(text)
            .and_then(|request| subnets.acquire(request))
            .map(|assignment| format!("{} in {}", assignment.address, assignment.subnet))
            .map_err(|error| error.to_string())
    }

    fn assignment(address: [u8; 4], subnet: &str) -> Assignment {
        Assignment {
            subnet: subnet.parse().unwrap(),
            address: address.into(),
        }
    }

    #[test]
    fn a_container_gets_a_subnet_of_its_own() {
        let mut subnets = subnets();
        assert_eq!(subnets.capacity(), 256);
        assert_eq!(
            acquire(&mut subnets, "").unwrap(),
            "10.254.0.2 in 10.254.0.0/30"
        );
        assert_eq!(
            acquire(&mut subnets, "").unwrap(),
            "10.254.0.6 in 10.254.0.4/30"
        );
    }

    #[test]
    fn a_freed_subnet_waits_until_all_others_were_used() {
        let mut subnets = Subnets::new("10.254.0.0/29".parse().unwrap());
        let first = subnets.acquire(Request::Dynamic).unwrap();
        subnets.release(first);
        let second = subnets.acquire(Request::Dynamic).unwrap();
        assert_ne!(first, second);
        assert_eq!(subnets.acquire(Request::Dynamic), Ok(first));
        assert_eq!(
            acquire(&mut subnets, "").unwrap_err(),
            "insufficient subnets remaining in the pool"
        );
        subnets.release(second);
        subnets.release(second);
        assert_eq!(subnets.acquire(Request::Dynamic), Ok(second));
        assert!(subnets.acquire(Request::Dynamic).is_err());
    }

    #[test]
    fn a_network_of_ones_own() {
        let mut subnets = subnets();
        // The network's own address: any in it. Without a prefix: a /30.
        assert_eq!(
            acquire(&mut subnets, "10.1.0.0/24").unwrap(),
            "10.1.0.2 in 10.1.0.0/24"
        );
        assert_eq!(
            acquire(&mut subnets, "10.1.0.0/24").unwrap(),
            "10.1.0.3 in 10.1.0.0/24"
        );
        assert_eq!(
            acquire(&mut subnets, "10.1.0.9/24").unwrap(),
            "10.1.0.9 in 10.1.0.0/24"
        );
        assert_eq!(
            acquire(&mut subnets, "10.2.0.2").unwrap(),
            "10.2.0.2 in 10.2.0.0/30"
        );
        assert_eq!(
            acquire(&mut subnets, "10.3.0.0").unwrap(),
            "10.3.0.2 in 10.3.0.0/30"
        );
        assert_eq!(
            acquire(&mut subnets, "10.3.0.0").unwrap_err(),
            "insufficient IPs remaining in the pool"
        );
    }

    #[test]
    fn what_cannot_be_has_guardians_words() {
        let mut subnets = subnets();
        acquire(&mut subnets, "10.1.0.9/24").unwrap();
        let cases = [
            ("10.1.0.9/24", "the requested IP is already allocated"),
            (
                "10.1.0.1/24",
                "a container IP must not equal the gateway IP",
            ),
            (
                "10.1.0.255/24",
                "a container IP must not equal the broadcast IP",
            ),
            (
                "10.254.1.0/24",
                "the requested subnet (10.254.1.0/24) overlaps the dynamic allocation range (10.254.0.0/22)",
            ),
            (
                "10.254.0.2",
                "the requested subnet (10.254.0.0/30) overlaps the dynamic allocation range (10.254.0.0/22)",
            ),
            (
                "10.1.0.4/30",
                "the requested subnet (10.1.0.4/30) overlaps an existing subnet (10.1.0.0/24)",
            ),
            (
                "10.1.0.0/16",
                "the requested subnet (10.1.0.0/16) overlaps an existing subnet (10.1.0.0/24)",
            ),
            ("banana", "invalid CIDR address: banana/30"),
            ("10.1.0.2/99", "invalid CIDR address: 10.1.0.2/99"),
            ("10.5.0.0/32", "insufficient IPs remaining in the pool"),
            (
                "127.0.0.1/24",
                "the requested subnet (127.0.0.0/24) is not one of hosts: loopback, multicast and 0.0.0.0/8 are not",
            ),
        ];
        for (network, text) in cases {
            assert_eq!(
                acquire(&mut subnets, network).unwrap_err(),
                text,
                "{network}"
            );
        }
        let outside = assignment([10, 2, 0, 2], "10.1.0.0/24");
        assert_eq!(
            subnets.restore(outside),
            Err(SubnetError::IpNotWithinSubnet)
        );
        // A refusal leaves nothing behind: the subnet is free for another prefix.
        assert!(acquire(&mut subnets, "10.5.0.0/24").is_ok());
    }

    #[test]
    fn the_last_one_closes_the_door() {
        let mut subnets = subnets();
        let subnet = Request::parse("10.1.0.0/24").unwrap();
        let (first, second) = (
            subnets.acquire(subnet).unwrap(),
            subnets.acquire(subnet).unwrap(),
        );
        let only = |subnets: &Subnets, one: Assignment| {
            subnets.has_only(one.subnet, &HashSet::from([one.address]))
        };
        assert!(!only(&subnets, first));
        let both = HashSet::from([first.address, second.address]);
        assert!(subnets.has_only(first.subnet, &both));
        assert!(Arc::ptr_eq(&subnets.gate(first), &subnets.gate(second)));
        subnets.release(first);
        assert!(only(&subnets, second));
        subnets.release(second);
        assert!(acquire(&mut subnets, "10.1.0.0/16").is_ok());
    }

    #[test]
    fn what_records_say_is_not_handed_out_again() {
        let mut subnets = Subnets::new("10.254.0.0/28".parse().unwrap());
        subnets
            .restore(assignment([10, 254, 0, 6], "10.254.0.4/30"))
            .unwrap();
        subnets
            .restore(assignment([10, 1, 0, 2], "10.1.0.0/24"))
            .unwrap();
        // The pool was another one when this was handed out: it covers two of today's.
        subnets
            .restore(assignment([10, 254, 0, 11], "10.254.0.8/29"))
            .unwrap();
        assert!(
            subnets
                .restore(assignment([10, 1, 0, 2], "10.1.0.0/24"))
                .is_err()
        );
        assert!(
            subnets
                .restore(assignment([10, 1, 0, 2], "10.1.0.0/25"))
                .is_err()
        );
        assert_eq!(
            acquire(&mut subnets, "").unwrap(),
            "10.254.0.2 in 10.254.0.0/30"
        );
        assert!(acquire(&mut subnets, "").is_err());
        subnets.release(assignment([10, 254, 0, 11], "10.254.0.8/29"));
        assert_eq!(
            acquire(&mut subnets, "").unwrap(),
            "10.254.0.10 in 10.254.0.8/30"
        );
    }

    #[test]
    fn a_restart_goes_on_behind_what_is_in_use() {
        let mut subnets = subnets();
        subnets
            .restore(assignment([10, 254, 0, 10], "10.254.0.8/30"))
            .unwrap();
        assert_eq!(
            acquire(&mut subnets, "").unwrap(),
            "10.254.0.14 in 10.254.0.12/30"
        );
    }

    proptest! {
        /// Whatever happens, nobody shares an address, and subnets are equal or apart.
        #[test]
        fn no_two_have_the_same(steps in prop::collection::vec((0u8..5, 0u8..40, 24u8..=30), 1..60)) {
            let mut subnets = Subnets::new("10.254.0.0/27".parse().unwrap());
            let mut held: Vec<Assignment> = Vec::new();
            for (kind, number, prefix) in steps {
                let address = Ipv4Addr::new(10, 1, 0, number);
                let request = match kind {
                    0 | 1 => Request::Dynamic,
                    2 => Request::Subnet(Cidr::around(address, prefix)),
                    3 => Request::Address(address, Cidr::around(address, prefix)),
                    _ => {
                        if !held.is_empty() {
                            subnets.release(held.remove(usize::from(number) % held.len()));
                        }
                        continue;
                    }
                };
                if let Ok(new) = subnets.acquire(request) {
                    prop_assert!(new.subnet.contains(new.address));
                    for other in &held {
                        prop_assert_ne!(other.address, new.address);
                        prop_assert!(other.subnet == new.subnet || !other.subnet.overlaps(&new.subnet));
                    }
                    held.push(new);
                } else if request == Request::Dynamic {
                    let dynamic = held.iter().filter(|one| one.address.octets()[1] == 254).count();
                    prop_assert_eq!(dynamic, 8);
                }
            }
        }
    }
}
