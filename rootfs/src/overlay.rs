//! One overlay mount, built from descriptors alone.
//!
//! Used by the creation of root filesystems. No path, no option string and no mount point: layers
//! are read-only clones of their directories (id-mapped where owners are mapped), and what comes
//! out is a detached mount that is in no mount table. Needs Linux 6.13 (layers as descriptors).
//! Blocks; with an upper directory and without `volatile`, closing the last reference syncs the
//! whole disk.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use garden_sys::mount::{Attributes, Change, Propagation, context_log, set_attributes};
use rustix::fs::{Mode, OFlags};
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
    /// Directories of layers, the topmost first.
    pub(crate) layers: Vec<BorrowedFd<'a>>,
    /// A user namespace that maps the owners in the layers.
    pub(crate) mapping: Option<BorrowedFd<'a>>,
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
        // The clones must live until the kernel made its own copies of them.
        let mut clones = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            clones.push(self.clone_of(*layer)?);
        }
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
        for (_, layer) in &clones {
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

    /// A read-only clone of a layer's directory, and a descriptor that can be given away: before
    /// Linux 6.15 the clone's own, an `O_PATH` one, cannot.
    fn clone_of(&self, layer: BorrowedFd<'_>) -> Result<(OwnedFd, OwnedFd), Failed> {
        let failed = |step| {
            move |source| Failed {
                step,
                kernel: String::new(),
                source,
            }
        };
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        let clone = open_tree(layer, "", flags)
            .map_err(|errno| failed("clone the mount of a layer")(errno.into()))?;
        let change = Change {
            set: Attributes::READ_ONLY,
            propagation: Some(Propagation::Private),
            idmap: self.mapping,
            ..Change::default()
        };
        set_attributes(&clone, &change).map_err(failed("map the owners of a layer"))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let usable = rustix::fs::openat(clone.as_fd(), ".", flags, Mode::empty())
            .map_err(|errno| failed("open the clone of a layer")(errno.into()))?;
        Ok((clone, usable))
    }
}
