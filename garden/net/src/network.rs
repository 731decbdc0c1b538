//! The network of one instance: the only thing that others call.
//!
//! [`Network::start`] makes the kernel agree with the records; then [`Network::add`] and
//! [`Network::remove`] for each container, and [`Network::net_in`] and [`Network::net_out`] while
//! it lives. Every call blocks and belongs on a thread for such work, in the network namespace in
//! which `start` was called. Calls on different containers run side by side.
//!
//! Locks, always taken in this order, the last one never across a call into the kernel:
//!
//! 1. `changes`: shared by every call, alone for [`Network::repair`], which compares everything.
//! 2. the container's own: its calls happen one after the other.
//! 3. the subnet's gate: its bridge comes with its first container and goes with its last.
//! 4. `state`: who has what.
//!
//! The thread that takes links away ([`crate::leaving`]) takes the gates of several subnets, in the
//! order of their addresses, and nothing before them.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use crate::conntrack::{self, Freed};
use crate::error::{KernelError, NetworkError};
use crate::lease::{Lease, Lease6, MappedPort};
use crate::leaving::Leaving;
use crate::names::{Names, Owned};
use crate::nft::{Firewall, Repair};
use crate::options::Options;
use crate::ports::{PortError, Ports};
use crate::reach::{Plan, plan};
use crate::rules::{Match, NetOutRule, RuleError, compile};
use crate::sockets::Sockets;
use crate::subnets::{Request, SubnetError, Subnets};
use crate::{forwarding, links};
pub use links::host::Usage;

/// How long links may take to go before those that wait for it go on.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a container asks for.
#[derive(Debug, Clone, Default)]
pub struct Spec {
    /// Empty, `a.b.c.d` or `a.b.c.d/n`.
    pub network: String,
    /// Host ports that lead to it.
    pub ports: Vec<PortRequest>,
    /// What it may reach besides what all may.
    pub rules: Vec<NetOutRule>,
}

/// A host port and a container's port, as a client says them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortRequest {
    /// 0: one of the pool.
    pub host: u32,
    /// 0: the same as the host's.
    pub container: u32,
}

impl PortRequest {
    /// The two as ports, of which 0 means any and the same.
    fn numbers(self) -> Result<(u16, u16), PortError> {
        let number = |port| u16::try_from(port).map_err(|_| PortError::Number(port));
        Ok((number(self.host)?, number(self.container)?))
    }

    fn check(&self) -> Result<(), PortError> {
        self.numbers().map(drop)
    }
}

/// A record that contradicts another one: its container keeps what it has, but has no rules here.
#[derive(Debug)]
pub struct Rejected {
    /// The record.
    pub lease: Lease,
    /// What it contradicts.
    pub reason: NetworkError,
}

/// What a start found.
#[derive(Debug)]
pub struct Start {
    /// Ready for calls.
    pub network: Network,
    /// What the packet filter had of others, and what it lacked.
    pub repair: Repair,
    /// Links of containers that no record knows, which are gone now.
    pub removed_links: Vec<String>,
    /// Records that could not be taken over.
    pub rejected: Vec<Rejected>,
}

/// The network of one instance.
#[derive(Debug)]
pub struct Network {
    options: Options,
    kernel: Arc<Kernel>,
    changes: RwLock<()>,
    leaving: Leaving,
}

/// What both the calls and the thread that takes links away work with.
#[derive(Debug)]
struct Kernel {
    firewall: Firewall,
    sockets: Sockets,
    state: Mutex<State>,
    /// The number of the links that are about to go.
    doomed: u32,
}

#[derive(Debug)]
struct State {
    subnets: Subnets,
    ports: Ports,
    /// Given back, and perhaps still remembered by the kernel.
    freed: Freed,
    /// By id.
    live: HashMap<String, Arc<Mutex<Lease>>>,
}

