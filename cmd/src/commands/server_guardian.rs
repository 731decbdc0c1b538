//! Flags of Guardian that this server has no use for: a Guardian's command line or ini file must work
//! as it is, or say what to change.
//!
//! What is merely not needed here is taken and does nothing; what asks for something that would not
//! happen is refused with the reason. Flags that mean the same here are with the others of their
//! kind. [`FATES`] is what `garden config` shows and the log says; a test goes through all of
//! Guardian's flags.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

use crate::values;

/// What becomes of a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Taken; it does nothing, and this is why.
    Unused(&'static str),
    /// Not taken, and this is what to do.
    Refused(&'static str),
}

use Fate::{Refused, Unused};

/// The fate of each flag here, by its long name.
pub(crate) const FATES: [(&str, Fate); 21] = [
    (
        "skip-setup",
        Unused("the server sets up at each start what is missing"),
    ),
    (
        "properties-path",
        Unused("properties are in the containers' records"),
    ),
    (
        "console-sockets-path",
        Unused("it is of no use in Guardian either"),
    ),
    ("assets-dir", Unused("everything is in the two programs")),
    ("dadoo-bin", Unused("garden-shim does this: see --shim")),
    ("nstar-bin", Unused("garden-shim does this: see --shim")),
    ("tar-bin", Unused("files are packed without a program")),
    ("init-bin", Unused("garden-shim does this: see --shim")),
    (
        "iptables-bin",
        Unused("the packet filter is set without a program"),
    ),
    (
        "iptables-restore-bin",
        Unused("the packet filter is set without a program"),
    ),
    ("runtime-plugin", Unused("the OCI runtime is built in")),
    (
        "runtime-plugin-extra-arg",
        Refused("the OCI runtime is built in and takes no arguments: leave the flag out"),
    ),
    (
        "no-image-plugin",
        Unused("without --image-plugin the server's own store is used"),
    ),
    (
        "docker-registry",
        Unused("an image without a registry is Docker Hub's; see --registry-mirror"),
    ),
    (
        "containerd-socket",
        Unused("containers need no daemon beside this one"),
    ),
    (
        "use-containerd-for-processes",
        Unused("containers need no daemon beside this one"),
    ),
    (
        "metrics-emission-interval",
        Unused("metrics are asked for: see --debug-bind-ip"),
    ),
    (
        "dropsonde-origin",
        Unused("metrics are asked for: see --debug-bind-ip"),
    ),
    (
        "dropsonde-destination",
        Unused("metrics are asked for: see --debug-bind-ip"),
    ),
    (
        "gid-map-start",
        Unused("users and groups have one map: --uid-map-start"),
    ),
    (
        "gid-map-length",
        Unused("users and groups have one map: --uid-map-length"),
    ),
];

/// Flags that only Guardian has a use for.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct GuardianArgs {
    /// Not needed
    #[arg(long, hide_short_help = true)]
    skip_setup: bool,
    /// Not needed
    #[arg(long, hide_short_help = true, value_name = "PATH")]
    properties_path: Option<PathBuf>,
    /// Not needed
    #[arg(long, hide_short_help = true, value_name = "PATH")]
    console_sockets_path: Option<PathBuf>,
    /// Not needed
    #[arg(long, hide_short_help = true, value_name = "DIR")]
    assets_dir: Option<PathBuf>,
    /// Not needed
    #[arg(long, hide_short_help = true, value_name = "PATH")]
    dadoo_bin: Option<PathBuf>,
    /// Not needed
    #[arg(long, hide_short_help = true, value_name = "PATH")]
    nstar_bin: Option<PathBuf>,
    /// Not needed
    #[arg(long, hide_short_help = true, value_name = "PATH")]
    tar_bin: Option<PathBuf>,
    /// Not needed
    #[arg(long, hide_short_help = true, value_name = "PATH")]
    init_bin: Option<PathBuf>,
    /// Not needed
    #[arg(long, hide_short_help = true, value_name = "PATH")]
    iptables_bin: Option<PathBuf>,
    /// Not needed
    #[arg(long, hide_short_help = true, value_name = "PATH")]
    iptables_restore_bin: Option<PathBuf>,
    /// Not needed
    #[arg(long, hide_short_help = true, value_name = "PATH")]
    runtime_plugin: Option<PathBuf>,
    /// Refused: the OCI runtime is built in
    #[arg(
        long,
        hide_short_help = true,
        value_name = "ARG",
        allow_hyphen_values = true
    )]
    runtime_plugin_extra_arg: Vec<String>,
    /// Not needed
    #[arg(long, hide_short_help = true, conflicts_with_all = ["image_plugin", "privileged_image_plugin"])]
    no_image_plugin: bool,
    /// Not needed
    #[arg(long, hide_short_help = true, value_name = "HOST")]
    docker_registry: Option<String>,
    /// Not needed
    #[arg(long, hide_short_help = true, value_name = "PATH")]
    containerd_socket: Option<PathBuf>,
    /// Not needed
    #[arg(long, hide_short_help = true)]
    use_containerd_for_processes: bool,
    /// Not needed
    #[arg(long, hide_short_help = true, value_name = "TIME", value_parser = values::time)]
    metrics_emission_interval: Option<std::time::Duration>,
    /// Not needed
    #[arg(long, hide_short_help = true, value_name = "NAME")]
    dropsonde_origin: Option<String>,
    /// Not needed
    #[arg(long, hide_short_help = true, value_name = "HOST:PORT")]
    dropsonde_destination: Option<String>,
    /// As --uid-map-start, which it must agree with
    #[arg(long, hide_short_help = true, value_name = "ID")]
    gid_map_start: Option<u32>,
    /// As --uid-map-length, which it must agree with
    #[arg(long, hide_short_help = true, value_name = "N")]
    gid_map_length: Option<u32>,
}

