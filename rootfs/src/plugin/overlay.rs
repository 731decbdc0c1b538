//! The overlay of an option string, as plugins print it for their callers to mount.
//!
//! Used for what plugins make without mounting it. The string is read, not handed on: what it may
//! say is known, the directories are opened, and the mount is made by descriptors, so that it is in
//! no mount table. Kernels before 6.13 take no descriptors; there it is mounted where the plugin
//! meant it to be, copied, and unmounted again.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use garden_sys::mount::context_log;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_fd, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
    mount, open_tree, unmount,
};

/// What every overlay of ours has, whatever the kernel's defaults are.
const OPTIONS: [(&str, &str); 4] = [
    ("index", "off"),
    ("metacopy", "off"),
    ("redirect_dir", "nofollow"),
    ("nfs_export", "off"),
];
/// What mount(2) takes of its last argument, with the NUL at its end.
const PAGE: usize = 4096;

/// An option string that makes sense.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Layers {
    /// The topmost first.
    lower: Vec<String>,
    upper: Option<String>,
    work: Option<String>,
    /// Whether the kernel is never to sync it.
    pub(super) volatile: bool,
}

/// What could not be done, and why.
pub(super) type Refused = (String, io::Error);

impl Layers {
    /// Reads it. An option that would change what is seen or what is safe is refused by name.
    pub(super) fn parse(options: &str) -> Result<Self, String> {
        let mut layers = Self::default();
        for option in split(options, ',') {
            let (key, value) = option.split_once('=').unwrap_or((&option, ""));
            match (key, value) {
                ("lowerdir", value) => {
                    layers.lower = split(value, ':').map(|part| unescape(&part)).collect();
                }
                ("upperdir", value) => layers.upper = Some(unescape(value)),
                ("workdir", value) => layers.work = Some(unescape(value)),
                ("volatile", "") | ("fsync", "volatile") => layers.volatile = true,
                // What every overlay of ours has anyway.
                ("index" | "metacopy" | "nfs_export" | "redirect_dir" | "xino", "off")
                | ("xino" | "fsync", "auto")
                | ("redirect_dir", "nofollow")
                | ("rw" | "noatime" | "relatime", "") => {}
                _ => return Err(format!("an overlay with the option {option:?}")),
            }
        }
        if layers.lower.is_empty() || layers.lower.iter().any(|path| !path.starts_with('/')) {
            return Err("an overlay whose lower directories are no absolute paths".to_owned());
        }
        if layers.upper.is_some() != layers.work.is_some() {
            return Err("an overlay with only one of upperdir and workdir".to_owned());
        }
        Ok(layers)
    }

    /// Mounts it. `place` is where the plugin meant it to be: only old kernels need one.
    pub(super) fn mount(&self, place: &Path) -> Result<OwnedFd, Refused> {
        if takes_descriptors() {
            self.by_descriptors()
        } else {
            self.by_path(place)
        }
    }

    fn by_descriptors(&self) -> Result<OwnedFd, Refused> {
        let open = |path: &String| {
            directory(path).map_err(|error| (format!("an overlay of {path}"), error))
        };
        let lower: Vec<_> = self.lower.iter().map(open).collect::<Result<_, _>>()?;
        let upper = self.upper.as_ref().map(open).transpose()?;
        let work = self.work.as_ref().map(open).transpose()?;
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
            .map_err(|errno| ("an overlay".to_owned(), errno.into()))?;
        let build = || {
            fsconfig_set_string(&context, "source", "garden")?;
            for (key, value) in OPTIONS {
                fsconfig_set_string(&context, key, value)?;
            }
            for layer in &lower {
                fsconfig_set_fd(&context, "lowerdir+", layer)?;
            }
            match (&upper, &work) {
                (Some(upper), Some(work)) => {
                    fsconfig_set_fd(&context, "upperdir", upper)?;
                    fsconfig_set_fd(&context, "workdir", work)?;
                    if self.volatile {
                        // The older word, and the one that replaces it.
                        fsconfig_set_flag(&context, "volatile")
                            .or_else(|_| fsconfig_set_string(&context, "fsync", "volatile"))?;
                    }
                }
                _ => fsconfig_set_flag(&context, "ro")?,
            }
            fsconfig_create(&context)?;
            let attributes = MountAttrFlags::empty();
            fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        };
        build().map_err(|errno| refused(&context_log(&context), errno))
    }

