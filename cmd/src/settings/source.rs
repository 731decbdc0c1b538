//! What a command line comes to, and why: each flag with its value and where that is from.

use clap::parser::ValueSource;
use clap::{ArgMatches, Command};
use serde::Serialize;

use super::Expanded;

/// A flag with its value.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Effective {
    /// Its long name.
    pub(crate) flag: String,
    /// Its values; none of a flag that is not given and has no default.
    pub(crate) values: Vec<String>,
    /// Where they are from: `command line`, `environment`, `file`, `default`, or `not set`.
    pub(crate) source: &'static str,
    /// Why it does nothing, if so.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(crate) note: &'static str,
}

/// All flags of a verb, by name.
pub(crate) fn effective(
    command: &Command,
    matches: &ArgMatches,
    expanded: &Expanded,
) -> Vec<Effective> {
    let mut all: Vec<_> = command
        .get_arguments()
        .filter_map(|arg| {
            let flag = arg.get_long()?;
            if ["help", "version"].contains(&flag) {
                return None;
            }
            let id = arg.get_id().as_str();
            let raw = matches.try_get_raw(id).ok().flatten();
            let values = raw.into_iter().flatten();
            Some(Effective {
                flag: flag.to_owned(),
                values: values
                    .map(|value| value.to_string_lossy().into_owned())
                    .collect(),
                source: match matches.value_source(id) {
                    Some(_) if expanded.from_file.iter().any(|known| known == id) => "file",
                    Some(ValueSource::CommandLine) => "command line",
                    Some(ValueSource::EnvVariable) => "environment",
                    Some(_) => "default",
                    None => "not set",
                },
                note: "",
            })
        })
        .collect();
    all.sort_by(|one, other| one.flag.cmp(&other.flag));
    all
}
