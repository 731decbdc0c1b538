//! The two plugins of a server: one for unprivileged containers, one for privileged ones.
//!
//! Which one made a root filesystem is not kept anywhere, as in Guardian: deleting asks both, the
//! one for unprivileged containers first, and a plugin takes an id that it does not know for
//! deleted.

use super::error::{Error, Result};
use super::fragment::forbid_devices;
use super::{DiskUsage, Order, Plugin, Provided};

/// Plugins by kind of container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plugins {
    /// Makes the root filesystems of unprivileged containers.
    pub unprivileged: Option<Plugin>,
    /// Makes the root filesystems of privileged containers.
    pub privileged: Option<Plugin>,
}

impl Plugins {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.unprivileged.is_none() && self.privileged.is_none()
    }

    /// The one for a kind of container.
    pub fn of(&self, privileged: bool) -> Option<&Plugin> {
        if privileged {
            self.privileged.as_ref()
        } else {
            self.unprivileged.as_ref()
        }
    }

    fn all(&self) -> impl Iterator<Item = &Plugin> {
        let second = self.privileged.as_ref();
        // The same program with the same store need not be asked twice.
        let second = second.filter(|second| Some(*second) != self.unprivileged.as_ref());
        self.unprivileged.iter().chain(second)
    }

    /// Makes a root filesystem with the plugin for this kind of container; `None` when there is no
    /// such plugin. Devices in an unprivileged one cannot be opened.
    pub fn create(&self, order: &Order<'_>, privileged: bool) -> Option<Result<Provided>> {
        let plugin = self.of(privileged)?;
        let provided = plugin.create(order).and_then(|provided| {
            if privileged {
                return Ok(provided);
            }
            match forbid_devices(&provided.mount) {
                Ok(()) => Ok(provided),
                Err(source) => {
                    drop(provided);
                    if let Err(error) = plugin.delete(order.id) {
                        tracing::warn!(id = order.id, %error, "an image plugin keeps what cannot be used");
                    }
                    Err(Error::Unusable {
                        program: plugin.program.clone(),
                        what: "a mount on which devices cannot be forbidden".to_owned(),
                        source: Some(source),
                    })
                }
            }
        });
        Some(provided)
    }

    /// Deletes a root filesystem from the stores of both; the first failure ends it.
    pub fn delete(&self, id: &str) -> Result<()> {
        self.all().try_for_each(|plugin| plugin.delete(id))
    }

    /// Measures a root filesystem: by the first plugin that can. `None` without any plugin.
    pub fn stats(&self, id: &str) -> Option<Result<DiskUsage>> {
        let mut failed = None;
        for plugin in self.all() {
            match (plugin.stats(id), failed.take()) {
                (Ok(usage), _) => return Some(Ok(usage)),
                (Err(error), None) => failed = Some(error),
                (Err(privileged), Some(unprivileged)) => {
                    failed = Some(Error::Both {
                        unprivileged: Box::new(unprivileged),
                        privileged: Box::new(privileged),
                    });
                }
            }
        }
        failed.map(Err)
    }

    /// How much the store of the plugin for unprivileged containers holds. `None` when there is no
    /// such plugin or it does not tell: then the disk itself is the answer.
    pub fn capacity(&self) -> Option<u64> {
        let told = self.unprivileged.as_ref()?.capacity();
        told.inspect_err(|error| {
            let error = error as &dyn std::error::Error;
            tracing::debug!(error, "the image plugin does not tell its capacity");
        })
        .ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// A plugin that notes what it is asked, and then does as the script says.
    fn noting(name: &str, log: &Path, script: &str) -> Plugin {
        let script = format!("echo {name} \"$@\" >> {}; {script}", log.display());
        Plugin {
            program: "/bin/sh".into(),
            extra_args: vec!["-c".into(), script.into(), name.into()],
            timeout: None,
        }
    }

    fn pair(log: &Path, first: &str, second: &str) -> Plugins {
        Plugins {
            unprivileged: Some(noting("first", log, first)),
            privileged: Some(noting("second", log, second)),
        }
    }

    fn notes(log: &Path) -> String {
        std::fs::read_to_string(log).unwrap_or_default()
    }

    const USAGE: &str = r#"echo '{"disk_usage":{"total_bytes_used":9,"exclusive_bytes_used":4}}'"#;

    #[test]
    fn both_delete_the_unprivileged_one_first() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        pair(&log, "true", "true").delete("x").unwrap();
        assert_eq!(notes(&log), "first delete x\nsecond delete x\n");
        std::fs::remove_file(&log).unwrap();
        pair(&log, "false", "true").delete("x").unwrap_err();
        assert_eq!(notes(&log), "first delete x\n");
    }

    #[test]
    fn one_program_for_both_is_asked_once() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let plugin = noting("only", &log, "true");
        let plugins = Plugins {
            unprivileged: Some(plugin.clone()),
            privileged: Some(plugin),
        };
        plugins.delete("x").unwrap();
        assert_eq!(notes(&log), "only delete x\n");
    }

    #[test]
    fn stats_fall_back_to_the_other() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let usage = pair(&log, "false", USAGE).stats("x").unwrap().unwrap();
        assert_eq!((usage.total_bytes_used, usage.exclusive_bytes_used), (9, 4));
        let error = pair(&log, "echo not here; exit 1", "echo nor here; exit 2");
        let error = error.stats("x").unwrap().unwrap_err();
        let text = error.to_string();
        assert_eq!(
            text,
            "running image plugin metrics: not here: exit status 1; running image plugin metrics: \
             nor here"
        );
        assert!(Plugins::default().stats("x").is_none());
    }

    #[test]
    fn capacity_is_the_unprivileged_ones_or_nobodys() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let answer = "echo '{\"capacity\":3}'";
        assert_eq!(pair(&log, answer, "false").capacity(), Some(3));
        assert_eq!(pair(&log, "false", answer).capacity(), None);
        let mut only_privileged = pair(&log, answer, answer);
        only_privileged.unprivileged = None;
        assert_eq!(only_privileged.capacity(), None);
    }
}
