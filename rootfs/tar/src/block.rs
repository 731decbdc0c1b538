//! One header block of a tar: its fields and numbers, strictly.
//!
//! Used by the reader of headers. The layout is that of POSIX.1-1988 (ustar) with GNU's
//! extensions (tar(5), the file `tar.h` of GNU tar); old headers without a magic have its first
//! fields. A number that does not fit is an error here, never another number: two readers that
//! disagree about a size read different archives.

use crate::Error;

/// Bytes of a block.
pub const BLOCK: usize = 512;

/// A header.
pub(crate) struct Block<'a>(pub(crate) &'a [u8; BLOCK]);

impl Block<'_> {
    /// Whether this is the end marker.
    pub(crate) fn is_zero(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }

    /// Whether its checksum is right. Some old archivers summed up signed bytes.
    pub(crate) fn is_whole(&self) -> bool {
        // The field itself counts as spaces.
        let sum = |of: fn(&u8) -> i32| {
            let all: i32 = self.0.iter().map(of).sum();
            let field: i32 = self.0[148..156].iter().map(of).sum();
            i64::from(all - field + 8 * i32::from(b' '))
        };
        number(&self.0[148..156]).is_ok_and(|claimed| {
            claimed == sum(|byte| i32::from(*byte))
                || claimed == sum(|byte| i32::from(byte.cast_signed()))
        })
    }

    /// What follows: see [`super::header`].
    pub(crate) fn kind(&self) -> u8 {
        self.0[156]
    }

    /// The name, with the directory that only ustar keeps apart.
    pub(crate) fn name(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        let prefix = match &self.0[257..263] {
            b"ustar\0" => text(&self.0[345..500]),
            _ => &[],
        };
        match prefix {
            [] => name.to_vec(),
            prefix => [prefix, b"/", name].concat(),
        }
    }

    pub(crate) fn link(&self) -> Vec<u8> {
        text(&self.0[157..257]).to_vec()
    }

    pub(crate) fn mode(&self) -> Result<u32, Error> {
        // Some archivers put the type of the object into it, too.
        Ok((positive(&self.0[100..108], "mode")? & 0o7777) as u32)
    }

    pub(crate) fn uid(&self) -> Result<u64, Error> {
        positive(&self.0[108..116], "owner")
    }

    pub(crate) fn gid(&self) -> Result<u64, Error> {
        positive(&self.0[116..124], "group")
    }

    pub(crate) fn size(&self) -> Result<u64, Error> {
        positive(&self.0[124..136], "size")
    }

    /// Seconds; may be before the epoch.
    pub(crate) fn mtime(&self) -> Result<i64, Error> {
        number(&self.0[136..148]).map_err(|()| wrong("time"))
    }

    /// The segments that an old GNU sparse header has room for, whether more blocks of them
    /// follow, and the length of the whole file.
    pub(crate) fn sparse(&self) -> (&[u8], bool, Result<u64, Error>) {
        let length = positive(&self.0[483..495], "length");
        (&self.0[386..482], self.0[482] != 0, length)
    }
}

/// The bytes before the first NUL.
fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0);
    &field[..end.unwrap_or(field.len())]
}

/// A number that cannot be negative.
pub(crate) fn positive(field: &[u8], what: &'static str) -> Result<u64, Error> {
    let value = number(field).map_err(|()| wrong(what))?;
    u64::try_from(value).map_err(|_| wrong(what))
}

fn wrong(what: &str) -> Error {
    Error::Header(format!("its {what} is no number, or is out of range"))
}

/// Octal digits between spaces and NULs, nothing being zero; or, with the first bit set, base 256
/// in two's complement.
fn number(field: &[u8]) -> Result<i64, ()> {
    let first = *field.first().ok_or(())?;
    if first & 0x80 != 0 {
        // The second bit is the sign; it fills what is in front of it.
        let negative = first & 0x40 != 0;
        let mut value: i64 = if negative { -1 } else { 0 };
        let rest = &field[1..];
        let head = if negative { first | 0x80 } else { first & 0x3f };
        for byte in std::iter::once(&head).chain(rest) {
            value = value.checked_mul(256).ok_or(())? | i64::from(*byte);
        }
        return Ok(value);
    }
    let from = field.iter().position(|byte| *byte != b' ');
    let field = &field[from.unwrap_or(field.len())..];
    let end = field.iter().position(|byte| matches!(byte, b' ' | 0));
    let (digits, rest) = field.split_at(end.unwrap_or(field.len()));
    if rest.iter().any(|byte| !matches!(byte, b' ' | 0)) {
        return Err(());
    }
    let mut value: i64 = 0;
    for digit in digits {
        let digit = match digit {
            b'0'..=b'7' => digit - b'0',
            _ => return Err(()),
        };
        value = value.checked_mul(8).ok_or(())? | i64::from(digit);
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        let of = |field: &[u8]| number(field);
        assert_eq!(of(b"0000644\0"), Ok(0o644));
        assert_eq!(of(b"   644 \0"), Ok(0o644));
        assert_eq!(of(b"77777777"), Ok(0o7777_7777));
        assert_eq!(of(b"\0\0\0\0\0\0\0\0"), Ok(0));
        assert_eq!(of(b"        "), Ok(0));
        assert_eq!(of(b"\x80\0\0\0\0\0\x01\x02"), Ok(258));
        assert_eq!(of(b"\xff\xff\xff\xff\xff\xff\xff\xfe"), Ok(-2));
        assert_eq!(of(&[0xff; 12]), Ok(-1));
        let mut largest = [0; 12];
        largest[0] = 0x80;
        largest[4..].copy_from_slice(&i64::MAX.to_be_bytes());
        assert_eq!(of(&largest), Ok(i64::MAX));
    }

    #[test]
    fn other_numbers_are_refused() {
        let mut large = [0; 12];
        large[0] = 0x80;
        large[4] = 0x80;
        for bad in [
            &b"-000644\0"[..],
            b"0000x44\0",
            b"0000648\0",
            b"644 644\0",
            b"644\x00644\x00",
            b"+000644\0",
            b"\x80\x01\0\0\0\0\0\0\0\0\0\0",
            &large,
            &[0xbf; 12],
        ] {
            assert_eq!(number(bad), Err(()), "{}", bad.escape_ascii());
        }
        assert!(positive(&[0xff; 12], "size").is_err());
    }

    #[test]
    fn checksums_are_of_plain_or_signed_bytes() {
        let mut block = [0xe4; BLOCK];
        let whole = |block: &mut [u8; BLOCK], sum: i64| {
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            Block(block).is_whole()
        };
        let spaces = 8 * 32;
        assert!(whole(&mut block, 504 * 0xe4 + spaces));
        assert!(!whole(&mut block, 504 * 0xe4 + spaces + 1));
        block.fill(0x7f);
        block[0] = 0xff;
        assert!(whole(&mut block, 503 * 0x7f - 1 + spaces));
    }
}
