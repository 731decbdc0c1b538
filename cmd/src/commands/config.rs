//! `garden config`: what the server's flags come to, and why.

use anyhow::Result;
use clap::{ArgMatches, Args, Command};

use super::server::ServerArgs;
use super::server_guardian::reason;
use super::{print, print_json};
use crate::reach::Target;
use crate::settings::{self, Effective, Expanded};
use crate::table;

/// Show what the server's flags come to, and where each value is from
#[derive(Debug, Args)]
#[command(after_help = "Takes the flags of `garden server`. Examples:
  garden config --config /etc/garden.toml
  garden config --config config.ini --max-containers 100 --json")]
pub(crate) struct ConfigVerb {
    /// For programs
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
    #[arg(skip)]
    effective: Vec<Effective>,
}

impl ConfigVerb {
    /// Finds out where the values are from, which only the parsed command line knows.
    pub(crate) fn explain(
        &mut self,
        mut command: Command,
        matches: &ArgMatches,
        expanded: &Expanded,
    ) {
        command.build();
        if let Some((verb, given)) = matches.subcommand()
            && let Some(known) = command.find_subcommand(verb)
        {
            self.effective = settings::effective(known, given, expanded);
            self.effective.retain(|one| one.flag != "json");
            for one in &mut self.effective {
                one.note = reason(&one.flag);
            }
        }
    }
}

/// Runs the verb; returns the exit code.
///
/// # Errors
/// When a value cannot be used together with another.
pub(crate) fn run(target: &Target, args: &ConfigVerb) -> Result<u8> {
    args.server.check(target)?;
    if args.json {
        print_json(&args.effective)?;
        return Ok(0);
    }
    let set = args.effective.iter().filter(|one| one.source != "not set");
    let rows: Vec<_> = set
        .map(|one| {
            vec![
                one.flag.clone(),
                one.values.join(" "),
                one.source.to_owned(),
                match one.note {
                    "" => String::new(),
                    why => format!("does nothing: {why}"),
                },
            ]
        })
        .collect();
    print(&table::format(&["FLAG", "VALUE", "FROM", ""], &rows))?;
    Ok(0)
}
