//! Where a copy goes: docker's rules, on names alone.
//!
//! Called by the verb with what it has found at both ends; touches nothing. Part of these rules is
//! that a directory is copied *into* one that exists and *as* one that does not, that `/.` at the
//! end of a source means its content, and that a `/` at the end of a destination wants a directory.

use anyhow::{Result, bail};
use garden::model::Handle;

/// One side of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// A path in a container, absolute.
    Inside(Handle, String),
    /// A path of this host.
    Here(String),
    /// A tar on standard input or output.
    Stream,
}

impl End {
    /// Reads `NAME:PATH`, `PATH` or `-`. A path with a colon is one of this host when a `/` comes
    /// first.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text == "-" {
            return Ok(Self::Stream);
        }
        match text.split_once(':') {
            Some((name, path)) if !name.is_empty() && !name.contains('/') && name != "." => {
                if path.is_empty() {
                    return Err(format!("{text:?} names no path behind the colon"));
                }
                let handle = crate::values::handle(name).map_err(|error| error.to_string())?;
                let path = if path.starts_with('/') {
                    path.to_owned()
                } else {
                    format!("/{path}")
                };
                Ok(Self::Inside(handle, path))
            }
            _ if text.is_empty() => Err("a path is empty".to_owned()),
            _ => Ok(Self::Here(text.to_owned())),
        }
    }
}

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Missing,
    Directory,
    /// A file, or anything else that is no directory.
    Other,
}

/// A source, as its end knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    /// Its path without what only says how it is meant.
    pub(super) path: String,
    /// Its own name; empty for a root directory.
    pub(super) name: String,
    /// Whether only what is in it is copied.
    pub(super) content: bool,
    /// Whether it must be a directory, and is looked up through links.
    pub(super) directory: bool,
}

impl Source {
    /// Takes a path apart.
    pub(super) fn new(text: &str) -> Self {
        let directory = text.ends_with('/') || text.ends_with("/.") || matches!(text, "." | "..");
        let content = text.ends_with("/.") || matches!(text, "." | "..") || text.ends_with("/..");
        let mut path = text;
        while let Some(shorter) = path
            .strip_suffix("/.")
            .or_else(|| path.strip_suffix('/').filter(|rest| !rest.is_empty()))
        {
            path = shorter;
        }
        let path = if path.is_empty() { "/" } else { path };
        let name = path.rsplit('/').next().unwrap_or_default();
        let name = if matches!(name, "." | "..") { "" } else { name };
        Self {
            path: path.to_owned(),
            name: name.to_owned(),
            content: content || name.is_empty(),
            directory: directory || name.is_empty(),
        }
    }
}

/// Where it goes: a directory that exists, and the name in it; without one, into the directory itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) directory: String,
    pub(super) name: Option<String>,
}

/// Applies the rules. `found` is what is at the destination.
pub(super) fn place(
    source: &Source,
    is_directory: bool,
    destination: &str,
    found: Found,
) -> Result<Place> {
    let as_named = || -> Result<Place> {
        let bare = destination.trim_end_matches('/');
        let (parent, name) = match bare.rsplit_once('/') {
            Some(("", name)) => ("/", name),
            Some((parent, name)) => (parent, name),
            None => (".", bare),
        };
        if matches!(name, "" | "." | "..") {
            bail!("{destination} is no directory");
        }
        Ok(Place {
            directory: parent.to_owned(),
            name: Some(name.to_owned()),
        })
    };
    match found {
        Found::Directory if is_directory && source.content => Ok(Place {
            directory: destination.to_owned(),
            name: None,
        }),
        Found::Directory => Ok(Place {
            directory: destination.to_owned(),
            name: Some(source.name.clone()),
        }),
        Found::Other if is_directory => {
            bail!(
                "cannot copy the directory {} over {destination}, which is none",
                source.path
            )
        }
        Found::Other | Found::Missing if !is_directory && destination.ends_with('/') => {
            bail!("{destination} is no directory: make it first, or leave the / out")
        }
        Found::Other | Found::Missing => as_named(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends() {
        let inside = |name: &str, path: &str| {
            Ok(End::Inside(
                crate::values::handle(name).unwrap(),
                path.to_owned(),
            ))
        };
        let here = |path: &str| Ok(End::Here(path.to_owned()));
        assert_eq!(End::parse("web:/a:b"), inside("web", "/a:b"));
        assert_eq!(End::parse("web:a"), inside("web", "/a"));
        assert_eq!(End::parse("./web:a"), here("./web:a"));
        assert_eq!(End::parse("/x/web:a"), here("/x/web:a"));
        assert_eq!(End::parse("a"), here("a"));
        assert_eq!(End::parse("-"), Ok(End::Stream));
        assert!(End::parse("web:").is_err());
        assert!(End::parse("").is_err());
    }

    #[test]
    fn sources() {
        for (text, path, name, content, directory) in [
            ("/a/b", "/a/b", "b", false, false),
            ("/a/b/", "/a/b", "b", false, true),
            ("/a/b/.", "/a/b", "b", true, true),
            ("a", "a", "a", false, false),
            (".", ".", "", true, true),
            ("a/..", "a/..", "", true, true),
            ("/", "/", "", true, true),
            ("/.", "/", "", true, true),
        ] {
            let expected = Source {
                path: path.to_owned(),
                name: name.to_owned(),
                content,
                directory,
            };
            assert_eq!(Source::new(text), expected, "{text}");
        }
    }

    #[test]
    fn dockers_table() {
        use Found::{Directory, Missing, Other};
        for (source, is_directory, destination, found, expected) in [
            ("/a/f", false, "/x", Missing, Some(("/", Some("x")))),
            ("/a/f", false, "x", Missing, Some((".", Some("x")))),
            ("/a/f", false, "/y/x/", Missing, None),
            ("/a/f", false, "/y/x", Other, Some(("/y", Some("x")))),
            ("/a/f", false, "/y/x/", Other, None),
            ("/a/f", false, "/y", Directory, Some(("/y", Some("f")))),
            ("/a/d", true, "/y/x", Missing, Some(("/y", Some("x")))),
            ("/a/d", true, "/y/x/", Missing, Some(("/y", Some("x")))),
            ("/a/d/.", true, "/y/x", Missing, Some(("/y", Some("x")))),
            ("/a/d", true, "/y/x", Other, None),
            ("/a/d", true, "/y", Directory, Some(("/y", Some("d")))),
            ("/a/d/", true, "/y/", Directory, Some(("/y/", Some("d")))),
            ("/a/d/.", true, "/y", Directory, Some(("/y", None))),
            ("/a/d", true, "/y/..", Missing, None),
        ] {
            let expected = expected.map(|(directory, name)| Place {
                directory: directory.to_owned(),
                name: name.map(str::to_owned),
            });
            let placed = place(&Source::new(source), is_directory, destination, found);
            assert_eq!(
                placed.ok(),
                expected,
                "{source} to {destination}, {found:?}"
            );
        }
    }
}
