//! Subvolumes of btrfs and what they use and may use (qgroups).
//!
//! Called by the root filesystem backend. A qgroup `0/ID` belongs to each subvolume while quota is
//! enabled on the file system; its numbers are items in the quota tree, which are brought up to
//! date by each commit (every 30 s, if nobody asks earlier). All of it needs `CAP_SYS_ADMIN` in
//! the initial user namespace. Old kernels commit when they make a subvolume.

use std::io;
use std::ops::{Range, RangeInclusive};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;
use rustix::ioctl::{NoArg, Opcode, Setter, Updater, opcode};

const GROUP: u8 = 0x94;
/// The tree of all trees, the tree of qgroups, and the tree that is meant when none is named.
const ROOT_TREE: u64 = 1;
const QUOTA_TREE: u64 = 8;
const OWN_TREE: u64 = 0;
/// The inode of a subvolume's top directory.
const TOP: u64 = 256;
/// Accounts of subvolumes; those of groups of accounts have larger numbers.
const LAST_NUMBER: u64 = (1 << 48) - 1;
/// Items of the tree of all trees, and of the quota tree.
const ROOT_ITEM: u32 = 132;
const STATUS: u32 = 240;
const INFO: u32 = 242;
const LIMIT: u32 = 244;

/// `struct btrfs_ioctl_vol_args`.
#[repr(C)]
struct Named {
    fd: i64,
    name: [u8; 4088],
}

/// `struct btrfs_ioctl_qgroup_limit_args`.
#[repr(C)]
#[derive(Default)]
struct LimitArgs {
    qgroup: u64,
    flags: u64,
    most_referenced: u64,
    most_exclusive: u64,
    reserved_referenced: u64,
    reserved_exclusive: u64,
}

/// `struct btrfs_ioctl_qgroup_create_args`.
#[repr(C)]
struct CreateArgs {
    create: u64,
    qgroup: u64,
}

/// `struct btrfs_ioctl_quota_ctl_args`.
#[repr(C)]
struct ControlArgs {
    command: u64,
    status: u64,
}

/// `struct btrfs_ioctl_quota_rescan_args`.
#[repr(C)]
#[derive(Default)]
struct RescanArgs {
    flags: u64,
    progress: u64,
    reserved: [u64; 6],
}

/// `struct btrfs_ioctl_search_args`, the key of the search in front.
#[repr(C)]
struct SearchArgs {
    tree: u64,
    least_object: u64,
    most_object: u64,
    least_offset: u64,
    most_offset: u64,
    least_transaction: u64,
    most_transaction: u64,
    least_kind: u32,
    most_kind: u32,
    items: u32,
    unused: u32,
    unused_too: [u64; 4],
    found: [u8; 3992],
}

/// `struct btrfs_ioctl_ino_lookup_args`.
#[repr(C)]
struct LookupArgs {
    tree: u64,
    object: u64,
    name: [u8; 4080],
}

/// `struct btrfs_ioctl_fs_info_args`.
#[repr(C)]
struct FileSystemArgs {
    unused: [u8; 44],
    checksum: [u16; 2],
    flags: u64,
    generation: u64,
    unused_too: [u8; 960],
}

const _: () = assert!(size_of::<FileSystemArgs>() == 1024);
const _: () = assert!(size_of::<Named>() == 4096);
const _: () = assert!(size_of::<LimitArgs>() == 48);
const _: () = assert!(size_of::<CreateArgs>() == 16);
const _: () = assert!(size_of::<ControlArgs>() == 16);
const _: () = assert!(size_of::<RescanArgs>() == 64);
const _: () = assert!(size_of::<SearchArgs>() == 4096);
const _: () = assert!(size_of::<LookupArgs>() == 4096);

const CREATE: Opcode = opcode::write::<Named>(GROUP, 14);
const DESTROY: Opcode = opcode::write::<Named>(GROUP, 15);
const SEARCH: Opcode = opcode::read_write::<SearchArgs>(GROUP, 17);
const LOOKUP: Opcode = opcode::read_write::<LookupArgs>(GROUP, 18);
const FILE_SYSTEM: Opcode = opcode::read::<FileSystemArgs>(GROUP, 31);
const CONTROL: Opcode = opcode::read_write::<ControlArgs>(GROUP, 40);
const QGROUP_CREATE: Opcode = opcode::write::<CreateArgs>(GROUP, 42);
const QGROUP_LIMIT: Opcode = opcode::read::<LimitArgs>(GROUP, 43);
const RESCAN: Opcode = opcode::write::<RescanArgs>(GROUP, 44);
const RESCAN_WAIT: Opcode = opcode::none(GROUP, 46);

/// What `FS_INFO` is asked for besides: the transaction.
const GENERATION: u64 = 1 << 1;

