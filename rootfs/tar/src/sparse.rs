//! Sparse files in a tar: which parts of a file are there, the rest being zeros.
//!
//! Used by the reader of headers. GNU tar has four ways to say it: in the header and blocks
//! behind it (`S`), in pax records of two kinds (0.0, 0.1), and in front of the content (1.0). All
//! become a [`Map`] that keeps these rules: segments come in order, do not touch each other's
//! bytes, end before the file does, are of a bounded number, and are together as long as the
//! content (CVE-2025-58183: a map of any length was read into memory).

use std::io::{self, Read};

use crate::Error;
use crate::block::{BLOCK, positive};

/// The most segments of a file.
pub(crate) const MOST: usize = 64 * 1024;

/// Where the bytes of a sparse file belong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Map {
    /// Offset and length of each segment.
    segments: Vec<(u64, u64)>,
    /// The length of the file.
    pub(crate) length: u64,
}

/// What pax records said about a sparse file.
#[derive(Debug, Default)]
pub(crate) struct Records {
    major: Option<u64>,
    minor: Option<u64>,
    length: Option<u64>,
    numbers: Vec<u64>,
    pub(crate) name: Option<Vec<u8>>,
}

/// The form of a sparse file in pax.
pub(crate) enum Form {
    /// The records have told all.
    Complete(Map),
    /// The map lies in front of the content; this is the length of the file.
    InFront(u64),
}

impl Records {
    /// Takes a record; `key` is what follows `GNU.sparse.`.
    pub(crate) fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        match key {
            b"major" => self.major = Some(decimal(value)?),
            b"minor" => self.minor = Some(decimal(value)?),
            b"size" | b"realsize" => self.length = Some(decimal(value)?),
            b"name" => self.name = Some(value.to_vec()),
            b"offset" | b"numbytes" => {
                // One pair after the other, an offset first.
                if (key == b"offset") != self.numbers.len().is_multiple_of(2) {
                    return Err(wrong("its records are out of order"));
                }
                self.push(decimal(value)?)?;
            }
            b"map" if self.numbers.is_empty() => {
                for number in value.split(|byte| *byte == b',') {
                    self.push(decimal(number)?)?;
                }
            }
            // Says what counting tells anyway.
            b"numblocks" => {}
            _ => return Err(wrong("a record of it is not known")),
        }
        Ok(())
    }

    fn push(&mut self, number: u64) -> Result<(), Error> {
        if self.numbers.len() >= 2 * MOST {
            return Err(too_many());
        }
        self.numbers.push(number);
        Ok(())
    }

    /// What they say together.
    pub(crate) fn form(self) -> Result<Form, Error> {
        let length = self.length.ok_or_else(|| wrong("its length is missing"))?;
        match (self.major, self.minor) {
            (Some(1), Some(0)) if self.numbers.is_empty() => Ok(Form::InFront(length)),
            (None, None) => Ok(Form::Complete(Map::new(pairs(&self.numbers)?, length)?)),
            (Some(0), Some(0 | 1)) => Ok(Form::Complete(Map::new(pairs(&self.numbers)?, length)?)),
            _ => Err(wrong("its version is not known")),
        }
    }
}

impl Map {
    fn new(mut segments: Vec<(u64, u64)>, length: u64) -> Result<Self, Error> {
        if segments.len() > MOST {
            return Err(too_many());
        }
        let mut end = 0;
        for (offset, bytes) in &segments {
            if *offset < end {
                return Err(wrong("its segments are out of order"));
            }
            end = (offset.checked_add(*bytes)).ok_or_else(|| wrong("a segment never ends"))?;
        }
        if end > length {
            return Err(wrong("a segment ends behind the file"));
        }
        segments.retain(|(_, bytes)| *bytes > 0);
        Ok(Self { segments, length })
    }

    /// The map of an old GNU header. `next` gives the next block behind it.
    pub(crate) fn old<E: From<Error>>(
        (first, mut more, length): (&[u8], bool, Result<u64, Error>),
        mut next: impl FnMut() -> Result<[u8; BLOCK], E>,
    ) -> Result<Self, E> {
        let mut segments = Vec::new();
        entries(first, &mut segments)?;
        while more {
            let block = next()?;
            entries(&block[..504], &mut segments)?;
            more = block[504] != 0;
        }
        Ok(Self::new(segments, length?)?)
    }

    /// Reads the map in front of the content: decimal numbers, one a line, filled up to a block.
    /// Also gives how many bytes that took.
    pub(crate) fn in_front(input: &mut dyn Read, length: u64) -> io::Result<(Self, u64)> {
        let mut lines = Numbers {
            input,
            block: [0; BLOCK],
            at: BLOCK,
            read: 0,
        };
        let count = lines.next()?;
        let count = usize::try_from(count).ok().filter(|count| *count <= MOST);
        let count = count.ok_or_else(|| io::Error::other(too_many()))?;
        let mut segments = Vec::new();
        for _ in 0..count {
            segments.push((lines.next()?, lines.next()?));
        }
        let read = lines.read;
        let map = Self::new(segments, length).map_err(io::Error::other)?;
        Ok((map, read))
    }

    /// Offset and length of what is there.
    pub(crate) fn segments(&self) -> &[(u64, u64)] {
        &self.segments
    }

