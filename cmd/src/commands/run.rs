//! `garden run`: a container for one process, from its image to its end.

use anyhow::{Result, bail};
use clap::Args;
use garden::checks::CheckSpec;
use garden::client::{Client, Wanted};
use garden::error::Error;
use garden::model::{ContainerSpec, Handle, ProcessSpec};
use tokio::time::Instant;

use super::create::ContainerArgs;
use super::health_args::HealthArgs;
use super::process::{ProcessArgs, Words};
use super::{MAIN, print, start, wait};
use crate::host::HostArgs;
use crate::reach::Target;
use crate::streams::{self, Followed};

/// Run a command in a new container, and remove the container at its end
#[derive(Debug, Args)]
#[command(
    after_help = "Ctrl-P Ctrl-Q leaves a command with a terminal running, and its container with it.

Exit codes:
  125       Garden could not do it
  126, 127  the command cannot be run, or is not there
  130, 143  interrupted
  other     the command's own

Examples:
  garden run busybox.tar echo hello
  garden run -it busybox.tar sh -c 'stty size'
  garden run -d --name db -m 64M --cpus 0.5 busybox.tar sleep 1000
  garden run --rm --read-only -v /etc:/host:ro busybox.tar ls /host
  garden run --image busybox.tar --health-cmd true -- sleep 0.1"
)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    container: ContainerArgs,
    #[command(flatten)]
    process: ProcessArgs,
    /// Print the container's name and leave it running; see its output with `garden logs`
    #[arg(long, short)]
    detach: bool,
    /// Remove the container at the end; it always is, unless it is kept
    #[arg(long, conflicts_with_all = ["detach", "keep"])]
    rm: bool,
    /// Keep the container when the command has ended
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    health: HealthArgs,
    #[command(flatten)]
    host: HostArgs,
    #[command(flatten)]
    words: Words,
}

/// What is to be made and run.
struct Plan {
    container: ContainerSpec,
    process: ProcessSpec,
    checks: Vec<CheckSpec>,
    args: RunArgs,
    /// Whether somebody else can follow the process when this command has ended.
    outlives: bool,
}

/// Runs it against the server, or hosts one.
pub(crate) async fn run(target: &Target, args: RunArgs) -> Result<u8> {
    let mut plan = plan(args)?;
    if let Some(client) = target.find().await {
        return with(&client, plan).await;
    }
    if plan.args.detach || plan.args.keep {
        target.server().await?;
    }
    plan.outlives = false;
    let solo = plan.args.host.solo().await?;
    let client = solo.client().clone();
    let outcome = with(&client, plan).await;
    solo.finish().await;
    outcome
}

fn plan(args: RunArgs) -> Result<Plan> {
    let (image, command) = args.words.read(args.container.image.as_deref())?;
    if command.is_empty() {
        bail!("no command is given: write it behind the image, like `garden run busybox.tar sh`");
    }
    let mut container = args.container.spec(image)?;
    let mut process = args.process.spec(command);
    if process.id.is_none() {
        process.id = MAIN.parse().ok();
    }
    let checks = args.health.checks()?;
    if args.detach || args.keep {
        let entry = start::Entry::new(&process);
        let _ = (container.properties).insert(start::PROPERTY.to_owned(), entry.to_text()?);
    }
    Ok(Plan {
        container,
        process,
        checks,
        args,
        outlives: true,
    })
}

async fn with(client: &Client, plan: Plan) -> Result<u8> {
    let image = plan.container.image.as_ref();
    super::pull::watch(client, image, plan.args.container.quiet).await?;
    // Signals count from here on: what is being made must be removed again.
    let interrupted = streams::interrupted();
    tokio::pin!(interrupted);
    let mut creating = std::pin::pin!(client.create(&plan.container));
    let (handle, early) = tokio::select! {
        created = &mut creating => (created?, None),
        code = &mut interrupted => (creating.await?, Some(code)),
    };
    let outcome = match early {
        Some(code) => Ok(Followed::Ended(code)),
        None if plan.args.detach => detached(client, &handle, &plan).await,
        None => followed(client, &handle, &plan, interrupted).await,
    };
    match outcome {
        Ok(Followed::Detached) => return Ok(0),
        Ok(Followed::Ended(code)) if plan.args.keep => return Ok(code),
        _ => {}
    }
    match (outcome, client.destroy(&handle).await) {
        (Ok(Followed::Ended(code)), Ok(()))
        | (
            Ok(Followed::Ended(code)),
            Err(Error::ContainerNotFound(_) | Error::BeingDestroyed(_)),
        ) => Ok(code),
        (Ok(_), Err(error)) => Err(error.into()),
        (Ok(Followed::Detached), Ok(())) => Ok(0),
        (Err(error), _) => Err(error),
    }
}

/// Starts the process for nobody in particular.
async fn detached(client: &Client, handle: &Handle, plan: &Plan) -> Result<Followed> {
    let entry = start::Entry::new(&plan.process);
    drop(start::launch(client, handle, &entry).await?);
    if !plan.checks.is_empty() {
        client.set_checks(handle, plan.checks.clone()).await?;
    }
    print(&format!("{handle}\n"))?;
    Ok(Followed::Detached)
}

async fn followed(
    client: &Client,
    handle: &Handle,
    plan: &Plan,
    interrupted: impl Future<Output = u8>,
) -> Result<Followed> {
    let begun = Instant::now();
    let process = client.run(handle, &plan.process, Wanted::ALL).await?;
    let id = process.id.clone();
    let health = (!plan.checks.is_empty()).then(|| {
        let (client, handle, checks) = (client.clone(), handle.clone(), plan.checks.clone());
        tokio::spawn(async move { watch(&client, &handle, checks, begun).await })
    });
    let how = streams::How {
        input: true,
        terminal: plan.args.process.tty,
        detach: plan.outlives,
    };
    let outcome = streams::follow(process, how, interrupted).await;
    if let Some(health) = health {
        health.abort();
    }
    if let Ok(Followed::Detached) = outcome {
        streams::say_detached(handle, &id);
    }
    outcome
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
