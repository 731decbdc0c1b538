//! `garden wait`: until a container is ready, or until its end.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use garden::checks::health::HealthState;
use garden::client::Client;
use garden::error::Error;
use garden::events::{EventFilter, EventKind};
use garden::model::Handle;

use crate::reach::Target;
use crate::{streams, values};

/// What timeout(1) says when the time is over.
const TIMED_OUT: u8 = 124;

/// Wait until a container is destroyed or stopped, or until it is ready
#[derive(Debug, Args)]
#[command(after_help = "Exit codes:
  0    it is ready (with --ready), or its end has come
  1    it is unhealthy (with --ready)
  124  the time of --timeout is over
  125  there is no such container, it has no health checks, or it was destroyed before it was ready

Examples:
  garden wait web --ready --timeout 30s
  garden wait db --timeout 100ms")]
pub(crate) struct WaitArgs {
    /// The container
    #[arg(value_name = "NAME", value_parser = values::handle)]
    name: Handle,
    /// Until its health checks say that it is ready
    #[arg(long)]
    ready: bool,
    /// At most this long
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    timeout: Option<Duration>,
}

/// Waits.
pub(crate) async fn run(target: &Target, args: WaitArgs) -> Result<u8> {
    let client = target.server().await?;
    let waited = async {
        match args.ready {
            true => until_ready(&client, &args.name).await,
            false => until_over(&client, &args.name).await,
        }
    };
    let over = async {
        match args.timeout {
            Some(time) => tokio::time::sleep(time).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        code = waited => code,
        () = over => Ok(TIMED_OUT),
        code = streams::interrupted() => Ok(code),
    }
}

fn follow(handle: &Handle) -> EventFilter {
    let kinds = ["health", "destroyed", "stopped", "missed"];
    EventFilter {
        handle: Some(handle.to_string()),
        kinds: kinds.map(str::to_owned).to_vec(),
        since_ms: None,
        follow: true,
    }
}

/// Returns as soon as a container is ready or unhealthy.
pub(crate) async fn until_ready(client: &Client, handle: &Handle) -> Result<u8> {
    // Listening first: nothing that happens from here on is missed.
    let mut events = client.events(&follow(handle)).await?;
    let mut known = client.health(handle).await?.state;
    if known.is_none() {
        bail!("container {handle} has no health checks: give it some with --health-cmd and others");
    }
    loop {
        match known {
            Some(HealthState::Ready) => return Ok(0),
            Some(HealthState::Unhealthy) => return Ok(1),
            _ => {}
        }
        known = match events.next().await?.map(|event| event.kind) {
            Some(EventKind::Health { to, .. }) => Some(to),
            Some(EventKind::Missed { .. }) => client.health(handle).await?.state,
            Some(EventKind::Destroyed) => bail!("container {handle} was destroyed"),
            Some(_) => known,
            None => bail!("the server has ended"),
        };
    }
}

async fn until_over(client: &Client, handle: &Handle) -> Result<u8> {
    let mut events = client.events(&follow(handle)).await?;
    if client.info(handle).await?.state == "stopped" {
        return Ok(0);
    }
    loop {
        match events.next().await?.map(|event| event.kind) {
            Some(EventKind::Destroyed | EventKind::Stopped) => return Ok(0),
            Some(EventKind::Missed { .. }) => match client.info(handle).await {
                Err(Error::ContainerNotFound(_)) => return Ok(0),
                Ok(info) if info.state == "stopped" => return Ok(0),
                other => drop(other?),
            },
            Some(_) => {}
            None => bail!("the server has ended"),
        }
    }
}