    fn by_path(&self, place: &Path) -> Result<OwnedFd, Refused> {
        let options = self.text();
        let data = CString::new(options).ok().filter(|data| {
            let length = data.as_bytes_with_nul().len();
            length <= PAGE
        });
        let Some(data) = data else {
            let text = format!("an overlay of {} layers", self.lower.len());
            let error = io::Error::new(
                io::ErrorKind::InvalidInput,
                "its paths are longer than this kernel takes (a page)",
            );
            return Err((text, error));
        };
        let flags = if self.upper.is_some() {
            MountFlags::empty()
        } else {
            MountFlags::RDONLY
        };
        mount("garden", place, "overlay", flags, &*data).map_err(|errno| refused("", errno))?;
        let clone = open_tree(
            CWD,
            place,
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
        );
        let unmounted = unmount(place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        let copied = clone.map_err(|errno| refused("", errno))?;
        unmounted.map_err(|errno| refused("", errno))?;
        Ok(copied)
    }

    fn text(&self) -> String {
        let lower: Vec<_> = self.lower.iter().map(|path| escape(path)).collect();
        let mut text = format!("lowerdir={}", lower.join(":"));
        for (key, value) in [("upperdir", &self.upper), ("workdir", &self.work)] {
            if let Some(path) = value {
                text.push_str(&format!(",{key}={}", escape(path)));
            }
        }
        if self.volatile {
            text.push_str(",volatile");
        }
        for (key, value) in OPTIONS {
            text.push_str(&format!(",{key}={value}"));
        }
        text
    }
}

/// Whether this kernel takes layers as descriptors (Linux 6.13). Nothing is mounted to find out.
fn takes_descriptors() -> bool {
    let Ok(root) = directory("/") else {
        return false;
    };
    fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .is_ok_and(|context| fsconfig_set_fd(&context, "lowerdir+", root.as_fd()).is_ok())
}

/// Opens a directory. Through links: plugins name their layers by short ones.
fn directory(path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

fn refused(kernel: &str, errno: rustix::io::Errno) -> Refused {
    let what = match kernel {
        "" => "an overlay that the kernel refuses".to_owned(),
        kernel => format!("an overlay that the kernel refuses ({kernel})"),
    };
    (what, errno.into())
}

/// Splits at a sign that no backslash stands before.
fn split(text: &str, at: char) -> impl Iterator<Item = String> {
    let mut parts = vec![String::new()];
    let mut escaped = false;
    for sign in text.chars() {
        if sign == at && !escaped {
            parts.push(String::new());
            continue;
        }
        escaped = sign == '\\' && !escaped;
        if let Some(part) = parts.last_mut() {
            part.push(sign);
        }
    }
    parts.into_iter().filter(|part| !part.is_empty())
}

/// Removes the backslashes that stand before other signs.
fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut signs = text.chars();
    while let Some(sign) = signs.next() {
        plain.push(match sign {
            '\\' => signs.next().unwrap_or('\\'),
            sign => sign,
        });
    }
    plain
}

/// Puts a backslash before the signs that have a meaning in an option string.
pub(crate) fn escape(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for sign in path.chars() {
        if matches!(sign, ':' | ',' | '\\') {
            text.push('\\');
        }
        text.push(sign);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn option_strings_are_read_and_written() {
        let text = r"lowerdir=/a\:b:/c\,d,upperdir=/u,workdir=/w,index=off";
        let layers = Layers::parse(text).unwrap();
        assert_eq!(layers.lower, ["/a:b", "/c,d"]);
        assert_eq!(layers.upper.as_deref(), Some("/u"));
        assert_eq!(layers.work.as_deref(), Some("/w"));
        assert!(!layers.volatile);
        assert_eq!(Layers::parse(&layers.text()).unwrap(), layers);
        let volatile = Layers::parse("lowerdir=/a,upperdir=/u,workdir=/w,volatile").unwrap();
        assert!(volatile.volatile && volatile.text().contains(",volatile"));
        assert!(Layers::parse("lowerdir=/a").is_ok());
        for bad in [
            "",
            "lowerdir=l/a",
            "lowerdir=/a,upperdir=/u",
            "lowerdir=/a,metacopy=on",
        ] {
            assert!(Layers::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn root_both_ways_show_the_same() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED root_both_ways_show_the_same: needs root");
            return;
        }
        let top = tempfile::tempdir().unwrap();
        for name in ["lower", "upper", "work", "place"] {
            std::fs::create_dir(top.path().join(name)).unwrap();
        }
        std::fs::write(top.path().join("lower/file"), "content").unwrap();
        let path = |name: &str| top.path().join(name).display().to_string();
        let text = format!(
            "lowerdir={},upperdir={},workdir={}",
            path("lower"),
            path("upper"),
            path("work")
        );
        let layers = Layers::parse(&text).unwrap();
        type Way = fn(&Layers, &Path) -> Result<OwnedFd, Refused>;
        let ways: [Way; 2] = [Layers::by_path, |layers, _| layers.by_descriptors()];
        for way in ways {
            if way as usize == ways[1] as usize && !takes_descriptors() {
                println!("SKIPPED root_both_ways_show_the_same: descriptors need Linux 6.13");
                continue;
            }
            let mount = way(&layers, &top.path().join("place")).unwrap();
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            rustix::fs::openat(&mount, "file", flags, Mode::empty()).unwrap();
            let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
            assert!(!table.contains(&path("place")), "it is in the host's table");
        }
    }
}
