//! `garden stream-out`: get files out of a container, as a tar on standard output.

use anyhow::{Context as _, Result};
use clap::Args;
use garden::model::Handle;
use tokio::io::AsyncWriteExt as _;

use crate::reach::Target;
use crate::values;

/// Pack files of a container into a tar on standard output
#[derive(Debug, Args)]
#[command(after_help = "Example:
  garden stream-out web /home/vcap/app/ --user vcap | tar -x")]
pub(crate) struct StreamOutArgs {
    /// The container
    #[arg(value_name = "NAME", value_parser = values::handle)]
    name: Handle,
    /// File or directory inside it; with a / at its end: the directory's content
    #[arg(value_name = "PATH")]
    source: String,
    /// Who reads the files [default: root]
    #[arg(long, short, value_name = "USER", default_value = "")]
    user: String,
}

/// Receives it.
pub(crate) async fn run(target: &Target, args: &StreamOutArgs) -> Result<u8> {
    let client = target.server().await?;
    let tar = client.stream_out(&args.name, &args.user, &args.source);
    let mut tar = tokio::io::BufReader::with_capacity(256 << 10, tar.await?);
    let mut stdout = tokio::io::stdout();
    let copied = match tokio::io::copy_buf(&mut tar, &mut stdout).await {
        Ok(_) => stdout.flush().await,
        Err(error) => Err(error),
    };
    match copied {
        // `garden stream-out ... | tar -t | head -1` is no failure.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(0),
        copied => {
            copied.with_context(|| {
                format!(
                    "the stream of {} was cut short: see the server's log",
                    args.source
                )
            })?;
            Ok(0)
        }
    }
}
