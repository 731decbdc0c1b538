//! Comparing a layer with its listing.
//!
//! Called by the check of a store, at any time: layers are never written again, so a difference
//! is damage. Reads every file. The memory it takes is 8 bytes for each object, and its answer is
//! bounded: a layer that is damaged all over is not told line by line.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::fs::File;
use std::hash::BuildHasher;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, SeekFrom, Stat};
use rustix::io::Errno;

use super::super::name::Name;
use super::record::{Body, Kind, Object};
use super::walk;
use super::{Lines, Sum, Summing};

/// The most findings that are told one by one.
const MOST: usize = 200;

/// Something in a layer that is not as it was made.
#[derive(Debug)]
pub struct Damage {
    /// Where, from the root of the layer; bytes that are no text as `%` and two digits. Empty for
    /// the listing itself, and for [`Wrong::More`].
    pub path: String,
    /// What is wrong.
    pub wrong: Wrong,
}

/// How an object differs from what was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Wrong {
    /// It is not there.
    #[error("is missing")]
    Missing,
    /// It was not made by an import.
    #[error("does not belong there")]
    Extra,
    /// It is something else.
    #[error("has another type")]
    Type,
    /// Other permissions.
    #[error("has the mode {found:o} instead of {expected:o}")]
    Mode {
        /// As it was made.
        expected: u32,
        /// As it is.
        found: u32,
    },
    /// Another owner or group.
    #[error("has another owner")]
    Owner,
    /// Another length, in bytes.
    #[error("has {found} bytes instead of {expected}")]
    Size {
        /// As it was made.
        expected: u64,
        /// As it is.
        found: u64,
    },
    /// Another modification time.
    #[error("has another modification time")]
    Mtime,
    /// Other extended attributes.
    #[error("has other extended attributes")]
    Xattrs,
    /// A symbolic link to somewhere else.
    #[error("leads somewhere else")]
    Target,
    /// Other bytes.
    #[error("has other content")]
    Content,
    /// Two names of one file that are two files.
    #[error("is not the same file as {0:?} any more")]
    Link(String),
    /// The disk does not give it back.
    #[error("cannot be read")]
    Unreadable(#[source] io::Error),
    /// The listing is not what was written.
    #[error("the listing of the layer is damaged")]
    Listing,
    /// There are further findings.
    #[error("{0} more")]
    More(u64),
}

impl Damage {
    /// The listing itself is not what it was.
    pub(crate) fn of_listing() -> Self {
        Self {
            path: String::new(),
            wrong: Wrong::Listing,
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_str() {
            "" => self.wrong.fmt(f),
            path => write!(f, "{path:?} {}", self.wrong),
        }
    }
}

/// Compares a tree with the listing of that sum. An error is one of reading the listing; what
/// is wrong with the tree is damage, also when it cannot be read.
pub(crate) fn verify(tree: impl AsFd, contents: &File, sum: Sum) -> io::Result<Vec<Damage>> {
    if sum_of(contents)? != sum {
        return Ok(vec![Damage::of_listing()]);
    }
    let known = Known::read(contents)?;
    let mut check = Check {
        tree: tree.as_fd(),
        findings: Findings::default(),
        recent: None,
        buffer: vec![0; 128 * 1024],
    };
    let mut lines = Lines::new(contents)?;
    while let Some((number, record)) = lines.record()? {
        if known.counts(&record.name, number) {
            check.compare(&record.name, &record.body);
        }
    }
    check.extras(&known);
    Ok(check.findings.told())
}

fn sum_of(mut contents: &File) -> io::Result<Sum> {
    rustix::fs::seek(contents, SeekFrom::Start(0))?;
    let mut summing = Summing::new();
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match contents.read(&mut buffer)? {
            0 => return Ok(summing.sum()),
            length => summing.add(&buffer[..length]),
        }
    }
}

