//! The name of an image in a registry.
//!
//! Read from `docker://` sources, as every tool reads them: the first part is a registry when it
//! looks like a host (it has a dot or a port, or is `localhost`), and belongs to the repository
//! otherwise. The grammar of the rest is that of the crate `oci-client`.

use std::fmt;

use crate::digest::Digest;

/// The name of Docker's registry, and another name that it has.
const DOCKER_HUB: [&str; 2] = ["docker.io", "index.docker.io"];

/// An image in a registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RegistryReference {
    /// `HOST` or `HOST:PORT`; `None` for the default registry of
    /// [`RegistryPolicy`](crate::RegistryPolicy).
    pub registry: Option<String>,
    /// The repository, as it was written.
    pub repository: String,
    /// Which of its images.
    pub reference: TagOrDigest,
}

/// Which image of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TagOrDigest {
    /// Whatever has this tag at the moment.
    Tag(String),
    /// Exactly this one.
    Digest(Digest),
}

impl RegistryReference {
    /// Reads what follows `docker://`; a reason when it cannot be.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let text = text.strip_prefix('/').unwrap_or(text);
        // Garden's old form of a tag.
        let text = text.replacen('#', ":", 1);
        let (registry, rest) = match text.split_once('/') {
            Some((first, rest)) if is_host(first) => (Some(first), rest),
            _ => (None, &*text),
        };
        if registry.is_some_and(|registry| registry.contains('@')) {
            return Err(
                "a user name or password does not belong there: give them apart".to_owned(),
            );
        }
        // Any host does for the grammar, but for the one that changes what the rest means.
        let whole = format!("{}/{rest}", registry.unwrap_or("default.invalid"));
        let parsed: oci_client::Reference = (whole.parse())
            .map_err(|error| format!("it is no image name ({error}): write REPOSITORY:TAG"))?;
        let reference = match (parsed.digest(), parsed.tag()) {
            (Some(digest), _) => TagOrDigest::Digest(
                (digest.parse()).map_err(|error: crate::NoDigest| error.to_string())?,
            ),
            (None, tag) => TagOrDigest::Tag(tag.unwrap_or("latest").to_owned()),
        };
        Ok(Self {
            registry: registry.map(|_| parsed.registry().to_owned()),
            repository: parsed.repository().to_owned(),
            reference,
        })
    }

    /// The repository as this registry knows it.
    pub(crate) fn repository_at(&self, registry: &str) -> String {
        if DOCKER_HUB.contains(&registry) && !self.repository.contains('/') {
            return format!("library/{}", self.repository);
        }
        self.repository.clone()
    }
}

fn is_host(part: &str) -> bool {
    part == "localhost" || part.contains(['.', ':'])
}

impl fmt::Display for RegistryReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let registry = self.registry.as_deref().unwrap_or_default();
        write!(f, "{registry}/{}", self.repository)?;
        match &self.reference {
            TagOrDigest::Tag(tag) => write!(f, ":{tag}"),
            TagOrDigest::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

impl fmt::Display for TagOrDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::source::ImageSource;

    fn parse(text: &str) -> RegistryReference {
        match ImageSource::parse(text).unwrap() {
            ImageSource::Registry(reference) => reference,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_are_split_as_everybody_does() {
        let digest = Digest::of(b"x");
        let tag = |tag: &str| TagOrDigest::Tag(tag.to_owned());
        let exact = TagOrDigest::Digest(digest);
        for (text, registry, repository, reference) in [
            ("docker:///busybox", None, "busybox", tag("latest")),
            ("docker://busybox", None, "busybox", tag("latest")),
            ("docker:///a/b#v1", None, "a/b", tag("v1")),
            ("docker://a/b:v1", None, "a/b", tag("v1")),
            ("docker://h.x/b#v1", Some("h.x"), "b", tag("v1")),
            ("docker://h:5000/b/c", Some("h:5000"), "b/c", tag("latest")),
            ("docker:///h:5000/b", Some("h:5000"), "b", tag("latest")),
            (
                "docker://localhost/b",
                Some("localhost"),
                "b",
                tag("latest"),
            ),
            (
                "docker://127.0.0.1:1/b:v",
                Some("127.0.0.1:1"),
                "b",
                tag("v"),
            ),
            (
                "docker://docker.io/b",
                Some("docker.io"),
                "library/b",
                tag("latest"),
            ),
            (
                &format!("docker:///b:v1@{digest}"),
                None,
                "b",
                exact.clone(),
            ),
            (&format!("docker://h.x/b@{digest}"), Some("h.x"), "b", exact),
        ] {
            let expected = RegistryReference {
                registry: registry.map(str::to_owned),
                repository: repository.to_owned(),
                reference,
            };
            let parsed = parse(text);
            assert_eq!(parsed, expected, "{text}");
            // What is shown reads the same again.
            let shown = ImageSource::Registry(parsed.clone()).to_string();
            assert_eq!(parse(&shown), parsed, "{shown}");
        }
    }

    #[test]
    fn the_hub_has_a_library() {
        let short = parse("docker:///busybox");
        assert_eq!(short.repository_at("docker.io"), "library/busybox");
        assert_eq!(short.repository_at("h.x"), "busybox");
        assert_eq!(parse("docker:///a/b").repository_at("docker.io"), "a/b");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for bad in [
            "docker://",
            "docker:///",
            "docker://h.x/",
            "docker:///Upper",
            "docker:///a/../b",
            "docker:///a b",
            "docker:///a:",
            "docker:///a?x",
            "docker:///a:v1/../../x",
            "docker:///a@sha256:00",
            "docker:///a@sha512:00",
            "docker:///a#b#c",
            "docker://[::1]:5000/a",
        ] {
            let error = ImageSource::parse(bad).unwrap_err();
            assert!(matches!(error, Error::InvalidSource { .. }), "{bad}");
        }
    }
}
