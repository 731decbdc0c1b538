//! `garden server`: the server of a host.

use std::ffi::OsString;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use garden::api::Listen;
use garden::hosting::{Hosted, find_shim};
use garden::ids;
use garden::manager::{Options, Unmount, WithoutQuota};
use garden::policy::{Policy, TcpDefaults};
use garden_rootfs::plugin::{Plugin, Plugins};
use garden_rootfs::{CollectPolicy, Space, WaterMarks};

use super::server_ends::EndArgs;
use super::server_guardian::GuardianArgs;
use super::server_limits::ServerLimits;
use super::server_listen::{ListenArgs, Reachable};
use super::server_network::ServerNetwork;
use crate::host::STORE;
use crate::logging::LogLevel;
use crate::notify::Notify;
use crate::reach::Target;
use crate::registry::RegistryArgs;
use crate::settings::ConfigArgs;
use crate::{logging, streams, values};

/// Run the server; containers outlive it
#[derive(Debug, Args)]
#[command(after_help = "Example:
  garden server --default-image /var/images/base.tar")]
pub(crate) struct ServerArgs {
    /// Directory of sockets and records, on a tmpfs
    #[arg(
        long,
        visible_alias = "depot",
        env = "GARDEN_RUNTIME_DIR",
        value_name = "DIR",
        default_value = "/run/garden"
    )]
    runtime_dir: PathBuf,
    /// Directory of images and root filesystems
    #[arg(
        long,
        env = "GARDEN_STORE",
        value_name = "DIR",
        default_value = STORE
    )]
    store: PathBuf,
    /// Tells this server's cgroups from those of other servers on this host
    #[arg(long, env = "GARDEN_TAG", value_name = "TAG")]
    tag: Option<String>,
    /// The supervisor program [default: beside this one]
    #[arg(long, env = "GARDEN_SHIM", value_name = "PATH")]
    shim: Option<PathBuf>,
    /// Image of containers that name none
    #[arg(long, visible_alias = "default-rootfs", value_name = "IMAGE")]
    default_image: Option<String>,
    /// Most containers at a time; 0 for any number [default: unlimited]
    #[arg(long, value_name = "N")]
    max_containers: Option<usize>,
    /// Let fsync work inside containers; unmounting then writes the whole disk of the store
    #[arg(long)]
    sync_unmount: bool,
    /// Where the store's file system has no quota: count what is used, or refuse disk limits
    #[arg(long, value_name = "HOW", value_enum, default_value = "account")]
    without_quota: OnNoQuota,
    /// Destroy the containers that an earlier server left, before serving
    #[arg(long)]
    destroy_containers_on_startup: bool,
    /// What is logged: debug, info, error or fatal, and what is worse
    #[arg(long, value_name = "LEVEL", value_enum, default_value = "info")]
    log_level: LogLevel,
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten, next_help_heading = "Who can reach the server")]
    listen: ListenArgs,
    #[command(flatten, next_help_heading = "Containers and processes")]
    policy: PolicyArgs,
    #[command(flatten, next_help_heading = "Ends")]
    ends: EndArgs,
    #[command(flatten, next_help_heading = "Limits")]
    limits: ServerLimits,
    #[command(flatten, next_help_heading = "Network")]
    network: ServerNetwork,
    #[command(flatten, next_help_heading = "Collection of unused images")]
    collect: CollectArgs,
    #[command(flatten, next_help_heading = "Image plugins")]
    plugins: PluginArgs,
    #[command(flatten, next_help_heading = "Registries")]
    registry: RegistryArgs,
    #[command(flatten, next_help_heading = "For Guardian's sake")]
    guardian: GuardianArgs,
}

