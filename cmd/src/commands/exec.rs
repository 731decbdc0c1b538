//! `garden exec`: a process in a container that exists.

use anyhow::Result;
use clap::Args;
use garden::client::Wanted;
use garden::model::{Handle, ProcessSpec, Signal};

use super::print;
use super::process::ProcessArgs;
use crate::reach::Target;
use crate::streams::Followed;
use crate::{streams, values};

/// Run a command in a container that exists
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  garden exec web ps
  garden exec -it web sh -c 'stty size'
  garden exec web --user vcap -- sh -c 'id; pwd'
  garden exec -d web sleep 1000")]
pub(crate) struct ExecArgs {
    /// The container
    #[arg(value_name = "NAME", value_parser = values::handle)]
    name: Handle,
    /// Environment of the process; repeatable
    #[arg(long, short, value_name = "K[=V]", value_parser = values::environment)]
    env: Vec<String>,
    #[command(flatten)]
    process: ProcessArgs,
    /// Print the process's name and leave it running
    #[arg(long, short)]
    detach: bool,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Runs it; an interrupted command ends its process, the detach keys leave it running.
pub(crate) async fn run(target: &Target, args: ExecArgs) -> Result<u8> {
    let client = target.server().await?;
    let spec = ProcessSpec {
        env: args.env,
        ..args.process.spec(&args.command)
    };
    if args.detach {
        let process = client.run(&args.name, &spec, Wanted::NONE).await?;
        print(&format!("{}\n", process.id))?;
        return Ok(0);
    }
    let process = client.run(&args.name, &spec, Wanted::ALL).await?;
    follow(&args.name, process, args.process.tty).await
}

/// Follows a process to its end. An interruption kills it, and waits for that to be so.
pub(crate) async fn follow(
    container: &Handle,
    process: garden::client::Process,
    terminal: bool,
) -> Result<u8> {
    let (id, input) = (process.id.clone(), process.input());
    let kill = async move {
        let code = streams::interrupted().await;
        input.signal(Signal::Kill).await;
        // The signal is on its way when the frame is; its end is not waited for much longer.
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        code
    };
    let how = streams::How {
        input: true,
        terminal,
        detach: true,
    };
    match streams::follow(process, how, kill).await? {
        Followed::Ended(code) => Ok(code),
        Followed::Detached => {
            streams::say_detached(container, &id);
            Ok(0)
        }
    }
}