    /// The bytes that the archive must have for it.
    pub(crate) fn stored(&self) -> u64 {
        // Cannot overflow: they lie one behind the other.
        self.segments.iter().map(|(_, bytes)| bytes).sum()
    }

    /// The whole file, zeros included.
    pub(crate) fn expand<R: Read>(self, stored: R) -> Expanded<R> {
        Expanded {
            map: self,
            stored,
            segment: 0,
            at: 0,
        }
    }
}

/// Pairs of offset and length, as octal numbers; an empty one ends them.
fn entries(field: &[u8], segments: &mut Vec<(u64, u64)>) -> Result<(), Error> {
    for entry in field.chunks_exact(24) {
        if entry[0] == 0 || entry[12] == 0 {
            break;
        }
        if segments.len() >= MOST {
            return Err(too_many());
        }
        segments.push((
            positive(&entry[..12], "offset of a segment")?,
            positive(&entry[12..], "length of a segment")?,
        ));
    }
    Ok(())
}

fn pairs(numbers: &[u64]) -> Result<Vec<(u64, u64)>, Error> {
    let (pairs, []) = numbers.as_chunks::<2>() else {
        return Err(wrong("a segment has no length"));
    };
    Ok(pairs
        .iter()
        .map(|[offset, bytes]| (*offset, *bytes))
        .collect())
}

/// Digits and nothing else.
pub(crate) fn decimal(text: &[u8]) -> Result<u64, Error> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(text).ok().filter(|_| digits);
    let number = text.and_then(|text| text.parse().ok());
    number.ok_or_else(|| Error::Header("a pax record should be a number and is not".to_owned()))
}

fn wrong(text: &str) -> Error {
    Error::Header(format!("it describes a sparse file, and {text}"))
}

fn too_many() -> Error {
    Error::Header(format!(
        "it describes a sparse file of too many segments: {MOST} is the limit"
    ))
}

struct Numbers<'a> {
    input: &'a mut dyn Read,
    block: [u8; BLOCK],
    at: usize,
    read: u64,
}

impl Numbers<'_> {
    fn next(&mut self) -> io::Result<u64> {
        let mut digits = Vec::new();
        loop {
            if self.at == BLOCK {
                self.input.read_exact(&mut self.block)?;
                (self.at, self.read) = (0, self.read + BLOCK as u64);
            }
            let byte = self.block[self.at];
            self.at += 1;
            if byte == b'\n' {
                return decimal(&digits).map_err(io::Error::other);
            }
            digits.push(byte);
            if digits.len() > 20 {
                return Err(io::Error::other(wrong("a number of its map never ends")));
            }
        }
    }
}

/// A sparse file as a stream of all its bytes.
pub(crate) struct Expanded<R> {
    map: Map,
    stored: R,
    segment: usize,
    at: u64,
}

impl<R: Read> Read for Expanded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let next = self.map.segments.get(self.segment);
        let (offset, bytes) = next.copied().unwrap_or((self.map.length, 0));
        let hole = offset.saturating_sub(self.at);
        let left = if hole > 0 {
            hole
        } else {
            offset + bytes - self.at
        };
        let most = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let buffer = &mut buffer[..most];
        if buffer.is_empty() {
            return Ok(0);
        }
        let length = if hole > 0 {
            buffer.fill(0);
            buffer.len()
        } else {
            self.stored.read(buffer)?
        };
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += length as u64;
        if bytes > 0 && self.at == offset + bytes {
            self.segment += 1;
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(segments: &[(u64, u64)], length: u64) -> Vec<u8> {
        let map = Map::new(segments.to_vec(), length).unwrap();
        let stored = vec![b'x'; usize::try_from(map.stored()).unwrap()];
        let mut bytes = Vec::new();
        map.expand(&stored[..]).read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn holes_are_zeros() {
        assert_eq!(expanded(&[], 0), b"");
        assert_eq!(expanded(&[], 3), b"\0\0\0");
        assert_eq!(expanded(&[(0, 2), (3, 1)], 5), b"xx\0x\0");
        assert_eq!(expanded(&[(1, 1), (2, 1), (4, 0)], 4), b"\0xx\0");
    }

    #[test]
    fn maps_that_lie_are_refused() {
        for (segments, length) in [
            (&[(0, 2), (1, 1)][..], 9),
            (&[(4, 1), (0, 1)], 9),
            (&[(8, 2)], 9),
            (&[(9, 0), (u64::MAX, 0)], 9),
            (&[(1, u64::MAX)], u64::MAX),
        ] {
            assert!(Map::new(segments.to_vec(), length).is_err(), "{segments:?}");
        }
        let short = Map::new(vec![(0, 9)], 9).unwrap();
        let error = short.expand(&b"x"[..]).read_to_end(&mut Vec::new());
        assert!(error.is_err());
    }

    #[test]
    fn a_map_in_front_ends_with_its_block() {
        let mut input = b"2\n0\n5\n100\n7\n".to_vec();
        input.resize(600, b'c');
        let (map, read) = Map::in_front(&mut &input[..], 200).unwrap();
        assert_eq!((map.segments, read), (vec![(0, 5), (100, 7)], 512));
        for bad in ["99999999\n", "-1\n", "1\n\n", "2\n0\n1\n", &"1".repeat(600)] {
            assert!(Map::in_front(&mut bad.as_bytes(), 9).is_err(), "{bad}");
        }
    }
}
