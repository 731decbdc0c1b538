//! Project quota: which project a file belongs to, what a project uses, and what it may use.
//!
//! Called by the root filesystem backend. XFS and ext4 alike: the project of an object is an
//! attribute of it (`FS_IOC_FSSETXATTR`), accounts are asked for with the generic commands of
//! `quotactl(2)`, which both file systems understand. Everything needs `CAP_SYS_ADMIN` in the
//! initial user namespace. Nothing here walks or waits for a disk longer than one block's read.

use std::ffi::{CStr, CString, c_int};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use rustix::ioctl::{Getter, Opcode, Setter, opcode};

/// `struct fsxattr` of `<linux/fs.h>`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    padding: [u8; 8],
}

const _: () = assert!(size_of::<Attributes>() == 28);

/// `FS_IOC_FSGETXATTR` and `FS_IOC_FSSETXATTR`.
const GET_ATTRIBUTES: Opcode = opcode::read::<Attributes>(b'X', 31);
const SET_ATTRIBUTES: Opcode = opcode::write::<Attributes>(b'X', 32);
/// What is made in such a directory gets its project, and this flag.
const INHERIT: u32 = 0x200;

/// The project of an object.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Project {
    /// Its number; 0 is everything that belongs to no project.
    pub id: u32,
    /// Whether what is made in this directory belongs to the same project.
    pub inherit: bool,
}

/// The project of a file or directory (`FS_IOC_FSGETXATTR`; XFS always, ext4 since Linux 4.5).
/// `ENOTTY` on file systems without projects.
pub fn project(fd: impl AsFd) -> io::Result<Project> {
    let attributes = attributes(fd.as_fd())?;
    Ok(Project {
        id: attributes.project,
        inherit: attributes.flags & INHERIT != 0,
    })
}

/// Gives a file or directory to a project (`FS_IOC_FSSETXATTR`); its other attributes stay. What
/// is already in a directory stays where it is.
pub fn set_project(fd: impl AsFd, project: Project) -> io::Result<()> {
    let fd = fd.as_fd();
    let mut changed = attributes(fd)?;
    changed.project = project.id;
    changed.flags &= !INHERIT;
    if project.inherit {
        changed.flags |= INHERIT;
    }
    // SAFETY: the opcode is the one of FSSETXATTR, made from the size of its argument.
    let setter = unsafe { Setter::<SET_ATTRIBUTES, Attributes>::new(changed) };
    // SAFETY: FSSETXATTR reads one `struct fsxattr`, which `Attributes` is, and keeps nothing.
    unsafe { rustix::ioctl::ioctl(fd, setter) }?;
    Ok(())
}

fn attributes(fd: BorrowedFd<'_>) -> io::Result<Attributes> {
    // SAFETY: the opcode is the one of FSGETXATTR, and any bytes are an `Attributes`.
    let getter = unsafe { Getter::<GET_ATTRIBUTES, Attributes>::new() };
    // SAFETY: FSGETXATTR writes one `struct fsxattr`, which `Attributes` is, whole.
    Ok(unsafe { rustix::ioctl::ioctl(fd, getter) }?)
}

/// `struct if_nextdqblk` of `<linux/quota.h>`; without its last member it is `struct if_dqblk`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Block {
    byte_hard: u64,
    byte_soft: u64,
    bytes: u64,
    inode_hard: u64,
    inode_soft: u64,
    inodes: u64,
    byte_time: u64,
    inode_time: u64,
    valid: u32,
    id: u32,
}

// The smaller structure has the same size: it ends in padding where the larger one has the id.
const _: () = assert!(size_of::<Block>() == 72);

/// `struct fs_qfilestatv` of `<linux/dqblk_xfs.h>`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct FileStatus {
    inode: u64,
    blocks: u64,
    extents: u32,
    padding: u32,
}

/// `struct fs_quota_statv` of `<linux/dqblk_xfs.h>`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Status {
    version: i8,
    padding1: u8,
    flags: u16,
    in_core: u32,
    files: [FileStatus; 3],
    byte_time: i32,
    inode_time: i32,
    realtime_time: i32,
    byte_warnings: u16,
    inode_warnings: u16,
    realtime_warnings: u16,
    padding3: u16,
    padding4: u32,
    padding2: [u64; 7],
}

const _: () = assert!(size_of::<FileStatus>() == 24);
const _: () = assert!(size_of::<Status>() == 160);

const GET: u32 = 0x80_0007;
const SET: u32 = 0x80_0008;
const GET_NEXT: u32 = 0x80_0009;
/// `Q_XGETQSTATV`; ext4 answers it as well.
const GET_STATUS: u32 = ((b'X' as u32) << 8) + 8;
const OF_PROJECTS: u32 = 2;

/// Limits are counted in blocks of this size, usage in bytes.
const BLOCK: u64 = 1024;
const LIMITS_ARE_VALID: u32 = 1 | 4;
const PROJECTS_ACCOUNTED: u16 = 1 << 4;
const PROJECTS_ENFORCED: u16 = 1 << 5;

