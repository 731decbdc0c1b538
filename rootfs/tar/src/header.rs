//! Reading the headers of a tar stream: ustar, GNU long names, pax (POSIX.1-2001), sparse files.
//!
//! Written here and not taken from a library, because three things
//! must be strict where libraries are lenient: memory (an extended header may claim any size),
//! pax records (they are counted, so that a value with a line break neither ends early nor
//! smuggles a record), and the size that decides where the next header is.

use std::io::{self, Read};

use crate::Error;
use crate::block::{BLOCK, Block};
use crate::sparse::{Expanded, Form, Map, Records, decimal};

/// The most bytes of one extended header.
const EXTENDED: u64 = 1 << 20;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// Another name of an earlier entry.
    HardLink,
    /// A named pipe.
    Pipe,
    /// A device, or something that only some archiver knows.
    Unusable,
}

/// What a header says of an object beside its name and content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Permissions, with set-id and sticky bits.
    pub mode: u32,
    /// Owner, as the archive has it.
    pub uid: u64,
    /// Group, as the archive has it.
    pub gid: u64,
    /// Modification time: seconds since the epoch, and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes: name and value.
    pub xattrs: Vec<(String, Vec<u8>)>,
}

/// An entry, before its content.
#[derive(Debug)]
pub struct Entry {
    /// Its name, as the archive has it.
    pub name: Vec<u8>,
    /// Where a link leads.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Bytes of the object.
    pub size: u64,
    /// Where they belong, when the archive has only some of them.
    sparse: Option<Map>,
    /// The rest; an error when a field of it is no number.
    pub attributes: Result<Described, Error>,
}

impl Entry {
    /// The parts of a file with holes that are there, as offset and length; `None`: all of it.
    pub fn segments(&self) -> Option<&[(u64, u64)]> {
        self.sparse.as_ref().map(Map::segments)
    }

    /// Whether the file has holes.
    pub fn is_sparse(&self) -> bool {
        self.sparse.is_some()
    }
}

/// The values of pax records that mean something to us, for one entry.
#[derive(Debug, Default)]
struct Pax {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    sparse: Option<Records>,
    xattrs: Vec<(String, Vec<u8>)>,
}

/// What extension headers said about the entry that follows them.
#[derive(Debug, Default)]
struct Pending {
    pax: Option<Pax>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

/// The entries of a tar stream, one after the other.
pub struct Entries<'a> {
    input: &'a mut dyn Read,
    /// Bytes of the current entry that were not read yet.
    content: u64,
    /// Zeros behind it, up to the next block.
    padding: u64,
}

impl<'a> Entries<'a> {
    /// Reads them from `input`, which should be buffered: headers are read a block at a time.
    pub fn new(input: &'a mut dyn Read) -> Self {
        Self {
            input,
            content: 0,
            padding: 0,
        }
    }

