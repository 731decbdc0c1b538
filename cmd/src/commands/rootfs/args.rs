//! Command lines as Go's `flag` package reads them, which GrootFS's callers count on.
//!
//! `-flag` and `--flag` are the same, values stand after `=` or in the next word, switches take
//! `=true` and `=false`, lists are repeated or separated by commas, and flags end at the first word
//! that is none: an id may start with a dash. Kept apart from the parser of the other verbs, whose
//! rules are different and whose start takes longer than some of these commands.

use std::ffi::OsString;

/// A flag.
pub(super) struct Flag {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) help: &'static str,
}

/// What a flag takes; the word stands for the value in help texts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Switch,
    Text(&'static str),
    Number(&'static str),
    List(&'static str),
}

/// A command line whose flags are known.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Parsed {
    values: Vec<(&'static str, String)>,
    /// What comes after the flags.
    pub(super) rest: Vec<String>,
}

/// Why a command line makes no sense, in Go's words.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Usage {
    Unknown(String),
    NeedsValue(String),
    BadValue {
        name: String,
        value: String,
    },
    /// Not wrong: help was asked for.
    Help,
}

impl Usage {
    pub(super) fn text(&self) -> String {
        match self {
            Self::Unknown(name) => format!("flag provided but not defined: -{name}"),
            Self::NeedsValue(name) => format!("flag needs an argument: -{name}"),
            Self::BadValue { name, value } => {
                format!("invalid value {value:?} for flag -{name}: parse error")
            }
            Self::Help => "help requested".to_owned(),
        }
    }
}

impl Parsed {
    /// Whether a flag is there, or a switch is on.
    pub(super) fn has(&self, name: &str) -> bool {
        let last = self.values.iter().rev().find(|(known, _)| *known == name);
        last.is_some_and(|(_, value)| value != "false")
    }

    /// The last value of a flag.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        let last = self.values.iter().rev().find(|(known, _)| *known == name);
        last.map(|(_, value)| value.as_str())
    }

    /// The last value of a number.
    pub(super) fn number(&self, name: &str) -> Option<i64> {
        self.text(name).and_then(|value| value.parse().ok())
    }

    /// All values of a list.
    pub(super) fn list(&self, name: &str) -> Vec<String> {
        let all = self.values.iter().filter(|(known, _)| *known == name);
        all.flat_map(|(_, value)| value.split(','))
            .filter(|value| !value.is_empty())
            .map(|value| value.trim().to_owned())
            .collect()
    }
}

/// Reads flags up to the first word that is none.
pub(super) fn parse(
    flags: &'static [Flag],
    words: impl IntoIterator<Item = OsString>,
) -> Result<Parsed, Usage> {
    let mut words = words.into_iter();
    let mut parsed = Parsed::default();
    while let Some(word) = words.next() {
        let word = word.to_string_lossy().into_owned();
        let name = word.strip_prefix("--").or_else(|| word.strip_prefix('-'));
        let name = match name {
            Some("") if word == "--" => break,
            Some(name) if !name.is_empty() => name,
            _ => {
                parsed.rest.push(word);
                break;
            }
        };
        let (name, inline) = match name.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (name, None),
        };
        let Some(flag) = flags.iter().find(|flag| flag.name == name) else {
            return Err(match name {
                "h" | "help" => Usage::Help,
                _ => Usage::Unknown(name.to_owned()),
            });
        };
        let value = match (flag.kind, inline) {
            (Kind::Switch, None) => "true".to_owned(),
            (_, Some(value)) => value,
            (_, None) => match words.next() {
                Some(value) => value.to_string_lossy().into_owned(),
                None => return Err(Usage::NeedsValue(name.to_owned())),
            },
        };
        parsed.values.push((flag.name, checked(flag, value)?));
    }
    let rest = words.map(|word| word.to_string_lossy().into_owned());
    parsed.rest.extend(rest);
    Ok(parsed)
}

fn checked(flag: &Flag, value: String) -> Result<String, Usage> {
    let bad = |value| Usage::BadValue {
        name: flag.name.to_owned(),
        value,
    };
    match flag.kind {
        Kind::Switch => match value.as_str() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok("true".to_owned()),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok("false".to_owned()),
            _ => Err(bad(value)),
        },
        Kind::Number(_) if value.parse::<i64>().is_err() => Err(bad(value)),
        _ => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: &[Flag] = &[
        Flag {
            name: "on",
            kind: Kind::Switch,
            help: "",
        },
        Flag {
            name: "text",
            kind: Kind::Text("T"),
            help: "",
        },
        Flag {
            name: "many",
            kind: Kind::List("M"),
            help: "",
        },
        Flag {
            name: "n",
            kind: Kind::Number("N"),
            help: "",
        },
    ];

    fn read(line: &str) -> Result<Parsed, Usage> {
        parse(FLAGS, line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn flags_are_gos() {
        let parsed = read("-on --text=a=b --many x,y -many z -n -5 image --text c").unwrap();
        assert!(parsed.has("on"));
        assert_eq!(parsed.text("text"), Some("a=b"));
        assert_eq!(parsed.list("many"), ["x", "y", "z"]);
        assert_eq!(parsed.number("n"), Some(-5));
        assert_eq!(parsed.rest, ["image", "--text", "c"]);
        assert_eq!(read("-- -on").unwrap().rest, ["-on"]);
        assert_eq!(read("-").unwrap().rest, ["-"]);
        assert!(!read("--on=false").unwrap().has("on"));
        assert!(!read("--on --on=0").unwrap().has("on"));
        assert!(!read("").unwrap().has("on"));
    }

    #[test]
    fn mistakes_are_told_in_gos_words() {
        let text = |line| read(line).unwrap_err().text();
        assert_eq!(text("--nope"), "flag provided but not defined: -nope");
        assert_eq!(text("--text"), "flag needs an argument: -text");
        assert_eq!(text("-n x"), "invalid value \"x\" for flag -n: parse error");
        assert_eq!(
            text("-on=x"),
            "invalid value \"x\" for flag -on: parse error"
        );
        assert_eq!(read("--help"), Err(Usage::Help));
        assert_eq!(read("-h"), Err(Usage::Help));
    }
}
