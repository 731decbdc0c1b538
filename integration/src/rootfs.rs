//! What a test image holds, apart from the form it is given in.
//!
//! [`Rootfs`] is a list of entries that can be written as a tar or as a directory. Used by
//! [`crate::Images`] and by tests that need an odd image. Entries are written as given: a test may
//! put a hostile name into a tar.

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Where Debian puts the statically linked busybox.
const BUSYBOX: [&str; 2] = ["/bin/busybox", "/usr/bin/busybox"];

#[derive(Clone)]
enum Kind {
    Directory,
    File(Vec<u8>),
    Symlink(String),
}

#[derive(Clone)]
struct Entry {
    path: String,
    kind: Kind,
    mode: u32,
    owner: u32,
}

/// The content of an image: entries in the order in which they are written.
#[derive(Clone, Default)]
pub struct Rootfs {
    entries: Vec<Entry>,
}

impl Rootfs {
    /// Nothing at all.
    pub fn empty() -> Self {
        Self::default()
    }

    /// A small system of busybox with all its applets in `/bin`, the users root and vcap
    /// (2000:2000, home `/home/vcap`), and `name` as the content of `/etc/image`.
    pub fn busybox(name: &str) -> Result<Self> {
        let program = BUSYBOX
            .iter()
            .find(|path| Path::new(path).exists())
            .context("no busybox on this host: run ci/setup")?;
        let listed = Command::new(program)
            .arg("--list")
            .output()
            .context("listing the applets of busybox")?;
        ensure!(
            listed.status.success(),
            "busybox does not list its applets: is it Debian's busybox-static?"
        );
        let mut rootfs = Self::empty()
            .directory("bin", 0o755, 0)
            .directory("etc", 0o755, 0)
            .directory("home", 0o755, 0)
            .directory("home/vcap", 0o755, 2000)
            .directory("root", 0o700, 0)
            .directory("tmp", 0o1777, 0)
            .file("bin/busybox", 0o755, &fs::read(program)?);
        for applet in String::from_utf8_lossy(&listed.stdout).lines() {
            if applet != "busybox" {
                rootfs = rootfs.symlink(&format!("bin/{applet}"), "busybox");
            }
        }
        let passwd = "root:x:0:0:root:/root:/bin/sh\nvcap:x:2000:2000:vcap:/home/vcap:/bin/sh\n";
        let group = "root:x:0:\nvcap:x:2000:\nextra:x:3000:vcap\n";
        Ok(rootfs
            .file("etc/passwd", 0o644, passwd.as_bytes())
            .file("etc/group", 0o644, group.as_bytes())
            .file("etc/image", 0o644, name.as_bytes()))
    }

    /// Adds a directory that belongs to `owner` and the group of the same number.
    pub fn directory(self, path: &str, mode: u32, owner: u32) -> Self {
        self.entry(path, Kind::Directory, mode, owner)
    }

    /// Adds a file of root.
    pub fn file(self, path: &str, mode: u32, content: &[u8]) -> Self {
        self.entry(path, Kind::File(content.to_vec()), mode, 0)
    }

    /// Adds a symbolic link.
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(path, Kind::Symlink(target.to_owned()), 0o777, 0)
    }

    fn entry(mut self, path: &str, kind: Kind, mode: u32, owner: u32) -> Self {
        self.entries.push(Entry {
            path: path.to_owned(),
            kind,
            mode,
            owner,
        });
        self
    }

    /// The bytes of a tar with these entries.
    pub fn tar(&self) -> Result<Vec<u8>> {
        let mut builder = tar::Builder::new(Vec::new());
        for entry in &self.entries {
            append(&mut builder, entry).with_context(|| format!("adding {}", entry.path))?;
        }
        builder.into_inner().context("ending a tar")
    }

    /// Writes the entries below `directory`, which is made.
    pub fn unpack(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory)?;
        for entry in &self.entries {
            let path = directory.join(&entry.path);
            write(&path, entry).with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    }
}

fn append<W: Write>(builder: &mut tar::Builder<W>, entry: &Entry) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(entry.mode);
    header.set_uid(entry.owner.into());
    header.set_gid(entry.owner.into());
    header.set_mtime(1_700_000_000);
    // Past the checks of the library: hostile names are what some tests are about.
    let name = &mut header.as_old_mut().name;
    ensure!(entry.path.len() < name.len(), "too long for an old header");
    name[..entry.path.len()].copy_from_slice(entry.path.as_bytes());
    let content: &[u8] = match &entry.kind {
        Kind::Directory => {
            header.set_entry_type(tar::EntryType::Directory);
            &[]
        }
        Kind::Symlink(target) => {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_link_name_literal(target)?;
            &[]
        }
        Kind::File(content) => {
            header.set_entry_type(tar::EntryType::Regular);
            content
        }
    };
    header.set_size(content.len() as u64);
    header.set_cksum();
    builder.append(&header, content)?;
    Ok(())
}

fn write(path: &Path, entry: &Entry) -> Result<()> {
    match &entry.kind {
        Kind::Directory => {
            fs::create_dir_all(path)?;
            fs::set_permissions(path, Permissions::from_mode(entry.mode))?;
            chown(path, Some(entry.owner), Some(entry.owner))?;
        }
        Kind::Symlink(target) => {
            symlink(target, path)?;
            lchown(path, Some(entry.owner), Some(entry.owner))?;
        }
        Kind::File(content) => {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(entry.mode)
                .open(path)?;
            file.write_all(content)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_name_is_kept() {
        let rootfs = Rootfs::empty().file("../out", 0o644, b"x");
        let bytes = rootfs.tar().unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let entry = archive.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(entry.path_bytes().as_ref(), b"../out");
    }
}
