//! What an operator decides for all containers of a server, whatever their users ask for.
//!
//! Filled from the flags of `garden server`, looked at by the rules that describe a container and
//! its processes. Values are checked when the server starts, so that no create fails over them.
//! Nothing here is about one container.

use std::collections::HashMap;

use crate::bundle::IdRange;
use crate::error::Error;

/// An operator's decisions.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Unprivileged processes gain nothing by setuid programs and file capabilities.
    pub no_new_privileges: bool,
    /// The AppArmor profile of unprivileged processes. It must be loaded.
    pub apparmor: Option<String>,
    /// Refuse privileged containers.
    pub disable_privileged: bool,
    /// A process that has ended is forgotten, record and id, once somebody was told of its end.
    pub forget_waited: bool,
    /// How TCP of containers behaves where programs do not say.
    pub tcp: TcpDefaults,
}

/// Settings of a container's network namespace. `None` is what the host itself has: a new
/// namespace would begin with the kernel's own defaults.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TcpDefaults {
    /// Seconds that a connection is idle before it is probed.
    pub keepalive_time: Option<u32>,
    /// Seconds between probes.
    pub keepalive_interval: Option<u32>,
    /// Probes without an answer until it is dropped.
    pub keepalive_probes: Option<u32>,
    /// Retransmissions before the network is asked for another way.
    pub retries1: Option<u32>,
    /// Retransmissions before it is dropped.
    pub retries2: Option<u32>,
}

/// What confines a process beyond namespaces, capabilities and the seccomp program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Confinement<'a> {
    /// See [`Policy::no_new_privileges`].
    pub no_new_privileges: bool,
    /// See [`Policy::apparmor`].
    pub apparmor: Option<&'a str>,
}

impl Policy {
    /// Refuses what this host cannot do.
    ///
    /// # Errors
    /// [`Error::Invalid`], when an AppArmor profile is named and the kernel has no AppArmor.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let Some(profile) = &self.apparmor else {
            return Ok(());
        };
        let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
        if enabled.is_ok_and(|text| text.starts_with('Y')) {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "the AppArmor profile {profile} cannot be used: this kernel has no AppArmor, or it is \
             switched off; start the server without --apparmor"
        )))
    }

    /// Says why an unprivileged process did not start, when that is because its AppArmor profile is
    /// not loaded: the kernel only says that there is no such file. Blocks for a small file.
    pub(crate) fn explain(&self, error: Error) -> Error {
        let Some(profile) = &self.apparmor else {
            return error;
        };
        match std::fs::read_to_string("/sys/kernel/security/apparmor/profiles") {
            Ok(loaded) if !is_loaded(&loaded, profile) => Error::Invalid(format!(
                "the AppArmor profile {profile} is not loaded: load it with apparmor_parser -r FILE, \
                 or start the server without --apparmor"
            )),
            _ => error,
        }
    }

    /// What confines processes of one kind of container.
    pub(crate) fn confinement(&self, privileged: bool) -> Confinement<'_> {
        if privileged {
            return Confinement::default();
        }
        Confinement {
            no_new_privileges: self.no_new_privileges,
            apparmor: self.apparmor.as_deref(),
        }
    }

    /// The settings of a new container's namespaces, by their names. Blocks for a few small files.
    ///
    /// # Errors
    /// When the host does not tell its own values.
    pub(crate) fn sysctls(
        &self,
        privileged: bool,
        ids: &[IdRange],
    ) -> Result<HashMap<String, String>, Error> {
        let tcp = &self.tcp;
        let mut all = HashMap::new();
        for (name, wanted) in [
            ("net.ipv4.tcp_keepalive_time", tcp.keepalive_time),
            ("net.ipv4.tcp_keepalive_intvl", tcp.keepalive_interval),
            ("net.ipv4.tcp_keepalive_probes", tcp.keepalive_probes),
            ("net.ipv4.tcp_retries1", tcp.retries1),
            ("net.ipv4.tcp_retries2", tcp.retries2),
        ] {
            let value = match wanted {
                Some(value) => value.to_string(),
                None => host_value(name)?,
            };
            all.insert(name.to_owned(), value);
        }
        if self.no_new_privileges && !privileged {
            // Programs that ping cannot get the capability for raw sockets any more. Group 0 is
            // the host's highest, which would make the range invalid.
            let last = ids
                .iter()
                .map(|range| u64::from(range.inside) + u64::from(range.size));
            let last = last.max().unwrap_or(1).saturating_sub(1).min(65535);
            all.insert("net.ipv4.ping_group_range".to_owned(), format!("1 {last}"));
        }
        Ok(all)
    }
}

/// Looks a profile up in the kernel's list, whose lines are `NAME (MODE)`.
fn is_loaded(list: &str, profile: &str) -> bool {
    list.lines()
        .filter_map(|line| line.rsplit_once(" ("))
        .any(|(name, _)| name == profile)
}

fn host_value(name: &str) -> Result<String, Error> {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    std::fs::read_to_string(&path)
        .map(|text| text.trim().to_owned())
        .map_err(|error| Error::host(format!("cannot read the host's own {name}"), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: &[IdRange] = &[IdRange {
        inside: 0,
        outside: 100_000,
        size: 1000,
    }];

    #[test]
    fn what_is_not_said_is_the_hosts() {
        let policy = Policy {
            tcp: TcpDefaults {
                retries2: Some(7),
                ..TcpDefaults::default()
            },
            ..Policy::default()
        };
        let all = policy.sysctls(false, IDS).unwrap();
        assert_eq!(all["net.ipv4.tcp_retries2"], "7");
        let host = host_value("net.ipv4.tcp_keepalive_time").unwrap();
        assert_eq!(all["net.ipv4.tcp_keepalive_time"], host);
        assert!(!all.contains_key("net.ipv4.ping_group_range"));
    }

    #[test]
    fn a_profile_is_known_by_its_whole_name() {
        let list = "garden default (enforce)\ngarden (complain)\n";
        assert!(is_loaded(list, "garden default") && is_loaded(list, "garden"));
        assert!(!is_loaded(list, "default") && !is_loaded("", "garden"));
    }

    #[test]
    fn ping_works_without_new_privileges_as_far_as_groups_are_mapped() {
        let policy = Policy {
            no_new_privileges: true,
            ..Policy::default()
        };
        let all = policy.sysctls(false, IDS).unwrap();
        assert_eq!(all["net.ipv4.ping_group_range"], "1 999");
        let all = policy.sysctls(true, IDS).unwrap();
        assert!(!all.contains_key("net.ipv4.ping_group_range"));
        assert_eq!(policy.confinement(true), Confinement::default());
        assert!(policy.confinement(false).no_new_privileges);
    }
}
