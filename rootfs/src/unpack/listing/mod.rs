//! The listing of a layer: every object in it, so that damage is found without the image.
//!
//! Written by the tree while it unpacks, next to it (`layers/KEY/contents`), from what it has in
//! hand anyway: no object is looked at and no content is read a second time. Lines come in the
//! order of the archive; the last one of a name counts, and says by a `+` that it is not the
//! first. So the memory that this takes does not grow with the layer, and whoever changes a layer
//! before it is published adds lines ([`Writer::again`], [`Writer::gone`]). The sum of all lines
//! stands in the layer's record.
//!
//! [`verify()`] compares a tree with its listing, for the check of a store. The format is in
//! [`record`].

mod record;
mod sum;
mod verify;
mod walk;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Mode, OFlags, SeekFrom};

pub(crate) use record::What;
pub(crate) use sum::{Sum, Summing};
pub(crate) use verify::verify;
pub use verify::{Damage, Wrong};

use self::record::{Body, Record};
use super::attributes::Attributes;
use super::name::Name;

/// The name of a listing in the directory of its layer.
pub(crate) const CONTENTS: &str = "contents";
/// The first line: another format gets another number.
const HEAD: &[u8] = b"garden layer contents 1\n";
const BUFFER: usize = 64 * 1024;
/// The longest line: a name and a target, every byte as three, and the names of attributes.
const LINE: u64 = 1 << 20;

/// A listing while it is written.
#[derive(Debug)]
pub(crate) struct Writer {
    file: File,
    /// Lines that are not in the file yet.
    lines: Vec<u8>,
    sum: Summing,
}

impl Writer {
    /// Starts one in the directory of a layer that is being made.
    pub(crate) fn new(layer: BorrowedFd<'_>) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(layer, CONTENTS, flags, Mode::RUSR | Mode::WUSR)?;
        let mut lines = Vec::with_capacity(BUFFER + 4096);
        lines.extend_from_slice(HEAD);
        Ok(Self {
            file: file.into(),
            lines,
            sum: Summing::new(),
        })
    }

    /// Adds an object. `again` says that there may be an earlier line of that name.
    pub(crate) fn add(
        &mut self,
        again: bool,
        name: &Name,
        given: &Attributes,
        what: What<'_>,
    ) -> io::Result<()> {
        self.repeated(again);
        record::object(&mut self.lines, name, given, what);
        self.added()
    }

    /// Adds a hard link.
    pub(crate) fn hard_link(&mut self, again: bool, name: &Name, target: &Name) -> io::Result<()> {
        self.repeated(again);
        record::hard_link(&mut self.lines, name, target);
        self.added()
    }

    /// Adds a whiteout.
    pub(crate) fn whiteout(&mut self, name: &Name) -> io::Result<()> {
        record::mark(&mut self.lines, b'w', name);
        self.added()
    }

    /// Says what a directory became after it was added.
    pub(crate) fn again(&mut self, name: &Name, directory: impl AsFd) -> io::Result<()> {
        let now = walk::attributes(directory)?;
        self.add(true, name, &now, What::Directory)
    }

    /// Says that an object that was added is not there any more.
    pub(crate) fn gone(&mut self, name: &Name) -> io::Result<()> {
        self.repeated(true);
        record::mark(&mut self.lines, b'g', name);
        self.added()
    }

    /// Starts anew, with what is in the tree now. Reads all content.
    pub(crate) fn rewrite(&mut self, tree: BorrowedFd<'_>) -> io::Result<()> {
        rustix::fs::ftruncate(&self.file, 0)?;
        rustix::fs::seek(&self.file, SeekFrom::Start(0))?;
        self.sum = Summing::new();
        self.lines.clear();
        self.lines.extend_from_slice(HEAD);
        walk::list(tree, self)
    }

    /// The directories that were added, in order, with their times; also those that were replaced
    /// since. Nothing may be added until all were read.
    pub(crate) fn directories(&mut self) -> io::Result<Directories<'_>> {
        self.flush()?;
        let lines = Lines::new(&self.file)?;
        Ok(Directories(lines))
    }

    /// Writes what is left, and gives the sum of the whole listing.
    pub(crate) fn finish(&mut self) -> io::Result<Sum> {
        self.flush()?;
        Ok(self.sum.sum())
    }

    fn repeated(&mut self, again: bool) {
        if again {
            self.lines.push(b'+');
        }
    }

    fn added(&mut self) -> io::Result<()> {
        match self.lines.len() {
            0..BUFFER => Ok(()),
            _ => self.flush(),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sum.add(&self.lines);
        self.file.write_all(&self.lines)?;
        self.lines.clear();
        Ok(())
    }
}

/// The directories of a listing.
pub(crate) struct Directories<'a>(Lines<'a>);

/// A directory: its name and time.
pub(crate) type Timed = (Name, (i64, u32));

impl Directories<'_> {
    /// The next one.
    pub(crate) fn next(&mut self) -> io::Result<Option<Timed>> {
        while let Some((_, line)) = self.0.next()? {
            let (b"d" | b"+d", _) =
                line.split_at(line.iter().position(|b| *b == b' ').unwrap_or(0))
            else {
                continue;
            };
            if let Some(record) = record::parse(line)
                && let Body::Object(object) = record.body
            {
                return Ok(Some((record.name, object.mtime)));
            }
        }
        Ok(None)
    }
}

/// The lines of a listing.
struct Lines<'a> {
    input: BufReader<&'a File>,
    line: Vec<u8>,
    /// The number of the line that is read next.
    number: u64,
}

impl<'a> Lines<'a> {
    fn new(mut file: &'a File) -> io::Result<Self> {
        rustix::fs::seek(file, SeekFrom::Start(0))?;
        let mut head = [0; HEAD.len()];
        file.read_exact(&mut head)?;
        if head != HEAD {
            return Err(malformed());
        }
        Ok(Self {
            input: BufReader::with_capacity(BUFFER, file),
            line: Vec::new(),
            number: 0,
        })
    }

    /// The next line and its number, without its end.
    fn next(&mut self) -> io::Result<Option<(u64, &[u8])>> {
        self.line.clear();
        (&mut self.input)
            .take(LINE)
            .read_until(b'\n', &mut self.line)?;
        if self.line.is_empty() {
            return Ok(None);
        }
        self.number += 1;
        let line = self.line.strip_suffix(b"\n").ok_or_else(malformed)?;
        Ok(Some((self.number, line)))
    }

    fn record(&mut self) -> io::Result<Option<(u64, Record)>> {
        match self.next()? {
            Some((number, line)) => match record::parse(line) {
                Some(record) => Ok(Some((number, record))),
                None => Err(malformed()),
            },
            None => Ok(None),
        }
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the listing is malformed")
}
