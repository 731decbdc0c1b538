//! Devices of the host that containers may use: nodes that appear inside, and rules.
//!
//! A rule is what OCI's `linux.resources.devices` has, in the words of cgroup v1's `devices.allow`:
//! `c 10:200 rwm`, `b *:* m`, `a`. Rules are read in order, each permission of a device by itself:
//! the last rule that names it decides, and what none names is refused. Parsed once, here; how a
//! kernel is told is the affair of `cgroup`.

use std::fmt;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The most rules and the most nodes of one container.
pub const MOST: usize = 128;

/// What kind of device a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// Both kinds.
    All,
    /// Character devices.
    Character,
    /// Block devices.
    Block,
}

/// What may be done with a device: a set of [`Access::MAKE`], [`Access::READ`], [`Access::WRITE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Access(u8);

impl Access {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Make a node of it, `m`. The bits are those of the kernel (`BPF_DEVCG_ACC_*`).
    pub const MAKE: Self = Self(1);
    /// Open it for reading, `r`.
    pub const READ: Self = Self(2);
    /// Open it for writing, `w`.
    pub const WRITE: Self = Self(4);
    /// Everything.
    pub const ALL: Self = Self(7);

    /// The kernel's bits.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// All of both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What of it is not in the other.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether there is nothing in it.
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }
}

/// A word about which devices may be used how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceRule {
    /// Whether it gives or takes.
    pub allow: bool,
    /// Of which kind they are.
    pub kind: DeviceKind,
    /// Their driver; `None` is any.
    pub major: Option<u32>,
    /// Their number there; `None` is any.
    pub minor: Option<u32>,
    /// What it gives or takes.
    pub access: Access,
}

impl DeviceRule {
    /// Whether every device of the other rule is one of this.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        let within = |wide: Option<u32>, narrow| wide.is_none() || wide == narrow;
        (self.kind == DeviceKind::All || self.kind == other.kind)
            && within(self.major, other.major)
            && within(self.minor, other.minor)
    }

    /// Whether there may be a device that both are about.
    pub(crate) fn meets(&self, other: &Self) -> bool {
        let both =
            |one: Option<u32>, other: Option<u32>| one.is_none() || other.is_none() || one == other;
        let kinds = [self.kind, other.kind];
        (kinds.contains(&DeviceKind::All) || self.kind == other.kind)
            && both(self.major, other.major)
            && both(self.minor, other.minor)
    }
}

/// Why a text is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no device rule: write a kind (c, b, or a for all), MAJOR:MINOR or * for any, and \
     some of rwm, like \"c 10:200 rwm\"; with \"deny \" in front it forbids"
)]
pub struct RuleError(String);

impl FromStr for Access {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let mut access = Self::NONE;
        for letter in text.chars() {
            let one = match letter {
                'm' => Self::MAKE,
                'r' => Self::READ,
                'w' => Self::WRITE,
                _ => return Err(RuleError(text.to_owned())),
            };
            access = access.with(one);
        }
        if access.is_none() {
            return Err(RuleError(text.to_owned()));
        }
        Ok(access)
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (one, letter) in [(Self::READ, "r"), (Self::WRITE, "w"), (Self::MAKE, "m")] {
            if self.0 & one.0 != 0 {
                f.write_str(letter)?;
            }
        }
        Ok(())
    }
}

/// The kernel's device numbers have 12 and 20 bits.
fn number(text: &str, bits: u32) -> Option<Option<u32>> {
    if text == "*" {
        return Some(None);
    }
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number: u32 = text.parse().ok().filter(|_| digits)?;
    (number >> bits == 0).then_some(Some(number))
}

