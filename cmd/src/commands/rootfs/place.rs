//! A store on disk as these commands see it: whether it was initialised, for whose ids, and which
//! root filesystem a word means.
//!
//! ```text
//! STORE/namespace.json    the mappings that init-store was given; its being there says that it ran
//! STORE/rootfs/ID/rootfs  what `create` prints as root.path
//! STORE.backing-store     the file that the store is kept in, if it has a size
//! ```

use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use garden_rootfs::{IdRange, Mapping, Role, Store, StoreOptions};
use serde::{Deserialize, Serialize};

use super::Failure;
use super::config::Config;

const NAMESPACE: &str = "namespace.json";

/// A place for a store, with or without one.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
}

/// Id mappings as `init-store` was given them: `inside:host:size`, in the order of their texts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Namespace {
    #[serde(rename = "uid-mappings")]
    uid: Vec<String>,
    #[serde(rename = "gid-mappings")]
    gid: Vec<String>,
}

/// What a word means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Id(String),
    /// An absolute path that is no root filesystem's in this store.
    Outside,
}

impl Place {
    pub(super) fn new(path: &Path) -> Result<Self, String> {
        let path = std::path::absolute(path)
            .map_err(|error| format!("cannot use the store {}: {error}", path.display()))?;
        Ok(Self { path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the file is that a store of a given size is kept in.
    pub(super) fn backing_file(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".backing-store");
        name.into()
    }

    pub(super) fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// Refuses a store that is not there.
    pub(super) fn expect_store(&self) -> Result<(), Failure> {
        if self.exists() {
            return Ok(());
        }
        Err(Failure::new(format!(
            "no store found at {}",
            self.path.display()
        )))
    }

    /// The mappings; `None` when the store was not initialised.
    pub(super) fn namespace(&self) -> Result<Option<Namespace>, Failure> {
        let path = self.path.join(NAMESPACE);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(unreadable(&path, &error)),
        };
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| unreadable(&path, &error))
    }

    /// Writes the mappings, as the last step of making a store.
    pub(super) fn write_namespace(&self, namespace: &Namespace) -> Result<(), Failure> {
        let (path, new) = (
            self.path.join(NAMESPACE),
            self.path.join("namespace.json.new"),
        );
        let failed = |error: std::io::Error| {
            Failure::new(format!(
                "creating namespace file: {}: {error}",
                path.display()
            ))
        };
        let text = serde_json::to_vec(namespace).map_err(|error| failed(error.into()))?;
        let mut options = std::fs::OpenOptions::new();
        let mut file = (options.write(true).create(true).truncate(true).mode(0o600))
            .open(&new)
            .map_err(failed)?;
        // Survives a loss of power or was never there: a store for other ids than before would give
        // files away.
        file.write_all(&text).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        std::fs::rename(&new, &path).map_err(failed)
    }

    /// Opens the store, which must be there.
    pub(super) fn open(&self, config: &Config) -> Result<Store, Failure> {
        let mut options = StoreOptions::new(&self.path);
        options.role = Role::Tool;
        let create = &config.create;
        let registry = &mut options.registry;
        (registry.insecure).extend(create.insecure_registries.iter().cloned());
        let certificates = &create.remote_layer_client_certificates_path;
        if !certificates.as_os_str().is_empty() {
            registry.layer_certificates = Some(certificates.clone());
        }
        Ok(Store::open(&options)?)
    }

    /// Which root filesystem a word means: its id, or a path of or in its directory.
    pub(super) fn find(&self, word: &str) -> Found {
        if !word.starts_with('/') {
            return Found::Id(word.to_owned());
        }
        // GrootFS has them in `images`; whoever puts that path together means the same.
        let found = ["rootfs", "images"].iter().find_map(|directory| {
            let inside = Path::new(word)
                .strip_prefix(self.path.join(directory))
                .ok()?;
            let mut parts = inside.iter();
            let id = parts.next()?.to_str()?;
            let rest = (parts.next(), parts.next());
            let whole = matches!(rest, (None, None)) || rest.0.is_some_and(|part| part == "rootfs");
            (whole && rest.1.is_none()).then(|| id.to_owned())
        });
        found.map_or(Found::Outside, Found::Id)
    }

    /// The directory of a root filesystem.
    pub(super) fn directory(&self, id: &str) -> PathBuf {
        self.path.join("rootfs").join(id)
    }

    /// The text about a path that is not of this store.
    pub(super) fn outside(word: &str) -> String {
        format!("path `{word}` is outside store path")
    }
}

fn unreadable(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(format!(
        "reading namespace file {}: {error}",
        path.display()
    ))
}

