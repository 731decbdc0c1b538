//! `garden attach`: joins a process that runs, or learns how it ended.

use anyhow::Result;
use clap::Args;
use garden::client::Wanted;
use garden::model::{Handle, ProcessId};

use crate::reach::Target;
use crate::streams::Followed;
use crate::{streams, values};

/// Join a process of a container; interrupting leaves it running
#[derive(Debug, Args)]
#[command(after_help = "Ctrl-P Ctrl-Q leaves a process with a terminal.

Examples:
  garden attach web
  garden attach web $(garden exec -d web sleep 1)")]
pub(crate) struct AttachArgs {
    /// The container
    #[arg(value_name = "NAME", value_parser = values::handle)]
    name: Handle,
    /// The process, as `garden ps` lists it
    #[arg(value_name = "ID", value_parser = values::process_id, default_value = super::MAIN)]
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
        detach: true,
    };
    match streams::follow(process, how, streams::interrupted()).await? {
        Followed::Ended(code) => Ok(code),
        Followed::Detached => {
            streams::say_detached(&args.name, &args.process);
            Ok(0)
        }
    }
}