/// What a listing tells, as short as possible: hashes of names.
struct Known {
    state: RandomState,
    /// Of objects that should be there, sorted.
    names: Vec<u64>,
    /// The lines that count, for names that have several.
    last: HashMap<u64, u64>,
}

impl Known {
    fn read(contents: &File) -> io::Result<Self> {
        let mut known = Self {
            state: RandomState::new(),
            names: Vec::new(),
            last: HashMap::new(),
        };
        let mut gone = HashMap::new();
        let mut lines = Lines::new(contents)?;
        while let Some((number, record)) = lines.record()? {
            let hash = known.hash(&record.name);
            if record.again {
                known.last.insert(hash, number);
            }
            match record.body {
                Body::Gone => {
                    gone.insert(hash, number);
                }
                _ => known.names.push(hash),
            }
        }
        gone.retain(|hash, number| known.last.get(hash) == Some(number));
        known.names.retain(|hash| !gone.contains_key(hash));
        known.names.sort_unstable();
        known.names.dedup();
        Ok(known)
    }

    fn hash(&self, name: &Name) -> u64 {
        self.state.hash_one(name.bytes())
    }

    /// Whether this line is the one of its name that counts.
    fn counts(&self, name: &Name, number: u64) -> bool {
        self.last.is_empty() || (self.last.get(&self.hash(name))).is_none_or(|last| *last == number)
    }

    fn has(&self, name: &Name) -> bool {
        self.names.binary_search(&self.hash(name)).is_ok()
    }
}

#[derive(Default)]
struct Findings {
    found: Vec<Damage>,
    more: u64,
}

impl Findings {
    fn add(&mut self, name: &Name, wrong: Wrong) {
        if self.found.len() == MOST {
            self.more += 1;
            return;
        }
        let path = match name.is_root() {
            true => ".".to_owned(),
            false => name.clone().into(),
        };
        self.found.push(Damage { path, wrong });
    }

    fn told(mut self) -> Vec<Damage> {
        if self.more > 0 {
            let path = String::new();
            let wrong = Wrong::More(self.more);
            self.found.push(Damage { path, wrong });
        }
        self.found
    }
}

struct Check<'a> {
    tree: BorrowedFd<'a>,
    findings: Findings,
    /// The directory that was used last.
    recent: Option<(Name, OwnedFd)>,
    buffer: Vec<u8>,
}

/// Why an object was not compared further.
type Stop<T> = Result<T, Wrong>;