impl Namespace {
    /// Reads the flags of `init-store`.
    pub(super) fn parse(uid: &[String], gid: &[String]) -> Result<Self, String> {
        let sorted = |texts: &[String], what: &str| {
            let ranges = texts.iter().map(|text| range(text));
            let ranges: Result<Vec<_>, _> = ranges.collect();
            let ranges = ranges.map_err(|error| format!("parsing {what}-mapping: {error}"))?;
            let mut texts: Vec<_> = ranges
                .iter()
                .map(|range| format!("{}:{}:{}", range.inside, range.host, range.size))
                .collect();
            texts.sort();
            Ok::<_, String>(texts)
        };
        Ok(Self {
            uid: sorted(uid, "uid")?,
            gid: sorted(gid, "gid")?,
        })
    }

    /// Refuses other mappings than the ones there are.
    pub(super) fn expect_same(&self, provided: &Self) -> Result<(), String> {
        for (ours, theirs, what) in [
            (&self.uid, &provided.uid, "UID"),
            (&self.gid, &provided.gid, "GID"),
        ] {
            if ours != theirs {
                return Err(format!(
                    "provided {what} mappings do not match those already configured in the store"
                ));
            }
        }
        Ok(())
    }

    /// As the store takes it.
    pub(super) fn mapping(&self) -> Result<Mapping, String> {
        if self.uid.is_empty() && self.gid.is_empty() {
            return Ok(Mapping::Host);
        }
        let ranges = |texts: &[String]| -> Result<Vec<_>, String> {
            texts.iter().map(|text| range(text)).collect()
        };
        Ok(Mapping::Mapped {
            uid: ranges(&self.uid)?,
            gid: ranges(&self.gid)?,
        })
    }

    /// The host's group of the root inside, when it is not the host's root.
    pub(super) fn root_group(&self) -> Result<Option<u32>, String> {
        let Mapping::Mapped { gid, .. } = self.mapping()? else {
            return Ok(None);
        };
        let root = gid.iter().find(|range| range.inside == 0);
        Ok(root.map(|range| range.host).filter(|host| *host != 0))
    }
}

fn range(text: &str) -> Result<IdRange, String> {
    let wrong = || format!("{text:?} is not inside:host:size");
    let numbers: Result<Vec<u32>, _> = text.split(':').map(str::parse).collect();
    match numbers.map_err(|_| wrong())?[..] {
        [inside, host, size] if size > 0 => Ok(IdRange { inside, host, size }),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_ids_or_paths() {
        let place = Place::new(Path::new("/store")).unwrap();
        let id = |word: &str| Found::Id(word.to_owned());
        assert_eq!(place.find("web-1"), id("web-1"));
        for path in [
            "/store/rootfs/web-1",
            "/store/rootfs/web-1/",
            "/store/rootfs/web-1/rootfs",
            "/store/images/web-1",
            "/store/images/web-1/rootfs",
        ] {
            assert_eq!(place.find(path), id("web-1"), "{path}");
        }
        for path in [
            "/",
            "/store",
            "/store/rootfs",
            "/other/rootfs/x",
            "/store/rootfs/x/diff",
            "/store/rootfs/x/rootfs/y",
            "/stores/rootfs/x",
        ] {
            assert_eq!(place.find(path), Found::Outside, "{path}");
        }
    }

    #[test]
    fn mappings_are_compared_whatever_their_order() {
        let texts = |texts: &[&str]| {
            texts
                .iter()
                .map(|text| (*text).to_owned())
                .collect::<Vec<_>>()
        };
        let of = |uid: &[&str], gid: &[&str]| Namespace::parse(&texts(uid), &texts(gid));
        let ours = of(&["1:1:9", "0:100:1"], &["0:100:1"]).unwrap();
        assert_eq!(ours.uid, ["0:100:1", "1:1:9"]);
        assert!(
            ours.expect_same(&of(&["0:100:1", "1:1:9"], &["0:100:1"]).unwrap())
                .is_ok()
        );
        let other = of(&["0:100:1"], &["0:100:1"]).unwrap();
        assert_eq!(
            ours.expect_same(&other).unwrap_err(),
            "provided UID mappings do not match those already configured in the store"
        );
        let other = of(&["0:100:1", "1:1:9"], &["0:7:1"]).unwrap();
        assert!(
            ours.expect_same(&other)
                .unwrap_err()
                .starts_with("provided GID mappings")
        );
        assert_eq!(ours.root_group(), Ok(Some(100)));
        assert_eq!(Namespace::default().mapping(), Ok(Mapping::Host));
        assert_eq!(Namespace::default().root_group(), Ok(None));
        let error = of(&["0:1"], &[]).unwrap_err();
        assert!(error.starts_with("parsing uid-mapping: "), "{error}");
        assert!(of(&[], &["0:1:0"]).is_err() && of(&["a:b:c"], &[]).is_err());
    }
}
