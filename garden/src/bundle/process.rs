//! Rule: the process section: who it is and what it runs.
//!
//! Capabilities are not in it: the shim reduces them itself, after the seccomp program.

use oci_spec::runtime::{
    PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, ProcessBuilder, UserBuilder,
};

use super::invalid;
use crate::error::Error;
use crate::model::Rlimit;
use crate::policy::Confinement;

/// What the rule knows of a process: everything is resolved already.
#[derive(Debug, Clone, Default)]
pub struct ProcessInput<'a> {
    /// The executable and its arguments.
    pub args: Vec<String>,
    /// The whole environment, in order.
    pub env: Vec<String>,
    /// Working directory.
    pub cwd: &'a str,
    /// User id inside.
    pub uid: u32,
    /// Group id inside.
    pub gid: u32,
    /// Supplementary groups inside.
    pub additional_gids: &'a [u32],
    /// Resource limits.
    pub rlimits: &'a [Rlimit],
    /// Whether it has a terminal.
    pub terminal: bool,
    /// What confines it further.
    pub confinement: Confinement<'a>,
}

pub(super) fn build(input: &ProcessInput<'_>) -> Result<Process, Error> {
    let user = UserBuilder::default()
        .uid(input.uid)
        .gid(input.gid)
        .additional_gids(input.additional_gids.to_vec())
        .build()
        .map_err(invalid)?;
    let mut process = ProcessBuilder::default()
        .terminal(input.terminal)
        .user(user)
        .args(input.args.clone())
        .env(input.env.clone())
        .cwd(if input.cwd.is_empty() { "/" } else { input.cwd })
        .rlimits(
            input
                .rlimits
                .iter()
                .map(rlimit)
                .collect::<Result<Vec<_>, _>>()?,
        )
        .build()
        .map_err(invalid)?;
    // The builder's own defaults, which are not Garden's.
    process
        .set_capabilities(None)
        .set_no_new_privileges(input.confinement.no_new_privileges.then_some(true))
        .set_apparmor_profile(input.confinement.apparmor.map(str::to_owned));
    Ok(process)
}

fn rlimit(limit: &Rlimit) -> Result<PosixRlimit, Error> {
    let kind = match limit.name.as_str() {
        "as" => PosixRlimitType::RlimitAs,
        "core" => PosixRlimitType::RlimitCore,
        "cpu" => PosixRlimitType::RlimitCpu,
        "data" => PosixRlimitType::RlimitData,
        "fsize" => PosixRlimitType::RlimitFsize,
        "locks" => PosixRlimitType::RlimitLocks,
        "memlock" => PosixRlimitType::RlimitMemlock,
        "msgqueue" => PosixRlimitType::RlimitMsgqueue,
        "nice" => PosixRlimitType::RlimitNice,
        "nofile" => PosixRlimitType::RlimitNofile,
        "nproc" => PosixRlimitType::RlimitNproc,
        "rss" => PosixRlimitType::RlimitRss,
        "rtprio" => PosixRlimitType::RlimitRtprio,
        "sigpending" => PosixRlimitType::RlimitSigpending,
        "stack" => PosixRlimitType::RlimitStack,
        unknown => {
            return Err(Error::Invalid(format!(
                "unknown resource limit {unknown:?}: use one of {}",
                Rlimit::NAMES.join(" ")
            )));
        }
    };
    PosixRlimitBuilder::default()
        .typ(kind)
        .soft(limit.value)
        .hard(limit.value)
        .build()
        .map_err(invalid)
}
