//! `garden rootfs`: root filesystems by exec, in GrootFS's words.
//!
//! Also reached through a link named `grootfs`, so that stock Guardian uses it as its image plugin
//! without knowing. Each command is one short process that works beside others on the same store;
//! what can wait is left to a process of its own ([`maintain`]).
//!
//! - [`args`], [`commands`], [`config`]: the command line and the YAML file.
//! - [`place`]: the store on disk as these commands see it: initialised or not, ids and paths.
//! - [`init`] (with [`backing`]), [`create`], [`delete`], [`stats`], [`clean`], [`list`]: GrootFS's.
//! - [`check`], and `ls` and `images` in [`list`]: our own.
//! - [`friendly`]: errors in the texts that people know.
//!
//! Habits that callers count on: what the user is to read goes to standard output, errors too, for
//! Guardian quotes it; standard error has log lines only; the exit code is 0 or 1. No runtime is
//! started here and nothing is probed that the command does not need: a container waits for it.

mod args;
mod backing;
mod check;
mod clean;
mod commands;
mod config;
mod create;
mod delete;
mod friendly;
mod init;
mod lager;
mod list;
mod maintain;
mod place;
mod stats;

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use args::Usage;
use commands::GLOBAL;
use config::Config;
use place::Place;

use super::print;

/// The name by which a link makes the whole program GrootFS.
const LINK: &str = "grootfs";

/// What a command knows beside its own flags.
struct Context {
    config: Config,
    place: Place,
}

/// The end of a command that has something else to say than its result.
#[derive(Debug)]
struct Failure {
    /// For the user.
    text: String,
    code: u8,
}

impl Failure {
    /// A failure.
    fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            code: 1,
        }
    }

    /// A failure of which everything has been said.
    fn silent() -> Self {
        Self::new("")
    }

    /// Nothing was done, and that is fine.
    fn harmless(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            code: 0,
        }
    }

    /// A failure of the store, in the words of its errors.
    fn of(error: &garden_rootfs::Error) -> Self {
        Self::new(friendly::plain(error))
    }
}

impl From<garden_rootfs::Error> for Failure {
    fn from(error: garden_rootfs::Error) -> Self {
        Self::of(&error)
    }
}

/// What the program's own command line says, if it is for us: the name that is shown, and the
/// words after it.
pub(crate) fn called(mut words: impl Iterator<Item = OsString>) -> Option<(String, Vec<OsString>)> {
    let program = words.next()?;
    if Path::new(&program).file_name() == Some(OsStr::new(LINK)) {
        return Some((LINK.to_owned(), words.collect()));
    }
    (words.next()? == "rootfs").then(|| ("garden rootfs".to_owned(), words.collect()))
}

/// `garden rootfs` behind flags of the whole program, which mean nothing to it.
#[derive(Debug, clap::Args)]
#[command(about = "Root filesystems without containers, as GrootFS makes them; see its own --help")]
#[command(disable_help_flag = true)]
pub(crate) struct RootfsArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    words: Vec<OsString>,
}

/// Runs a command line that the whole program's parser has seen.
pub(crate) fn run_after_flags(args: RootfsArgs) -> u8 {
    exit("garden rootfs", args.words)
}

/// Leaves what can wait in a store to a process of its own.
pub(crate) fn clear_up_later(store: &Path) {
    if let Ok(place) = Place::new(store) {
        let config = Config::default();
        maintain::leave_to_another(&Context { config, place }, std::process::Stdio::null());
    }
}

/// Runs a command line.
pub(crate) fn main(program: &str, words: Vec<OsString>) -> ExitCode {
    ExitCode::from(exit(program, words))
}

fn exit(program: &str, words: Vec<OsString>) -> u8 {
    // What whoever runs this left open is no business of processes that outlive it.
    garden_rootfs::keep_descriptors_from_children();
    let failure = match run(program, words) {
        Ok(()) => return 0,
        Err(failure) => failure,
    };
    if failure.text.is_empty() {
        return failure.code;
    }
    if failure.code != 0 {
        tracing::error!(error = failure.text, "failed");
    }
    match print(&format!("{}\n", failure.text.trim_end())) {
        Ok(()) => failure.code,
        Err(_) => 1,
    }
}

fn run(program: &str, words: Vec<OsString>) -> Result<(), Failure> {
    let show = |text: &str| print(text).map_err(|error| Failure::new(error.to_string()));
    let wrong = |usage: &Usage| {
        let text = usage.text();
        Failure::new(format!(
            "Incorrect Usage: {text}\n\nSee `{program} --help`."
        ))
    };
    let global = match args::parse(GLOBAL, words) {
        Err(Usage::Help) => return show(&commands::help(program)),
        Err(usage) => return Err(wrong(&usage)),
        Ok(global) => global,
    };
    if global.has("version") {
        return show(&format!(
            "{program} version {}\n",
            env!("CARGO_PKG_VERSION")
        ));
    }
    let (name, words) = match global.rest.split_first() {
        None => return show(&commands::help(program)),
        Some((name, words)) if matches!(name.as_str(), "help" | "h") => match words.first() {
            None => return show(&commands::help(program)),
            Some(name) => (name, &["--help".to_owned()][..]),
        },
        Some((name, words)) => (name, words),
    };
    let Some(command) = commands::find(name) else {
        return Err(Failure::new(format!(
            "there is no command `{name}`: see `{program} --help`"
        )));
    };
    let flags = match args::parse(command.flags, words.iter().map(OsString::from)) {
        Err(Usage::Help) => return show(&commands::command_help(program, command)),
        Err(usage) => return Err(wrong(&usage)),
        Ok(flags) => flags,
    };
    let mut config = Config::load(&global).map_err(Failure::new)?;
    let level = config.level().map_err(Failure::new)?;
    lager::start(level, config.log_file(), command.name).map_err(|error| {
        let file = config.log_file.display();
        Failure::new(format!("cannot write the log file {file}: {error}"))
    })?;
    config.take(&flags).map_err(Failure::new)?;
    let place = Place::new(&config.store).map_err(Failure::new)?;
    (command.run)(&Context { config, place }, &flags)
}

/// Refuses arguments of a command that takes none, or another number of them.
fn expect_args<const N: usize>(flags: &args::Parsed, usage: &str) -> Result<[String; N], Failure> {
    let given = flags.rest.clone();
    given
        .try_into()
        .map_err(|_| Failure::new(format!("invalid arguments - usage: {usage}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_link_counts() {
        let called =
            |words: &[&str]| called(words.iter().map(OsString::from)).map(|(name, _)| name);
        assert_eq!(
            called(&["/usr/bin/grootfs", "list"]).as_deref(),
            Some("grootfs")
        );
        assert_eq!(called(&["grootfs"]).as_deref(), Some("grootfs"));
        assert_eq!(
            called(&["garden", "rootfs"]).as_deref(),
            Some("garden rootfs")
        );
        assert_eq!(called(&["garden", "ls", "rootfs"]), None);
        assert_eq!(called(&["garden"]), None);
        assert_eq!(called(&[]), None);
    }
}
