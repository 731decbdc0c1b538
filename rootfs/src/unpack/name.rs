//! Names inside a layer.
//!
//! Used by everything that unpacks. A name is made once from foreign bytes and trusted afterwards:
//! it is relative, has no `.`, `..`, empty part or NUL byte, and keeps the limits. It says where
//! something lies; only openat2 decides whether the way there stays inside.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Limits;
use crate::error::Rule;

/// The longest part of a name that Linux file systems take, in bytes.
const PART: usize = 255;

/// A clean relative name; empty for the root. In records it is text, with `%` and two digits for
/// each byte that is not part of a character.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Name(Vec<u8>);

impl From<Name> for String {
    fn from(name: Name) -> Self {
        let mut text = String::new();
        for chunk in name.0.utf8_chunks() {
            text.push_str(&chunk.valid().replace('%', "%25"));
            for byte in chunk.invalid() {
                text.push_str(&format!("%{byte:02x}"));
            }
        }
        text
    }
}

impl TryFrom<String> for Name {
    type Error = Rule;

    fn try_from(text: String) -> Result<Self, Rule> {
        let mut parts = text.split('%');
        let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
        for part in parts {
            let digits = part.get(..2).ok_or(Rule::Name)?;
            bytes.push(u8::from_str_radix(digits, 16).map_err(|_| Rule::Name)?);
            bytes.extend_from_slice(&part.as_bytes()[2..]);
        }
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        Self::known(bytes).ok_or(Rule::Name)
    }
}

impl Name {
    /// Reads a name of an archive. `/` and `./` in front and `/` at the end are dropped: the root
    /// of an image is the layer's.
    pub(crate) fn parse(bytes: &[u8], limits: &Limits) -> Result<Self, Rule> {
        if bytes.is_empty() || bytes.contains(&0) {
            return Err(Rule::Name);
        }
        if bytes.len() > limits.name {
            return Err(Rule::Length(limits.name));
        }
        let mut clean = Vec::with_capacity(bytes.len());
        let mut depth = 0;
        for part in bytes.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => continue,
                b".." => return Err(Rule::Parent),
                part if part.len() > PART => return Err(Rule::Length(PART)),
                part => {
                    if depth > 0 {
                        clean.push(b'/');
                    }
                    clean.extend_from_slice(part);
                    depth += 1;
                }
            }
        }
        if depth > limits.depth {
            return Err(Rule::Depth(limits.depth));
        }
        Ok(Self(clean))
    }

    /// A name that is clean already; `None` when it is not.
    pub(crate) fn known(bytes: Vec<u8>) -> Option<Self> {
        let clean = !bytes.contains(&0)
            && bytes
                .split(|byte| *byte == b'/')
                .all(|part| !matches!(part, b"" | b"." | b".."));
        clean.then_some(Self(bytes))
    }

    /// Its bytes; `.` for the root, so that it can be given to a system call.
    pub(crate) fn path(&self) -> &[u8] {
        if self.0.is_empty() { b"." } else { &self.0 }
    }

    /// Its bytes; nothing for the root.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether it is the root.
    pub(crate) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The directory it lies in, and its last part; `None` for the root.
    pub(crate) fn split(&self) -> Option<(Self, &[u8])> {
        let (directory, last) = self.parts()?;
        Some((Self(directory.to_vec()), last))
    }

    /// The same, without a copy.
    pub(crate) fn parts(&self) -> Option<(&[u8], &[u8])> {
        if self.is_root() {
            return None;
        }
        Some(match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&self.0[..slash], &self.0[slash + 1..]),
            None => (&[], &self.0),
        })
    }

    /// The directory it lies in; the root lies in itself.
    pub(crate) fn parent(&self) -> Self {
        self.split().map(|(parent, _)| parent).unwrap_or_default()
    }

    /// The name of something in this directory.
    pub(crate) fn join(&self, part: &[u8]) -> Self {
        let mut joined = self.0.clone();
        if !joined.is_empty() {
            joined.push(b'/');
        }
        joined.extend_from_slice(part);
        Self(joined)
    }

    /// The name of this beneath a directory, if it keeps the limits there.
    pub(crate) fn beneath(self, base: Option<&Self>, limits: &Limits) -> Result<Self, Rule> {
        let Some(base) = base else {
            return Ok(self);
        };
        if self.is_root() {
            return Ok(base.clone());
        }
        Self::parse(base.join(&self.0).bytes(), limits)
    }

    /// The directories it lies in, outermost first, without the root and itself.
    pub(crate) fn ancestors(&self) -> impl Iterator<Item = Self> + '_ {
        let slashes = self.0.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        slashes.map(|(at, _)| Self(self.0[..at].to_vec()))
    }

    /// The first of some names that lies in this directory, at any depth.
    pub(crate) fn first_below(&self, names: &BTreeSet<Self>) -> Option<Self> {
        let mut from = self.0.clone();
        if !from.is_empty() {
            from.push(b'/');
        }
        // What lies in a directory is together in the order of names.
        let next = names.range(Self(from)..).next();
        next.filter(|next| next.is_below(self)).cloned()
    }

    /// Removes all names that lie in this directory.
    pub(crate) fn remove_below(&self, names: &mut BTreeSet<Self>) {
        while let Some(name) = self.first_below(names) {
            names.remove(&name);
        }
    }

    /// Whether it lies in that directory, at any depth.
    pub(crate) fn is_below(&self, directory: &Self) -> bool {
        directory.is_root() && !self.is_root()
            || self.0.len() > directory.0.len()
                && self.0.starts_with(&directory.0)
                && self.0[directory.0.len()] == b'/'
    }
}

