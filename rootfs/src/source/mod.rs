//! Where images come from.
//!
//! Parsed at the edge, once, from what a user wrote. A new kind of source is a new variant here
//! and a new arm in the importer; nothing else knows the kinds. What is shown of a source, in a
//! record, a log or an error, has no secret in it: user names and passwords in a URL are refused,
//! and the query of a URL, which may be a signature, is left out.

mod preloaded;
mod reference;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use url::Url;

use crate::digest::Digest;
use crate::error::{Error, Result};

pub use reference::{RegistryReference, TagOrDigest};

/// The longest source that is looked at, in bytes: a path, a URL and some parameters.
const LONGEST: usize = 16 * 1024;

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
    /// An image of a registry (OCI distribution specification).
    Registry(RegistryReference),
    /// A base image with one layer above it, which is fetched by URL: how Cloud Foundry starts
    /// an app without copying it into its container.
    Preloaded {
        /// The tar of the base image.
        base: PathBuf,
        /// Where the layer is: `http`, `https` or `file`.
        layer: Url,
        /// The directory of the base image beneath which the layer is unpacked.
        layer_path: PathBuf,
        /// The digest of the layer's bytes, as they are fetched.
        layer_digest: Digest,
    },
    /// A directory that is used as it is: bound, not imported.
    Raw(PathBuf),
}

impl ImageSource {
    /// Reads any of the forms that [`Error::UnsupportedSource`] lists. Nothing is looked up yet.
    pub fn parse(text: &str) -> Result<Self> {
        let unsupported = || Error::UnsupportedSource(shown(text));
        if text.is_empty() || text.len() > LONGEST || text.contains('\0') {
            return Err(unsupported());
        }
        let absolute = |path: &str| {
            let fits = path.starts_with('/');
            fits.then(|| PathBuf::from(path)).ok_or_else(unsupported)
        };
        match split_scheme(text) {
            None => Ok(Self::Path(PathBuf::from(text))),
            Some(("file", path)) => absolute(path).map(Self::Path),
            Some(("raw", path)) => absolute(path).map(Self::Raw),
            Some(("oci", rest)) => {
                let last_part = rest.rfind('/').unwrap_or(0);
                let (path, reference) = match rest[last_part..].find(':') {
                    Some(colon) => {
                        let (path, reference) = rest.split_at(last_part + colon);
                        (path, Some(&reference[1..]))
                    }
                    None => (rest, None),
                };
                let reference = reference.filter(|reference| !reference.is_empty());
                Ok(Self::OciLayout {
                    path: absolute(path)?,
                    reference: reference.map(str::to_owned),
                })
            }
            Some(("docker", rest)) => RegistryReference::parse(rest)
                .map(Self::Registry)
                .map_err(|reason| invalid(text, reason)),
            Some(("preloaded+layer", _)) => preloaded::parse(text),
            Some(_) => Err(unsupported()),
        }
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
            Self::Registry(reference) => write!(f, "docker://{reference}"),
            Self::Preloaded {
                base,
                layer,
                layer_path,
                layer_digest,
            } => write!(
                f,
                "preloaded+layer://{}?layer={}&layer_path={}&layer_digest={layer_digest}",
                base.display(),
                shown(layer.as_str()),
                layer_path.display()
            ),
            Self::Raw(path) => write!(f, "raw://{}", path.display()),
        }
    }
}

/// Splits `SCHEME://REST`; a colon elsewhere belongs to a path.
fn split_scheme(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once("://")?;
    let is_name = !scheme.is_empty() && !scheme.contains(['/', ':']);
    is_name.then_some((scheme, rest))
}

fn invalid(text: &str, reason: impl Into<String>) -> Error {
    Error::InvalidSource {
        image: shown(text),
        reason: reason.into(),
    }
}

/// What may be shown of a source or a URL: not its query, and nobody's name and password.
pub(crate) fn shown(text: &str) -> String {
    let text = text.get(..LONGEST).unwrap_or(text);
    let Some((scheme, rest)) = split_scheme(text) else {
        return text.to_owned();
    };
    let (place, query) = match rest.split_once('?') {
        Some((place, _)) => (place, "?…"),
        None => (rest, ""),
    };
    let end = place.find('/').unwrap_or(place.len());
    let (authority, path) = place.split_at(end);
    match authority.rsplit_once('@') {
        Some((_, host)) if !host.starts_with("sha256:") => {
            format!("{scheme}://…@{host}{path}{query}")
        }
        _ => format!("{scheme}://{place}{query}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_paths() {
        let path = |text: &str| ImageSource::Path(text.into());
        assert_eq!(ImageSource::parse("/a/b.tar").unwrap(), path("/a/b.tar"));
        assert_eq!(ImageSource::parse("/a?b.tar").unwrap(), path("/a?b.tar"));
        assert_eq!(ImageSource::parse("file:///a").unwrap(), path("/a"));
        assert_eq!(ImageSource::parse("a:b.tar").unwrap(), path("a:b.tar"));
        let raw = ImageSource::parse("raw:///a").unwrap();
        assert_eq!(raw, ImageSource::Raw("/a".into()));
        assert_eq!(raw.to_string(), "raw:///a");
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
        let long = format!("docker:///{}", "a".repeat(LONGEST));
        for bad in [
            "",
            "http://x/y.tar",
            "file://a",
            "oci://a/b",
            "raw://a",
            "shub://a",
            "/a\0b",
            &long,
        ] {
            let error = ImageSource::parse(bad).unwrap_err();
            assert!(matches!(&error, Error::UnsupportedSource(_)), "{bad}");
            for form in [
                "oci:///PATH",
                "docker://",
                "raw:///PATH",
                "preloaded+layer:///",
            ] {
                assert!(error.to_string().contains(form), "{error}");
            }
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        for (text, expected) in [
            ("docker://me:secret@host/x", "docker://…@host/x"),
            ("http://secret@host", "http://…@host"),
            ("https://host/x?sig=secret", "https://host/x?…"),
            ("docker://x@sha256:00", "docker://x@sha256:00"),
            ("/a@b?c", "/a@b?c"),
        ] {
            assert_eq!(shown(text), expected);
        }
        for bad in [
            "docker://me:secret@host/x",
            "docker://secret@host/x",
            "ftp://me:secret@host/x",
            "preloaded+layer:///b?layer=http://me:secret@host&layer_path=/&layer_digest=00",
            "preloaded+layer:///b?layer=http%3A%2F%2Fme%3Asecret%40host&layer_path=/",
        ] {
            let error = ImageSource::parse(bad).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
        }
    }
}