    /// The next entry; `None` at the end marker or the end of the stream. Skips what was not read
    /// of the one before.
    ///
    /// # Errors
    /// When a header is wrong, or the stream ends or fails within an entry.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator would go on behind an error"
    )]
    pub fn next(&mut self) -> Result<Option<Entry>, Error> {
        let mut pending = Pending::default();
        loop {
            self.skip()?;
            let Some(block) = self.header()? else {
                if pending.is_empty() {
                    return Ok(None);
                }
                return Err(header_rule("it describes an entry that does not follow"));
            };
            let header = Block(&block);
            let size = header.size()?;
            match header.kind() {
                b'x' => {
                    let pax = Pax::parse(&self.extension(size)?)?;
                    once(&mut pending.pax, pax)?;
                }
                b'g' => Pax::parse(&self.extension(size)?)?.check_global()?,
                b'L' => {
                    let name = self.extension(size)?;
                    once(&mut pending.long_name, terminated(name)?)?;
                }
                b'K' => {
                    let link = self.extension(size)?;
                    once(&mut pending.long_link, terminated(link)?)?;
                }
                _ => return self.entry(&header, size, pending).map(Some),
            }
        }
    }

    /// The entry that a header and what came before it describe.
    fn entry(&mut self, header: &Block<'_>, size: u64, pending: Pending) -> Result<Entry, Error> {
        let mut pax = pending.pax.unwrap_or_default();
        let form = match pax.sparse.take() {
            None => None,
            Some(mut records) => {
                pax.name = records.name.take().or(pax.name);
                Some(records.form()?)
            }
        };
        let stored = pax.size;
        let mut entry = entry(header, size, pax, pending.long_name, pending.long_link)?;
        let file = entry.kind == Kind::File;
        let map = match form {
            Some(_) if !file => return Err(header_rule("only a regular file can be sparse")),
            Some(Form::Complete(map)) => Some(map),
            Some(Form::InFront(length)) => {
                self.content = entry.size;
                let in_front = Map::in_front(&mut Content(self), length);
                let (map, read) = in_front.map_err(Error::reading)?;
                entry.size -= read;
                Some(map)
            }
            None if header.kind() == b'S' => {
                let map = Map::old(header.sparse(), || self.block_behind())?;
                entry.size = stored.unwrap_or(size);
                Some(map)
            }
            None => None,
        };
        self.content = entry.size;
        self.padding = padding(entry.size);
        if let Some(map) = map {
            if map.stored() != entry.size {
                return Err(header_rule(
                    "the segments of its sparse file are not as long as its content",
                ));
            }
            entry.size = map.length;
            entry.sparse = Some(map);
        }
        Ok(entry)
    }

    /// The content of the current entry; of a sparse file with all its zeros.
    pub fn content(&mut self, entry: &Entry) -> impl Read + '_ {
        match entry.sparse.clone() {
            None => Whole::Plain(Content(self)),
            Some(map) => Whole::Sparse(map.expand(Content(self))),
        }
    }

    /// The bytes of the current entry that the archive has, holes left out.
    pub fn stored(&mut self) -> impl Read + '_ {
        Content(self)
    }

    fn skip(&mut self) -> Result<(), Error> {
        let left = self
            .content
            .checked_add(self.padding)
            .ok_or_else(|| header_rule("its size is out of range"))?;
        let skipped = io::copy(&mut (&mut *self.input).take(left), &mut io::sink())
            .map_err(Error::reading)?;
        if skipped < left {
            return Err(Error::reading(io::ErrorKind::UnexpectedEof.into()));
        }
        (self.content, self.padding) = (0, 0);
        Ok(())
    }

    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, Error> {
        let Some(block) = self.block()? else {
            return Ok(None);
        };
        let header = Block(&block);
        if header.is_zero() {
            return Ok(None);
        }
        match header.is_whole() {
            true => Ok(Some(block)),
            false => Err(header_rule("its checksum does not match: is this a tar?")),
        }
    }

    /// A block that must be there.
    fn block_behind(&mut self) -> Result<[u8; BLOCK], Error> {
        let ended = || Error::reading(io::ErrorKind::UnexpectedEof.into());
        self.block()?.ok_or_else(ended)
    }

    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, Error> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(Error::reading(io::ErrorKind::UnexpectedEof.into())),
                Ok(length) => filled += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::reading(error)),
            }
        }
        Ok(Some(block))
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        if size > EXTENDED {
            return Err(header_rule(format!(
                "an extended header has {size} bytes, {EXTENDED} is the limit"
            )));
        }
        self.content = size;
        self.padding = padding(size);
        let mut bytes = Vec::new();
        Content(self)
            .read_to_end(&mut bytes)
            .map_err(Error::reading)?;
        Ok(bytes)
    }
}

/// All bytes of a file.
enum Whole<'e, 'a> {
    Plain(Content<'e, 'a>),
    Sparse(Expanded<Content<'e, 'a>>),
}

impl Read for Whole<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(content) => content.read(buffer),
            Self::Sparse(content) => content.read(buffer),
        }
    }
}

