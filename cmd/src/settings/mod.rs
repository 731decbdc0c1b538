//! Configuration files of the server: where the value of each flag comes from.
//!
//! A file holds flags of `garden server` by their names, in Guardian's ini form (section `[server]`,
//! lists by repeated keys) or as TOML. It is read before the command line is parsed and becomes a part
//! of it, so that a value means the same wherever it is written and is checked in one place. What the
//! command line says about a flag wins over everything the file says about it; then come the
//! environment and the defaults.
//!
//! Used by `main` for the verbs in [`VERBS`], and by `garden config`, which shows the outcome. Values
//! of flags that carry secrets are never shown; there are none so far.

mod file;
mod ini;
mod source;

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{ArgAction, Command};

pub(crate) use file::Format;
pub(crate) use source::{Effective, effective};

use file::Entry;

/// The verbs whose flags may come from a file.
pub(crate) const VERBS: [&str; 4] = ["server", "config", "setup", "cleanup"];
/// The flag that names the file.
const FLAG: &str = "config";
const VARIABLE: &str = "GARDEN_CONFIG";

/// A command line with what a file adds to it.
#[derive(Debug, Default)]
pub(crate) struct Expanded {
    /// All of it.
    pub(crate) words: Vec<OsString>,
    /// The flags whose values come from it, by clap's ids.
    pub(crate) from_file: Vec<String>,
}

/// Adds what the configuration file says, if the command line or the environment names one.
///
/// # Errors
/// When the file cannot be read or understood, or names a flag that there is not. A command line
/// that makes no sense is left to the parser that comes after this.
pub(crate) fn expand(command: &Command, words: Vec<OsString>) -> Result<Expanded> {
    let plain = |words| Expanded {
        words,
        ..Expanded::default()
    };
    // Every other verb is parsed once, and somebody waits for it.
    if !words
        .iter()
        .any(|word| VERBS.iter().any(|verb| word == verb))
    {
        return Ok(plain(words));
    }
    let Ok(matches) = command.clone().try_get_matches_from(&words) else {
        // With its own message about the command line as it was typed.
        return Ok(plain(words));
    };
    let Some((verb, given)) = matches.subcommand() else {
        return Ok(plain(words));
    };
    if !VERBS.contains(&verb) {
        return Ok(plain(words));
    }
    let Some(path) = given.get_one::<PathBuf>(FLAG).cloned() else {
        return Ok(plain(words));
    };
    let step = || format!("the configuration file {}", path.display());
    let text = std::fs::read_to_string(&path).with_context(step)?;
    let entries = file::read(&text, Format::of(&path)).with_context(step)?;
    let mut command = command.clone();
    command.build();
    let known = command
        .find_subcommand(verb)
        .context("a verb without a command")?;
    let mut added = Vec::new();
    let mut from_file = Vec::new();
    for entry in entries {
        let (id, word) = word(known, &entry).with_context(step)?;
        let typed = given
            .value_source(&id)
            .is_some_and(|source| source == clap::parser::ValueSource::CommandLine);
        if typed {
            continue;
        }
        if !from_file.contains(&id) {
            from_file.push(id);
        }
        added.extend(word);
    }
    let at = words
        .iter()
        .position(|word| word == verb)
        .map_or(words.len(), |at| at + 1);
    let mut all = words;
    all.splice(at..at, added);
    Ok(Expanded {
        words: all,
        from_file,
    })
}

/// The flag of an entry, and its word on a command line: none for a switch that is off.
fn word(command: &Command, entry: &Entry) -> Result<(String, Option<OsString>)> {
    let named = |arg: &&clap::Arg| {
        let longs = arg.get_long().into_iter();
        let aliases = arg.get_all_aliases().unwrap_or_default();
        longs.chain(aliases).any(|long| long == entry.key)
    };
    let arg = command
        .get_arguments()
        .find(named)
        .filter(|arg| arg.get_id() != FLAG);
    let Some(arg) = arg else {
        anyhow::bail!(
            "{}: there is no flag --{}: `garden {} --help` names them",
            entry.place,
            entry.key,
            command.get_name()
        );
    };
    let id = arg.get_id().to_string();
    let switch = !matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
    if !switch {
        return Ok((id, Some(format!("--{}={}", entry.key, entry.value).into())));
    }
    match entry.value.as_str() {
        "true" => Ok((id, Some(format!("--{}", entry.key).into()))),
        "false" => Ok((id, None)),
        other => anyhow::bail!(
            "{}: {} is on or off: write true or false, not {other:?}",
            entry.place,
            entry.key
        ),
    }
}