/// A file system, as it is named to the quota calls.
#[derive(Debug, Clone, Copy)]
pub enum FileSystem<'a> {
    /// By any object on it (`quotactl_fd(2)`, Linux 5.14).
    Of(BorrowedFd<'a>),
    /// By the path of its block device (`quotactl(2)`).
    On(&'a CStr),
}

/// What a project uses and may use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Account {
    /// Bytes in allocated blocks.
    pub bytes: u64,
    /// Files, directories and whatever else has an inode.
    pub inodes: u64,
    /// The most bytes; 0 is unlimited.
    pub byte_limit: u64,
    /// The most inodes; 0 is unlimited.
    pub inode_limit: u64,
}

impl From<Block> for Account {
    fn from(block: Block) -> Self {
        Self {
            bytes: block.bytes,
            inodes: block.inodes,
            byte_limit: block.byte_hard.saturating_mul(BLOCK),
            inode_limit: block.inode_hard,
        }
    }
}

/// Whether a file system counts for projects, and holds them to their limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Projects {
    /// What projects use is known.
    pub accounted: bool,
    /// Their limits hold.
    pub enforced: bool,
}

/// Whether a file system has project quota (`Q_XGETQSTATV`, Linux 3.12; ext4 since 4.1). `ENOSYS`,
/// `ESRCH` or `EINVAL` where it has no quota at all.
pub fn projects(at: FileSystem<'_>) -> io::Result<Projects> {
    let mut status = Status {
        version: 1,
        ..Status::default()
    };
    call(GET_STATUS, at, 0, &mut status)?;
    Ok(Projects {
        accounted: status.flags & PROJECTS_ACCOUNTED != 0,
        enforced: status.flags & PROJECTS_ENFORCED != 0,
    })
}

/// The account of a project (`Q_GETQUOTA`). One that nobody ever belonged to is empty.
pub fn account(at: FileSystem<'_>, id: u32) -> io::Result<Account> {
    let mut block = Block::default();
    match call(GET, at, id, &mut block) {
        // XFS keeps no account for it.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Account::default()),
        other => other.map(|()| block.into()),
    }
}

/// The first account at or after `id` that is not empty (`Q_GETNEXTQUOTA`, Linux 4.6).
pub fn next_account(at: FileSystem<'_>, id: u32) -> io::Result<Option<(u32, Account)>> {
    let mut block = Block::default();
    match call(GET_NEXT, at, id, &mut block) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        other => other.map(|()| Some((block.id, block.into()))),
    }
}

/// Limits a project (`Q_SETQUOTA`); zeros lift the limits. Bytes are rounded up to 1024.
pub fn set_limits(at: FileSystem<'_>, id: u32, bytes: u64, inodes: u64) -> io::Result<()> {
    let mut block = Block {
        byte_hard: bytes.div_ceil(BLOCK),
        inode_hard: inodes,
        valid: LIMITS_ARE_VALID,
        ..Block::default()
    };
    call(SET, at, id, &mut block)
}

/// The path of the block device that an object is stored on, for kernels without `quotactl_fd(2)`;
/// `None` when there is no such node in `/dev`, or the file system is on no device. It is looked for
/// where the kernel says what the device is called; no node is made.
pub fn device(fd: impl AsFd) -> Option<CString> {
    let device = rustix::fs::fstat(fd).ok()?.st_dev;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let about = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent"));
    let named = about.unwrap_or_default();
    let named = named.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let by_name = named.map(|name| Path::new("/dev").join(name));
    let by_number = PathBuf::from(format!("/dev/block/{major}:{minor}"));
    let candidates = by_name.into_iter().chain([by_number]);
    let is_it = |path: &PathBuf| {
        rustix::fs::stat(path).is_ok_and(|stat| {
            FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice && stat.st_rdev == device
        })
    };
    let path = candidates.into_iter().find(is_it)?;
    CString::new(path.as_os_str().as_bytes()).ok()
}

/// What the commands above exchange with the kernel: plain numbers, in the kernel's layout.
trait Exchanged {}
impl Exchanged for Block {}
impl Exchanged for Status {}