impl Network {
    /// Takes over what records say, switches forwarding on, writes the packet filter's table and
    /// removes what no record knows. Containers' connections are not disturbed.
    ///
    /// # Errors
    /// An option without a meaning, or the kernel's refusal.
    pub fn start(options: Options, known: Vec<Lease>) -> Result<Start, NetworkError> {
        options.check()?;
        let mut state = State {
            subnets: Subnets::new(options.pool),
            ports: Ports::new(options.port_start, options.port_size, options.port_offset)?,
            freed: Freed::default(),
            live: HashMap::new(),
        };
        let mut rejected = Vec::new();
        for lease in known {
            match state.restore(&lease) {
                Ok(()) => {
                    state
                        .live
                        .insert(lease.names.id.clone(), Arc::new(Mutex::new(lease)));
                }
                Err(reason) => rejected.push(Rejected { lease, reason }),
            }
        }
        let kernel = Arc::new(Kernel {
            firewall: Firewall::new(options.tag.table(), options.policy(), options.external()),
            sockets: Sockets::default(),
            state: Mutex::new(state),
            doomed: options.tag.doomed(),
        });
        let shared = Arc::clone(&kernel);
        let leaving = Leaving::start(move |batch| shared.take_away(batch))
            .map_err(|error| KernelError::io("start a thread", error))?;
        let network = Self {
            kernel,
            changes: RwLock::new(()),
            leaving,
            options,
        };
        forwarding::enable(network.options.ipv6.is_some())?;
        let repair = network.repair()?;
        let removed_links = network.remove_unknown_links(&rejected)?;
        Ok(Start {
            network,
            repair,
            removed_links,
            rejected,
        })
    }

