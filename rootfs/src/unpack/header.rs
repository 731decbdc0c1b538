//! Reading the headers of a tar stream: ustar, GNU long names, and pax (POSIX.1-2001).
//!
//! Used by the archive front end. The `tar` crate reads the fields of a header block; the walk
//! from header to header is done here, because three things must be strict where that crate is
//! lenient: memory (an extended header may claim any size), pax records (they are counted, so
//! that a value with a line break neither ends early nor smuggles a record), and the size that
//! decides where the next header is. Sparse files are refused rather than half understood.

use std::io::{self, Read};

use tar::{EntryType, Header};

use super::attributes::{self, Attributes};
use super::{Fault, Limits};
use crate::error::Rule;

const BLOCK: usize = 512;
/// The most bytes of one extended header.
const EXTENDED: u64 = 1 << 20;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
    Symlink,
    HardLink,
    Pipe,
    /// A device, or something that only some archiver knows.
    Unusable,
}

/// An entry, before its content.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) size: u64,
    pub(crate) attributes: Result<Attributes, Rule>,
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
    sparse: bool,
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
pub(crate) struct Entries<'a> {
    input: &'a mut dyn Read,
    limits: &'a Limits,
    /// Bytes of the current entry that were not read yet.
    content: u64,
    /// Zeros behind it, up to the next block.
    padding: u64,
}

impl<'a> Entries<'a> {
    pub(crate) fn new(input: &'a mut dyn Read, limits: &'a Limits) -> Self {
        Self {
            input,
            limits,
            content: 0,
            padding: 0,
        }
    }

    /// The next entry; `None` at the end marker or the end of the stream. Skips what was not read
    /// of the one before.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, Fault> {
        let mut pending = Pending::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                if pending.is_empty() {
                    return Ok(None);
                }
                return Err(header_rule("it describes an entry that does not follow"));
            };
            let size = header
                .entry_size()
                .map_err(|e| header_rule(e.to_string()))?;
            match header.entry_type() {
                EntryType::XHeader => {
                    let pax = Pax::parse(&self.extension(size)?)?;
                    once(&mut pending.pax, pax)?;
                }
                EntryType::XGlobalHeader => Pax::parse(&self.extension(size)?)?.check_global()?,
                EntryType::GNULongName => {
                    let name = self.extension(size)?;
                    once(&mut pending.long_name, without_end(name))?;
                }
                EntryType::GNULongLink => {
                    let link = self.extension(size)?;
                    once(&mut pending.long_link, without_end(link))?;
                }
                EntryType::GNUSparse => return Err(Rule::Sparse.into()),
                kind => {
                    let entry = entry(&header, kind, size, pending)?;
                    self.content = entry.size;
                    self.padding = padding(entry.size);
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// The content of the current entry.
    pub(crate) fn content(&mut self) -> impl Read + '_ {
        Content(self)
    }

    fn skip(&mut self) -> Result<(), Fault> {
        let left = self
            .content
            .checked_add(self.padding)
            .ok_or(Rule::Bytes(self.limits.bytes))?;
        let skipped = io::copy(&mut (&mut *self.input).take(left), &mut io::sink())
            .map_err(Fault::reading)?;
        if skipped < left {
            return Err(Fault::reading(io::ErrorKind::UnexpectedEof.into()));
        }
        (self.content, self.padding) = (0, 0);
        Ok(())
    }

    fn header(&mut self) -> Result<Option<Header>, Fault> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(Fault::reading(io::ErrorKind::UnexpectedEof.into())),
                Ok(length) => filled += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Fault::reading(error)),
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let outside = block[..148].iter().chain(&block[156..]);
        let sum = outside.fold(8 * u32::from(b' '), |sum, byte| sum + u32::from(*byte));
        match header.cksum() {
            Ok(claimed) if claimed == sum => Ok(Some(header)),
            _ => Err(header_rule("its checksum does not match: is this a tar?")),
        }
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, Fault> {
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
            .map_err(Fault::reading)?;
        Ok(bytes)
    }
}

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

