//! The packet filter: one table of nftables for an instance, changed in whole transactions.
//!
//! [`Firewall`] is what the rest of the package uses; every method is one transaction of the
//! kernel, so that a packet sees either all of a change or nothing of it, and a failure leaves
//! nothing. [`layout`] explains the table. Messages are written by hand ([`table`], [`expr`]): to
//! run `nft` costs some milliseconds each time, and the libraries that exist are bound to a C
//! library or to another licence.

mod container;
mod expr;
mod found;
mod layout;
mod others;
mod table;

use rustix::io::Errno;

pub(crate) use container::External;
pub(crate) use layout::Policy;
pub(crate) use others::dropping;

use crate::error::KernelError;
use crate::lease::{Lease, MappedPort};
use crate::netlink::{Refusal, Socket};
use crate::reach::Plan;
use table::{Changes, SUBSYSTEM, Table};

/// What had to be done for the packet filter to be what the records say.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Repair {
    /// Chains and elements removed, because no record knows them.
    pub foreign: usize,
    /// Handles of containers whose rules were missing or incomplete, and are there again.
    pub rebuilt: Vec<String>,
}

/// The table of one instance.
#[derive(Debug)]
pub(crate) struct Firewall {
    table: Table,
    policy: Policy,
    external: External,
}

impl Firewall {
    pub(crate) fn new(table: String, policy: Policy, external: External) -> Self {
        Self {
            table: Table { name: table },
            policy,
            external,
        }
    }

    /// Writes the constant part, whatever is there of it. Containers' chains stay, unless the
    /// table is of another release whose sets differ: then all of it goes in the same
    /// transaction, and [`Firewall::reconcile`] makes the containers' part anew.
    pub(crate) fn ensure(&self, socket: &mut Socket) -> Result<(), KernelError> {
        let changes = layout::write(&self.table, &self.policy, false);
        match commit(socket, &changes) {
            Err(error) if !error.is_permission() => {
                commit(socket, &layout::write(&self.table, &self.policy, true))
            }
            result => result,
        }
    }

    /// Makes the containers' part what the records say.
    pub(crate) fn reconcile(
        &self,
        socket: &mut Socket,
        leases: &[(Lease, Plan)],
    ) -> Result<Repair, KernelError> {
        let found = found::read(socket, &self.table).map_err(|refusal| {
            KernelError::new(format!("read the table {}", self.table.name), refusal)
        })?;
        let difference = found::difference(&self.table, &found, leases, self.external);
        commit(socket, &difference.changes)?;
        Ok(Repair {
            foreign: difference.foreign,
            rebuilt: difference.rebuilt,
        })
    }

    /// Makes a container's rules.
    pub(crate) fn add(
        &self,
        socket: &mut Socket,
        lease: &Lease,
        plan: &Plan,
    ) -> Result<(), KernelError> {
        let mut changes = Changes::default();
        container::add(&self.table, &mut changes, lease, plan, self.external);
        commit(socket, &changes)
    }

    /// Removes a container's rules, or what is left of them.
    pub(crate) fn remove(&self, socket: &mut Socket, lease: &Lease) -> Result<(), KernelError> {
        let mut changes = Changes::default();
        container::remove(&self.table, &mut changes, lease, self.external);
        remove_present(socket, changes)
    }

    /// Lets go of bridges that are gone.
    pub(crate) fn forget_bridges(
        &self,
        socket: &mut Socket,
        bridges: &[&str],
    ) -> Result<(), KernelError> {
        let mut changes = Changes::default();
        for bridge in bridges {
            container::forget_bridge(&self.table, &mut changes, bridge);
        }
        remove_present(socket, changes)
    }

    /// Lets a container reach more than before.
    pub(crate) fn allow(
        &self,
        socket: &mut Socket,
        lease: &Lease,
        before: &Plan,
        after: &Plan,
    ) -> Result<(), KernelError> {
        let mut changes = Changes::default();
        container::allow(&self.table, &mut changes, lease, before, after);
        commit(socket, &changes)
    }

    /// Leads host ports to a container.
    pub(crate) fn map(
        &self,
        socket: &mut Socket,
        lease: &Lease,
        ports: &[MappedPort],
    ) -> Result<(), KernelError> {
        let mut changes = Changes::default();
        container::map(&self.table, &mut changes, lease, ports, self.external);
        commit(socket, &changes)
    }
}

/// Removes what is there of it. A table that is gone, or a set, has nothing of it.
fn remove_present(socket: &mut Socket, mut changes: Changes) -> Result<(), KernelError> {
    loop {
        let Err(refusals) = socket.transact(SUBSYSTEM, &changes.messages) else {
            return Ok(());
        };
        // What is not there need not be removed; without it the others are tried again.
        let absent: Vec<usize> = refusals
            .iter()
            .filter(|refusal| refusal.errno == Errno::NOENT)
            .filter_map(|refusal| refusal.index)
            .collect();
        if absent.is_empty() {
            return Err(explain(&changes, refusals));
        }
        changes.retain(|index| !absent.contains(&index));
    }
}

fn commit(socket: &mut Socket, changes: &Changes) -> Result<(), KernelError> {
    socket
        .transact(SUBSYSTEM, &changes.messages)
        .map_err(|refusals| explain(changes, refusals))
}

/// The first refusal tells what is wrong; later ones often follow from it.
fn explain(changes: &Changes, refusals: Vec<Refusal>) -> KernelError {
    let refusal = refusals
        .into_iter()
        .next()
        .unwrap_or_else(|| Errno::IO.into());
    KernelError::new(changes.step(refusal.index), refusal)
}