impl FromStr for DeviceRule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let parse = || {
            let mut words = text.split_ascii_whitespace().peekable();
            let allow = words.next_if_eq(&"deny").is_none();
            let kind = match words.next()? {
                "a" => DeviceKind::All,
                "c" => DeviceKind::Character,
                "b" => DeviceKind::Block,
                _ => return None,
            };
            let (numbers, access) = match (words.next(), words.next()) {
                // As the kernel reads it.
                (None, None) if kind == DeviceKind::All => ("*:*", Access::ALL),
                (Some(numbers), Some(access)) => (numbers, access.parse().ok()?),
                _ => return None,
            };
            let (major, minor) = numbers.split_once(':')?;
            let (major, minor) = (number(major, 12)?, number(minor, 20)?);
            if words.next().is_some() {
                return None;
            }
            // A number means something else for each kind.
            if kind == DeviceKind::All && (major.is_some() || minor.is_some()) {
                return None;
            }
            Some(Self {
                allow,
                kind,
                major,
                minor,
                access,
            })
        };
        parse().ok_or_else(|| RuleError(text.to_owned()))
    }
}

impl fmt::Display for DeviceRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let any = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |n| n.to_string());
        let deny = if self.allow { "" } else { "deny " };
        let kind = match self.kind {
            DeviceKind::All => "a",
            DeviceKind::Character => "c",
            DeviceKind::Block => "b",
        };
        let (major, minor) = (any(self.major), any(self.minor));
        write!(f, "{deny}{kind} {major}:{minor} {}", self.access)
    }
}

macro_rules! by_text {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = RuleError;

            fn try_from(text: String) -> Result<Self, RuleError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.to_string()
            }
        }
    };
}

by_text!(Access);
by_text!(DeviceRule);

/// A device of the host whose node appears in a container and in its peas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceSpec {
    /// The node on the host.
    pub source: PathBuf,
    /// Where it appears, below `/dev`.
    pub destination: PathBuf,
    /// What may be done with it.
    pub access: Access,
    /// What it is; found out by the server when the container is created.
    #[serde(default)]
    pub node: Option<Node>,
}

/// A device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Of which kind it is, never [`DeviceKind::All`].
    pub kind: DeviceKind,
    /// Its driver.
    pub major: u32,
    /// Its number there.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Its owner on the host.
    pub uid: u32,
    /// Its group on the host.
    pub gid: u32,
}

impl Node {
    /// What a file is, if it is a device.
    pub(crate) fn of(file: &std::fs::Metadata) -> Option<Self> {
        let kind = if file.file_type().is_char_device() {
            DeviceKind::Character
        } else if file.file_type().is_block_device() {
            DeviceKind::Block
        } else {
            return None;
        };
        Some(Self {
            kind,
            major: rustix::fs::major(file.rdev()),
            minor: rustix::fs::minor(file.rdev()),
            mode: file.mode() & 0o777,
            uid: file.uid(),
            gid: file.gid(),
        })
    }

    /// Whether another node is of the same device.
    pub(crate) fn is_same_device(&self, other: &Self) -> bool {
        (self.kind, self.major, self.minor) == (other.kind, other.major, other.minor)
    }
}

/// What Garden puts into `/dev` itself.
const TAKEN: [&str; 16] = [
    "null", "zero", "full", "random", "urandom", "tty", "console", "ptmx", "pts", "shm", "mqueue",
    "fd", "stdin", "stdout", "stderr", "core",
];

fn check_destination(path: &Path) -> Result<(), Error> {
    let wrong = |why: &str| {
        let path = path.display();
        Error::Invalid(format!("a device cannot appear at {path}: {why}"))
    };
    let name = path
        .strip_prefix("/dev/")
        .map_err(|_| wrong("give a path below /dev"))?;
    let mut parts = name.components();
    let plain = |part: &Component<'_>| matches!(part, Component::Normal(_));
    match parts.next() {
        Some(Component::Normal(first)) if TAKEN.iter().any(|taken| first == *taken) => {
            Err(wrong("every container has something of its own there"))
        }
        Some(first) if plain(&first) && parts.all(|part| plain(&part)) => Ok(()),
        _ => Err(wrong("give a path without dots")),
    }
}