fn entry(header: &Header, kind: EntryType, size: u64, pending: Pending) -> Result<Entry, Fault> {
    let pax = pending.pax.unwrap_or_default();
    if pax.sparse {
        return Err(Rule::Sparse.into());
    }
    let name = pax.name.or(pending.long_name);
    let name = name.unwrap_or_else(|| header.path_bytes().into_owned());
    let link = pax.link.or(pending.long_link);
    let link = link.or_else(|| header.link_name_bytes().map(|link| link.into_owned()));
    let kind = match kind {
        // The oldest archives have no type for a directory.
        EntryType::Regular if name.ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Link => Kind::HardLink,
        EntryType::Fifo => Kind::Pipe,
        _ => Kind::Unusable,
    };
    let has_content = kind == Kind::File || kind == Kind::Unusable && !is_device(header);
    let size = if has_content {
        pax.size.unwrap_or(size)
    } else {
        0
    };
    let attributes = field(pax.uid, || header.uid()).and_then(|uid| {
        Ok(Attributes {
            uid: attributes::owner(uid)?,
            gid: attributes::owner(field(pax.gid, || header.gid())?)?,
            mode: field(None, || header.mode())? & 0o7777,
            mtime: field(pax.mtime, || {
                Ok((header.mtime()?.try_into().unwrap_or(0), 0))
            })?,
            xattrs: pax.xattrs,
        })
    });
    Ok(Entry {
        name,
        link: link.unwrap_or_default(),
        kind,
        size,
        attributes,
    })
}

/// Devices, like links, have no content whatever their size field says: so do GNU tar and Go.
fn is_device(header: &Header) -> bool {
    matches!(header.entry_type(), EntryType::Char | EntryType::Block)
}

fn field<T>(pax: Option<T>, header: impl FnOnce() -> io::Result<T>) -> Result<T, Rule> {
    match pax {
        Some(value) => Ok(value),
        None => header().map_err(|error| Rule::Header(error.to_string())),
    }
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn without_end(mut name: Vec<u8>) -> Vec<u8> {
    if name.last() == Some(&0) {
        name.pop();
    }
    name
}

fn once<T>(place: &mut Option<T>, value: T) -> Result<(), Fault> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(header_rule("two extended headers describe the same entry")),
    }
}

fn header_rule(text: impl Into<String>) -> Fault {
    Rule::Header(text.into()).into()
}

impl Pax {
    fn parse(mut records: &[u8]) -> Result<Self, Fault> {
        let mut pax = Self::default();
        while !records.is_empty() {
            let (key, value, rest) =
                record(records).ok_or_else(|| header_rule("a pax record is malformed"))?;
            pax.take(key, value)?;
            records = rest;
        }
        Ok(pax)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        // An empty value takes back what an earlier header said; nothing earlier counts here.
        match key {
            b"path" => self.name = filled(value),
            b"linkpath" => self.link = filled(value),
            b"size" => self.size = number(value)?,
            b"uid" => self.uid = number(value)?,
            b"gid" => self.gid = number(value)?,
            b"mtime" => self.mtime = time(value)?,
            key if key.starts_with(b"GNU.sparse.") => self.sparse = true,
            key => {
                let name = key.strip_prefix(b"SCHILY.xattr.");
                if let Some(name) = name.and_then(|name| std::str::from_utf8(name).ok()) {
                    self.xattrs.push((name.to_owned(), value.to_vec()));
                }
            }
        }
        Ok(())
    }

    /// A global header may carry comments, but nothing that would change each entry.
    fn check_global(&self) -> Result<(), Fault> {
        let harmless = self.name.is_none()
            && self.link.is_none()
            && self.size.is_none()
            && self.uid.is_none()
            && self.gid.is_none()
            && !self.sparse
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
    let length: usize = std::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
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

fn number(value: &[u8]) -> Result<Option<u64>, Fault> {
    if value.is_empty() {
        return Ok(None);
    }
    let text = std::str::from_utf8(value).ok();
    match text.and_then(|text| text.parse().ok()) {
        Some(number) => Ok(Some(number)),
        None => Err(header_rule("a pax record should be a number and is not")),
    }
}

/// Seconds with a fraction, as pax writes times.
fn time(value: &[u8]) -> Result<Option<(i64, u32)>, Fault> {
    if value.is_empty() {
        return Ok(None);
    }
    let parsed = std::str::from_utf8(value).ok().and_then(|text| {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
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
        assert!(time(b"1.x").is_err());
    }

    #[test]
    fn padding_fills_a_block() {
        assert_eq!((padding(0), padding(1), padding(512)), (0, 511, 0));
        assert_eq!(padding(u64::MAX), 1);
    }
}