/// What the operator decides for all containers.
#[derive(Debug, Args)]
struct PolicyArgs {
    /// Refuse privileged containers
    #[arg(long)]
    disable_privileged_containers: bool,
    /// AppArmor profile of unprivileged processes; it must be loaded
    #[arg(long, value_name = "PROFILE")]
    apparmor: Option<String>,
    /// Setuid programs and file capabilities give unprivileged processes nothing
    #[arg(long)]
    no_new_privileges: bool,
    /// Forget a process that has ended, and free its name, once somebody was told of its end
    #[arg(long)]
    cleanup_process_dirs_on_wait: bool,
    /// Destroy containers without a grace time of their own when unused for so long, like 5m
    #[arg(long, value_name = "TIME", value_parser = values::time)]
    default_grace_time: Option<Duration>,
    /// First id on the host for the ids of unprivileged containers from 1 on
    #[arg(long, value_name = "ID")]
    uid_map_start: Option<u32>,
    /// How many ids unprivileged containers have [default: all there are]
    #[arg(long, value_name = "N")]
    uid_map_length: Option<u32>,
    /// Give each unprivileged container so many ids that no other has, from --uid-map-start on
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1000..))]
    ids_per_container: Option<u32>,
    /// Seconds that a TCP connection in a container is idle before it is probed [default: as the
    /// host has it, like the next ones]
    #[arg(long, value_name = "SECONDS")]
    tcp_keepalive_time: Option<u32>,
    /// Seconds between probes
    #[arg(long, value_name = "SECONDS")]
    tcp_keepalive_interval: Option<u32>,
    /// Probes without an answer until a connection is dropped
    #[arg(long, value_name = "N")]
    tcp_keepalive_probes: Option<u32>,
    /// Retransmissions before the network is asked for another way
    #[arg(long, value_name = "N")]
    tcp_retries1: Option<u32>,
    /// Retransmissions before a connection is dropped
    #[arg(long, value_name = "N")]
    tcp_retries2: Option<u32>,
}

/// Where ranges of ids begin when nobody says: above what hosts give to people and services.
const FIRST_RANGE: u32 = 100_000;

impl PolicyArgs {
    fn apply(self, options: &mut Options) -> Result<()> {
        // 0 is the default in Guardian's words.
        let length = self.uid_map_length.filter(|length| *length > 0);
        match self.ids_per_container {
            None => options.ids = ids::shared(self.uid_map_start.unwrap_or(1), length),
            Some(size) => {
                let first = self.uid_map_start.unwrap_or(FIRST_RANGE);
                let Some(plan) = ids::Plan::fill(first, size) else {
                    bail!(
                        "there is no room for {size} ids from {first} on: lower \
                         --ids-per-container or --uid-map-start"
                    );
                };
                options.id_ranges = Some(plan);
            }
        }
        let given = |value: Option<u32>| value.filter(|value| *value > 0);
        options.policy = Policy {
            no_new_privileges: self.no_new_privileges,
            apparmor: self.apparmor.filter(|profile| !profile.is_empty()),
            disable_privileged: self.disable_privileged_containers,
            forget_waited: self.cleanup_process_dirs_on_wait,
            tcp: TcpDefaults {
                keepalive_time: given(self.tcp_keepalive_time),
                keepalive_interval: given(self.tcp_keepalive_interval),
                keepalive_probes: given(self.tcp_keepalive_probes),
                retries1: given(self.tcp_retries1),
                retries2: given(self.tcp_retries2),
            },
        };
        Ok(())
    }
}

/// What becomes of disk limits that cannot be enforced.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum OnNoQuota {
    /// Make the container, say that its limit does not hold, and count.
    Account,
    /// Refuse to make the container.
    Refuse,
}

/// When images that nobody uses are given up.
#[derive(Debug, Args)]
struct CollectArgs {
    /// Begin when less than this is free on the disk of the store: a size, or hundredths
    #[arg(long, value_name = "SPACE", value_parser = values::space, default_value = "5%")]
    collect_below: Space,
    /// Go on until so much is free
    #[arg(long, value_name = "SPACE", value_parser = values::space, default_value = "10%")]
    collect_until: Space,
    /// Never; images then stay until somebody removes them
    #[arg(long)]
    no_collect: bool,
}

impl CollectArgs {
    fn policy(&self) -> Option<CollectPolicy> {
        let marks = WaterMarks {
            low: self.collect_below,
            high: self.collect_until,
        };
        (!self.no_collect).then(|| CollectPolicy {
            free: Some(marks),
            ..CollectPolicy::default()
        })
    }
}

