//! Configuration files, whatever their form: a list of keys and values, with where they stand.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::ini;

/// A flag and a value of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// The long name of the flag.
    pub(super) key: String,
    /// Its value, as on a command line; of a switch `true` or `false`.
    pub(super) value: String,
    /// Where it stands, for messages.
    pub(super) place: String,
}

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Guardian's.
    Ini,
    /// Ours.
    Toml,
}

impl Format {
    /// By its name: TOML ends in `.toml`, everything else is ini.
    pub(crate) fn of(path: &Path) -> Self {
        match path.extension().is_some_and(|end| end == "toml") {
            true => Self::Toml,
            false => Self::Ini,
        }
    }
}

/// The entries of a file, in their order.
pub(super) fn read(text: &str, format: Format) -> Result<Vec<Entry>> {
    match format {
        Format::Ini => ini::read(text),
        Format::Toml => toml(text),
    }
}

/// A table of strings, numbers, booleans, and lists of them.
fn toml(text: &str) -> Result<Vec<Entry>> {
    let table: BTreeMap<String, toml::Spanned<toml::Value>> =
        toml::from_str(text).context("it is not TOML")?;
    let mut keys: Vec<_> = table.into_iter().collect();
    keys.sort_by_key(|(_, value)| value.span().start);
    let mut entries = Vec::new();
    for (key, value) in keys {
        let before = text.get(..value.span().start).unwrap_or_default();
        let place = format!("line {}", before.matches('\n').count() + 1);
        let values = match value.into_inner() {
            toml::Value::Array(values) => values,
            one => vec![one],
        };
        for value in values {
            let value = match value {
                toml::Value::String(text) => text,
                toml::Value::Integer(number) => number.to_string(),
                toml::Value::Float(number) => number.to_string(),
                toml::Value::Boolean(on) => on.to_string(),
                other => bail!(
                    "{place}: {key} is a {}: give a text, a number, true, false, or a list of them",
                    other.type_str()
                ),
            };
            entries.push(Entry {
                key: key.clone(),
                value,
                place: place.clone(),
            });
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toml_has_lists_and_places() {
        let text = "# ours\nb = [1, 'two']\na = true\n";
        let entries = read(text, Format::Toml).unwrap();
        let shown: Vec<_> = entries
            .iter()
            .map(|entry| format!("{} {}={}", entry.place, entry.key, entry.value))
            .collect();
        assert_eq!(shown, ["line 2 b=1", "line 2 b=two", "line 3 a=true"]);
        for wrong in [
            "a = ",
            "[section]\na = 1\n",
            "a = 1979-05-27\n",
            "a = [[1]]\n",
        ] {
            assert!(read(wrong, Format::Toml).is_err(), "{wrong}");
        }
        assert_eq!(Format::of(Path::new("/x/garden.toml")), Format::Toml);
        assert_eq!(Format::of(Path::new("/x/config.ini")), Format::Ini);
    }
}