    /// Compares the packet filter with what should be there, and makes good what is not: somebody
    /// may have emptied the ruleset. Other calls wait meanwhile.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn repair(&self) -> Result<Repair, NetworkError> {
        let _alone = self.changes.write().unwrap_or_else(PoisonError::into_inner);
        // What is about to go is not in the records any more, but has to stay until its links went.
        self.leaving.settle(PATIENCE);
        let leases = self.leases();
        let planned: Vec<(Lease, Plan)> = leases
            .into_iter()
            .map(|lease| {
                let plan = self.plan(&lease);
                (lease, plan)
            })
            .collect();
        let mut socket = self.kernel.sockets.netfilter()?;
        let firewall = &self.kernel.firewall;
        firewall.ensure(&mut socket)?;
        Ok(firewall.reconcile(&mut socket, &planned)?)
    }

    /// Refuses what could never be added; whether there is room is another matter.
    ///
    /// # Errors
    /// As [`Network::add`], but for what others have and what the kernel says.
    pub fn check(&self, spec: &Spec) -> Result<(), NetworkError> {
        self.parse(spec).map(drop)
    }

    /// Connects a container. What is wrong with the request is found before anything is made; if
    /// the kernel refuses a step, nothing of the others remains.
    ///
    /// `namespace` is the container's network namespace, in which no interface may have been made.
    ///
    /// # Errors
    /// Any of [`NetworkError`].
    pub fn add(
        &self,
        handle: &str,
        namespace: BorrowedFd<'_>,
        spec: &Spec,
    ) -> Result<Lease, NetworkError> {
        let request = self.parse(spec)?;
        let _shared = self.changes.read().unwrap_or_else(PoisonError::into_inner);
        let lease = self.patiently(|| self.reserve(handle, request, spec))?;
        let entry = Arc::new(Mutex::new(lease.clone()));
        let _own = lock(&entry);
        self.state()
            .live
            .insert(lease.names.id.clone(), Arc::clone(&entry));
        match self.make(&lease, namespace) {
            Ok(()) => Ok(lease),
            Err(error) => {
                // The address stays reserved if taking away fails as well: whoever got it next
                // would meet what is left.
                let _ = self.dismantle(&lease);
                Err(error.into())
            }
        }
    }

    /// Disconnects a container: its rules at once; its links, and the bridge with the last of its
    /// subnet, some milliseconds later, together with those of others ([`Network::settle`] waits for
    /// that). Its address and ports are free then, and before anybody gets one of them, the kernel
    /// forgets their connections. May be repeated.
    ///
    /// # Errors
    /// [`NetworkError::Remove`] with what the kernel refused.
    pub fn remove(&self, lease: &Lease) -> Result<(), NetworkError> {
        let _shared = self.changes.read().unwrap_or_else(PoisonError::into_inner);
        let failed = |source| NetworkError::Remove {
            handle: lease.handle.clone(),
            address: lease.address,
            source,
        };
        if self.leaving.has(lease) {
            return Ok(());
        }
        if let Some(entry) = self.entry(lease) {
            let own = lock(&entry);
            if self.entry(lease).is_some() {
                return self.dismantle(&own).map_err(failed);
            }
        }
        // Removed before, or rejected at the start: address, ports and rules may be somebody else's by
        // now, but nobody else ever has this name.
        let pair = &lease.names.host_interface;
        let mut socket = self.kernel.sockets.route()?;
        links::host::remove(&mut socket, pair).map_err(failed)
    }

    /// Waits until the links of all that was removed are gone, at most so long; returns whether that
    /// came true.
    #[must_use]
    pub fn settle(&self, patience: Duration) -> bool {
        self.leaving.settle(patience)
    }

    /// Leads a host port to a container. Returns it with the lease as it is now, to be recorded.
    ///
    /// # Errors
    /// No such port, or the kernel's refusal.
    pub fn net_in(
        &self,
        lease: &Lease,
        request: PortRequest,
    ) -> Result<(MappedPort, Lease), NetworkError> {
        self.change(lease, |current, socket| {
            let reserve = || Ok(self.state().ports.reserve(request)?);
            let port = self.patiently(reserve)?;
            let concerned = self.state().freed.has_port(port.host);
            let forgotten = if concerned {
                self.forget_connections()
            } else {
                Ok(())
            };
            if let Err(error) =
                forgotten.and_then(|()| self.kernel.firewall.map(socket, current, &[port]))
            {
                self.state().ports.release(port.host);
                return Err(error.into());
            }
            current.ports.push(port);
            Ok(port)
        })
    }

    /// Lets a container reach more; all rules or none. Of several the last counts first, before
    /// those that it has. Returns the lease as it is now, to be recorded.
    ///
    /// # Errors
    /// A rule without a meaning, or the kernel's refusal.
    pub fn net_out(&self, lease: &Lease, rules: &[NetOutRule]) -> Result<Lease, NetworkError> {
        self.check_rules(rules)?;
        let changed = self.change(lease, |current, socket| {
            let mut after = current.clone();
            after.rules.extend_from_slice(rules);
            self.kernel
                .firewall
                .allow(socket, current, &self.plan(current), &self.plan(&after))?;
            *current = after;
            Ok(())
        });
        changed.map(|((), lease)| lease)
    }

    /// What went through a container's interface so far; none if it is not there any more.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn usage(&self, lease: &Lease) -> Result<Option<Usage>, NetworkError> {
        let mut socket = self.kernel.sockets.route()?;
        Ok(links::host::usage(
            &mut socket,
            &lease.names.host_interface,
        )?)
    }

    /// How many containers the pool has room for.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.state().subnets.capacity()
    }

    /// Where the port pool stands, for [`Options::port_offset`] of the next start.
    #[must_use]
    pub fn port_offset(&self) -> u32 {
        self.state().ports.offset()
    }

    /// The options it was started with.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Messages sent to the kernel so far: what calls cost, whatever the machine.
    #[must_use]
    pub fn messages_sent(&self) -> u64 {
        self.kernel.sockets.sent()
    }

    fn parse(&self, spec: &Spec) -> Result<Request, NetworkError> {
        self.check_rules(&spec.rules)?;
        spec.ports.iter().try_for_each(PortRequest::check)?;
        let request = Request::parse(&spec.network)?;
        if let Request::Subnet(subnet) | Request::Address(_, subnet) = request
            && subnet.contains(self.options.external)
        {
            return Err(SubnetError::NotForHosts(subnet).into());
        }
        Ok(request)
    }

    fn reserve(&self, handle: &str, request: Request, spec: &Spec) -> Result<Lease, NetworkError> {
        let mut state = self.state();
        let assignment = state.subnets.acquire(request)?;
        let mut ports = Vec::with_capacity(spec.ports.len());
        let mut reserve_all = || {
            for request in &spec.ports {
                ports.push(state.ports.reserve(*request)?);
            }
            let names = Names::new(&self.options.tag, assignment.subnet.network());
            names.map_err(|error| NetworkError::from(KernelError::io("choose an id", error)))
        };
        match reserve_all() {
            Ok(names) => Ok(Lease {
                handle: handle.to_owned(),
                names,
                subnet: assignment.subnet,
                address: assignment.address,
                ipv6: self
                    .options
                    .ipv6
                    .map(|prefix| Lease6::derive(prefix, assignment)),
                mtu: self.options.mtu,
                ports,
                rules: spec.rules.clone(),
            }),
            Err(error) => {
                for port in ports {
                    state.ports.release(port.host);
                }
                state.subnets.release(assignment);
                Err(error)
            }
        }
    }

    /// Rules come first: an address that has none yet reaches nothing.
    fn make(&self, lease: &Lease, namespace: BorrowedFd<'_>) -> Result<(), KernelError> {
        let (gate, concerned) = {
            let state = self.state();
            let gate = state.subnets.gate(lease.assignment());
            (gate, state.freed.concerns(lease))
        };
        if concerned {
            self.forget_connections()?;
        }
        {
            let _gate = lock(&gate);
            let Kernel {
                firewall, sockets, ..
            } = &*self.kernel;
            firewall.add(&mut *sockets.netfilter()?, lease, &self.plan(lease))?;
            let mut socket = sockets.route()?;
            let bridge = links::host::ensure_bridge(&mut socket, lease)?;
            links::host::create_pair(&mut socket, lease, bridge, namespace)?;
        }
        let mut inside = links::inside::open(namespace)?;
        let result = links::inside::configure(&mut inside, lease);
        self.kernel.sockets.count(inside.sent);
        result
    }

    /// Lets the kernel forget the connections of all that has gone.
    fn forget_connections(&self) -> Result<(), KernelError> {
        let freed = self.state().freed.clone();
        conntrack::forget(&mut *self.kernel.sockets.netfilter()?, &freed)?;
        self.state().freed.strike(&freed);
        Ok(())
    }

    /// Takes the rules away, as far as they are there, and hands the links over.
    fn dismantle(&self, lease: &Lease) -> Result<(), KernelError> {
        let mut socket = self.kernel.sockets.netfilter()?;
        self.kernel.firewall.remove(&mut socket, lease)?;
        self.leaving.push(lease.clone());
        self.state().live.remove(&lease.names.id);
        Ok(())
    }

    /// Changes a container's rules, and its lease with them.
    fn change<T>(
        &self,
        lease: &Lease,
        change: impl FnOnce(&mut Lease, &mut crate::netlink::Socket) -> Result<T, NetworkError>,
    ) -> Result<(T, Lease), NetworkError> {
        let unknown = || NetworkError::Unknown {
            handle: lease.handle.clone(),
        };
        let _shared = self.changes.read().unwrap_or_else(PoisonError::into_inner);
        let entry = self.entry(lease).ok_or_else(unknown)?;
        let mut current = lock(&entry);
        self.entry(lease).ok_or_else(unknown)?;
        let mut socket = self.kernel.sockets.netfilter()?;
        let result = change(&mut current, &mut socket)?;
        Ok((result, current.clone()))
    }

    /// Links of this instance that belong to no lease: their containers' records were never
    /// written, or are gone.
    fn remove_unknown_links(&self, rejected: &[Rejected]) -> Result<Vec<String>, NetworkError> {
        let mut socket = self.kernel.sockets.route()?;
        let owned = links::host::owned(&mut socket, &self.options.tag)?;
        let live = self.leases();
        let mut known = std::collections::HashSet::new();
        for lease in live
            .iter()
            .chain(rejected.iter().map(|rejected| &rejected.lease))
        {
            known.insert(lease.names.bridge.as_str());
            known.insert(lease.names.host_interface.as_str());
        }
        let (mut pairs, mut bridges) = (Vec::new(), Vec::new());
        for (name, kind) in owned
            .into_iter()
            .filter(|(name, _)| !known.contains(name.as_str()))
        {
            match kind {
                Owned::HostEnd => pairs.push(name),
                Owned::Bridge => bridges.push(name),
            }
        }
        pairs.append(&mut bridges);
        let names = pairs.iter().map(String::as_str);
        links::host::remove_all(&mut socket, self.kernel.doomed, names)?;
        Ok(pairs)
    }

    fn check_rules(&self, rules: &[NetOutRule]) -> Result<(), RuleError> {
        rules
            .iter()
            .try_for_each(|rule| self.compile(rule).map(drop))
    }

    fn compile(&self, rule: &NetOutRule) -> Result<Vec<Match>, RuleError> {
        compile(rule, self.options.ipv6.is_some())
    }

    /// What a lease's rules are to the kernel. They were accepted once; with IPv6 gone since, those
    /// about it mean nothing.
    fn plan(&self, lease: &Lease) -> Plan {
        let rules = lease
            .rules
            .iter()
            .filter_map(|rule| self.compile(rule).ok());
        let matches: Vec<Match> = rules.flatten().collect();
        let subnet = (
            lease.subnet.network().into(),
            lease.subnet.broadcast().into(),
        );
        plan(&matches, subnet, lease.ipv6.map(|ipv6| ipv6.subnet()))
    }

    fn entry(&self, lease: &Lease) -> Option<Arc<Mutex<Lease>>> {
        self.state().live.get(&lease.names.id).cloned()
    }

    fn leases(&self) -> Vec<Lease> {
        let entries: Vec<_> = self.state().live.values().cloned().collect();
        entries.iter().map(|lease| lock(lease).clone()).collect()
    }

    /// Tries again when links are gone that were about to go: what they had is free then.
    fn patiently<T>(&self, work: impl Fn() -> Result<T, NetworkError>) -> Result<T, NetworkError> {
        match work() {
            Err(error) if error.is_shortage() && !self.leaving.is_empty() => {
                self.leaving.settle(PATIENCE);
                work()
            }
            result => result,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.kernel.state)
    }
}

