//! `garden teardown`: what is left to clean up behind what has ended.

use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};

use super::{print, print_json};
use crate::reach::Target;
use crate::table;

/// Look at the cleaning up behind containers and peas
#[derive(Debug, Subcommand)]
pub(crate) enum TeardownVerb {
    Ls(LsArgs),
    Wait(WaitArgs),
}

/// List what is left to clean up
#[derive(Debug, Args)]
#[command(after_help = "Example:
  garden teardown ls")]
pub(crate) struct LsArgs {
    /// For programs
    #[arg(long)]
    json: bool,
}

/// Wait until nothing is left to clean up; exit code 1 when it takes too long
#[derive(Debug, Args)]
#[command(after_help = "Example:
  garden teardown wait --timeout 30")]
pub(crate) struct WaitArgs {
    /// Seconds
    #[arg(long, default_value_t = 60)]
    timeout: u64,
}

/// Does it.
pub(crate) async fn run(target: &Target, verb: &TeardownVerb) -> Result<u8> {
    let client = target.server().await?;
    match verb {
        TeardownVerb::Wait(args) => {
            let left = client
                .teardown_wait(Duration::from_secs(args.timeout))
                .await?;
            Ok(u8::from(left.depth > 0))
        }
        TeardownVerb::Ls(args) => {
            let status = client.teardown().await?;
            if args.json {
                print_json(&status)?;
                return Ok(0);
            }
            let rows: Vec<_> = status
                .jobs
                .iter()
                .map(|job| {
                    vec![
                        job.container.clone(),
                        job.pea.clone().unwrap_or_else(|| "-".to_owned()),
                        if job.stuck {
                            format!("{} (stuck)", job.stage)
                        } else {
                            job.stage.clone()
                        },
                        table::age(job.age_ms),
                        job.attempts.to_string(),
                        job.last_error.clone().unwrap_or_default(),
                    ]
                })
                .collect();
            let heading = ["CONTAINER", "PEA", "STAGE", "AGE", "FAILURES", "LAST ERROR"];
            print(&table::format(&heading, &rows))?;
            Ok(0)
        }
    }
}
