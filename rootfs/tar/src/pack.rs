//! Files become a tar: what `tar -c` does, with sparse files and extended attributes.
//!
//! Called by a worker of the shim inside a container, and by `garden cp` for files of the host. Reads
//! what its process may read. Every object is opened from its directory's descriptor and never
//! through a link. What cannot be read is left out, the rest is
//! sent, and then the stream is cut before its end marker, with the first failure as the reason:
//! nobody takes a part for the whole. A reader that closes early ends it quietly.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;
use rustix::pipe::SpliceFlags;

use crate::{BLOCK, Head, Type};

/// What is moved at once: with less, the calls cost more than the copying.
const PIECE: usize = 256 << 10;

/// Files from this size on are moved into the pipe without being copied.
const LARGE: u64 = 64 << 10;

/// Files that could not be packed, or not all of them.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// There is no such path, or it cannot be opened.
    #[error("cannot open {path}: {errno}")]
    Open {
        /// What was to be packed.
        path: String,
        /// Why not.
        errno: Errno,
    },
    /// The rest was packed; the stream has no end marker.
    #[error("cannot {doing} {name:?}: {errno}")]
    Part {
        /// Its name in the archive.
        name: String,
        /// What failed.
        doing: &'static str,
        /// Why.
        errno: Errno,
    },
    /// Nobody can be told through the stream any more.
    #[error("cannot write the stream: {0}")]
    Stream(Errno),
}

/// What is packed: a name in an open directory, or the content of the directory.
#[derive(Debug)]
pub struct Source {
    directory: OwnedFd,
    leaf: Option<CString>,
    /// The name in the archive.
    name: Vec<u8>,
    /// What the leaf leads to, opened, when that is meant.
    followed: Option<OwnedFd>,
}

impl Source {
    /// Opens it, so that what is missing is told before the stream begins. With a `/` at its end the
    /// path means a directory's content. One that is a symbolic link is followed on request.
    ///
    /// # Errors
    /// Always [`PackError::Open`].
    pub fn open(path: &str, follow: bool) -> Result<Self, PackError> {
        Self::find(path, follow).map_err(|errno| PackError::Open {
            path: path.to_owned(),
            errno,
        })
    }

    /// Gives it another name in the archive.
    #[must_use]
    pub fn named(self, name: &[u8]) -> Self {
        Self {
            name: name.to_vec(),
            ..self
        }
    }

    fn find(path: &str, follow: bool) -> rustix::io::Result<Self> {
        let (directory, leaf) = match path.rsplit_once('/') {
            Some((parent, leaf)) if !matches!(leaf, "" | "." | "..") => {
                (format!("{parent}/"), leaf)
            }
            None if !matches!(path, "" | "." | "..") => (".".to_owned(), path),
            _ => (path.to_owned(), ""),
        };
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let flags = flags
            | if leaf.is_empty() {
                OFlags::RDONLY
            } else {
                OFlags::PATH
            };
        let directory = rustix::fs::open(directory, flags, Mode::empty())?;
        if leaf.is_empty() {
            return Ok(Self {
                directory,
                leaf: None,
                name: b".".to_vec(),
                followed: None,
            });
        }
        let found = rustix::fs::statat(&directory, leaf, AtFlags::SYMLINK_NOFOLLOW)?;
        let leaf = CString::new(leaf).map_err(|_| Errno::INVAL)?;
        let link = FileType::from_raw_mode(found.st_mode) == FileType::Symlink;
        let followed = if link && follow {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            let opened = rustix::fs::openat(&directory, &leaf, flags, Mode::empty());
            Some(opened?)
        } else {
            None
        };
        Ok(Self {
            directory,
            name: leaf.to_bytes().to_vec(),
            leaf: Some(leaf),
            followed,
        })
    }
}

/// Packs all of it into a pipe.
///
/// # Errors
/// The first thing that could not be packed; the archive has no end marker then.
pub fn all(source: &Source, pipe: BorrowedFd<'_>) -> Result<(), PackError> {
    packed(pipe, |pack| match (&source.leaf, &source.followed) {
        (Some(_), Some(fd)) => pack.followed(fd, &source.name),
        (Some(leaf), None) => pack.object(source.directory.as_fd(), leaf, &source.name),
        (None, _) => pack.directory(&source.directory, &source.name),
    })
}

