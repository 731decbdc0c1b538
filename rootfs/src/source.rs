//! Where images come from.
//!
//! Parsed at the edge, once, from what a user wrote. A new kind of source is a new variant here
//! and a new arm in the importer; nothing else knows the kinds.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::{Error, Result};

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ImageSource {
    /// A tar (plain, gzip or zstd, told apart by its first bytes), or a directory; which of them
    /// is seen when it is imported. A tar is read again when its inode, size or times changed. A
    /// directory is copied, and copied again when a name, type, owner, mode, size, time or inode
    /// in it changed; each import looks at all of it. What is mounted inside it is left out.
    Path(PathBuf),
    /// An OCI image layout on disk, and the reference in it if one was named.
    OciLayout {
        /// The directory with `oci-layout` and `index.json`.
        path: PathBuf,
        /// The value of `org.opencontainers.image.ref.name` to look for.
        reference: Option<String>,
    },
}

impl ImageSource {
    /// Reads a path, `file:///PATH`, or `oci:///PATH[:REF]`. Nothing is looked up yet.
    pub fn parse(text: &str) -> Result<Self> {
        let unsupported = || Error::UnsupportedSource(text.to_owned());
        let absolute = |path: &str| {
            let fits = path.starts_with('/') && !path.contains('\0');
            fits.then(|| PathBuf::from(path)).ok_or_else(unsupported)
        };
        if let Some(path) = text.strip_prefix("file://") {
            return absolute(path).map(Self::Path);
        }
        if let Some(rest) = text.strip_prefix("oci://") {
            let last_part = rest.rfind('/').unwrap_or(0);
            let (path, reference) = match rest[last_part..].find(':') {
                Some(colon) => {
                    let (path, reference) = rest.split_at(last_part + colon);
                    (path, Some(&reference[1..]))
                }
                None => (rest, None),
            };
            let reference = reference.filter(|reference| !reference.is_empty());
            return Ok(Self::OciLayout {
                path: absolute(path)?,
                reference: reference.map(str::to_owned),
            });
        }
        let has_scheme = text.find(':').is_some_and(|colon| {
            let scheme = &text[..colon];
            text[colon..].starts_with("://") && !scheme.contains('/')
        });
        if text.is_empty() || has_scheme || text.contains('\0') {
            return Err(unsupported());
        }
        Ok(Self::Path(PathBuf::from(text)))
    }
}

impl FromStr for ImageSource {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl fmt::Display for ImageSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::OciLayout { path, reference } => {
                write!(f, "oci://{}", path.display())?;
                match reference {
                    Some(reference) => write!(f, ":{reference}"),
                    None => Ok(()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn supported_forms() {
        let path = |text: &str| ImageSource::Path(text.into());
        assert_eq!(ImageSource::parse("/a/b.tar").unwrap(), path("/a/b.tar"));
        assert_eq!(ImageSource::parse("file:///a").unwrap(), path("/a"));
        assert_eq!(ImageSource::parse("a:b.tar").unwrap(), path("a:b.tar"));
        let oci = |path: &str, reference: Option<&str>| ImageSource::OciLayout {
            path: path.into(),
            reference: reference.map(str::to_owned),
        };
        assert_eq!(ImageSource::parse("oci:///a/b").unwrap(), oci("/a/b", None));
        let parsed = ImageSource::parse("oci:///a:1/b:v1:2").unwrap();
        assert_eq!(parsed, oci("/a:1/b", Some("v1:2")));
        assert_eq!(parsed.to_string(), "oci:///a:1/b:v1:2");
        assert_eq!(ImageSource::parse("oci:///a:").unwrap(), oci("/a", None));
    }

    #[test]
    fn other_forms_are_told_what_is_supported() {
        for bad in [
            "",
            "docker:///busybox",
            "http://x/y.tar",
            "file://a",
            "oci://a/b",
        ] {
            let error = ImageSource::parse(bad).unwrap_err();
            assert!(matches!(&error, Error::UnsupportedSource(text) if text == bad));
            assert!(error.to_string().contains("oci:///PATH"), "{error}");
        }
    }
}
