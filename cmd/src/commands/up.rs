//! `garden up` and `garden down`: a pod file's container, made and taken away.
//!
//! Making is one thing: what fails half-way is taken away again. Doing it again changes nothing but
//! to start what has ended; a file that says something else is refused until it is told to replace.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use garden::client::{Client, Wanted};
use garden::error::Error;

use super::{print, wait};
use crate::pod::{self, Pod};
use crate::reach::Target;
use crate::{streams, values};

/// Make the container of a pod file with its sidecars, or start what of it has ended
#[derive(Debug, Args)]
#[command(after_help = "docs/pod.md describes the file.

Examples:
  garden up pod.toml
  garden up pod.toml --replace --wait 1m")]
pub(crate) struct UpArgs {
    /// The pod file
    #[arg(value_name = "FILE", default_value = "pod.toml")]
    file: PathBuf,
    /// Destroy a container of this name that says something else first
    #[arg(long)]
    replace: bool,
    /// Wait until its checks say that it is ready, at most this long
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    wait: Option<Duration>,
    /// No bars while images are fetched, and no name
    #[arg(long, short)]
    quiet: bool,
}

/// Destroy the container of a pod file with its sidecars
#[derive(Debug, Args)]
#[command(after_help = "Example:
  garden down pod.toml")]
pub(crate) struct DownArgs {
    /// The pod file
    #[arg(value_name = "FILE", default_value = "pod.toml")]
    file: PathBuf,
}

/// Makes it.
pub(crate) async fn up(target: &Target, args: &UpArgs) -> Result<u8> {
    let pod = pod::read(&args.file)?;
    if args.wait.is_some() && pod.container.checks.is_empty() {
        bail!("the pod has no checks to wait for: give it [[checks]], or leave --wait out");
    }
    let client = target.server().await?;
    match there(&client, &pod).await? {
        There::Same => complete(&client, &pod).await?,
        There::Other if !args.replace => bail!(
            "container {} is not as {} says: change it with `garden up --replace`, which destroys \
             it first",
            pod.name,
            args.file.display()
        ),
        There::Other => {
            client.destroy(&pod.name).await?;
            make(&client, &pod, args).await?;
        }
        There::None => make(&client, &pod, args).await?,
    }
    if let Some(time) = args.wait {
        let ready = tokio::time::timeout(time, wait::until_ready(&client, &pod.name));
        match ready.await {
            Ok(Ok(0)) => {}
            Ok(Ok(_)) => bail!("{} is unhealthy: see `garden health show {0}`", pod.name),
            Ok(Err(error)) => return Err(error),
            Err(_) => bail!(
                "{} is not ready after {} s: see `garden health show {0}`",
                pod.name,
                time.as_secs_f64()
            ),
        }
    }
    if !args.quiet {
        print(&format!("{}\n", pod.name))?;
    }
    Ok(0)
}

/// Takes it away; one that is not there is no failure.
pub(crate) async fn down(target: &Target, args: &DownArgs) -> Result<u8> {
    let pod = pod::read(&args.file)?;
    let client = target.server().await?;
    if let There::Other = there(&client, &pod).await? {
        let properties = client.properties(&pod.name).await?;
        if !properties.contains_key(pod::DIGEST) {
            bail!(
                "container {} was not made from a pod file: destroy it with `garden rm {0}`",
                pod.name
            );
        }
    }
    match client.destroy(&pod.name).await {
        Ok(()) | Err(Error::ContainerNotFound(_)) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

/// What there is under a pod's name.
enum There {
    None,
    Same,
    Other,
}

async fn there(client: &Client, pod: &Pod) -> Result<There> {
    match client.properties(&pod.name).await {
        Err(Error::ContainerNotFound(_)) => Ok(There::None),
        Err(error) => Err(error.into()),
        Ok(properties) if properties.get(pod::DIGEST) == Some(&pod.digest) => Ok(There::Same),
        Ok(_) => Ok(There::Other),
    }
}

/// Makes all of it, or nothing.
async fn make(client: &Client, pod: &Pod, args: &UpArgs) -> Result<()> {
    super::pull::watch(client, pod.container.image.as_ref(), args.quiet).await?;
    let interrupted = streams::interrupted();
    tokio::pin!(interrupted);
    // Not given up half-way: whether there is something to take away is known only at its end.
    client.create(&pod.container).await?;
    let outcome = tokio::select! {
        outcome = complete(client, pod) => outcome,
        _ = &mut interrupted => Err(anyhow::anyhow!("interrupted")),
    };
    if let Err(error) = outcome {
        let destroyed = client.destroy(&pod.name).await;
        let context = match destroyed {
            Ok(()) | Err(Error::ContainerNotFound(_)) => "the pod is not made".to_owned(),
            Err(other) => format!(
                "the pod is not made, and what there is of it is not destroyed ({})",
                other.report()
            ),
        };
        return Err(error.context(context));
    }
    Ok(())
}

/// Starts what does not run.
async fn complete(client: &Client, pod: &Pod) -> Result<()> {
    for process in pod.processes() {
        match client.run(&pod.name, process, Wanted::NONE).await {
            Ok(_) | Err(Error::ProcessIdInUse(_)) => {}
            Err(error) => {
                let id = process.id.as_ref().map_or("a process", |id| id.as_str());
                return Err(error).with_context(|| format!("cannot start {id}"));
            }
        }
    }
    Ok(())
}
