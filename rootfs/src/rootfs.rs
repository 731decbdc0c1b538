//! Creating and destroying root filesystems.
//!
//! The work behind `Store::create` and `Store::destroy`. A root filesystem is a directory
//! `rootfs/ID` with `upper/` and `work/`, and a mount that only its holder sees. It is made in a
//! staging directory and gets its id by one rename that fails when the id is taken: two creations
//! never undo each other, and whatever fails leaves nothing under the id. Destroying is one rename
//! into the trash, whatever was written.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use garden_sys::userns::IdRange;
use rustix::fs::{Gid, Mode, Stat, Uid};
use rustix::io::Errno;
use rustix::time::ClockId;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::digest::Digest;
use crate::dirs;
use crate::error::{Error, Result, Step};
use crate::image::{Image, ImageConfig};
use crate::mounting::BindRequest;
use crate::quota::{AppliedLimit, DiskLimit};
use crate::shifted;
use crate::staging::Staged;
use crate::store::{Described, Store};
use crate::trash::With;
use crate::unpack::attributes::Attributes;

pub(crate) const RECORD: &str = "record.json";

/// Whose ids the files of a root filesystem get.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum Mapping {
    /// The ids of the image are the ids of the host.
    #[default]
    Host,
    /// The ids of the image are those inside a user namespace with these maps.
    Mapped {
        /// Users.
        uid: Vec<IdRange>,
        /// Groups.
        gid: Vec<IdRange>,
    },
}

/// What a root filesystem is made from.
#[derive(Debug, Clone)]
pub struct CreateRequest<'a> {
    /// Its name: 1 to 255 bytes, a usable file name that does not start with a dot.
    pub id: &'a str,
    /// An image of the same store.
    pub image: &'a Image,
    /// Whose ids its files get.
    pub mapping: Mapping,
    /// Without anything to write to: the mount has no upper directory and can never need a sync.
    /// Nothing can be made in it, mount points included.
    pub read_only: bool,
    /// How large it may become.
    pub limit: DiskLimit,
}

/// A root filesystem that is ready to be used.
pub struct Rootfs {
    /// Its name.
    pub id: String,
    /// The mount, detached: in no mount table until it is attached with `move_mount(2)`. When the
    /// last reference goes and it is not volatile, the kernel syncs the whole disk of the store in
    /// that thread: see [`Store::destroy_holding`].
    pub mount: OwnedFd,
    /// What its image says about running it.
    pub config: ImageConfig,
    /// Whether the kernel never syncs it.
    pub volatile: bool,
    /// Its limit, and whether it holds.
    pub limit: AppliedLimit,
}

impl fmt::Debug for Rootfs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rootfs")
            .field("id", &self.id)
            .field("volatile", &self.volatile)
            .finish_non_exhaustive()
    }
}

/// A root filesystem in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootfsInfo {
    /// Its name.
    pub id: String,
    /// The image it was made from; none for a directory of the host.
    pub image: Option<Digest>,
    /// The directory of the host that it is; none for an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
    /// The keys of its layers, the topmost last.
    pub layers: Vec<String>,
    /// Whether it can be written to.
    pub read_only: bool,
    /// When it was created, in milliseconds since the epoch.
    pub created_ms: u64,
    /// The boot in which it was created: it does not outlive it.
    pub boot: String,
    /// Bytes in the regular files of its layers.
    #[serde(default)]
    pub base_bytes: u64,
    /// Files, directories and so on of its layers.
    #[serde(default)]
    pub base_inodes: u64,
    /// Its limit, and whether it holds.
    #[serde(default)]
    pub limit: AppliedLimit,
}

/// A [`RootfsInfo`] as it is written: with the part that is the same for all of an image written
/// out once.
#[derive(Serialize)]
struct Record<'a> {
    id: &'a str,
    image: Option<Digest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    directory: Option<&'a Path>,
    layers: &'a RawValue,
    read_only: bool,
    created_ms: u64,
    boot: &'a str,
    base_bytes: u64,
    base_inodes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<&'a AppliedLimit>,
}

/// What is on the disk under an id.
#[derive(Debug)]
pub(crate) enum State {
    /// One of this boot.
    Live(Box<RootfsInfo>),
    /// One that did not survive a reboot, and was not taken away yet.
    OfAnotherBoot,
    /// Something of this boot whose record nobody can read.
    Unreadable,
    /// Nothing.
    Gone,
}

impl Store {
    /// Makes a root filesystem and its mount. Takes the same time whatever the image's size, and
    /// waits for no disk; but when there is no space left, it waits for what the trash and a
    /// collection set free, tries once more, and may end with [`Error::StoreFull`].
    pub fn create(&self, request: &CreateRequest<'_>) -> Result<Rootfs> {
        self.with_room(|| self.create_once(request))
    }