/// What `QGROUP_LIMIT` is to change: the most that may be referenced.
const MOST_REFERENCED: u64 = 1;

/// How quota is switched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switch {
    /// Counted by who refers to an extent; what there is must be scanned.
    Full,
    /// Counted by who allocated an extent: cheaper, nothing is scanned (Linux 6.7).
    Simple,
    /// Not counted.
    Off,
}

/// The state of quota on a file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QuotaStatus {
    /// Counted by who allocated.
    pub simple: bool,
    /// What is already there is still being counted.
    pub scanning: bool,
    /// The numbers are wrong until a scan is made.
    pub inconsistent: bool,
}

/// What a subvolume uses and may use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Qgroup {
    /// The transaction that changed its numbers last: at first, the one that made it.
    pub generation: u64,
    /// Bytes that it refers to, as of the last commit.
    pub referenced: u64,
    /// Bytes that nobody else refers to, as of the last commit.
    pub exclusive: u64,
    /// The most that it may refer to; `None` is unlimited.
    pub most_referenced: Option<u64>,
}

/// Makes an empty subvolume in a directory (`BTRFS_IOC_SUBVOL_CREATE`).
pub fn create_subvolume(parent: impl AsFd, name: &str) -> io::Result<()> {
    let named = named(name)?;
    // SAFETY: the opcode is the one of SUBVOL_CREATE, made from the size of its argument.
    let setter = unsafe { Setter::<CREATE, Named>::new(named) };
    // SAFETY: SUBVOL_CREATE reads one `btrfs_ioctl_vol_args`, whose name ends in a NUL byte.
    unsafe { rustix::ioctl::ioctl(parent, setter) }?;
    Ok(())
}

/// Removes a subvolume and everything in it (`BTRFS_IOC_SNAP_DESTROY`); its space becomes free
/// later, by the file system's cleaner. `ENOTEMPTY` when there is another subvolume in it.
pub fn destroy_subvolume(parent: impl AsFd, name: &str) -> io::Result<()> {
    let named = named(name)?;
    // SAFETY: the opcode is the one of SNAP_DESTROY, made from the size of its argument.
    let setter = unsafe { Setter::<DESTROY, Named>::new(named) };
    // SAFETY: SNAP_DESTROY reads one `btrfs_ioctl_vol_args`, whose name ends in a NUL byte.
    unsafe { rustix::ioctl::ioctl(parent, setter) }?;
    Ok(())
}

