//! Finds a user in the files of an image, without starting anything.
//!
//! Called when a process or a pea is started, with the fd of its root: a detached mount, or an
//! opened `/proc/<pid>/root`. The image is hostile: every path is resolved beneath that root, only
//! regular files of bounded size are read, and nothing of the host's own users is ever consulted.
//! The rules are those of the reference, section 2.3.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// The largest `passwd` or `group` file that is read, in bytes.
pub const LARGEST_FILE: u64 = 1 << 20;
/// The highest uid or gid.
pub const HIGHEST_ID: u32 = i32::MAX as u32;

const PASSWD: &str = "etc/passwd";
const GROUP: &str = "etc/group";

/// A user as the kernel needs it, in ids of the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The uid.
    pub uid: u32,
    /// The gid.
    pub gid: u32,
    /// Supplementary groups, in the order of the group file.
    pub additional_gids: Vec<u32>,
    /// The home directory; `/` when none is known.
    pub home: String,
    /// The text that was resolved.
    pub name_as_given: String,
}

/// Why there is no such user.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// A name that the image does not know. (Clients quote this text.)
    #[error("unable to find user {0}: no matching entries in passwd file")]
    UnknownUser(String),
    /// A group name that the image does not know. (Clients quote this text.)
    #[error("unable to find group {0}: no matching entries in group file")]
    UnknownGroup(String),
    /// A number that is no id.
    #[error("{0} is not an id: uids and gids must be in range 0-{HIGHEST_ID}")]
    OutOfRange(String),
    /// The file cannot be opened.
    #[error("cannot open /{file} of the image")]
    Open {
        /// `etc/passwd` or `etc/group`.
        file: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file cannot be read.
    #[error("cannot read /{file} of the image")]
    Read {
        /// `etc/passwd` or `etc/group`.
        file: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory, fifo, device or socket of that name.
    #[error("/{0} of the image is not a regular file; put one there, or none")]
    NotRegular(&'static str),
    /// Larger than [`LARGEST_FILE`].
    #[error("/{0} of the image is larger than {LARGEST_FILE} bytes; make it smaller")]
    TooLarge(&'static str),
}

/// Resolves `""`, `name`, `uid`, `name:group`, `uid:gid` and their mixtures beneath `root`.
///
/// A number is always an id, never a name. Without a group the gid is that of the passwd entry, or
/// 0; supplementary groups come only with a passwd entry and without a group given. Blocks as long
/// as reading two small files from the image's disk does: not for a runtime's own threads.
///
/// # Errors
/// A name that is not in the image, a number that is no id, or files that cannot be used.
pub fn resolve(root: BorrowedFd<'_>, user: &str) -> Result<User, UserError> {
    let mut parts = user.split(':');
    let (user_part, group_part) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    let mut found = User {
        uid: 0,
        gid: 0,
        additional_gids: Vec::new(),
        home: "/".to_owned(),
        name_as_given: user.to_owned(),
    };
    let entry_name = resolve_user(root, user_part, &mut found)?;
    if !group_part.is_empty() {
        found.gid = resolve_group(root, group_part)?;
    } else if let Some(name) = entry_name {
        let groups = read(root, GROUP)?.unwrap_or_default();
        found.additional_gids = groups_with(&groups, &name);
    }
    Ok(found)
}

/// Fills in uid, gid and home; the name of the passwd entry if there was one.
fn resolve_user(
    root: BorrowedFd<'_>,
    part: &str,
    found: &mut User,
) -> Result<Option<String>, UserError> {
    let wanted = Wanted::parse(if part.is_empty() { "0" } else { part });
    let passwd = read(root, PASSWD)?;
    let text = passwd.as_deref().unwrap_or_default();
    let entry = lines(text)
        .filter_map(PasswdEntry::parse)
        .find(|entry| wanted.is(entry.name, entry.uid));
    if let Some(entry) = entry {
        (found.uid, found.gid) = (entry.uid, entry.gid);
        if !entry.home.is_empty() {
            entry.home.clone_into(&mut found.home);
        }
        return Ok(Some(entry.name.to_owned()));
    }
    match wanted {
        Wanted::Id(id) => found.uid = id,
        // An image without users still has a root.
        Wanted::Name("root") if passwd.is_none() => {}
        Wanted::Name(name) => return Err(UserError::UnknownUser(name.to_owned())),
        Wanted::NoId(text) => return Err(UserError::OutOfRange(text.to_owned())),
    }
    Ok(None)
}

fn resolve_group(root: BorrowedFd<'_>, part: &str) -> Result<u32, UserError> {
    let wanted = match Wanted::parse(part) {
        // Whether the group file knows the number changes nothing.
        Wanted::Id(gid) => return Ok(gid),
        Wanted::NoId(text) => return Err(UserError::OutOfRange(text.to_owned())),
        Wanted::Name(name) => name,
    };
    let text = read(root, GROUP)?.unwrap_or_default();
    lines(&text)
        .filter_map(GroupEntry::parse)
        .find(|group| group.name == wanted)
        .map(|group| group.gid)
        .ok_or_else(|| UserError::UnknownGroup(wanted.to_owned()))
}

fn groups_with(text: &[u8], member: &str) -> Vec<u32> {
    lines(text)
        .filter_map(GroupEntry::parse)
        .filter(|group| group.members.split(',').any(|name| name == member))
        .map(|group| group.gid)
        .collect()
}

/// One half of what was given.
#[derive(Clone, Copy)]
enum Wanted<'a> {
    Name(&'a str),
    Id(u32),
    /// A number, but none that an id can have.
    NoId(&'a str),
}

impl<'a> Wanted<'a> {
    fn parse(text: &'a str) -> Self {
        let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Self::Name(text);
        }
        text.parse()
            .ok()
            .and_then(valid_id)
            .map_or(Self::NoId(text), Self::Id)
    }

    fn is(self, name: &str, id: u32) -> bool {
        match self {
            Self::Name(wanted) => wanted == name,
            Self::Id(wanted) => wanted == id,
            Self::NoId(_) => false,
        }
    }
}

fn valid_id(id: u32) -> Option<u32> {
    (id <= HIGHEST_ID).then_some(id)
}

/// An id in a file; what is no id makes its line no entry, instead of root's.
fn id_field(text: &str) -> Option<u32> {
    text.parse().ok().and_then(valid_id)
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> PasswdEntry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (id_field(fields.next()?)?, id_field(fields.next()?)?);
        let (_comment, home) = (fields.next(), fields.next());
        Some(Self {
            name,
            uid,
            gid,
            home: home.unwrap_or(""),
        })
    }
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> GroupEntry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let gid = id_field(fields.next()?)?;
        let members = fields.next().unwrap_or("");
        Some(Self { name, gid, members })
    }
}

/// The lines that can be entries: text, no comments, nothing that an `execve` could not carry.
fn lines(text: &[u8]) -> impl Iterator<Item = &str> {
    text.split(|byte| *byte == b'\n')
        .filter(|line| !line.contains(&0))
        .filter_map(|line| str::from_utf8(line).ok())
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// The content of a file beneath the root; `None` when there is none.
fn read(root: BorrowedFd<'_>, file: &'static str) -> Result<Option<Vec<u8>>, UserError> {
    let place = match open_beneath(root, file) {
        Ok(place) => place,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(errno) => return Err(open_failed(file, errno)),
    };
    let about = fs::fstat(&place).map_err(|errno| open_failed(file, errno))?;
    if FileType::from_raw_mode(about.st_mode) != FileType::RegularFile {
        return Err(UserError::NotRegular(file));
    }
    let path = format!("/proc/self/fd/{}", place.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
    let opened = fs::open(path, flags, Mode::empty()).map_err(|errno| open_failed(file, errno))?;
    let mut bytes = Vec::new();
    std::fs::File::from(opened)
        .take(LARGEST_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| UserError::Read { file, source })?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(UserError::TooLarge(file));
    }
    Ok(Some(bytes))
}

/// Finds the file without opening it for reading, which a fifo would make wait and a device might
/// notice.
fn open_beneath(root: BorrowedFd<'_>, file: &str) -> Result<OwnedFd, Errno> {
    const TRIES: usize = 16;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut result = Err(Errno::AGAIN);
    for _ in 0..TRIES {
        result = fs::openat2(root, file, flags, Mode::empty(), resolve);
        // A rename somewhere on the host while `..` was resolved; openat2(2) says to try again.
        if !matches!(result, Err(Errno::AGAIN | Errno::INTR)) {
            break;
        }
    }
    result
}

fn open_failed(file: &'static str, errno: Errno) -> UserError {
    UserError::Open {
        file,
        source: errno.into(),
    }
}

#[cfg(test)]
mod tests;