fn call<T: Exchanged>(command: u32, at: FileSystem<'_>, id: u32, value: &mut T) -> io::Result<()> {
    let command = (command << 8) | OF_PROJECTS;
    let address: *mut T = value;
    let result = match at {
        // SAFETY: the command is one of the four above; each reads or writes at most one
        // structure of the size of `Block` (SET, GET, GET_NEXT) or `Status` (GET_STATUS), which
        // their callers pass, and keeps nothing. The descriptor lives as long as its borrow.
        FileSystem::Of(fd) => unsafe {
            libc::syscall(
                libc::SYS_quotactl_fd,
                fd.as_raw_fd(),
                command,
                id,
                address.cast::<libc::c_void>(),
            )
        },
        // SAFETY: as above; the path ends in a NUL byte and outlives the call.
        FileSystem::On(device) => unsafe {
            libc::syscall(
                libc::SYS_quotactl,
                command,
                device.as_ptr(),
                id as c_int,
                address.cast::<libc::c_void>(),
            )
        },
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    use std::fs::File;

    /// A directory on a file system with project quota, from the environment.
    fn places(test: &str) -> Vec<(String, File)> {
        let mut all = Vec::new();
        for name in ["GARDEN_TEST_XFS", "GARDEN_TEST_EXT4"] {
            match std::env::var(name) {
                Ok(path) => all.push((path.clone(), File::open(path).unwrap())),
                Err(_) => println!("SKIPPED {test}: {name} is not set"),
            }
        }
        all
    }

    #[test]
    fn opcodes_are_those_of_the_headers() {
        if cfg!(target_arch = "x86_64") {
            assert_eq!(GET_ATTRIBUTES, 0x801c_581f);
            assert_eq!(SET_ATTRIBUTES, 0x401c_5820);
        }
        assert_eq!(GET_STATUS, 0x5808);
    }

    #[test]
    fn a_place_without_projects_says_so() {
        let zero = File::open("/dev/zero").unwrap();
        let error = project(&zero).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
    }

    #[test]
    fn root_project_files_are_counted_limited_and_found() {
        for (path, root) in places("root_project_files_are_counted_limited_and_found") {
            let device = device(&root).unwrap();
            let at = match projects(FileSystem::Of(root.as_fd())) {
                // Before Linux 5.14.
                Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => FileSystem::On(&device),
                _ => FileSystem::Of(root.as_fd()),
            };
            assert_eq!(
                projects(at).unwrap(),
                Projects {
                    accounted: true,
                    enforced: true
                },
                "{path}"
            );
            let id = 0x3fff_0000 + std::process::id() % 0xffff;
            let dir = tempfile::tempdir_in(&path).unwrap();
            let top = File::open(dir.path()).unwrap();
            assert_eq!(account(at, id).unwrap(), Account::default());
            let lifted = Lifted(at, id);
            let wanted = Project { id, inherit: true };
            set_project(&top, wanted).unwrap();
            assert_eq!(project(&top).unwrap(), wanted);
            assert_eq!(account(at, id).unwrap().inodes, 1);
            set_limits(at, id, 1 << 20, 5).unwrap();
            for name in ["a", "b", "c", "d"] {
                std::fs::write(dir.path().join(name), "x").unwrap();
            }
            assert_eq!(
                project(File::open(dir.path().join("a")).unwrap())
                    .unwrap()
                    .id,
                id
            );
            // Overlay mounts give it up as well: who has it may exceed limits on ext4.
            let resources = set_resources(false);
            let error = std::fs::write(dir.path().join("e"), "x").unwrap_err();
            let full = [libc::ENOSPC, libc::EDQUOT];
            assert!(full.contains(&error.raw_os_error().unwrap()), "{error}");
            let error = std::fs::write(dir.path().join("a"), vec![1; 2 << 20]).unwrap_err();
            assert!(full.contains(&error.raw_os_error().unwrap()), "{error}");
            set_resources(resources);
            let seen = account(at, id).unwrap();
            assert_eq!(
                (seen.inodes, seen.byte_limit, seen.inode_limit),
                (5, 1 << 20, 5)
            );
            assert!(seen.bytes <= 1 << 20, "{seen:?}");
            let (next, found) = next_account(at, id).unwrap().unwrap();
            assert_eq!((next, found.inode_limit), (id, 5));
            // Both calls know the same.
            assert_eq!(account(FileSystem::On(&device), id).unwrap(), seen);
            drop((lifted, dir));
            let after = account(at, id).unwrap();
            assert_eq!((after.byte_limit, after.inode_limit), (0, 0));
        }
    }

    /// Lifts the limits at the end, also of a failed test.
    struct Lifted<'a>(FileSystem<'a>, u32);

    impl Drop for Lifted<'_> {
        fn drop(&mut self) {
            let _ = set_limits(self.0, self.1, 0, 0);
        }
    }

    /// Switches this thread's `CAP_SYS_RESOURCE`; gives what it was.
    fn set_resources(on: bool) -> bool {
        let mut sets = capabilities(None).unwrap();
        let was = sets.effective.contains(CapabilitySet::SYS_RESOURCE);
        sets.effective.set(CapabilitySet::SYS_RESOURCE, on);
        set_capabilities(None, sets).unwrap();
        was
    }

    #[test]
    fn what_is_on_no_device_has_none() {
        let proc = std::fs::File::open("/proc/self").unwrap();
        assert_eq!(device(proc), None);
    }

    #[test]
    fn a_path_is_that_of_the_device() {
        let file = std::fs::File::open("/").unwrap();
        let Some(path) = device(&file) else {
            println!("SKIPPED a_path_is_that_of_the_device: / is on no device in /dev");
            return;
        };
        let stat = rustix::fs::stat(&*path).unwrap();
        assert_eq!(stat.st_rdev, rustix::fs::fstat(&file).unwrap().st_dev);
    }
}
