//! One overlay mount, built from descriptors alone.
//!
//! Used by the creation of root filesystems. No path, no option string and no mount point: layers
//! are directories in a read-only view of all layers (id-mapped where owners are mapped), and what
//! comes out is a detached mount that is in no mount table. Needs Linux 6.13 (layers as
//! descriptors). One view serves every root filesystem with the same mapping: a clone for each
//! layer of each of them would cost twice its time again when it is closed.
//! Blocks; with an upper directory and without `volatile`, closing the last reference syncs the
//! whole disk.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use garden_sys::mount::{Attributes, Change, Propagation, context_log, set_attributes};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_fd,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, open_tree,
};

use crate::capabilities::Volatile;

/// Options of every mount. All of them are what the kernel may be configured to do otherwise:
/// `index` and `nfs_export` make a leaked mount an error, `metacopy` and redirections would let
/// a layer point at other files.
const OPTIONS: [(&str, &str); 5] = [
    ("index", "off"),
    ("metacopy", "off"),
    ("redirect_dir", "nofollow"),
    ("nfs_export", "off"),
    ("xino", "auto"),
];

/// What an overlay is made of.
pub(crate) struct Overlay<'a> {
    /// Directories of layers, in a [`view`] of them; the topmost first.
    pub(crate) layers: Vec<BorrowedFd<'a>>,
    /// What is written to; without it the mount is read-only.
    pub(crate) upper: Option<Upper<'a>>,
    /// A directory above the layers whose owners are not mapped.
    pub(crate) top: Option<BorrowedFd<'a>>,
    /// Whether device nodes in it cannot be opened.
    pub(crate) no_devices: bool,
}

/// The directories that an overlay writes to.
#[derive(Clone, Copy)]
pub(crate) struct Upper<'a> {
    pub(crate) upper: BorrowedFd<'a>,
    pub(crate) work: BorrowedFd<'a>,
    /// How to ask for no syncing, if it is wanted.
    pub(crate) volatile: Option<Volatile>,
}

/// A step of building a mount that failed.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) step: &'static str,
    /// The kernel's own words; may be empty.
    pub(crate) kernel: String,
    pub(crate) source: io::Error,
}

impl Overlay<'_> {
    /// Builds it. A failed step leaves nothing behind.
    pub(crate) fn mount(&self) -> Result<OwnedFd, Failed> {
        let plain = |step| {
            move |errno| Failed {
                step,
                kernel: String::new(),
                source: io::Error::from(errno),
            }
        };
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
            .map_err(plain("open an overlay context"))?;
        let explained = |step| {
            let context = &context;
            move |errno| Failed {
                step,
                kernel: context_log(context),
                source: io::Error::from(errno),
            }
        };
        fsconfig_set_string(&context, "source", "garden").map_err(explained("name the overlay"))?;
        for (key, value) in OPTIONS {
            fsconfig_set_string(&context, key, value)
                .map_err(explained("set the options of the overlay"))?;
        }
        if let Some(top) = self.top {
            fsconfig_set_fd(&context, "lowerdir+", top)
                .map_err(explained("give the overlay its top directory"))?;
        }
        for layer in &self.layers {
            fsconfig_set_fd(&context, "lowerdir+", layer)
                .map_err(explained("give the overlay a layer"))?;
        }
        if let Some(upper) = self.upper {
            fsconfig_set_fd(&context, "upperdir", upper.upper)
                .map_err(explained("give the overlay its upper directory"))?;
            fsconfig_set_fd(&context, "workdir", upper.work)
                .map_err(explained("give the overlay its work directory"))?;
            match upper.volatile {
                Some(Volatile::Flag) => fsconfig_set_flag(&context, "volatile"),
                Some(Volatile::Fsync) => fsconfig_set_string(&context, "fsync", "volatile"),
                None => Ok(()),
            }
            .map_err(explained("make the overlay volatile"))?;
        } else {
            fsconfig_set_flag(&context, "ro").map_err(explained("make the overlay read-only"))?;
        }
        fsconfig_create(&context).map_err(explained("create the overlay"))?;
        let mut attributes = MountAttrFlags::empty();
        attributes.set(MountAttrFlags::MOUNT_ATTR_NODEV, self.no_devices);
        attributes.set(MountAttrFlags::MOUNT_ATTR_RDONLY, self.upper.is_none());
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .map_err(explained("mount the overlay"))
    }
}

/// A read-only view of a directory, with the owners that a user namespace gives them: a detached
/// clone of its mount. What is opened in it may be given to overlays as long as it is open.
///
/// The clone's own descriptor is an `O_PATH` one, which the kernel does not take as a layer before
/// Linux 6.15; those of the directories in it are.
pub(crate) fn view(
    directory: &OwnedFd,
    mapping: Option<BorrowedFd<'_>>,
) -> Result<OwnedFd, io::Error> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let clone = open_tree(directory, "", flags)?;
    let change = Change {
        set: Attributes::READ_ONLY,
        propagation: Some(Propagation::Private),
        idmap: mapping,
        ..Change::default()
    };
    set_attributes(&clone, &change)?;
    Ok(clone)
}