/// The flag of the file itself, for the verbs that have it.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct ConfigArgs {
    /// File with more flags: TOML, or Guardian's ini with a section [server]
    #[arg(long, env = VARIABLE, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use clap::{Arg, ArgAction};

    use super::*;

    fn command() -> Command {
        let config = Arg::new(FLAG)
            .long(FLAG)
            .value_parser(clap::value_parser!(PathBuf));
        let server = Command::new("server")
            .arg(config)
            .arg(
                Arg::new("default_image")
                    .long("default-image")
                    .visible_alias("default-rootfs"),
            )
            .arg(Arg::new("dns").long("dns-server").action(ArgAction::Append))
            .arg(
                Arg::new("sync")
                    .long("sync-unmount")
                    .action(ArgAction::SetTrue),
            );
        Command::new("garden").subcommand(server)
    }

    fn expanded(text: &str, suffix: &str, words: &[&str]) -> Result<Vec<String>> {
        let mut file = tempfile::Builder::new().suffix(suffix).tempfile()?;
        file.write_all(text.as_bytes())?;
        let path = file.path().to_string_lossy().into_owned();
        let mut line = vec!["garden", "server", "--config", &path];
        line.extend(words);
        let expanded = expand(&command(), line.iter().map(OsString::from).collect())?;
        let text = |word: &OsString| word.to_string_lossy().replace(&path, "FILE");
        Ok(expanded.words.iter().map(text).collect())
    }

    #[test]
    fn a_file_becomes_flags_and_the_command_line_wins() {
        let ini = "[server]\n default-rootfs = /a b.tar\ndns-server = 1.1.1.1\ndns-server = 2.2.2.2\n\
                   sync-unmount = true\n";
        let expected = [
            "garden",
            "server",
            "--default-rootfs=/a b.tar",
            "--dns-server=1.1.1.1",
            "--dns-server=2.2.2.2",
            "--sync-unmount",
            "--config",
            "FILE",
        ];
        assert_eq!(expanded(ini, ".ini", &[]).unwrap(), expected);
        let toml = "default-rootfs = '/a b.tar'\ndns-server = ['1.1.1.1', '2.2.2.2']\nsync-unmount = true\n";
        assert_eq!(expanded(toml, ".toml", &[]).unwrap(), expected);
        let typed = expanded(
            ini,
            "",
            &["--dns-server", "3.3.3.3", "--default-image", "x"],
        )
        .unwrap();
        assert!(!typed.iter().any(|word| word.contains("1.1.1.1")));
        assert!(
            !typed.iter().any(|word| word.contains("/a b.tar")),
            "by its other name: {typed:?}"
        );
    }

    #[test]
    fn what_no_flag_is_called_is_refused() {
        for (text, words) in [
            ("[server]\nnothing = 1\n", "--nothing"),
            ("[server]\nconfig = 1\n", "--config"),
            ("[server]\nsync-unmount = maybe\n", "true or false"),
        ] {
            let error = format!("{:#}", expanded(text, "", &[]).unwrap_err());
            assert!(error.contains(words) && error.contains("line 2"), "{error}");
        }
        assert!(expanded("", ".ini", &[]).is_ok());
        let missing = ["garden", "server", "--config", "/nowhere"].map(OsString::from);
        assert!(expand(&command(), missing.into()).is_err());
    }

    #[test]
    fn a_switch_that_is_off_is_no_word() {
        let words = expanded("sync-unmount = false\n", ".toml", &[]).unwrap();
        assert_eq!(words.len(), 4, "{words:?}");
    }
}
