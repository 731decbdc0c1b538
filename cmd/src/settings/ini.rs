//! Guardian's configuration files: ini with one section, `[server]`, as its flag parser reads them.
//!
//! `key = value` or `key: value`; comments from `;` or `#` at the start of a line; a value in double
//! quotes may hold Go's escapes; a key that stands alone is a switch that is on. Keys repeat for
//! lists. Nothing else is guessed: a line that is none of these is an error with its number.

use anyhow::{Result, bail};

use super::file::Entry;

const SECTION: &str = "server";

/// The entries of a file.
pub(super) fn read(text: &str) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut section = String::new();
    for (number, line) in text.lines().enumerate() {
        let place = format!("line {}", number + 1);
        let line = line.trim();
        if line.is_empty() || line.starts_with([';', '#']) {
            continue;
        }
        if let Some(rest) = line.strip_prefix('[') {
            let Some(name) = rest.strip_suffix(']') else {
                bail!("{place}: a section is [NAME], and this is {line:?}");
            };
            name.trim().clone_into(&mut section);
            if !section.eq_ignore_ascii_case(SECTION) {
                bail!("{place}: there is only the section [{SECTION}], and no [{section}]");
            }
            continue;
        }
        if section.is_empty() {
            bail!("{place}: flags come after the line [{SECTION}]");
        }
        let (key, value) = match line.split_once(['=', ':']) {
            Some((key, value)) => (key.trim(), value.trim()),
            None => (line, "true"),
        };
        if key.is_empty() || key.contains(char::is_whitespace) {
            bail!("{place}: {key:?} is not the name of a flag");
        }
        entries.push(Entry {
            key: key.to_owned(),
            value: unquote(value, &place)?,
            place,
        });
    }
    Ok(entries)
}

/// A value without its quotes.
fn unquote(value: &str, place: &str) -> Result<String> {
    let Some(rest) = value.strip_prefix('"') else {
        return Ok(value.to_owned());
    };
    let Some(inner) = rest.strip_suffix('"') else {
        bail!("{place}: the quote at the start of the value has no end");
    };
    let mut plain = String::with_capacity(inner.len());
    let mut characters = inner.chars();
    while let Some(character) = characters.next() {
        let plainly = match character {
            '\\' => match characters.next() {
                Some('n') => '\n',
                Some('t') => '\t',
                Some(same @ ('"' | '\\')) => same,
                other => bail!("{place}: \\{} means nothing here", other.unwrap_or(' ')),
            },
            '"' => bail!("{place}: a quote inside a value is written \\\""),
            other => other,
        };
        plain.push(plainly);
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        let entries = read(text).unwrap();
        entries
            .into_iter()
            .map(|entry| (entry.key, entry.value))
            .collect()
    }

    #[test]
    fn as_guardian_reads_them() {
        let text = "; a comment\n# another\n\n[server]\nbind-socket = /a=b.sock\n\
                    tag:x\nquoted = \"a \\\"b\\\" \\\\ ;c\"\nskip-setup\ndeny-network = 1.0.0.0/8\n\
                    deny-network = 2.0.0.0/8\nempty =\n";
        let expected = [
            ("bind-socket", "/a=b.sock"),
            ("tag", "x"),
            ("quoted", "a \"b\" \\ ;c"),
            ("skip-setup", "true"),
            ("deny-network", "1.0.0.0/8"),
            ("deny-network", "2.0.0.0/8"),
            ("empty", ""),
        ];
        let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(pairs(text), expected);
        assert!(pairs("[SERVER]\n").is_empty());
    }

    #[test]
    fn what_is_none_of_it_has_a_line() {
        for (text, line) in [
            ("a = 1\n", "line 1"),
            ("[server]\n[other]\n", "line 2"),
            ("[server\n", "line 1"),
            ("[server]\n= 1\n", "line 2"),
            ("[server]\nx = \"open\n", "line 2"),
            ("[server]\nx = \"a\"b\"\n", "line 2"),
            ("[server]\nx = \"\\q\"\n", "line 2"),
            ("[server]\ntwo words = 1\n", "line 2"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(line), "{text:?}: {error}");
        }
    }
}
