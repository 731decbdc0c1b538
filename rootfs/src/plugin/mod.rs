//! External image plugins: programs that make root filesystems in a store of their own.
//!
//! The other side of Guardian's image plugin protocol (GrootFS is the best known plugin): a
//! program is run for each call, answers on its standard output and logs on its standard error.
//!
//! ```text
//! PROGRAM EXTRA… create [--disk-limit-size-bytes N [--exclude-image-from-quota]]
//!                       [--username U] [--password P] URI ID   → a fragment of an OCI bundle
//! PROGRAM EXTRA… delete ID                                     → nothing
//! PROGRAM EXTRA… stats ID                                      → {"disk_usage":{…}}
//! PROGRAM EXTRA… capacity                                      → {"capacity":N}
//! ```
//!
//! - `call`: running the program, with what it says on both outputs.
//! - `fragment`: what `create` answers, and the mount that is made of it.
//! - `layout`: an image scheme that plugins do not know, in one that they do.
//! - `overlay`: the mount of an option string.
//! - `relog`: its log lines, handed on to ours.
//! - `pair`: the two plugins of a server, one for each kind of container.
//!
//! Used by the server of containers instead of a [`crate::Store`]. Every call blocks for as long as
//! the program runs. Nothing here logs arguments, which may hold a password, and nothing unmounts
//! or removes: what a plugin made, only its `delete` takes away.

mod call;
mod error;
mod fragment;
mod layout;
pub(crate) mod overlay;
mod pair;
mod relog;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

pub use error::{Error, Result};
pub use fragment::{Bind, Provided};
pub use layout::layout;
pub use pair::Plugins;

use fragment::Fragment;

/// An image plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plugin {
    /// The program; looked up in `$PATH` when it is a mere name.
    pub program: PathBuf,
    /// Arguments before the command.
    pub extra_args: Vec<OsString>,
    /// How long one call may take; then it is killed, with all that it started in its process
    /// group. Guardian has no such limit, and neither has the default.
    pub timeout: Option<Duration>,
}

/// What a plugin is to make.
#[derive(Clone, Copy)]
pub struct Order<'a> {
    /// The image, in words that the plugin knows.
    pub uri: &'a str,
    /// The name of the new root filesystem in the plugin's store.
    pub id: &'a str,
    /// What may be written to it.
    pub limit: Option<Limit>,
    /// For the registry; not passed when empty.
    pub username: &'a str,
    /// For the registry; not passed when empty. Visible in the process list, as the protocol is.
    pub password: &'a str,
}

/// A limit on what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Bytes, more than 0.
    pub bytes: u64,
    /// Whether the image's own bytes count as well.
    pub with_image: bool,
}

/// What a root filesystem takes on the plugin's disk, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct DiskUsage {
    /// With its image.
    pub total_bytes_used: u64,
    /// Without it.
    pub exclusive_bytes_used: u64,
}

impl Plugin {
    /// A plugin without further arguments and without a time limit.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            extra_args: Vec::new(),
            timeout: None,
        }
    }

    /// Makes a root filesystem and opens it. When this fails after the program succeeded, what it
    /// made is deleted again.
    pub fn create(&self, order: &Order<'_>) -> Result<Provided> {
        let stdout = self.call(Action::Create, &create_args(order))?;
        let parsed = serde_json::from_str::<Fragment>(&stdout);
        let provided = parsed
            .map_err(|source| Error::parsing("image plugin create", &stdout, source))
            .and_then(|fragment| fragment.open(&self.program));
        if provided.is_err()
            && let Err(error) = self.delete(order.id)
        {
            tracing::warn!(id = order.id, %error, "an image plugin keeps what cannot be used");
        }
        provided
    }

    /// Deletes a root filesystem. One that the plugin does not know is deleted.
    pub fn delete(&self, id: &str) -> Result<()> {
        self.call(Action::Destroy, &["delete".into(), id.into()])
            .map(drop)
    }

    /// Measures a root filesystem.
    pub fn stats(&self, id: &str) -> Result<DiskUsage> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(default)]
            disk_usage: DiskUsage,
        }
        let stdout = self.call(Action::Metrics, &["stats".into(), id.into()])?;
        let answer: Answer = serde_json::from_str(&stdout)
            .map_err(|source| Error::parsing("stats", &stdout, source))?;
        Ok(answer.disk_usage)
    }

    /// How many bytes the plugin's store can hold.
    pub fn capacity(&self) -> Result<u64> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(default)]
            capacity: u64,
        }
        let stdout = self.call(Action::Capacity, &["capacity".into()])?;
        let answer: Answer = serde_json::from_str(&stdout)
            .map_err(|source| Error::parsing("capacity", &stdout, source))?;
        Ok(answer.capacity)
    }

    fn call(&self, action: Action, args: &[OsString]) -> Result<String> {
        call::call(self, action, args)
    }
}

/// What a plugin is called for, in the words of error texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Create,
    Destroy,
    Metrics,
    Capacity,
}

impl Action {
    fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Destroy => "destroy",
            Self::Metrics => "metrics",
            Self::Capacity => "capacity",
        }
    }
}

fn create_args(order: &Order<'_>) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["create".into()];
    if let Some(limit) = order.limit.filter(|limit| limit.bytes > 0) {
        args.push("--disk-limit-size-bytes".into());
        args.push(limit.bytes.to_string().into());
        if !limit.with_image {
            args.push("--exclude-image-from-quota".into());
        }
    }
    for (flag, value) in [
        ("--username", order.username),
        ("--password", order.password),
    ] {
        if !value.is_empty() {
            args.push(flag.into());
            args.push(value.into());
        }
    }
    // Garden's tags are written `repo#tag`; plugins know `repo:tag`.
    args.push(order.uri.replacen('#', ":", 1).into());
    args.push(order.id.into());
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORDER: Order<'static> = Order {
        uri: "docker:///busybox#1.36",
        id: "web-1",
        limit: None,
        username: "",
        password: "",
    };

    fn args(order: &Order<'_>) -> String {
        let args = create_args(order);
        args.join(OsString::from(" ").as_os_str())
            .into_string()
            .unwrap()
    }

    #[test]
    fn arguments_of_create_are_guardians() {
        assert_eq!(args(&ORDER), "create docker:///busybox:1.36 web-1");
        let limited = |bytes, with_image| Order {
            limit: Some(Limit { bytes, with_image }),
            ..ORDER
        };
        assert_eq!(
            args(&limited(7, true)),
            "create --disk-limit-size-bytes 7 docker:///busybox:1.36 web-1"
        );
        assert_eq!(
            args(&limited(7, false)),
            "create --disk-limit-size-bytes 7 --exclude-image-from-quota \
             docker:///busybox:1.36 web-1"
        );
        assert_eq!(args(&limited(0, false)), args(&ORDER));
        let known = Order {
            username: "u",
            password: "p w",
            ..ORDER
        };
        assert_eq!(
            args(&known),
            "create --username u --password p w docker:///busybox:1.36 web-1"
        );
    }

    #[test]
    fn only_the_first_tag_sign_is_changed() {
        let order = Order {
            uri: "docker:///a#b#c",
            ..ORDER
        };
        assert_eq!(args(&order), "create docker:///a:b#c web-1");
    }
}
