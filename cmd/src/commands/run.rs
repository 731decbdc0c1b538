//! `garden run`: a container for one process, from its image to its end.

use anyhow::Result;
use clap::Args;
use garden::checks::CheckSpec;
use garden::client::{Client, Wanted};
use garden::error::Error;
use garden::model::Handle;
use tokio::time::Instant;

use super::create::ContainerArgs;
use super::health_args::HealthArgs;
use super::process::ProcessArgs;
use super::wait;
use crate::host::HostArgs;
use crate::reach::Target;
use crate::streams;

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
    #[command(flatten)]
    health: HealthArgs,
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
    let checks = args.health.checks()?;
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
        None => process(client, &handle, &args, checks, interrupted).await,
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
    checks: Vec<CheckSpec>,
    interrupted: impl Future<Output = u8>,
) -> Result<u8> {
    let spec = args.process.spec(&args.command);
    let begun = Instant::now();
    let process = client.run(handle, &spec, Wanted::ALL).await?;
    let health = (!checks.is_empty()).then(|| {
        let (client, handle) = (client.clone(), handle.clone());
        tokio::spawn(async move { watch(&client, &handle, checks, begun).await })
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

/// Says so when the container is healthy for the first time.
#[expect(clippy::print_stderr, reason = "for the person who runs the command")]
async fn watch(client: &Client, handle: &Handle, checks: Vec<CheckSpec>, begun: Instant) {
    if let Err(error) = client.set_checks(handle, checks).await {
        eprintln!("garden: the health check cannot be run: {}", error.report());
        return;
    }
    let state = match wait::until_ready(client, handle).await {
        Ok(0) => "healthy",
        Ok(_) => "unhealthy",
        // The container ends: nothing is to be said of its health.
        Err(_) => return,
    };
    eprintln!("garden: {state} after {} ms", begun.elapsed().as_millis());
}
