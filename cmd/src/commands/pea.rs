//! `garden pea`: sidecars of a container.

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use garden::client::Wanted;
use garden::model::{BindMount, Handle, Limits, ProcessSpec};

use super::create::DiskArgs;
use super::limits::ShareArgs;
use super::process::{ProcessArgs, Words};
use super::{exec, print, print_json};
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
#[command(after_help = "Examples:
  garden pea run web probe.tar ps
  garden pea run web --image probe.tar --user vcap -- cat /proc/self/cgroup
  garden pea run -d --id proxy web probe.tar sleep 1000")]
pub(crate) struct RunArgs {
    /// The container
    #[arg(value_name = "NAME", value_parser = values::handle)]
    name: Handle,
    /// Root filesystem: a tar (plain, gzip, zstd), a directory, oci:///PATH[:REF], or
    /// docker://[HOST/]REPOSITORY[#TAG]
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Environment of the process; repeatable
    #[arg(long, short, value_name = "K[=V]", value_parser = values::environment)]
    env: Vec<String>,
    #[command(flatten)]
    process: ProcessArgs,
    /// Host path inside the pea, writable unless `:ro`; repeatable. The container's own are
    /// not inherited
    #[arg(long, short, value_name = "SRC:DST[:ro|rw]", value_parser = values::volume)]
    volume: Vec<BindMount>,
    /// A cgroup beside the container's instead of one within its limits
    #[arg(long)]
    own_limits: bool,
    /// Most memory, like 64M
    #[arg(long, short, value_name = "SIZE", value_parser = values::size, requires = "own_limits")]
    memory: Option<u64>,
    #[command(flatten)]
    share: ShareArgs,
    /// Most processes and threads, with --own-limits or within the container's
    #[arg(long, visible_alias = "pids-limit", value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pids: Option<u64>,
    #[command(flatten)]
    disk: DiskArgs,
    /// Print the sidecar's name and leave it running
    #[arg(long, short)]
    detach: bool,
    #[command(flatten)]
    words: Words,
}

/// List the running sidecars of a container
#[derive(Debug, Args)]
#[command(after_help = "Example:
  garden pea ls web")]
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
    if args.share.any() && !args.own_limits {
        bail!("a share of CPU or disks is for a cgroup of its own: add --own-limits");
    }
    let own_limits = args.own_limits.then(|| {
        args.share.add_to(Limits {
            memory_bytes: args.memory,
            ..Limits::default()
        })
    });
    let (image, command) = args.words.read(args.image.as_deref())?;
    let Some(image) = image else {
        bail!("a sidecar has an image of its own: name it, like `garden pea run web box.tar ps`");
    };
    if command.is_empty() {
        bail!(
            "no command is given: write it behind the image, like `garden pea run web box.tar ps`"
        );
    }
    let spec = ProcessSpec {
        env: args.env.clone(),
        log_bytes: args.detach.then_some(super::start::LOG_BYTES),
        bind_mounts: args.volume.clone(),
        image: Some(super::image(image)?),
        own_limits,
        disk: args.disk.limit(),
        pids: args.pids,
        ..args.process.spec(command)
    };
    if args.detach {
        let process = client.run(&args.name, &spec, Wanted::NONE).await?;
        print(&format!("{}\n", process.id))?;
        return Ok(0);
    }
    let process = client.run(&args.name, &spec, Wanted::ALL).await?;
    exec::follow(&args.name, process, args.process.tty).await
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
