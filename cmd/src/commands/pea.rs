//! `garden pea`: sidecars of a container.

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use garden::client::Wanted;
use garden::model::{BindMount, Handle, Limits, ProcessId, ProcessSpec};

use super::create::DiskArgs;
use super::limits::ShareArgs;
use super::{exec, print, print_json, program};
use crate::reach::Target;
use crate::{table, values};

/// Run and list the sidecars of a container
#[derive(Debug, Subcommand)]
pub(crate) enum PeaVerb {
    Run(Box<RunArgs>),
    Ls(LsArgs),
}

/// Run a command with an image of its own in a container's namespaces
#[derive(Debug, Args)]
#[command(after_help = "Example:
  garden pea run web --image probe.tar --user vcap -- wget -q -O - http://127.0.0.1:8080/")]
pub(crate) struct RunArgs {
    /// The container
    #[arg(value_name = "NAME", value_parser = values::handle)]
    name: Handle,
    /// Root filesystem: a tar (plain, gzip, zstd), a directory, or oci:///PATH[:REF]
    #[arg(long, value_name = "IMAGE")]
    image: String,
    /// Environment of the process; repeatable
    #[arg(long, short, value_name = "K=V", value_parser = values::assignment)]
    env: Vec<String>,
    /// User of the pea's image: name, uid, uid:gid or name:group [default: root]
    #[arg(long, short, value_name = "USER")]
    user: Option<String>,
    /// Working directory, made when missing [default: /]
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// Name of the pea in its container [default: a generated one]
    #[arg(long, value_name = "ID")]
    id: Option<ProcessId>,
    /// Host path inside it, read-only unless it ends in :rw; repeatable. The container's own are
    /// not inherited
    #[arg(long = "bind", value_name = "SOURCE:DESTINATION[:rw]", value_parser = values::bind)]
    binds: Vec<BindMount>,
    /// A cgroup beside the container's instead of one within its limits
    #[arg(long)]
    own_limits: bool,
    /// Most memory, like 64M
    #[arg(long, short, value_name = "SIZE", value_parser = values::size, requires = "own_limits")]
    memory: Option<u64>,
    #[command(flatten)]
    share: ShareArgs,
    /// Most processes and threads, with --own-limits or within the container's
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pids: Option<u64>,
    #[command(flatten)]
    disk: DiskArgs,
    /// The command and its arguments
    #[arg(required = true, last = true, value_name = "CMD")]
    command: Vec<String>,
}

/// List the running sidecars of a container
#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// The container
    #[arg(value_name = "NAME", value_parser = values::handle)]
    name: Handle,
    /// For programs
    #[arg(long)]
    json: bool,
}

/// Does it.
pub(crate) async fn run(target: &Target, verb: PeaVerb) -> Result<u8> {
    match verb {
        PeaVerb::Run(args) => run_one(target, *args).await,
        PeaVerb::Ls(args) => list(target, &args).await,
    }
}

async fn run_one(target: &Target, args: RunArgs) -> Result<u8> {
    let client = target.server().await?;
    let (path, arguments) = program(&args.command);
    if args.share.any() && !args.own_limits {
        bail!("a share of CPU or disks is for a cgroup of its own: add --own-limits");
    }
    let own_limits = args.own_limits.then(|| {
        args.share.add_to(Limits {
            memory_bytes: args.memory,
            ..Limits::default()
        })
    });
    let spec = ProcessSpec {
        id: args.id,
        bind_mounts: args.binds,
        path,
        args: arguments,
        env: args.env,
        user: args.user,
        dir: args.cwd,
        image: Some(super::image(&args.image)?),
        own_limits,
        disk: args.disk.limit(),
        pids: args.pids,
        ..ProcessSpec::default()
    };
    let process = client.run(&args.name, &spec, Wanted::ALL).await?;
    exec::follow(process).await
}

async fn list(target: &Target, args: &LsArgs) -> Result<u8> {
    let peas = target.server().await?.peas(&args.name).await?;
    if args.json {
        print_json(&peas)?;
    } else {
        let rows: Vec<_> = peas
            .iter()
            .map(|pea| vec![pea.id.to_string(), pea.pid.to_string(), pea.path.clone()])
            .collect();
        print(&table::format(&["PEA", "PID", "COMMAND"], &rows))?;
    }
    Ok(0)
}
