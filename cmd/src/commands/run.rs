//! `garden run`: a container for one process, from its image to its end.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use garden::client::{Client, Wanted};
use garden::error::Error;
use garden::model::{Handle, ImageRef, ProcessSpec};
use tokio::time::Instant;

use super::create::ContainerArgs;
use super::process::ProcessArgs;
use crate::host::HostArgs;
use crate::reach::Target;
use crate::streams;

/// Between two health checks.
const CHECK_PAUSE: Duration = Duration::from_millis(100);

/// Run a command in a new container, and remove the container at its end
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  garden run --image busybox.tar -- sh -c 'echo hello'
  garden run --image oci:///var/images/app:v1 --memory 64M --health-image probe.tar \\
      --health-cmd 'wget -q -O - http://127.0.0.1:8080/' -- /app/server")]
pub(crate) struct RunArgs {
    #[command(flatten)]
    container: ContainerArgs,
    #[command(flatten)]
    process: ProcessArgs,
    /// Image of the health check [default: the container's own]
    #[arg(long, value_name = "IMAGE", requires = "health_cmd")]
    health_image: Option<String>,
    /// Shell command that succeeds when the process is healthy; run as a pea until it does
    #[arg(long, value_name = "CMD")]
    health_cmd: Option<String>,
    /// User of the health check
    #[arg(long, value_name = "USER", requires = "health_cmd")]
    health_user: Option<String>,
    #[command(flatten)]
    host: HostArgs,
    /// The command and its arguments
    #[arg(required = true, last = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Runs it against the server, or hosts one.
pub(crate) async fn run(target: &Target, args: RunArgs) -> Result<u8> {
    if let Some(client) = target.find().await {
        return with(&client, args).await;
    }
    let solo = args.host.solo().await?;
    let client = solo.client().clone();
    let outcome = with(&client, args).await;
    solo.finish().await;
    outcome
}

async fn with(client: &Client, args: RunArgs) -> Result<u8> {
    let spec = args.container.spec()?;
    super::pull::watch(client, spec.image.as_ref(), args.container.quiet).await?;
    let check = health(&args)?;
    // Signals count from here on: what is being made must be removed again.
    let interrupted = streams::interrupted();
    tokio::pin!(interrupted);
    let mut creating = std::pin::pin!(client.create(&spec));
    let (handle, early) = tokio::select! {
        created = &mut creating => (created?, None),
        code = &mut interrupted => (creating.await?, Some(code)),
    };
    let outcome = match early {
        Some(code) => Ok(code),
        None => process(client, &handle, &args, check, interrupted).await,
    };
    match (outcome, client.destroy(&handle).await) {
        (Err(error), _) => Err(error),
        (Ok(code), Ok(()) | Err(Error::ContainerNotFound(_) | Error::BeingDestroyed(_))) => {
            Ok(code)
        }
        (Ok(_), Err(error)) => Err(error.into()),
    }
}

async fn process(
    client: &Client,
    handle: &Handle,
    args: &RunArgs,
    check: Option<ProcessSpec>,
    interrupted: impl Future<Output = u8>,
) -> Result<u8> {
    let spec = args.process.spec(&args.command);
    let begun = Instant::now();
    let process = client.run(handle, &spec, Wanted::ALL).await?;
    let health = check.map(|check| {
        let (client, handle) = (client.clone(), handle.clone());
        tokio::spawn(async move { watch(&client, &handle, &check, begun).await })
    });
    let how = streams::How {
        input: true,
        terminal: args.process.tty,
    };
    let code = streams::follow(process, how, interrupted).await;
    if let Some(health) = health {
        health.abort();
    }
    code
}

/// The health check as a pea, if one was asked for.
fn health(args: &RunArgs) -> Result<Option<ProcessSpec>> {
    let Some(command) = &args.health_cmd else {
        return Ok(None);
    };
    let image = args.health_image.as_ref().or(args.container.image.as_ref());
    let Some(image) = image else {
        bail!("the health check has no image: name one with --health-image");
    };
    let image: ImageRef = super::image(image)?;
    if command.trim().is_empty() {
        bail!("the health check is empty: give a shell command with --health-cmd");
    }
    Ok(Some(ProcessSpec {
        path: "/bin/sh".to_owned(),
        args: vec!["-c".to_owned(), command.clone()],
        user: args.health_user.clone(),
        image: Some(image),
        ..ProcessSpec::default()
    }))
}

/// Repeats the check until it succeeds, and says so.
#[expect(clippy::print_stderr, reason = "for the person who runs the command")]
async fn watch(client: &Client, handle: &Handle, check: &ProcessSpec, begun: Instant) {
    let mut told = false;
    loop {
        let outcome = match client.run(handle, check, Wanted::NONE).await {
            Ok(mut process) => process.wait().await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(0) => {
                eprintln!("garden: healthy after {} ms", begun.elapsed().as_millis());
                return;
            }
            Ok(_) => {}
            Err(Error::ContainerNotFound(_) | Error::BeingDestroyed(_)) => return,
            Err(error) if !told => {
                told = true;
                eprintln!("garden: the health check cannot be run: {}", error.report());
            }
            Err(_) => {}
        }
        tokio::time::sleep(CHECK_PAUSE).await;
    }
}