    fn create_once(&self, request: &CreateRequest<'_>) -> Result<Rootfs> {
        let id = check_id(request.id)?;
        let _foreground = self.inner.trash.foreground();
        self.check_mount(id, request.image, request.read_only)?;
        if dirs::exists(&self.inner.dirs.rootfs, id) && !self.free_id(id)? {
            return Err(Error::IdInUse(id.to_owned()));
        }
        // Until the record below refers to its layers.
        let used = self.hold_image(request.image)?;
        let quota = &self.inner.quota;
        let planned = quota.plan(&request.limit, used.described.bytes)?;
        let staged = quota.stage(&self.inner.trash)?;
        // First of all: what is made in it from now on is counted, and the record says so.
        let limit = quota.set_up(staged.directory(), planned)?;
        self.write_record(&staged, request, &used.described, &limit)?;
        let upper = staged.subdirectory("upper", Mode::from_raw_mode(0o755))?;
        give_root(&upper, &request.image.root, &request.mapping)?;
        let (image, mapping) = (request.image, &request.mapping);
        let (mount, volatile) =
            self.mount_image(id, image, mapping, &staged, &upper, request.read_only)?;
        quota.finish(staged.directory(), &limit)?;
        self.publish_rootfs(staged, id)?;
        Ok(Rootfs {
            id: id.to_owned(),
            mount,
            config: request.image.config.clone(),
            volatile,
            limit,
        })
    }

    /// Takes a root filesystem away: its id is free at once, its data is removed in the
    /// background. `false` when there is none. Its mount may still be held by somebody; a mount
    /// that is not volatile is better given to [`Store::destroy_holding`].
    pub fn destroy(&self, id: &str) -> Result<bool> {
        self.destroy_holding(id, Vec::new())
    }

    /// The same, and keeps these descriptors (of its mount) open until the data is gone, so that
    /// their last close has nothing of it to write. Closed at once when there is no such id.
    pub fn destroy_holding(&self, id: &str, mounts: Vec<OwnedFd>) -> Result<bool> {
        let Ok(id) = check_id(id) else {
            return Ok(false);
        };
        let _foreground = self.inner.trash.foreground();
        let with = With {
            held: mounts,
            bytes: self.inner.quota.bytes_of(id),
        };
        let done = (self.inner.trash).discard_with(&self.inner.dirs.rootfs, id, with);
        done.step(|| format!("take the root filesystem {id:?} away"))
    }

    /// All root filesystems, by id.
    pub fn list(&self) -> Result<Vec<RootfsInfo>> {
        let names = self.ids()?;
        // One without a readable record was destroyed just now.
        Ok(names.iter().filter_map(|id| self.info(id)).collect())
    }

    /// The ids that are taken, also by what is not whole. Reads one directory.
    pub fn ids(&self) -> Result<Vec<String>> {
        dirs::names(&self.inner.dirs.rootfs).step(|| "list root filesystems".to_owned())
    }

    /// Destroys those of these root filesystems whose ids the owner does not keep; gives their ids.
    /// For an owner that was restarted, and knows what it still has. Ids that were listed before
    /// anything new was made cannot be of anything new.
    pub fn retain(
        &self,
        among: &[String],
        mut keeps: impl FnMut(&str) -> bool,
    ) -> Result<Vec<String>> {
        let mut destroyed = Vec::new();
        for id in among {
            if !keeps(id) && self.info(id).is_some() && self.destroy(id)? {
                destroyed.push(id.clone());
            }
        }
        Ok(destroyed)
    }

    pub(crate) fn info(&self, id: &str) -> Option<RootfsInfo> {
        match self.state(id) {
            State::Live(info) => Some(*info),
            _ => None,
        }
    }

    /// What is on the disk under an id.
    pub(crate) fn state(&self, id: &str) -> State {
        let dirs = &self.inner.dirs;
        let Ok(directory) = dirs::directory(&dirs.rootfs, id) else {
            return State::Gone;
        };
        let bytes = dirs::read(&directory, RECORD).ok().flatten();
        let info = bytes.and_then(|bytes| serde_json::from_slice::<RootfsInfo>(&bytes).ok());
        match info.filter(|info| info.id == id) {
            Some(info) if info.boot == dirs.boot => State::Live(Box::new(info)),
            Some(_) => State::OfAnotherBoot,
            // It may have been destroyed just now.
            None if !dirs::exists(&dirs.rootfs, id) => State::Gone,
            // A record of this boot is whole; one that did not survive the end of another is not.
            None if rustix::fs::fstat(&directory).is_ok_and(|stat| before_boot(&stat)) => {
                State::OfAnotherBoot
            }
            None => State::Unreadable,
        }
    }

    /// Frees an id that only something of another boot has; `false` when it is taken.
    fn free_id(&self, id: &str) -> Result<bool> {
        if !matches!(self.state(id), State::OfAnotherBoot) {
            return Ok(!dirs::exists(&self.inner.dirs.rootfs, id));
        }
        let discarded = (self.inner.trash).discard(&self.inner.dirs.rootfs, id, Vec::new());
        discarded.step(|| format!("discard the root filesystem {id:?} of another boot"))?;
        Ok(true)
    }

    fn write_record(
        &self,
        staged: &Staged,
        request: &CreateRequest<'_>,
        layers: &Described,
        limit: &AppliedLimit,
    ) -> Result<()> {
        let record = Record {
            image: Some(request.image.id),
            base_bytes: layers.bytes,
            base_inodes: layers.entries,
            limit: Some(limit),
            ..self.new_record(request.id, request.read_only, &layers.keys)
        };
        write(staged, &record)
    }