/// What an entry of a layer says about a name (OCI image specification, layer.md, whiteouts).
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// It is an object.
    Object(Name),
    /// What lower layers have there is gone.
    Whiteout(Name),
    /// All that lower layers have in this directory is gone.
    Opaque(Name),
    /// Left over from another storage driver; it means nothing.
    Nothing,
}

impl Meaning {
    /// Reads it from the last part alone: `foo.wh.bar` is a plain file.
    pub(crate) fn of(name: Name) -> Result<Self, Rule> {
        let Some((directory, last)) = name.split() else {
            return Ok(Self::Object(name));
        };
        match last.strip_prefix(b".wh.") {
            None => Ok(Self::Object(name)),
            Some(b".wh..opq") => Ok(Self::Opaque(directory)),
            Some(hidden) if hidden.starts_with(b".wh.") => Ok(Self::Nothing),
            Some(b"" | b"." | b"..") => Err(Rule::Name),
            Some(hidden) => Ok(Self::Whiteout(directory.join(hidden))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Name, Rule> {
        Name::parse(text.as_bytes(), &Limits::default())
    }

    fn name(text: &str) -> Name {
        Name(text.as_bytes().to_vec())
    }

    #[test]
    fn names_are_made_clean() {
        assert_eq!(parse("./a//b/./c/").unwrap(), name("a/b/c"));
        assert!(parse("./").unwrap().is_root());
        assert_eq!(parse("..a/b..").unwrap(), name("..a/b.."));
        assert_eq!(parse("//etc/passwd").unwrap(), name("etc/passwd"));
        assert!(parse("/").unwrap().is_root());
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        assert!(matches!(parse("a/../b"), Err(Rule::Parent)));
        assert!(matches!(parse(".."), Err(Rule::Parent)));
        assert!(matches!(parse(""), Err(Rule::Name)));
        assert!(matches!(parse("a\0b"), Err(Rule::Name)));
        assert!(matches!(parse(&"x".repeat(256)), Err(Rule::Length(255))));
        assert!(matches!(parse(&"x/".repeat(513)), Err(Rule::Depth(512))));
        assert!(matches!(parse(&"x/".repeat(2048)), Err(Rule::Length(4095))));
    }

    #[test]
    fn names_survive_a_record() {
        for bytes in [&b""[..], b"a/b", b"a%b/\xff\xfe", "ä/%25".as_bytes()] {
            let name = Name(bytes.to_vec());
            let text = serde_json::to_string(&name).unwrap();
            assert_eq!(serde_json::from_str::<Name>(&text).unwrap(), name);
        }
        assert!(serde_json::from_str::<Name>("\"a/../b\"").is_err());
    }

    #[test]
    fn only_the_last_part_makes_a_whiteout() {
        let of = |text| Meaning::of(name(text));
        assert_eq!(of("a/.wh.b").unwrap(), Meaning::Whiteout(name("a/b")));
        assert_eq!(of(".wh.b").unwrap(), Meaning::Whiteout(name("b")));
        assert_eq!(of("a/.wh..wh..opq").unwrap(), Meaning::Opaque(name("a")));
        assert_eq!(of(".wh..wh..opq").unwrap(), Meaning::Opaque(name("")));
        assert_eq!(of("a/.wh..wh.plnk").unwrap(), Meaning::Nothing);
        let object = |text| Meaning::Object(name(text));
        assert_eq!(of("foo.wh.bar").unwrap(), object("foo.wh.bar"));
        assert_eq!(of(".wh.d/bar").unwrap(), object(".wh.d/bar"));
        for bad in [".wh.", "a/.wh..", "a/.wh..."] {
            assert!(matches!(of(bad), Err(Rule::Name)), "{bad}");
        }
    }

    #[test]
    fn relations_between_names() {
        let of = name("a/b/c");
        let ancestors: Vec<_> = of.ancestors().collect();
        assert_eq!(ancestors, [name("a"), name("a/b")]);
        assert!(of.is_below(&name("a")) && of.is_below(&name("")));
        assert!(!name("ab").is_below(&name("a")) && !name("a").is_below(&name("a")));
        assert_eq!(of.split().unwrap(), (name("a/b"), &b"c"[..]));
        assert_eq!(name("").join(b"x"), name("x"));
        let limits = Limits {
            depth: 3,
            ..Limits::default()
        };
        let base = name("a/b");
        let beneath = |text| name(text).beneath(Some(&base), &limits);
        assert_eq!(beneath("").unwrap(), base);
        assert_eq!(beneath("c").unwrap(), of);
        assert!(matches!(beneath("c/d"), Err(Rule::Depth(3))));
        assert_eq!(name("c").beneath(None, &limits).unwrap(), name("c"));
        let mut names: BTreeSet<_> = ["a", "a-", "a/b", "a/b/c", "a0", "b"].map(name).into();
        name("a").remove_below(&mut names);
        assert!(names.iter().eq(&["a", "a-", "a0", "b"].map(name)));
        name("").remove_below(&mut names);
        assert!(names.is_empty());
    }
}