impl GuardianArgs {
    /// Refuses what would not happen.
    ///
    /// # Errors
    /// With the reason, and what to do.
    pub(crate) fn check(&self, uid_start: Option<u32>, uid_length: Option<u32>) -> Result<()> {
        if !self.runtime_plugin_extra_arg.is_empty() {
            bail!(
                "--runtime-plugin-extra-arg: {}",
                reason("runtime-plugin-extra-arg")
            );
        }
        for (flag, group, user) in [
            ("start", self.gid_map_start, uid_start.unwrap_or(1)),
            ("length", self.gid_map_length, uid_length.unwrap_or(0)),
        ] {
            if group.is_some_and(|group| group != user) {
                bail!(
                    "--gid-map-{flag} differs from --uid-map-{flag}, and users and groups have \
                     one map here: give both the same value"
                );
            }
        }
        Ok(())
    }

    /// The flags that were given and do nothing, for the log.
    pub(crate) fn unused(&self) -> Vec<(&'static str, &'static str)> {
        let given = [
            ("skip-setup", self.skip_setup),
            ("properties-path", self.properties_path.is_some()),
            ("console-sockets-path", self.console_sockets_path.is_some()),
            ("assets-dir", self.assets_dir.is_some()),
            ("dadoo-bin", self.dadoo_bin.is_some()),
            ("nstar-bin", self.nstar_bin.is_some()),
            ("tar-bin", self.tar_bin.is_some()),
            ("init-bin", self.init_bin.is_some()),
            ("iptables-bin", self.iptables_bin.is_some()),
            ("iptables-restore-bin", self.iptables_restore_bin.is_some()),
            ("runtime-plugin", self.runtime_plugin.is_some()),
            ("no-image-plugin", self.no_image_plugin),
            ("docker-registry", self.docker_registry.is_some()),
            ("containerd-socket", self.containerd_socket.is_some()),
            (
                "use-containerd-for-processes",
                self.use_containerd_for_processes,
            ),
            (
                "metrics-emission-interval",
                self.metrics_emission_interval.is_some(),
            ),
            ("dropsonde-origin", self.dropsonde_origin.is_some()),
            (
                "dropsonde-destination",
                self.dropsonde_destination.is_some(),
            ),
            ("gid-map-start", self.gid_map_start.is_some()),
            ("gid-map-length", self.gid_map_length.is_some()),
        ];
        let given = given.into_iter().filter(|(_, given)| *given);
        given.map(|(flag, _)| (flag, reason(flag))).collect()
    }
}

/// Why a flag does nothing, or is refused; nothing for a flag that does what it says.
pub(crate) fn reason(flag: &str) -> &'static str {
    let found = FATES.iter().find(|(name, _)| *name == flag);
    match found {
        Some((_, Unused(why) | Refused(why))) => why,
        None => "",
    }
}