fn named(name: &str) -> io::Result<Named> {
    let mut named = Named {
        fd: 0,
        name: [0; 4088],
    };
    // The last byte stays zero.
    let fits = !name.is_empty() && !name.contains(['/', '\0']) && name.len() < named.name.len();
    if !fits {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    named.name[..name.len()].copy_from_slice(name.as_bytes());
    Ok(named)
}

/// The number of the subvolume that an object is in (`BTRFS_IOC_INO_LOOKUP`).
pub fn subvolume(fd: impl AsFd) -> io::Result<u64> {
    let mut args = LookupArgs {
        tree: OWN_TREE,
        object: TOP,
        name: [0; 4080],
    };
    // SAFETY: the opcode is the one of INO_LOOKUP, made from the size of its argument.
    let updater = unsafe { Updater::<LOOKUP, LookupArgs>::new(&mut args) };
    // SAFETY: INO_LOOKUP reads and writes one `btrfs_ioctl_ino_lookup_args` and keeps nothing.
    unsafe { rustix::ioctl::ioctl(fd, updater) }?;
    Ok(args.tree)
}

/// Whether an object is the top directory of a subvolume.
pub fn is_subvolume(fd: impl AsFd) -> io::Result<bool> {
    let fd = fd.as_fd();
    let on_btrfs = rustix::fs::fstatfs(fd)?.f_type == libc::BTRFS_SUPER_MAGIC;
    Ok(on_btrfs && rustix::fs::fstat(fd)?.st_ino == TOP)
}

/// Limits what the subvolume of an object may refer to (`BTRFS_IOC_QGROUP_LIMIT`).
pub fn limit(fd: impl AsFd, bytes: u64) -> io::Result<()> {
    let args = LimitArgs {
        // The subvolume of the object itself.
        qgroup: 0,
        flags: MOST_REFERENCED,
        most_referenced: bytes,
        ..LimitArgs::default()
    };
    // SAFETY: the opcode is the one of QGROUP_LIMIT, made from the size of its argument.
    let setter = unsafe { Setter::<QGROUP_LIMIT, LimitArgs>::new(args) };
    // SAFETY: QGROUP_LIMIT reads one `btrfs_ioctl_qgroup_limit_args` and keeps nothing.
    unsafe { rustix::ioctl::ioctl(fd, setter) }?;
    Ok(())
}

/// Forgets the account of a subvolume that is gone (`BTRFS_IOC_QGROUP_CREATE`). New kernels do so
/// by themselves; `EBUSY` while it is still being removed, `ENOENT` when there is none.
pub fn forget(fd: impl AsFd, subvolume: u64) -> io::Result<()> {
    let args = CreateArgs {
        create: 0,
        qgroup: subvolume,
    };
    // SAFETY: the opcode is the one of QGROUP_CREATE, made from the size of its argument.
    let setter = unsafe { Setter::<QGROUP_CREATE, CreateArgs>::new(args) };
    // SAFETY: QGROUP_CREATE reads one `btrfs_ioctl_qgroup_create_args` and keeps nothing.
    unsafe { rustix::ioctl::ioctl(fd, setter) }?;
    Ok(())
}

/// Switches quota on or off for a whole file system (`BTRFS_IOC_QUOTA_CTL`). `EINVAL` when the
/// kernel does not know the kind.
pub fn switch_quota(fd: impl AsFd, switch: Switch) -> io::Result<()> {
    let mut args = ControlArgs {
        command: match switch {
            Switch::Full => 1,
            Switch::Off => 2,
            Switch::Simple => 4,
        },
        status: 0,
    };
    // SAFETY: the opcode is the one of QUOTA_CTL, made from the size of its argument.
    let updater = unsafe { Updater::<CONTROL, ControlArgs>::new(&mut args) };
    // SAFETY: QUOTA_CTL reads and writes one `btrfs_ioctl_quota_ctl_args` and keeps nothing.
    unsafe { rustix::ioctl::ioctl(fd, updater) }?;
    Ok(())
}

/// Starts counting what is already there (`BTRFS_IOC_QUOTA_RESCAN`); `EINPROGRESS` when that is
/// going on.
pub fn start_scan(fd: impl AsFd) -> io::Result<()> {
    // SAFETY: the opcode is the one of QUOTA_RESCAN, made from the size of its argument.
    let setter = unsafe { Setter::<RESCAN, RescanArgs>::new(RescanArgs::default()) };
    // SAFETY: QUOTA_RESCAN reads one `btrfs_ioctl_quota_rescan_args` and keeps nothing.
    unsafe { rustix::ioctl::ioctl(fd, setter) }?;
    Ok(())
}

/// Waits until everything is counted (`BTRFS_IOC_QUOTA_RESCAN_WAIT`).
pub fn wait_for_scan(fd: impl AsFd) -> io::Result<()> {
    // SAFETY: the opcode is the one of QUOTA_RESCAN_WAIT.
    let wait = unsafe { NoArg::<RESCAN_WAIT>::new() };
    // SAFETY: QUOTA_RESCAN_WAIT has no argument.
    unsafe { rustix::ioctl::ioctl(fd, wait) }?;
    Ok(())
}

/// The state of quota; `None` when it is off.
pub fn quota_status(fd: impl AsFd) -> io::Result<Option<QuotaStatus>> {
    // version, generation, flags, progress of a scan
    let status = first(fd.as_fd(), QUOTA_TREE, 0, STATUS, 0..=0)?;
    let flags = status
        .and_then(|(_, item)| number(&item, 16))
        .unwrap_or_default();
    Ok((flags & 1 != 0).then_some(QuotaStatus {
        scanning: flags & 2 != 0,
        inconsistent: flags & 4 != 0,
        simple: flags & 8 != 0,
    }))
}

/// The transaction that runs, or that ran last (`BTRFS_IOC_FS_INFO`, Linux 5.10). It begins only
/// after every system call that takes part in an earlier one has done its work.
pub fn generation(fd: impl AsFd) -> io::Result<u64> {
    let mut args = FileSystemArgs {
        unused: [0; 44],
        checksum: [0; 2],
        flags: GENERATION,
        generation: 0,
        unused_too: [0; 960],
    };
    // SAFETY: the opcode is the one of FS_INFO, made from the size of its argument.
    let updater = unsafe { Updater::<FILE_SYSTEM, FileSystemArgs>::new(&mut args) };
    // SAFETY: FS_INFO reads and writes one `btrfs_ioctl_fs_info_args` and keeps nothing.
    unsafe { rustix::ioctl::ioctl(fd, updater) }?;
    if args.flags & GENERATION == 0 {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(args.generation)
}

/// What a subvolume uses and may use; `None` when it is not counted. `fd` is any object of the
/// file system.
pub fn qgroup(fd: impl AsFd, subvolume: u64) -> io::Result<Option<Qgroup>> {
    let fd = fd.as_fd();
    // generation, referenced, referenced compressed, exclusive, exclusive compressed
    let Some((_, info)) = first(fd, QUOTA_TREE, 0, INFO, subvolume..=subvolume)? else {
        return Ok(None);
    };
    // flags, most referenced, most exclusive, reserved
    let limit = first(fd, QUOTA_TREE, 0, LIMIT, subvolume..=subvolume)?;
    let limit = limit.map(|(_, item)| item).unwrap_or_default();
    let limited = number(&limit, 0).is_some_and(|flags| flags & MOST_REFERENCED != 0);
    Ok(Some(Qgroup {
        generation: number(&info, 0).unwrap_or(u64::MAX),
        referenced: number(&info, 8).unwrap_or_default(),
        exclusive: number(&info, 24).unwrap_or_default(),
        most_referenced: number(&limit, 8).filter(|_| limited),
    }))
}

/// The first number at or after `from` that has an account, whether or not there still is a
/// subvolume of this number.
pub fn next_qgroup(fd: impl AsFd, from: u64) -> io::Result<Option<u64>> {
    // Above are groups of groups.
    let found = first(fd.as_fd(), QUOTA_TREE, 0, INFO, from..=LAST_NUMBER)?;
    Ok(found.map(|(number, _)| number))
}

/// Whether there is a subvolume of this number, or one that is still being removed.
pub fn is_known(fd: impl AsFd, subvolume: u64) -> io::Result<bool> {
    let found = first(fd.as_fd(), ROOT_TREE, subvolume, ROOT_ITEM, 0..=u64::MAX)?;
    Ok(found.is_some())
}

/// The first of the items `(object, kind, offset)` of a tree with an offset in this range, with its
/// offset (`BTRFS_IOC_TREE_SEARCH`); `None` when there is none, or no such tree.
fn first(
    fd: BorrowedFd<'_>,
    tree: u64,
    object: u64,
    kind: u32,
    offsets: RangeInclusive<u64>,
) -> io::Result<Option<(u64, Vec<u8>)>> {
    let mut args = SearchArgs {
        tree,
        least_object: object,
        most_object: object,
        least_offset: *offsets.start(),
        most_offset: *offsets.end(),
        least_transaction: 0,
        most_transaction: u64::MAX,
        least_kind: kind,
        most_kind: kind,
        items: 1,
        unused: 0,
        unused_too: [0; 4],
        found: [0; 3992],
    };
    // SAFETY: the opcode is the one of TREE_SEARCH, made from the size of its argument.
    let updater = unsafe { Updater::<SEARCH, SearchArgs>::new(&mut args) };
    // SAFETY: TREE_SEARCH reads and writes one `btrfs_ioctl_search_args` and keeps nothing.
    match unsafe { rustix::ioctl::ioctl(fd, updater) } {
        Err(Errno::NOENT) => return Ok(None),
        other => other?,
    }
    if args.items == 0 {
        return Ok(None);
    }
    // In front of the item: transaction, object, offset of 8 bytes, kind and length of 4, in the
    // byte order of the machine.
    let field = |range: Range<usize>| args.found.get(range);
    let offset = field(16..24).and_then(|bytes| bytes.try_into().ok());
    let length = field(28..32).and_then(|bytes| bytes.try_into().ok());
    let (Some(offset), Some(length)) = (offset, length) else {
        return Ok(None);
    };
    let length = u32::from_ne_bytes(length) as usize;
    let item = args.found.get(32..32 + length).map(<[u8]>::to_vec);
    Ok(item.map(|item| (u64::from_ne_bytes(offset), item)))
}

/// A number in an item: little-endian on every machine.
fn number(item: &[u8], at: usize) -> Option<u64> {
    let bytes = item.get(at..at.checked_add(8)?)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opcodes_are_those_of_the_headers() {
        if cfg!(target_arch = "x86_64") {
            let all = [CREATE, DESTROY, SEARCH, LOOKUP, CONTROL, QGROUP_LIMIT];
            let header: [Opcode; 6] = [
                0x5000_940e,
                0x5000_940f,
                0xd000_9411,
                0xd000_9412,
                0xc010_9428,
                0x8030_942b,
            ];
            assert_eq!(all, header);
            assert_eq!(QGROUP_CREATE, 0x4010_942a);
            assert_eq!(FILE_SYSTEM, 0x8400_941f);
            assert_eq!((RESCAN, RESCAN_WAIT), (0x4040_942c, 0x942e));
        }
    }

    #[test]
    fn only_plain_names_are_taken() {
        let zero = std::fs::File::open("/dev/zero").unwrap();
        for name in ["", "a/b", "a\0b", &"x".repeat(4088)] {
            let error = create_subvolume(&zero, name).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name}");
        }
        assert!(!is_subvolume(&zero).unwrap());
        assert!(subvolume(&zero).is_err());
    }
}
