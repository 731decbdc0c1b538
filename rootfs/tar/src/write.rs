//! Writing the headers of a tar: ustar, with pax records for what does not fit.
//!
//! Used by the stream out of a container. An entry that ustar can describe costs one block, as every
//! reader since 1988 understands it; long names, large numbers, extended attributes and sparse
//! files (GNU's version 1.0) get a pax header in front.

use crate::block::BLOCK;
use crate::sparse::MOST;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// A regular file.
    File,
    /// Another name of an earlier entry.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device: major and minor number.
    Character(u32, u32),
    /// A block device: major and minor number.
    Block(u32, u32),
    /// A directory; its name ends with `/`.
    Directory,
    /// A named pipe.
    Pipe,
}

/// An entry to write, without its content.
#[derive(Debug, Clone)]
pub struct Head<'a> {
    /// What it is.
    pub kind: Type,
    /// Its name.
    pub name: &'a [u8],
    /// Where a link leads.
    pub link: &'a [u8],
    /// Permissions, with set-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, in seconds since the epoch.
    pub mtime: i64,
    /// Bytes of a regular file, holes included.
    pub size: u64,
    /// The parts of a file with holes that are there, as offset and length, in order.
    pub segments: Option<&'a [(u64, u64)]>,
    /// Extended attributes: name and value.
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

impl Head<'_> {
    /// The most segments that a reader of ours takes; a file of more is written whole.
    pub const SEGMENTS: usize = MOST;

    /// Appends all blocks in front of the content to `out`; returns the bytes of content, beside
    /// the padding to whole blocks, that must follow: the segments of a sparse file, or all of it.
    pub fn write(&self, out: &mut Vec<u8>) -> u64 {
        let mut records = Vec::new();
        let map = self.segments.map(map);
        let mut stored = match self.segments {
            Some(segments) => segments.iter().map(|(_, length)| length).sum(),
            None => self.size,
        };
        let content = stored;
        stored += map.as_ref().map_or(0, |map| map.len() as u64);
        if self.segments.is_some() {
            record(&mut records, b"GNU.sparse.major", b"1");
            record(&mut records, b"GNU.sparse.minor", b"0");
            record(&mut records, b"GNU.sparse.name", self.name);
            let size = self.size.to_string();
            record(&mut records, b"GNU.sparse.realsize", size.as_bytes());
        } else if self.name.len() > 100 {
            record(&mut records, b"path", self.name);
        }
        if self.link.len() > 100 {
            record(&mut records, b"linkpath", self.link);
        }
        for (key, value, most) in [
            (&b"size"[..], stored, OCTAL_11),
            (b"uid", self.uid.into(), OCTAL_7),
            (b"gid", self.gid.into(), OCTAL_7),
        ] {
            if value > most {
                record(&mut records, key, value.to_string().as_bytes());
            }
        }
        if !u64::try_from(self.mtime).is_ok_and(|time| time <= OCTAL_11) {
            record(&mut records, b"mtime", self.mtime.to_string().as_bytes());
        }
        for (name, value) in self.xattrs {
            record(
                &mut records,
                &[b"SCHILY.xattr.", &key(name)[..]].concat(),
                value,
            );
        }
        if !records.is_empty() {
            let name = short(b"././@PaxHeader");
            block(
                out,
                &name,
                &[],
                b'x',
                0o644,
                [0, 0],
                records.len() as u64,
                0,
                (0, 0),
            );
            // By its own length: `out` may begin within a block of the stream.
            pad(&mut records);
            out.extend_from_slice(&records);
        }
        let (flag, device) = match self.kind {
            Type::File => (b'0', (0, 0)),
            Type::HardLink => (b'1', (0, 0)),
            Type::Symlink => (b'2', (0, 0)),
            Type::Character(major, minor) => (b'3', (major, minor)),
            Type::Block(major, minor) => (b'4', (major, minor)),
            Type::Directory => (b'5', (0, 0)),
            Type::Pipe => (b'6', (0, 0)),
        };
        let seconds = u64::try_from(self.mtime).unwrap_or(0);
        block(
            out,
            &short(self.name),
            &short(self.link),
            flag,
            self.mode,
            [self.uid, self.gid],
            stored,
            seconds,
            device,
        );
        out.extend(map.into_iter().flatten());
        content
    }
}

const OCTAL_7: u64 = 0o777_7777;
const OCTAL_11: u64 = 0o777_7777_7777;

/// The start of a name, for readers that do not know pax.
fn short(name: &[u8]) -> Vec<u8> {
    name.iter().take(100).copied().collect()
}