/// Packs one entry that says what it is, how large and how old, and has no content.
///
/// # Errors
/// As [`all`].
pub fn head_only(source: &Source, pipe: BorrowedFd<'_>) -> Result<(), PackError> {
    packed(pipe, |pack| {
        let directory = source.directory.as_fd();
        let stat = match (&source.leaf, &source.followed) {
            (_, Some(fd)) => rustix::fs::fstat(fd),
            (Some(leaf), None) => rustix::fs::statat(directory, leaf, AtFlags::SYMLINK_NOFOLLOW),
            (None, None) => rustix::fs::fstat(directory),
        };
        let name = &source.name[..];
        let stat = match stat {
            Ok(stat) => stat,
            Err(errno) => {
                pack.wrong(name, "look at", errno);
                return Ok(());
            }
        };
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let hole = [(size, 0)];
        let slashed = [name, b"/"].concat();
        let described = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => head(Type::Directory, &slashed, &stat),
            FileType::Symlink => head(Type::Symlink, name, &stat),
            // Its size and nothing else: a single hole.
            FileType::RegularFile => Head {
                size,
                segments: Some(&hole),
                ..head(Type::File, name, &stat)
            },
            _ => head(Type::Pipe, name, &stat),
        };
        described.write(&mut pack.out);
        Ok(())
    })
}

fn packed(
    pipe: BorrowedFd<'_>,
    walk: impl FnOnce(&mut Packer<'_>) -> Sent,
) -> Result<(), PackError> {
    let mut pack = Packer {
        pipe,
        out: Vec::with_capacity(2 * PIECE),
        buffer: vec![0; PIECE],
        names: vec![0; 64 << 10],
        seen: HashMap::new(),
        problem: None,
    };
    let walked = walk(&mut pack);
    let ended = walked.and_then(|()| {
        if pack.problem.is_none() {
            pack.out.resize(pack.out.len() + 2 * BLOCK, 0);
        }
        pack.flush()
    });
    match (ended, pack.problem) {
        // Whoever reads has enough.
        (Err(Errno::PIPE), _) | (Ok(()), None) => Ok(()),
        (Err(errno), _) => Err(PackError::Stream(errno)),
        (Ok(()), Some(problem)) => Err(problem),
    }
}

struct Packer<'a> {
    pipe: BorrowedFd<'a>,
    out: Vec<u8>,
    buffer: Vec<u8>,
    names: Vec<u8>,
    /// The first name of each file that has several.
    seen: HashMap<(u64, u64), Vec<u8>>,
    problem: Option<PackError>,
}

/// Fails only by the pipe: what is wrong with an object becomes `problem`.
type Sent = rustix::io::Result<()>;

