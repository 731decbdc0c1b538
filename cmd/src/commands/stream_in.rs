//! `garden stream-in`: put files into a container, as a tar on standard input.

use anyhow::Result;
use clap::Args;
use garden::model::Handle;

use crate::reach::Target;
use crate::values;

/// Unpack a tar from standard input into a container
#[derive(Debug, Args)]
#[command(after_help = "Example:
  tar -c app | garden stream-in web /home/vcap --user vcap")]
pub(crate) struct StreamInArgs {
    /// The container
    #[arg(value_name = "NAME", value_parser = values::handle)]
    name: Handle,
    /// Directory inside it, made when missing
    #[arg(value_name = "DIR")]
    destination: String,
    /// Who owns the files [default: root]
    #[arg(long, short, value_name = "USER", default_value = "")]
    user: String,
}

/// Sends it.
pub(crate) async fn run(target: &Target, args: &StreamInArgs) -> Result<u8> {
    let client = target.server().await?;
    let tar = tokio::io::stdin();
    client
        .stream_in(&args.name, &args.user, &args.destination, tar)
        .await?;
    Ok(0)
}
