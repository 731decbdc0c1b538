//! One line of a listing: what an object of a layer is.
//!
//! Written and read here alone. Fields are separated by one space:
//!
//! ```text
//! d NAME MODE UID GID MTIME [XATTR=SUM]...             a directory
//! f NAME MODE UID GID MTIME SIZE SUM [XATTR=SUM]...    a regular file
//! l NAME MODE UID GID MTIME TARGET                     a symbolic link
//! p NAME MODE UID GID MTIME                            a named pipe
//! h NAME NAME                                          one file with the second name
//! w NAME                                               a whiteout, in overlay's form
//! g NAME                                               gone: an earlier line does not count
//! ```
//!
//! MODE is octal, MTIME seconds and nanoseconds with a point between them, SUM an XXH3-128.
//! Names and targets have `%` and two digits for every byte that is not plain. A `+` in front says
//! that an earlier line of the same name does not count.

use super::super::attributes::Attributes;
use super::super::name::Name;
use super::sum::Sum;

/// What an object is, besides its attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What<'a> {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Bytes.
        size: u64,
        /// The sum of its content.
        sum: Sum,
    },
    /// A symbolic link.
    Symlink(&'a [u8]),
    /// A named pipe.
    Pipe,
}

/// A line as it was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Whether it takes the place of an earlier one.
    pub(super) again: bool,
    pub(super) name: Name,
    pub(super) body: Body,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Body {
    Object(Object),
    HardLink(Name),
    Whiteout,
    Gone,
}

/// An object, as it was read from a listing or from a tree.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) owner: (u32, u32),
    pub(super) mtime: (i64, u32),
    pub(super) xattrs: Vec<(String, Sum)>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File { size: u64, sum: Sum },
    Symlink(Vec<u8>),
    Pipe,
}

/// Appends the line of an object.
pub(super) fn object(line: &mut Vec<u8>, name: &Name, given: &Attributes, what: What<'_>) {
    let letter = match what {
        What::Directory => b'd',
        What::File { .. } => b'f',
        What::Symlink(_) => b'l',
        What::Pipe => b'p',
    };
    head(line, letter, name);
    let mode = match what {
        What::Symlink(_) => 0o777,
        _ => given.mode,
    };
    number(line, u64::from(mode), 8);
    number(line, u64::from(given.uid), 10);
    number(line, u64::from(given.gid), 10);
    line.push(b' ');
    if given.mtime.0 < 0 {
        line.push(b'-');
    }
    digits(line, given.mtime.0.unsigned_abs(), 10);
    line.push(b'.');
    digits(line, u64::from(given.mtime.1), 10);
    match what {
        What::File { size, sum } => {
            number(line, size, 10);
            line.push(b' ');
            line.extend_from_slice(&sum.digits());
        }
        What::Symlink(target) => {
            line.push(b' ');
            escape(line, target);
        }
        What::Directory | What::Pipe => {}
    }
    if matches!(what, What::Directory | What::File { .. }) {
        for (name, value) in &given.xattrs {
            line.push(b' ');
            escape(line, name.as_bytes());
            line.push(b'=');
            line.extend_from_slice(&Sum::of(value).digits());
        }
    }
    line.push(b'\n');
}

/// Appends the line of a hard link.
pub(super) fn hard_link(line: &mut Vec<u8>, name: &Name, target: &Name) {
    head(line, b'h', name);
    line.push(b' ');
    escape(line, target.path());
    line.push(b'\n');
}

/// Appends a line that only names something.
pub(super) fn mark(line: &mut Vec<u8>, letter: u8, name: &Name) {
    head(line, letter, name);
    line.push(b'\n');
}

fn head(line: &mut Vec<u8>, letter: u8, name: &Name) {
    line.push(letter);
    line.push(b' ');
    escape(line, name.path());
}

fn number(line: &mut Vec<u8>, value: u64, base: u64) {
    line.push(b' ');
    digits(line, value, base);
}

fn digits(line: &mut Vec<u8>, mut value: u64, base: u64) {
    let mut text = [0; 22];
    let mut at = text.len();
    loop {
        at -= 1;
        text[at] = b'0' + (value % base) as u8;
        value /= base;
        if value == 0 {
            break;
        }
    }
    line.extend_from_slice(&text[at..]);
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_graphic() && byte != b'%' && byte != b'='
}

fn escape(line: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut left = bytes;
    while let Some(at) = left.iter().position(|byte| !is_plain(*byte)) {
        let byte = left[at];
        line.extend_from_slice(&left[..at]);
        line.push(b'%');
        line.push(DIGITS[usize::from(byte >> 4)]);
        line.push(DIGITS[usize::from(byte & 15)]);
        left = &left[at + 1..];
    }
    line.extend_from_slice(left);
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    Some(bytes)
}