impl Packer<'_> {
    fn wrong(&mut self, name: &[u8], doing: &'static str, errno: Errno) {
        // What was removed meanwhile is not missing.
        if errno != Errno::NOENT && self.problem.is_none() {
            let name = String::from_utf8_lossy(name).into_owned();
            self.problem = Some(PackError::Part { name, doing, errno });
        }
    }

    fn flush(&mut self) -> Sent {
        let mut rest = &self.out[..];
        while !rest.is_empty() {
            match rustix::io::write(self.pipe, rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        self.out.clear();
        Ok(())
    }

    fn room(&mut self) -> Sent {
        if self.out.len() >= PIECE {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn object(&mut self, parent: BorrowedFd<'_>, leaf: &CStr, name: &[u8]) -> Sent {
        let stat = match rustix::fs::statat(parent, leaf, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(errno) => {
                self.wrong(name, "look at", errno);
                return Ok(());
            }
        };
        // Not through a link that took its place, and not waiting for a pipe's other end.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let open =
            |more| rustix::fs::openat(parent, leaf, flags | OFlags::CLOEXEC | more, Mode::empty());
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => match open(OFlags::DIRECTORY) {
                Ok(fd) => return self.directory(&fd, name),
                Err(errno) => {
                    self.wrong(name, "open", errno);
                    return Ok(());
                }
            },
            FileType::Symlink => Type::Symlink,
            FileType::Fifo => Type::Pipe,
            FileType::RegularFile => Type::File,
            // A socket means nothing without the process that listens.
            FileType::Socket => return Ok(()),
            other => {
                let device = stat.st_rdev;
                let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
                match other {
                    FileType::BlockDevice => Type::Block(major, minor),
                    _ => Type::Character(major, minor),
                }
            }
        };
        if stat.st_nlink > 1 {
            let id = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.seen.get(&id).cloned() {
                let head = Head {
                    link: &first,
                    ..head(Type::HardLink, name, &stat)
                };
                head.write(&mut self.out);
                return self.room();
            }
        }
        match kind {
            Type::File => match open(OFlags::empty()) {
                Ok(fd) => self.file(&File::from(fd), name)?,
                Err(errno) => {
                    self.wrong(name, "open", errno);
                    return Ok(());
                }
            },
            Type::Symlink => match rustix::fs::readlinkat(parent, leaf, Vec::new()) {
                Ok(target) => {
                    let head = Head {
                        link: target.to_bytes(),
                        ..head(kind, name, &stat)
                    };
                    head.write(&mut self.out);
                }
                Err(errno) => {
                    self.wrong(name, "read the link", errno);
                    return Ok(());
                }
            },
            kind => {
                head(kind, name, &stat).write(&mut self.out);
            }
        }
        if stat.st_nlink > 1 {
            self.seen.insert((stat.st_dev, stat.st_ino), name.to_vec());
        }
        self.room()
    }

    /// What a link leads to, under the link's name.
    fn followed(&mut self, fd: &OwnedFd, name: &[u8]) -> Sent {
        let stat = match rustix::fs::fstat(fd) {
            Ok(stat) => stat,
            Err(errno) => {
                self.wrong(name, "look at", errno);
                return Ok(());
            }
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => self.directory(fd, name),
            FileType::RegularFile => match fd.try_clone() {
                Ok(file) => self.file(&File::from(file), name),
                Err(_) => {
                    self.wrong(name, "open", Errno::MFILE);
                    Ok(())
                }
            },
            _ => {
                self.wrong(name, "follow the link to a device or pipe", Errno::INVAL);
                Ok(())
            }
        }
    }

    fn directory(&mut self, fd: &OwnedFd, name: &[u8]) -> Sent {
        let slashed = [name, b"/"].concat();
        match rustix::fs::fstat(fd) {
            Ok(stat) => {
                let xattrs = self.xattrs(fd);
                let head = Head {
                    xattrs: &xattrs,
                    ..head(Type::Directory, &slashed, &stat)
                };
                head.write(&mut self.out);
            }
            Err(errno) => self.wrong(name, "look at", errno),
        }
        let mut children = Vec::new();
        match Dir::read_from(fd) {
            Ok(listing) => {
                for child in listing {
                    match child {
                        Ok(child) if matches!(child.file_name().to_bytes(), b"." | b"..") => {}
                        Ok(child) => children.push(child.file_name().to_owned()),
                        Err(errno) => {
                            self.wrong(name, "list", errno);
                            break;
                        }
                    }
                }
            }
            Err(errno) => self.wrong(name, "list", errno),
        }
        for child in children {
            let name = [&slashed, child.to_bytes()].concat();
            self.object(fd.as_fd(), &child, &name)?;
        }
        self.room()
    }

    fn file(&mut self, file: &File, name: &[u8]) -> Sent {
        let stat = match rustix::fs::fstat(file) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => stat,
            Ok(_) => return Ok(()),
            Err(errno) => {
                self.wrong(name, "look at", errno);
                return Ok(());
            }
        };
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let allocated = u64::try_from(stat.st_blocks)
            .unwrap_or(0)
            .saturating_mul(512);
        let segments = if allocated < size {
            segments(file, size)
        } else {
            None
        };
        let xattrs = self.xattrs(file);
        let described = Head {
            size,
            segments: segments.as_deref(),
            xattrs: &xattrs,
            ..head(Type::File, name, &stat)
        };
        let content = described.write(&mut self.out);
        let whole = [(0, size)];
        for (offset, length) in segments.as_deref().unwrap_or(&whole) {
            let sent = match *length >= LARGE {
                true => self.splice(file, *offset, *length)?,
                false => 0,
            };
            self.copy(file, name, offset + sent, length - sent)?;
        }
        let padding = usize::try_from(content.wrapping_neg() % BLOCK as u64).unwrap_or(0);
        self.out.resize(self.out.len() + padding, 0);
        Ok(())
    }

    /// Moves what it can without copying; returns how many bytes that were.
    fn splice(&mut self, file: &File, offset: u64, length: u64) -> rustix::io::Result<u64> {
        self.flush()?;
        let mut at = offset;
        while at < offset + length {
            let most = usize::try_from(offset + length - at)
                .unwrap_or(usize::MAX)
                .min(1 << 20);
            match rustix::pipe::splice(
                file,
                Some(&mut at),
                self.pipe,
                None,
                most,
                SpliceFlags::empty(),
            ) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::PIPE) => return Err(Errno::PIPE),
                // Not every file system can; the copy tells what is really wrong.
                Err(_) => break,
            }
        }
        Ok(at - offset)
    }

    /// Copies; a file that became shorter is filled up with zeros, because its size was sent.
    fn copy(&mut self, file: &File, name: &[u8], offset: u64, length: u64) -> Sent {
        let mut done = 0;
        while done < length {
            let most = usize::try_from(length - done).unwrap_or(PIECE).min(PIECE);
            let piece = self.buffer.get_mut(..most).unwrap_or_default();
            let read = match file.read_at(piece, offset + done) {
                Ok(0) => {
                    piece.fill(0);
                    most
                }
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    piece.fill(0);
                    let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                    self.wrong(name, "read", errno);
                    most
                }
            };
            self.out
                .extend_from_slice(self.buffer.get(..read).unwrap_or_default());
            done += read as u64;
            self.room()?;
        }
        Ok(())
    }

    /// Those that another user's files may have, and capabilities.
    fn xattrs(&mut self, file: impl AsFd) -> Vec<(Vec<u8>, Vec<u8>)> {
        let Ok(length) = rustix::fs::flistxattr(&file, &mut self.names[..]) else {
            return Vec::new();
        };
        let names = self.names.get(..length).unwrap_or_default();
        let kept = |name: &&[u8]| name.starts_with(b"user.") || *name == b"security.capability";
        let mut found = Vec::new();
        for name in names.split(|byte| *byte == 0).filter(kept) {
            if let Ok(length) = rustix::fs::fgetxattr(&file, name, &mut self.buffer[..]) {
                let value = self.buffer.get(..length).unwrap_or_default();
                found.push((name.to_vec(), value.to_vec()));
            }
        }
        found
    }
}

fn head<'a>(kind: Type, name: &'a [u8], stat: &Stat) -> Head<'a> {
    Head {
        kind,
        name,
        link: b"",
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: stat.st_mtime,
        size: 0,
        segments: None,
        xattrs: &[],
    }
}

/// Where the data of a file with holes is; `None` when it has none, or too many.
fn segments(file: &File, size: u64) -> Option<Vec<(u64, u64)>> {
    let mut segments = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) if start < size => start,
            Ok(_) | Err(Errno::NXIO) => break,
            Err(_) => return None,
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start))
            .ok()?
            .min(size);
        segments.push((start, end - start));
        if segments.len() >= Head::SEGMENTS {
            return None;
        }
        at = end;
    }
    if segments[..] == [(0, size)] {
        return None;
    }
    // GNU tar marks the end by an empty segment, and its readers expect one behind a last hole.
    if segments
        .last()
        .is_none_or(|(offset, length)| offset + length < size)
    {
        segments.push((size, 0));
    }
    Some(segments)
}
