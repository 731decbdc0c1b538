//! `garden attach`: joins a process that runs, or learns how it ended.

use anyhow::Result;
use clap::Args;
use garden::client::Wanted;
use garden::model::{Handle, ProcessId};

use crate::reach::Target;
use crate::{streams, values};

/// Join a process of a container; interrupting leaves it running
#[derive(Debug, Args)]
#[command(after_help = "Example:
  garden attach web $(garden exec web --detach -- /app/worker)")]
pub(crate) struct AttachArgs {
    /// The container
    #[arg(value_name = "NAME", value_parser = values::handle)]
    name: Handle,
    /// The process, as `garden inspect` lists it
    #[arg(value_name = "ID", value_parser = values::process_id)]
    process: ProcessId,
    /// Do not pass standard input on
    #[arg(long)]
    no_stdin: bool,
    /// It has a terminal, which is to follow the size of this one
    #[arg(long, short)]
    tty: bool,
}

/// Follows it to its end; its exit code is this command's.
pub(crate) async fn run(target: &Target, args: AttachArgs) -> Result<u8> {
    let client = target.server().await?;
    let process = client
        .attach(&args.name, &args.process, Wanted::ALL)
        .await?;
    let how = streams::How {
        input: !args.no_stdin,
        terminal: args.tty,
    };
    streams::follow(process, how, streams::interrupted()).await
}