impl Kernel {
    /// Takes the links of containers away whose rules are gone, and gives back what they had.
    fn take_away(&self, batch: &[Lease]) -> Result<(), KernelError> {
        let mut subnets: BTreeMap<Ipv4Addr, Vec<&Lease>> = BTreeMap::new();
        for lease in batch {
            subnets
                .entry(lease.subnet.network())
                .or_default()
                .push(lease);
        }
        let together = |leases: &[&Lease]| leases.first().map(|lease| lease.assignment());
        let gates: Vec<_> = {
            let state = lock(&self.state);
            let some = subnets.values().filter_map(|leases| together(leases));
            some.map(|one| state.subnets.gate(one)).collect()
        };
        let _held: Vec<_> = gates.iter().map(|gate| lock(gate)).collect();
        let bridges: Vec<&str> = {
            let state = lock(&self.state);
            let emptied = subnets.values().filter(|leases| {
                let addresses = leases.iter().map(|lease| lease.address).collect();
                together(leases).is_some_and(|one| state.subnets.has_only(one.subnet, &addresses))
            });
            let names = emptied.filter_map(|leases| leases.first());
            names.map(|lease| lease.names.bridge.as_str()).collect()
        };
        let pairs = batch
            .iter()
            .map(|lease| lease.names.host_interface.as_str());
        let mut socket = self.sockets.route()?;
        let names = pairs.chain(bridges.iter().copied());
        links::host::remove_all(&mut socket, self.doomed, names)?;
        if !bridges.is_empty() {
            let mut socket = self.sockets.netfilter()?;
            self.firewall.forget_bridges(&mut socket, &bridges)?;
        }
        let mut state = lock(&self.state);
        for lease in batch {
            state.freed.note(lease);
            state.subnets.release(lease.assignment());
            for port in &lease.ports {
                state.ports.release(port.host);
            }
        }
        Ok(())
    }
}

impl State {
    fn restore(&mut self, lease: &Lease) -> Result<(), NetworkError> {
        self.subnets.restore(lease.assignment())?;
        for (index, port) in lease.ports.iter().enumerate() {
            if let Err(error) = self.ports.take(port.host) {
                for port in lease.ports.iter().take(index) {
                    self.ports.release(port.host);
                }
                self.subnets.release(lease.assignment());
                return Err(error.into());
            }
        }
        Ok(())
    }
}

impl Ports {
    /// Takes the port that a client asks for, or one of the pool.
    fn reserve(&mut self, request: PortRequest) -> Result<MappedPort, PortError> {
        let (host, container) = request.numbers()?;
        let host = if host == 0 {
            self.acquire()?
        } else {
            self.take(host)?;
            host
        };
        Ok(MappedPort {
            host,
            container: if container == 0 { host } else { container },
        })
    }
}

/// A lock whose holder panicked guards numbers that are still whole: each is changed in one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