/// The bytes that an archive has for a file.
struct Content<'e, 'a>(&'e mut Entries<'a>);

impl Read for Content<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.0.content).unwrap_or(usize::MAX);
        let most = most.min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let length = self.0.input.read(&mut buffer[..most])?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.0.content -= length as u64;
        Ok(length)
    }
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.pax.is_none() && self.long_name.is_none() && self.long_link.is_none()
    }
}

fn entry(
    header: &Block<'_>,
    size: u64,
    pax: Pax,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
) -> Result<Entry, Error> {
    let name = pax.name.or(long_name).unwrap_or_else(|| header.name());
    let kind = match header.kind() {
        // The oldest archives have no type for a directory.
        0 | b'0' if name.ends_with(b"/") => Kind::Directory,
        0 | b'0' | b'7' | b'S' => Kind::File,
        b'5' => Kind::Directory,
        b'2' => Kind::Symlink,
        b'1' => Kind::HardLink,
        b'6' => Kind::Pipe,
        _ => Kind::Unusable,
    };
    let link = match kind {
        Kind::Symlink | Kind::HardLink => pax.link.or(long_link).unwrap_or_else(|| header.link()),
        _ => Vec::new(),
    };
    // Devices, like links, have no content whatever their size field says: so do GNU tar and Go.
    let size = match (kind, header.kind()) {
        (Kind::Unusable, b'3' | b'4') => 0,
        (Kind::File | Kind::Unusable, _) => pax.size.unwrap_or(size),
        _ => 0,
    };
    let or = |value: Option<u64>, header: Result<u64, Error>| value.map_or(header, Ok);
    let attributes = or(pax.uid, header.uid()).and_then(|uid| {
        Ok(Described {
            uid,
            gid: or(pax.gid, header.gid())?,
            mode: header.mode()?,
            mtime: match pax.mtime {
                Some(time) => time,
                None => (header.mtime()?, 0),
            },
            xattrs: pax.xattrs,
        })
    });
    Ok(Entry {
        name,
        link,
        kind,
        size,
        sparse: None,
        attributes,
    })
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

/// A long name ends with its only NUL. One that goes on behind it is two names, and which counts
/// depends on the reader.
fn terminated(mut name: Vec<u8>) -> Result<Vec<u8>, Error> {
    let end = name.iter().position(|byte| *byte == 0);
    let rest = name.split_off(end.unwrap_or(name.len()));
    match rest.iter().all(|byte| *byte == 0) {
        true if !name.is_empty() => Ok(name),
        _ => Err(header_rule("a long name of it has no proper end")),
    }
}

fn once<T>(place: &mut Option<T>, value: T) -> Result<(), Error> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(header_rule("two extended headers describe the same entry")),
    }
}

fn header_rule(text: impl Into<String>) -> Error {
    Error::Header(text.into())
}

impl Pax {
    fn parse(mut records: &[u8]) -> Result<Self, Error> {
        let mut pax = Self::default();
        while !records.is_empty() {
            let (key, value, rest) =
                record(records).ok_or_else(|| header_rule("a pax record is malformed"))?;
            pax.take(key, value)?;
            records = rest;
        }
        Ok(pax)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        // An empty value takes back what an earlier header said; nothing earlier counts here.
        match key {
            b"path" => self.name = filled(value),
            b"linkpath" => self.link = filled(value),
            b"size" => self.size = number(value)?,
            b"uid" => self.uid = number(value)?,
            b"gid" => self.gid = number(value)?,
            b"mtime" => self.mtime = time(value)?,
            key => {
                if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    let records = self.sparse.get_or_insert_default();
                    return records.take(key, value);
                }
                let name = key.strip_prefix(b"SCHILY.xattr.");
                if let Some(name) = name.and_then(|name| std::str::from_utf8(name).ok()) {
                    // GNU tar writes the two characters that a key cannot have like this.
                    let name = name.replace("%3D", "=").replace("%25", "%");
                    self.xattrs.push((name, value.to_vec()));
                }
            }
        }
        Ok(())
    }

    /// A global header may carry comments, but nothing that would change each entry.
    fn check_global(&self) -> Result<(), Error> {
        let harmless = self.name.is_none()
            && self.link.is_none()
            && self.size.is_none()
            && self.uid.is_none()
            && self.gid.is_none()
            && self.sparse.is_none()
            && self.xattrs.is_empty();
        if harmless {
            return Ok(());
        }
        Err(header_rule(
            "a global header sets values of entries, which is not supported",
        ))
    }
}