/// Programs that make root filesystems. A kind of container without one gets its root filesystems
/// from the server's own store.
#[derive(Debug, Args)]
struct PluginArgs {
    /// Makes the root filesystems of unprivileged containers [default: the server's own store]
    #[arg(long, value_name = "PROGRAM")]
    image_plugin: Option<PathBuf>,
    /// Argument of that program, before the command; repeatable
    #[arg(
        long,
        value_name = "ARG",
        requires = "image_plugin",
        allow_hyphen_values = true
    )]
    image_plugin_extra_arg: Vec<OsString>,
    /// Makes the root filesystems of privileged containers [default: the server's own store]
    #[arg(long, value_name = "PROGRAM")]
    privileged_image_plugin: Option<PathBuf>,
    /// Argument of that program, before the command; repeatable
    #[arg(
        long,
        value_name = "ARG",
        requires = "privileged_image_plugin",
        allow_hyphen_values = true
    )]
    privileged_image_plugin_extra_arg: Vec<OsString>,
    /// How long one call of such a program may take [default: for ever, as Guardian has it]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    image_plugin_timeout: Option<u64>,
}

impl PluginArgs {
    fn plugins(self) -> Plugins {
        let timeout = self.image_plugin_timeout.map(Duration::from_secs);
        let plugin = |program: Option<PathBuf>, extra_args| {
            program.map(|program| Plugin {
                program,
                extra_args,
                timeout,
            })
        };
        Plugins {
            unprivileged: plugin(self.image_plugin, self.image_plugin_extra_arg),
            privileged: plugin(
                self.privileged_image_plugin,
                self.privileged_image_plugin_extra_arg,
            ),
        }
    }
}

impl ServerArgs {
    /// Whether the values can be used, as far as nothing needs to be started to know.
    pub(crate) fn check(&self, target: &Target) -> Result<()> {
        self.registry.policy()?;
        self.listen.check(target)?;
        self.guardian
            .check(self.policy.uid_map_start, self.policy.uid_map_length)
    }

    /// What is to be logged.
    pub(crate) fn log_level(&self) -> LogLevel {
        self.log_level
    }

    /// What the manager has to know.
    pub(crate) fn manager(self) -> Result<Options> {
        let shim = find_shim(self.shim.as_deref())?;
        let mut options = Options::new(self.runtime_dir, self.store, shim);
        options.tag = self.tag;
        options.default_image = self.default_image.filter(|image| !image.is_empty());
        options.max_containers = self.max_containers.filter(|most| *most > 0);
        options.destroy_on_start = self.destroy_containers_on_startup;
        options.without_quota = match self.without_quota {
            OnNoQuota::Account => WithoutQuota::Account,
            OnNoQuota::Refuse => WithoutQuota::Refuse,
        };
        options.plugins = self.plugins.plugins();
        options.registry = self.registry.policy()?;
        options.collect = self.collect.policy();
        options.ending = self.ends.ending();
        self.limits.apply(&mut options);
        self.network.apply(&mut options)?;
        if self.sync_unmount {
            options.unmount = Unmount::Sync;
        }
        self.policy.apply(&mut options)?;
        Ok(options)
    }
}

/// Serves until SIGINT or SIGTERM; a second one ends it at once.
pub(crate) async fn run(target: &Target, args: ServerArgs) -> Result<u8> {
    args.check(target)?;
    let notify = Notify::of_environment();
    for (flag, why) in args.guardian.unused() {
        tracing::info!(flag, why, "a flag of Guardian's does nothing here");
    }
    let Reachable {
        listen,
        serving,
        debug,
    } = args.listen.apply(target, args.policy.default_grace_time)?;
    // Before anything is begun: a port that is taken is noticed now.
    let debug = debug.map(Listen::bind).transpose()?;
    let starting = Hosted::start(args.manager()?, listen, serving);
    // From now on a signal ends the server in order; while it starts there is nothing to finish,
    // and it did what it was told.
    let mut interrupted = pin!(streams::interrupted());
    let hosted = tokio::select! {
        biased;
        _ = &mut interrupted => return Ok(0),
        hosted = starting => hosted?,
    };
    if let Some(listeners) = debug {
        hosted.debug(listeners, logging::levels());
    }
    notify.ready();
    interrupted.await;
    tracing::info!("ending; containers run on");
    notify.stopping();
    tokio::select! {
        () = hosted.stop() => {}
        code = streams::interrupted() => return Ok(code),
    }
    Ok(0)
}