impl Check<'_> {
    fn compare(&mut self, name: &Name, expected: &Body) {
        let result = match expected {
            Body::Object(expected) => self.object(name, expected),
            Body::HardLink(target) => self.hard_link(name, target),
            Body::Whiteout => self.stat(name).and_then(|found| match found.st_rdev {
                0 if kind(&found) == FileType::CharacterDevice => Ok(()),
                _ => Err(Wrong::Type),
            }),
            Body::Gone => Ok(()),
        };
        if let Err(wrong) = result {
            self.findings.add(name, wrong);
        }
    }

    fn object(&mut self, name: &Name, expected: &Object) -> Stop<()> {
        let stat = self.stat(name)?;
        let right = match expected.kind {
            Kind::Directory => FileType::Directory,
            Kind::File { .. } => FileType::RegularFile,
            Kind::Symlink(_) => FileType::Symlink,
            Kind::Pipe => FileType::Fifo,
        };
        if kind(&stat) != right {
            return Err(Wrong::Type);
        }
        let found = walk::of_stat(&stat);
        if found.mode != expected.mode {
            let (expected, found) = (expected.mode, found.mode);
            self.findings.add(name, Wrong::Mode { expected, found });
        }
        if (found.uid, found.gid) != expected.owner {
            self.findings.add(name, Wrong::Owner);
        }
        if found.mtime != expected.mtime {
            self.findings.add(name, Wrong::Mtime);
        }
        match &expected.kind {
            Kind::Directory => {
                let fd = match name.parts() {
                    None => walk::open(self.tree, name),
                    Some((_, last)) => walk::open_at(self.parent(name)?, last),
                };
                same_xattrs(&fd.map_err(unreadable)?, expected)
            }
            Kind::File { size, sum } => self.file(name, expected, (*size, *sum), &stat),
            Kind::Symlink(target) => {
                let (_, last) = name.parts().ok_or(Wrong::Type)?;
                let found = rustix::fs::readlinkat(self.parent(name)?, last, Vec::new());
                match found.map_err(unreadable)?.as_bytes() == target.as_slice() {
                    true => Ok(()),
                    false => Err(Wrong::Target),
                }
            }
            Kind::Pipe => Ok(()),
        }
    }

    fn file(
        &mut self,
        name: &Name,
        expected: &Object,
        (size, sum): (u64, Sum),
        stat: &Stat,
    ) -> Stop<()> {
        let found = stat.st_size.cast_unsigned();
        if found != size {
            let expected = size;
            return Err(Wrong::Size { expected, found });
        }
        let (_, last) = name.parts().ok_or(Wrong::Type)?;
        let file = walk::open_at(self.parent(name)?, last).map_err(unreadable)?;
        let file = File::from(file);
        let read = walk::content(&file, &mut self.buffer).map_err(Wrong::Unreadable)?;
        if read != (size, sum) {
            self.findings.add(name, Wrong::Content);
        }
        same_xattrs(&file, expected)
    }

    fn hard_link(&mut self, name: &Name, target: &Name) -> Stop<()> {
        let found = self.stat(name)?;
        // The target's own line says what it should be.
        match self.stat(target) {
            Ok(other) if other.st_ino == found.st_ino => Ok(()),
            _ => Err(Wrong::Link(target.clone().into())),
        }
    }

    fn stat(&mut self, name: &Name) -> Stop<Stat> {
        let Some((_, last)) = name.parts() else {
            return rustix::fs::fstat(self.tree).map_err(unreadable);
        };
        match rustix::fs::statat(self.parent(name)?, last, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Err(Wrong::Missing),
            other => other.map_err(unreadable),
        }
    }

    /// The directory around an object.
    fn parent(&mut self, name: &Name) -> Stop<&OwnedFd> {
        let directory = name.parts().map_or(&[][..], |(directory, _)| directory);
        let recent = match self.recent.take() {
            Some(recent) if recent.0.bytes() == directory => recent,
            _ => {
                let name = name.parent();
                match walk::open(self.tree, &name) {
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Err(Wrong::Missing),
                    other => (name, other.map_err(unreadable)?),
                }
            }
        };
        Ok(&self.recent.insert(recent).1)
    }

    /// Looks for what no line tells.
    fn extras(&mut self, known: &Known) {
        let mut left = vec![Name::default()];
        while let Some(name) = left.pop() {
            let directory = walk::open(self.tree, &name).map_err(io::Error::from);
            let entries = match directory.and_then(|directory| walk::entries(&directory)) {
                Ok(entries) => entries,
                Err(error) => {
                    self.findings.add(&name, Wrong::Unreadable(error));
                    continue;
                }
            };
            for (last, kind) in entries {
                let name = name.join(&last);
                if !known.has(&name) {
                    self.findings.add(&name, Wrong::Extra);
                } else if kind == FileType::Directory {
                    left.push(name);
                }
            }
        }
    }
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn unreadable(errno: Errno) -> Wrong {
    Wrong::Unreadable(errno.into())
}

fn same_xattrs(fd: &impl AsFd, expected: &Object) -> Stop<()> {
    let found = walk::attributes(fd).map_err(Wrong::Unreadable)?;
    let same = found.xattrs.len() == expected.xattrs.len()
        && found
            .xattrs
            .iter()
            .zip(&expected.xattrs)
            .all(|((name, value), (expected, sum))| name == expected && Sum::of(value) == *sum);
    match same {
        true => Ok(()),
        false => Err(Wrong::Xattrs),
    }
}