/// One record: `LENGTH KEY=VALUE\n`, where the length counts all of it.
fn record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = records.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&records[..space]).ok()?).ok()?;
    if length > records.len() || length < space + 2 {
        return None;
    }
    let (record, rest) = records.split_at(length);
    let pair = record[space + 1..].strip_suffix(b"\n")?;
    let equals = pair.iter().position(|byte| *byte == b'=')?;
    Some((&pair[..equals], &pair[equals + 1..], rest))
}

fn filled(value: &[u8]) -> Option<Vec<u8>> {
    (!value.is_empty()).then(|| value.to_vec())
}

fn number(value: &[u8]) -> Result<Option<u64>, Error> {
    match value {
        [] => Ok(None),
        digits => Ok(Some(decimal(digits)?)),
    }
}

/// Seconds with a fraction, as pax writes times.
fn time(value: &[u8]) -> Result<Option<(i64, u32)>, Error> {
    if value.is_empty() {
        return Ok(None);
    }
    let parsed = std::str::from_utf8(value).ok().and_then(|text| {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let unsigned = whole.strip_prefix('-').unwrap_or(whole);
        let decimal = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if !decimal(unsigned) || !decimal(fraction) {
            return None;
        }
        let seconds: i64 = whole.parse().ok()?;
        let digits: String = fraction
            .chars()
            .chain("000000000".chars())
            .take(9)
            .collect();
        let nanoseconds: u32 = digits.parse().ok()?;
        // The fraction of a negative time counts downwards.
        if whole.starts_with('-') && nanoseconds > 0 {
            return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds));
        }
        Some((seconds, nanoseconds))
    });
    match parsed {
        Some(time) => Ok(Some(time)),
        None => Err(header_rule("a pax record should be a time and is not")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_records_are_counted_not_split() {
        let value = b"a\n11 size=99\n\0z";
        let key = "SCHILY.xattr.user.x";
        let mut records = format!("{} {key}=", 3 + key.len() + 1 + value.len() + 1).into_bytes();
        records.extend_from_slice(value);
        records.push(b'\n');
        records.extend_from_slice(b"12 size=123\n");
        let pax = Pax::parse(&records).unwrap();
        assert_eq!(pax.size, Some(123));
        assert_eq!(pax.xattrs, [("user.x".to_owned(), value.to_vec())]);
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in [
            &b"99 size=1\n"[..],
            b"3 x",
            b"x size=1\n",
            b"10 size=1x",
            b"10 size=x\n",
            b"8 nokey\n",
            b"+10 size=1\n",
            b"11 size=+1\n",
            b"11 size=-1\n",
            b"0 =\n",
        ] {
            assert!(Pax::parse(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn times_have_fractions_and_signs() {
        let of = |text: &str| time(text.as_bytes()).unwrap().unwrap();
        assert_eq!(of("12"), (12, 0));
        assert_eq!(of("12.5"), (12, 500_000_000));
        assert_eq!(of("12.1234567891"), (12, 123_456_789));
        assert_eq!(of("-1.25"), (-2, 750_000_000));
        for bad in [
            "1.x",
            "+1",
            "1.+5",
            "-",
            ".5",
            "1.5.5",
            "99999999999999999999",
        ] {
            assert!(time(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn padding_fills_a_block() {
        assert_eq!((padding(0), padding(1), padding(512)), (0, 511, 0));
        assert_eq!(padding(u64::MAX), 1);
    }
}