/// One record: its length counts its own digits.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(format!("{length} ").as_bytes());
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// GNU tar's way to write the two characters that a key cannot have.
fn key(name: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(name.len());
    for byte in name {
        match byte {
            b'%' => key.extend_from_slice(b"%25"),
            b'=' => key.extend_from_slice(b"%3D"),
            byte => key.push(*byte),
        }
    }
    key
}

/// The map in front of a sparse file's content: decimal numbers, one a line, in whole blocks.
fn map(segments: &[(u64, u64)]) -> Vec<u8> {
    let mut map = format!("{}\n", segments.len()).into_bytes();
    for (offset, length) in segments {
        map.extend_from_slice(format!("{offset}\n{length}\n").as_bytes());
    }
    pad(&mut map);
    map
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(BLOCK), 0);
}

#[expect(
    clippy::too_many_arguments,
    reason = "the fields of a header, in its order"
)]
fn block(
    out: &mut Vec<u8>,
    name: &[u8],
    link: &[u8],
    flag: u8,
    mode: u32,
    owner: [u32; 2],
    size: u64,
    mtime: u64,
    device: (u32, u32),
) {
    // Fits by what the callers checked; what does not stands in a record, and the field is cut.
    let octal = |digits: usize, value: u64| {
        let most = (1_u64 << (3 * digits)) - 1;
        format!("{:0digits$o}\0", value.min(most)).into_bytes()
    };
    let mut block = [0_u8; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| {
        for (place, byte) in block.iter_mut().skip(at).zip(bytes) {
            *place = *byte;
        }
    };
    put(0, name);
    put(100, &octal(7, u64::from(mode & 0o7777)));
    put(108, &octal(7, owner[0].into()));
    put(116, &octal(7, owner[1].into()));
    put(124, &octal(11, size));
    put(136, &octal(11, mtime));
    put(148, b"        ");
    put(156, &[flag]);
    put(157, link);
    put(257, b"ustar\x0000");
    put(329, &octal(7, device.0.into()));
    put(337, &octal(7, device.1.into()));
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    let checksum = octal(6, sum);
    for (place, byte) in block.iter_mut().skip(148).zip(checksum) {
        *place = byte;
    }
    out.extend_from_slice(&block);
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::{Entries, Kind};

    fn head(name: &[u8]) -> Head<'_> {
        Head {
            kind: Type::File,
            name,
            link: b"",
            mode: 0o4751,
            uid: 1,
            gid: 2,
            mtime: 3,
            size: 0,
            segments: None,
            xattrs: &[],
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        let long = [b'n'; 300];
        let xattrs = [(b"user.a=b%".to_vec(), b"1\n2\0".to_vec())];
        let segments = [(4096, 2), (9000, 0)];
        let heads = [
            Head {
                uid: 4_000_000_000,
                mtime: -5,
                ..head(b"plain")
            },
            Head {
                xattrs: &xattrs,
                ..head(&long)
            },
            Head {
                kind: Type::Symlink,
                link: &long,
                ..head(b"link")
            },
            Head {
                segments: Some(&segments),
                size: 9000,
                ..head(b"sparse")
            },
        ];
        // As behind a file whose content went another way: not at the start of a block.
        let mut out = vec![0; 32];
        for head in &heads {
            let content = head.write(&mut out);
            out.extend(std::iter::repeat_n(b'c', usize::try_from(content).unwrap()));
            out.resize(32 + (out.len() - 32).next_multiple_of(BLOCK), 0);
        }
        out.extend([0; 1024]);
        let mut input = &out[32..];
        let mut entries = Entries::new(&mut input);
        for head in &heads {
            let entry = entries.next().unwrap().unwrap();
            assert_eq!(entry.name, head.name);
            assert_eq!(entry.link, head.link);
            assert_eq!(entry.size, head.size);
            let described = entry.attributes.as_ref().unwrap();
            assert_eq!(described.mtime, (head.mtime, 0));
            assert_eq!(described.uid, u64::from(head.uid));
            assert_eq!(described.mode, head.mode);
            assert_eq!(described.xattrs.len(), head.xattrs.len());
            if let [(name, value)] = &described.xattrs[..] {
                assert_eq!((name.as_bytes(), value), (&xattrs[0].0[..], &xattrs[0].1));
            }
            if entry.kind == Kind::File {
                let mut all = Vec::new();
                entries.content(&entry).read_to_end(&mut all).unwrap();
                assert_eq!(all.len() as u64, head.size);
            }
        }
        assert!(entries.next().unwrap().is_none());
    }
}
