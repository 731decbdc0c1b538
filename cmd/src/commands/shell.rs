//! `garden shell`: a shell in a container, whichever it has.

use anyhow::{Result, bail};
use clap::Args;
use garden::client::Wanted;
use garden::error::Error;
use garden::model::{Handle, ProcessSpec};

use super::exec;
use crate::reach::Target;
use crate::{terminal, values};

/// What is tried, in this order; the first that is there is taken.
const SHELLS: [&str; 3] = ["/bin/bash", "/bin/sh", "/bin/ash"];

/// Open a shell in a container, on a terminal if this is one
#[derive(Debug, Args)]
#[command(
    after_help = "Takes bash where there is one, else sh. Ctrl-P Ctrl-Q leaves it running.

Examples:
  garden shell web
  echo 'id -u' | garden shell web --user vcap"
)]
pub(crate) struct ShellArgs {
    /// The container
    #[arg(value_name = "NAME", value_parser = values::handle)]
    name: Handle,
    /// User: name, uid, uid:gid or name:group [default: root]
    #[arg(long, short, value_name = "USER")]
    user: Option<String>,
    /// This shell and no other
    #[arg(long, value_name = "PATH")]
    shell: Option<String>,
}

/// Opens it; its exit code is this command's.
pub(crate) async fn run(target: &Target, args: ShellArgs) -> Result<u8> {
    let client = target.server().await?;
    let watched = terminal::is_input();
    let term = std::env::var("TERM").ok().filter(|_| watched);
    let wanted: Vec<&str> = match &args.shell {
        Some(shell) => vec![shell],
        None => SHELLS.to_vec(),
    };
    for shell in &wanted {
        let spec = ProcessSpec {
            path: (*shell).to_owned(),
            env: term.iter().map(|term| format!("TERM={term}")).collect(),
            user: args.user.clone(),
            tty: watched.then(|| terminal::size().unwrap_or_default()),
            ..ProcessSpec::default()
        };
        match client.run(&args.name, &spec, Wanted::ALL).await {
            Ok(process) => return exec::follow(&args.name, process, watched).await,
            Err(Error::ExecutableNotFound(_)) if wanted.len() > 1 => {}
            Err(error) => return Err(error.into()),
        }
    }
    bail!(
        "there is no shell in {}: look at it with a sidecar that has one, `garden pea run -it {} \
         IMAGE sh`",
        args.name,
        args.name
    )
}