/// Looks at the nodes, so that rules for them can be made. Blocks.
///
/// # Errors
/// [`Error::Invalid`]: what is not there or no device, a place inside that cannot be.
pub(crate) fn resolve(devices: &mut [DeviceSpec], rules: &[DeviceRule]) -> Result<(), Error> {
    if devices.len() > MOST || rules.len() > MOST {
        let text = format!("more than {MOST} devices or device rules: give fewer");
        return Err(Error::Invalid(text));
    }
    let mut seen = std::collections::HashSet::new();
    for device in devices {
        check_destination(&device.destination)?;
        if !seen.insert(device.destination.clone()) {
            return Err(Error::Invalid(format!(
                "two devices are to appear at {}",
                device.destination.display()
            )));
        }
        let source = device.source.display();
        let file = std::fs::metadata(&device.source).map_err(|error| {
            Error::Invalid(format!(
                "the device {source} cannot be used ({error}): it must exist on the host"
            ))
        })?;
        let node = Node::of(&file)
            .ok_or_else(|| Error::Invalid(format!("{source} is no device of the host")))?;
        device.node = Some(node);
    }
    Ok(())
}

/// All that a container adds to the rules of its kind: its own, and those of its nodes.
pub(crate) fn rules(devices: &[DeviceSpec], rules: &[DeviceRule]) -> Vec<DeviceRule> {
    let of_node = |device: &DeviceSpec| {
        let node = device.node?;
        Some(DeviceRule {
            allow: true,
            kind: node.kind,
            major: Some(node.major),
            minor: Some(node.minor),
            access: device.access,
        })
    };
    let nodes = devices.iter().filter_map(of_node);
    // Rules behind nodes, so that they can take something away again.
    nodes.chain(rules.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_and_written() {
        for text in ["c 10:200 rwm", "b *:* m", "deny c 1:* rw", "a *:* rwm"] {
            assert_eq!(text.parse::<DeviceRule>().unwrap().to_string(), text);
        }
        assert_eq!("a".parse::<DeviceRule>().unwrap().to_string(), "a *:* rwm");
        assert_eq!(
            "c 1:3 mrw".parse::<DeviceRule>().unwrap().access,
            Access::ALL
        );
        for text in [
            "",
            "c",
            "c 1:3",
            "c 1 r",
            "x 1:3 r",
            "c 1:3 x",
            "c 1:3 rw more",
            "c 4096:0 r",
            "c 1:1048576 r",
            "c -1:0 r",
            "c +1:0 r",
            "a 1:3 r",
            "allow c 1:3 r",
            "c 1:3 \u{e9}",
        ] {
            assert!(text.parse::<DeviceRule>().is_err(), "{text}");
        }
    }

    #[test]
    fn devices_appear_where_nothing_else_is() {
        for good in ["/dev/sda", "/dev/net/tun", "/dev/fuse"] {
            check_destination(Path::new(good)).unwrap();
        }
        for bad in [
            "/dev",
            "/dev/",
            "/etc/x",
            "/dev/../x",
            "/dev/null",
            "/dev/pts/0",
            "dev/x",
        ] {
            assert!(check_destination(Path::new(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_devices_are_devices() {
        let spec = |source: &str| DeviceSpec {
            source: source.into(),
            destination: "/dev/x".into(),
            access: Access::READ,
            node: None,
        };
        let mut good = [spec("/dev/null")];
        resolve(&mut good, &[]).unwrap();
        let all = rules(&good, &["deny c 1:3 r".parse().unwrap()]);
        let all: Vec<String> = all.iter().map(ToString::to_string).collect();
        assert_eq!(all, ["c 1:3 r", "deny c 1:3 r"]);
        for bad in ["/proc/self/status", "/dev/nothing-there", "/dev"] {
            assert!(resolve(&mut [spec(bad)], &[]).is_err(), "{bad}");
        }
        let twice = &mut [spec("/dev/null"), spec("/dev/zero")];
        assert!(resolve(twice, &[]).is_err());
    }
}
