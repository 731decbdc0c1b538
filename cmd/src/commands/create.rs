//! `garden create`: a container without a process yet.

use anyhow::Result;
use clap::Args;
use garden::devices::{DeviceRule, DeviceSpec};
use garden::model::{BindMount, ContainerSpec, DiskLimit, DiskScope, Handle, Limits};

use super::health_args::HealthArgs;
use super::limits::ShareArgs;
use super::print;
use crate::reach::Target;
use crate::values;

/// Create a container and print its name
#[derive(Debug, Args)]
#[command(after_help = "Example:
  garden create --image busybox.tar --name web --memory 64M --disk 1G")]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    container: ContainerArgs,
    #[command(flatten)]
    health: HealthArgs,
}

/// What a container is made from.
#[derive(Debug, Args)]
pub(crate) struct ContainerArgs {
    /// Root filesystem: a tar (plain, gzip, zstd), a directory, oci:///PATH[:REF], or
    /// docker://[HOST/]REPOSITORY[#TAG] [default: the server's, if it has one]
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: Option<String>,
    /// Name of the container [default: a generated one]
    #[arg(long, value_name = "NAME", value_parser = values::handle)]
    name: Option<Handle>,
    /// Environment of every process in the container; repeatable
    #[arg(long, short, value_name = "K=V", value_parser = values::assignment)]
    env: Vec<String>,
    /// Most memory, like 64M
    #[arg(long, short, value_name = "SIZE", value_parser = values::size)]
    memory: Option<u64>,
    /// Most processes and threads
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pids: Option<u64>,
    #[command(flatten)]
    share: ShareArgs,
    #[command(flatten)]
    disk: DiskArgs,
    /// Host path inside the container, writable unless `:ro`; repeatable
    #[arg(long, short, value_name = "SRC:DST[:ro|rw]", value_parser = values::volume)]
    volume: Vec<BindMount>,
    /// Device of the host inside the container and its peas; repeatable
    #[arg(long, value_name = "SRC[:DST][:rwm]", value_parser = values::device)]
    device: Vec<DeviceSpec>,
    /// What may be done with devices, like "c 10:200 rwm"; "deny" in front takes away; repeatable
    #[arg(long, value_name = "RULE", value_parser = values::device_rule)]
    device_cgroup_rule: Vec<DeviceRule>,
    /// Free text by key, kept with the container; repeatable
    #[arg(long, value_name = "K=V", value_parser = values::assignment)]
    property: Vec<String>,
    /// Destroy it when nobody used it for so long
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    grace_time: Option<u64>,
    /// No user namespace, all capabilities, no seccomp filter
    #[arg(long)]
    privileged: bool,
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
    /// As the server wants it.
    pub(crate) fn spec(&self) -> Result<ContainerSpec> {
        Ok(ContainerSpec {
            handle: self.name.clone(),
            image: self.image.as_deref().map(super::image).transpose()?,
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
            devices: self.device.clone(),
            device_rules: self.device_cgroup_rule.clone(),
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

/// Creates it.
pub(crate) async fn run(target: &Target, args: &CreateArgs) -> Result<u8> {
    let client = target.server().await?;
    let mut spec = args.container.spec()?;
    spec.checks = args.health.checks()?;
    super::pull::watch(&client, spec.image.as_ref(), args.container.quiet).await?;
    let handle = client.create(&spec).await?;
    print(&format!("{handle}\n"))?;
    Ok(0)
}
