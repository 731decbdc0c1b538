//! What connects containers: the contract between the manager and one way of doing it.
//!
//! An implementation must hold to this:
//!
//! - **It blocks**, and is called from several threads at the same time, for different containers
//!   also within one method. Calls on one container come one after the other, but for
//!   [`Provider::disconnect`], which may be repeated, also while an abandoned attempt of it is
//!   still under way.
//! - **It has an end.** A program that it runs gets a deadline; what is over it is killed with its
//!   children. Its threads stay in the host's network namespace: to work within a container's it
//!   uses the descriptor, in a thread or a child that ends with the work.
//! - **A failure leaves nothing**: what [`Provider::connect`] made before a step failed is taken
//!   away again before it returns the error. `disconnect` is called after it all the same.
//! - **It keeps nothing on disk.** What it needs to know of a container later goes into
//!   [`NetworkRecord::own`], as a variant of [`Own`]; the manager writes that down and hands all of
//!   them to the next start. A record whose variant is not its own is one that another
//!   implementation made before the operator changed the setting: `disconnect` of such a one
//!   succeeds without a deed, other calls refuse it with [`not_ours`].
//! - **Between a call and the writing of its record the server may be killed.** Then `disconnect`
//!   comes without a record, or with the one from before the call. Whatever cannot be found without
//!   the record must be found by the handle or the instance, or be named by them.
//! - **Errors are for the client**: [`Error::Invalid`] for what could never work,
//!   [`Error::Exhausted`] for want of room, [`Error::host`] with the step and its object otherwise.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::names::Resolution;
use super::record::{NetworkRecord, Own};
use crate::error::Error;
use crate::model::{ContainerSpec, Handle, NetOutRule, NetworkMetrics, PortMapping};

/// A container that wants to be connected.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    /// Its name, which will be somebody else's one day.
    pub(crate) handle: &'a Handle,
    /// Its name that is never used twice; 32 characters.
    #[expect(dead_code, reason = "for the implementations that run a program")]
    pub(crate) instance: &'a str,
    /// What it was made from: of interest are `network`, `net_in`, `net_out`, `properties`,
    /// `privileged`. Checked by [`Provider::check`] before.
    pub(crate) spec: &'a ContainerSpec,
    /// Its init on the host. It runs, and cannot be reaped during the call.
    #[expect(dead_code, reason = "for the implementations that run a program")]
    pub(crate) init_pid: u32,
    /// Its network namespace. Only its loopback is in it, and up.
    pub(crate) namespace: &'a OwnedFd,
}

/// A container that is connected.
#[derive(Debug, Clone, Default)]
pub(crate) struct Connected {
    /// What it has from now on.
    pub(crate) record: NetworkRecord,
    /// What its `/etc/hosts` and `/etc/resolv.conf` are to say.
    pub(crate) names: Resolution,
}

/// One way of connecting containers. The head of this module says what it has to promise.
pub(crate) trait Provider: Send + Sync {
    /// Refuses a specification that could never be connected, before anything is made. Pure.
    ///
    /// # Errors
    /// [`Error::Invalid`], with Guardian's text where Guardian has one.
    fn check(&self, spec: &ContainerSpec) -> Result<(), Error>;

    /// Connects a container: addresses, ports and rules of its specification, all or nothing.
    ///
    /// # Errors
    /// Nothing of it remains.
    fn connect(&self, wanted: &Wanted<'_>) -> Result<Connected, Error>;

    /// Takes away what a container has. Its processes are dead and its namespace may be gone.
    /// Called for each container that ends, also for one that was never connected (`record` is
    /// `None` or the default then); what is gone already is done.
    ///
    /// # Errors
    /// What stayed; the call is repeated later.
    fn disconnect(
        &self,
        handle: &str,
        instance: &str,
        record: Option<&NetworkRecord>,
    ) -> Result<(), Error>;

    /// Leads a port of the host into a container (0 on the host: any; 0 in the container: the
    /// same). Returns the mapping with what was allocated, and the record with it in
    /// `mapped_ports`.
    ///
    /// # Errors
    /// Nothing of it remains.
    fn net_in(
        &self,
        handle: &Handle,
        record: &NetworkRecord,
        wish: PortMapping,
    ) -> Result<(PortMapping, NetworkRecord), Error>;

    /// Lets a container reach more: all rules, or with an error none of them. Later ones come
    /// before earlier ones. Returns the record as it is then.
    ///
    /// # Errors
    /// Nothing of it remains.
    fn net_out(
        &self,
        handle: &Handle,
        record: &NetworkRecord,
        rules: &[NetOutRule],
    ) -> Result<NetworkRecord, Error>;

    /// What a container received and sent, or `None` where nobody counts.
    ///
    /// # Errors
    /// The counters cannot be read.
    fn usage(&self, record: &NetworkRecord) -> Result<Option<NetworkMetrics>, Error> {
        let _ = record;
        Ok(None)
    }

    /// How many containers it has room for; `None` is without a limit.
    fn capacity(&self) -> Option<u64> {
        None
    }

    /// Waits until what `disconnect` left for later is gone, at most so long; returns whether that
    /// came true. What is left when the server ends is the next start's.
    fn settle(&self, patience: Duration) -> bool {
        let _ = patience;
        true
    }

    /// Makes good what others did to its part of the host; says what that was, a line each.
    ///
    /// # Errors
    /// What stayed wrong.
    fn repair(&self) -> Result<Vec<String>, Error> {
        Ok(Vec::new())
    }
}

/// The refusal of a record that another implementation made.
pub(crate) fn not_ours(handle: &Handle, own: &Own) -> Error {
    Error::Invalid(format!(
        "container {handle} was connected by {own}, which this server does not use any more: \
         make the container again, or start the server with that network"
    ))
}

/// The properties of a container that are for its network, as Guardian's plugins get them: those
/// named `network.…`, without this prefix, and `log_config` as it is.
#[expect(dead_code, reason = "for the implementations that run a program")]
pub(crate) fn properties_for_network(spec: &ContainerSpec) -> BTreeMap<String, String> {
    let named = spec.properties.iter().filter_map(|(key, value)| {
        let key = key
            .strip_prefix("network.")
            .or((key == "log_config").then_some(key.as_str()))?;
        Some((key.to_owned(), value.clone()))
    });
    named.collect()
}