/// Reads a line, without its end; `None` when it is not one of ours.
pub(super) fn parse(line: &[u8]) -> Option<Record> {
    let text = std::str::from_utf8(line).ok()?;
    let plain = text.strip_prefix('+');
    let mut fields = plain.unwrap_or(text).split(' ');
    let letter = fields.next()?;
    let name = name(fields.next()?)?;
    let body = match letter {
        "h" => Body::HardLink(self::name(fields.next()?)?),
        "w" => Body::Whiteout,
        "g" => Body::Gone,
        _ => Body::Object(parse_object(letter, &mut fields)?),
    };
    fields.next().is_none().then_some(Record {
        again: plain.is_some(),
        name,
        body,
    })
}

fn parse_object<'a>(letter: &str, fields: &mut impl Iterator<Item = &'a str>) -> Option<Object> {
    let mode = u32::from_str_radix(fields.next()?, 8).ok()?;
    let owner = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let (seconds, nanoseconds) = fields.next()?.split_once('.')?;
    let mtime = (seconds.parse().ok()?, nanoseconds.parse().ok()?);
    let kind = match letter {
        "d" => Kind::Directory,
        "f" => Kind::File {
            size: fields.next()?.parse().ok()?,
            sum: fields.next()?.parse().ok()?,
        },
        "l" => Kind::Symlink(unescape(fields.next()?)?),
        "p" => Kind::Pipe,
        _ => return None,
    };
    let xattrs = fields.map(|field| {
        let (name, sum) = field.split_once('=')?;
        let name = String::from_utf8(unescape(name)?).ok()?;
        Some((name, sum.parse().ok()?))
    });
    Some(Object {
        kind,
        mode,
        owner,
        mtime,
        xattrs: xattrs.collect::<Option<_>>()?,
    })
}

fn name(text: &str) -> Option<Name> {
    match text {
        "." => Some(Name::default()),
        text => Name::known(unescape(text)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_were_written() {
        let strange = Name::known(b"a b/\xff%\n=\xc3\xa4".to_vec()).unwrap();
        let given = Attributes {
            mode: 0o4751,
            uid: 7,
            gid: i32::MAX as u32,
            mtime: (-5, 999_999_999),
            xattrs: vec![("user.a =%".to_owned(), b"value".to_vec())],
        };
        let sum = Sum::of(b"content");
        let mut lines = Vec::new();
        object(&mut lines, &Name::default(), &given, What::Directory);
        lines.push(b'+');
        object(&mut lines, &strange, &given, What::File { size: 7, sum });
        object(&mut lines, &strange, &given, What::Symlink(b"../x y"));
        hard_link(&mut lines, &strange, &Name::known(b"x".to_vec()).unwrap());
        mark(&mut lines, b'w', &strange);
        assert!(lines.is_ascii());
        let lines = lines.strip_suffix(b"\n").unwrap();
        let read: Vec<_> = (lines.split(|byte| *byte == b'\n'))
            .map(|line| parse(line).unwrap())
            .collect();
        let xattrs = vec![("user.a =%".to_owned(), Sum::of(b"value"))];
        let of = |kind, mode, xattrs| Object {
            kind,
            mode,
            owner: (7, i32::MAX as u32),
            mtime: (-5, 999_999_999),
            xattrs,
        };
        let file = of(Kind::File { size: 7, sum }, 0o4751, xattrs.clone());
        let link = of(Kind::Symlink(b"../x y".to_vec()), 0o777, Vec::new());
        let record = |again, name: &Name, body| Record {
            again,
            name: name.clone(),
            body,
        };
        let root = of(Kind::Directory, 0o4751, xattrs);
        assert_eq!(read[0], record(false, &Name::default(), Body::Object(root)));
        assert_eq!(read[1], record(true, &strange, Body::Object(file)));
        assert_eq!(read[2], record(false, &strange, Body::Object(link)));
        let to = Name::known(b"x".to_vec()).unwrap();
        assert_eq!(read[3], record(false, &strange, Body::HardLink(to)));
        assert_eq!(read[4], record(false, &strange, Body::Whiteout));
    }

    #[test]
    fn other_lines_are_not_guessed_at() {
        for bad in [
            "",
            "w",
            "w ",
            "w a b",
            "w /a",
            "w a/../b",
            "w %zz",
            "x a",
            "d a 755 0 0 1",
            "f a 755 0 0 1.0 5",
            "f a 755 0 0 1.0 5 x",
            "d a 755 0 0 1.0 user.a",
            "l a 777 0 0 1.0",
        ] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
