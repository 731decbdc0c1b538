//! `garden create`: a container without a process yet.

use anyhow::Result;
use clap::Args;
use garden::model::{BindMount, ContainerSpec, DiskLimit, DiskScope, Handle, Limits, PortMapping};

use super::health_args::HealthArgs;
use super::limits::ShareArgs;
use super::process::{ProcessArgs, Words};
use super::{print, start};
use crate::reach::Target;
use crate::values;

/// Create a container and print its name
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  garden create --image busybox.tar --name web --memory 64M
  garden create --name job busybox.tar sh -c 'echo done'")]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    container: ContainerArgs,
    #[command(flatten)]
    process: ProcessArgs,
    #[command(flatten)]
    health: HealthArgs,
    #[command(flatten)]
    words: Words,
}

/// What a container is made from.
#[derive(Debug, Args)]
pub(crate) struct ContainerArgs {
    /// Root filesystem: a tar (plain, gzip, zstd), a directory, oci:///PATH[:REF], or
    /// docker://[HOST/]REPOSITORY[#TAG]; a name that is no file is one of Docker Hub
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: Option<String>,
    /// Name of the container [default: a generated one]
    #[arg(long, value_name = "NAME", value_parser = values::handle)]
    name: Option<Handle>,
    /// Environment of every process in the container; repeatable
    #[arg(long, short, value_name = "K[=V]", value_parser = values::environment)]
    env: Vec<String>,
    /// Most memory, like 64M
    #[arg(long, short, value_name = "SIZE", value_parser = values::size)]
    memory: Option<u64>,
    /// Most processes and threads
    #[arg(long, visible_alias = "pids-limit", value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pids: Option<u64>,
    #[command(flatten)]
    share: ShareArgs,
    #[command(flatten)]
    disk: DiskArgs,
    /// Host path inside the container, writable unless `:ro`; repeatable
    #[arg(long, short, value_name = "SRC:DST[:ro|rw]", value_parser = values::volume)]
    volume: Vec<BindMount>,
    /// Address or subnet of its own, outside of the server's pool, like 10.1.0.0/24
    #[arg(long, value_name = "CIDR")]
    network: Option<String>,
    /// Lead a port of the host to one of the container; an empty one of the host is any; repeatable
    #[arg(long, short, value_name = "HOST:CONTAINER", value_parser = values::port)]
    publish: Vec<PortMapping>,
    /// Free text by key, kept with the container; repeatable
    #[arg(long, value_name = "K=V", value_parser = values::assignment)]
    property: Vec<String>,
    /// Destroy it when nobody used it for so long
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    grace_time: Option<u64>,
    /// No user namespace, all capabilities, no seccomp filter
    #[arg(long)]
    privileged: bool,
    /// Nothing can be written to the root filesystem; bind mounts are as they say
    #[arg(long)]
    read_only: bool,
    /// No bars while the image is fetched
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

/// What a root filesystem may grow to.
#[derive(Debug, Args)]
pub(crate) struct DiskArgs {
    /// Most bytes of the root filesystem with its image, like 1G
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    disk: Option<u64>,
    /// Count only what is written towards --disk, not the image
    #[arg(long, requires = "disk")]
    disk_exclusive: bool,
    /// Most files and directories that are made or changed
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    disk_inodes: Option<u64>,
}

impl DiskArgs {
    /// As the server wants it.
    pub(crate) fn limit(&self) -> Option<DiskLimit> {
        let limit = DiskLimit {
            bytes: self.disk,
            inodes: self.disk_inodes,
            scope: if self.disk_exclusive {
                DiskScope::Exclusive
            } else {
                DiskScope::Total
            },
        };
        (limit.bytes.is_some() || limit.inodes.is_some()).then_some(limit)
    }
}

impl ContainerArgs {
    /// As the server wants it, made from this image; of none, from the server's own.
    pub(crate) fn spec(&self, image: Option<&str>) -> Result<ContainerSpec> {
        Ok(ContainerSpec {
            handle: self.name.clone(),
            image: image.map(super::image).transpose()?,
            env: self.env.clone(),
            bind_mounts: self.volume.clone(),
            properties: self
                .property
                .iter()
                .filter_map(|text| text.split_once('='))
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
            grace_time: self.grace_time.map(std::time::Duration::from_secs),
            privileged: self.privileged,
            network: self.network.clone(),
            net_in: self.publish.clone(),
            read_only: self.read_only,
            limits: self.share.add_to(Limits {
                memory_bytes: self.memory,
                pids: self.pids,
                disk: self.disk.limit(),
                ..Limits::default()
            }),
            ..ContainerSpec::default()
        })
    }
}

/// Creates it. A command is kept for `garden start`.
pub(crate) async fn run(target: &Target, args: &CreateArgs) -> Result<u8> {
    let (image, command) = match (&args.container.image, args.words.is_empty()) {
        (None, true) => (None, &[][..]),
        (flag, _) => args.words.read(flag.as_deref())?,
    };
    let mut spec = args.container.spec(image)?;
    spec.checks = args.health.checks()?;
    if !command.is_empty() {
        let entry = start::Entry::new(&args.process.spec(command));
        let _ = (spec.properties).insert(start::PROPERTY.to_owned(), entry.to_text()?);
    }
    let client = target.server().await?;
    super::pull::watch(&client, spec.image.as_ref(), args.container.quiet).await?;
    let handle = client.create(&spec).await?;
    print(&format!("{handle}\n"))?;
    Ok(0)
}