    /// The record of a root filesystem that is a directory of the host.
    pub(crate) fn record_bound(&self, staged: &Staged, request: &BindRequest<'_>) -> Result<()> {
        let none = serde_json::value::to_raw_value::<[&str]>(&[])
            .map_err(|error| Error::host("describe no layers", error))?;
        let record = Record {
            directory: Some(request.path),
            ..self.new_record(request.id, request.read_only, &none)
        };
        write(staged, &record)
    }

    fn new_record<'a>(&'a self, id: &'a str, read_only: bool, layers: &'a RawValue) -> Record<'a> {
        Record {
            id,
            image: None,
            directory: None,
            layers,
            read_only,
            created_ms: dirs::now_ms(),
            boot: &self.inner.dirs.boot,
            base_bytes: 0,
            base_inodes: 0,
            limit: None,
        }
    }

    /// Gives a finished root filesystem its id.
    pub(crate) fn publish_rootfs(&self, staged: Staged, id: &str) -> Result<()> {
        match staged.publish(self.inner.dirs.rootfs.as_fd(), id) {
            Ok(_) => Ok(()),
            Err(Errno::EXIST) => Err(Error::IdInUse(id.to_owned())),
            Err(error) => {
                let step = format!("name the root filesystem {id:?}");
                Err(Error::host(step, error))
            }
        }
    }
}

fn write(staged: &Staged, record: &Record<'_>) -> Result<()> {
    let step = || format!("write the record of the root filesystem {:?}", record.id);
    let text = serde_json::to_vec(record).map_err(|error| Error::host(step(), error))?;
    dirs::write(staged, RECORD, &text).step(step)?;
    Ok(())
}

/// Whether something got its name in an earlier boot. Only asked about what has no record.
fn before_boot(stat: &Stat) -> bool {
    let clock = |id| rustix::time::clock_gettime(id).tv_sec;
    let booted = clock(ClockId::Realtime) - clock(ClockId::Boottime);
    stat.st_ctime < booted
}

pub(crate) fn check_id(id: &str) -> Result<&str> {
    let fits =
        !id.is_empty() && id.len() <= 255 && !id.starts_with('.') && !id.contains(['/', '\0']);
    if fits {
        return Ok(id);
    }
    Err(Error::InvalidId(id.chars().take(300).collect()))
}

/// Makes the upper directory look like `/` of the image: overlay shows its root's attributes.
fn give_root(upper: &OwnedFd, root: &Attributes, mapping: &Mapping) -> Result<()> {
    let step = || "give the root of a root filesystem its attributes".to_owned();
    let (uid, gid) = match mapping {
        Mapping::Host => (root.uid, root.gid),
        Mapping::Mapped { uid, gid } => (
            on_host(uid, root.uid, "user")?,
            on_host(gid, root.gid, "group")?,
        ),
    };
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::fs::fchown(upper, Some(uid), Some(gid)).step(step)?;
    rustix::fs::fchmod(upper, Mode::from_raw_mode(root.mode)).step(step)?;
    for (name, value) in &root.xattrs {
        match garden_sys::xattr::set(upper, name, value) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            other => other.step(step)?,
        }
    }
    Ok(())
}

/// The id on the host. One that is not mapped must never pass as another.
fn on_host(ranges: &[IdRange], id: u32, what: &str) -> Result<u32> {
    shifted::on_host(ranges, id).ok_or_else(|| {
        let text = format!("it has no place for the {what} {id}, the owner of the image's root");
        Error::InvalidMapping(text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::Enforced;

    #[test]
    fn a_record_reads_as_what_it_says() {
        let keys = serde_json::value::to_raw_value(&["below", "above"]).unwrap();
        let limit = AppliedLimit {
            bytes: Some(5),
            inodes: None,
            enforced: Enforced::Kernel,
        };
        let mut record = Record {
            id: "one",
            image: Some(Digest::of(b"image")),
            directory: None,
            layers: &keys,
            read_only: true,
            created_ms: 17,
            boot: "a boot",
            base_bytes: 3,
            base_inodes: 4,
            limit: Some(&limit),
        };
        let read = |record: &Record<'_>| -> RootfsInfo {
            serde_json::from_slice(&serde_json::to_vec(record).unwrap()).unwrap()
        };
        let info = RootfsInfo {
            id: "one".to_owned(),
            image: Some(Digest::of(b"image")),
            directory: None,
            layers: vec!["below".to_owned(), "above".to_owned()],
            read_only: true,
            created_ms: 17,
            boot: "a boot".to_owned(),
            base_bytes: 3,
            base_inodes: 4,
            limit: limit.clone(),
        };
        assert_eq!(read(&record), info);
        (record.limit, record.directory) = (None, Some(Path::new("/data")));
        let info = RootfsInfo {
            limit: AppliedLimit::default(),
            directory: Some(PathBuf::from("/data")),
            ..info
        };
        assert_eq!(read(&record), info);
    }
}
