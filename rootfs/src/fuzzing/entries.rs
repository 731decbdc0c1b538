//! Bytes that become a tar: each choice takes a few of them, so that a small change of the input
//! is a small change of the archive, and most archives get past the first checks.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const BLOCK: usize = 512;

/// Parts of names: few, so that they meet; and those that mean something.
const PARTS: [&[u8]; 20] = [
    b"a",
    b"b",
    b"c",
    b"a",
    b"b",
    b"c",
    b"..",
    b".",
    b"",
    b"\n",
    b"\xff",
    b"a b%=",
    b".wh.a",
    b".wh.b",
    b".wh.c",
    b".wh..wh..opq",
    b".wh.",
    b".wh..wh.plnk",
    b"a.wh.b",
    &[b'x'; 255],
];

const KEYS: [&str; 18] = [
    "path",
    "linkpath",
    "size",
    "uid",
    "gid",
    "mtime",
    "SCHILY.xattr.user.a",
    "SCHILY.xattr.user.b",
    "SCHILY.xattr.security.capability",
    "SCHILY.xattr.trusted.overlay.opaque",
    "SCHILY.xattr.user.overlay.redirect",
    "GNU.sparse.major",
    "GNU.sparse.minor",
    "GNU.sparse.realsize",
    "GNU.sparse.map",
    "GNU.sparse.offset",
    "GNU.sparse.numbytes",
    "comment",
];

const KINDS: &[u8] = b"00000005555522221111\x0067xxxLKgS34DVZ";

/// The bytes that choices are made of; zeros when they are used up.
struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.byte()) % choices.len()]
    }

    fn bytes(&mut self, most: usize) -> &'a [u8] {
        let length = usize::from(self.byte()).min(most).min(self.0.len());
        let (some, rest) = self.0.split_at(length);
        self.0 = rest;
        some
    }

    fn name(&mut self, outside: &Path) -> Vec<u8> {
        let shape = self.byte();
        if shape == 255 {
            return outside.as_os_str().as_bytes().to_vec();
        }
        let mut parts = Vec::new();
        for _ in 0..=shape % 5 {
            parts.push(self.of(&PARTS));
        }
        let mut name = parts.join(&b'/');
        match shape / 5 % 8 {
            0 => name.insert(0, b'/'),
            1 => name.push(b'/'),
            2 => name.splice(0..0, *b"./").for_each(drop),
            3 => name.splice(0..0, *b"../../sentinel/").for_each(drop),
            _ => {}
        }
        name
    }

    fn number(&mut self) -> i64 {
        match self.byte() {
            250 => i64::MAX,
            251 => -1,
            252 => i64::from(i32::MAX) + 1,
            253 => 1 << 40,
            254 => 4096,
            small => i64::from(small),
        }
    }

    fn record(&mut self, outside: &Path) -> Vec<u8> {
        let key = self.of(&KEYS);
        let value = match self.byte() % 4 {
            0 => self.name(outside),
            1 => self.number().to_string().into_bytes(),
            2 => format!("{},{}", self.number(), self.number()).into_bytes(),
            _ => self.bytes(64).to_vec(),
        };
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        [format!("{length} {key}=").as_bytes(), &value, b"\n"].concat()
    }
}

/// The archive that some bytes describe. `outside` is what its names try to reach.
pub(super) fn tar(bytes: &[u8], outside: &Path) -> Vec<u8> {
    let mut choices = Choices(bytes);
    let mut tar = Vec::new();
    while !choices.0.is_empty() && tar.len() < 512 * 1024 {
        entry(&mut choices, outside, &mut tar);
    }
    if bytes.len().is_multiple_of(2) {
        tar.resize(tar.len() + 2 * BLOCK, 0);
    }
    tar
}

fn entry(choices: &mut Choices<'_>, outside: &Path, tar: &mut Vec<u8>) {
    let kind = choices.of(KINDS);
    let mut block = [0; BLOCK];
    let name = choices.name(outside);
    let content = match kind {
        b'x' | b'g' => (0..choices.byte() % 4)
            .flat_map(|_| choices.record(outside))
            .collect(),
        b'L' | b'K' => [&name[..], b"\0"].concat(),
        b'1' | b'2' => {
            let target = choices.name(outside);
            let length = target.len().min(100);
            block[157..157 + length].copy_from_slice(&target[..length]);
            Vec::new()
        }
        b'0' | 0 | b'7' | b'S' => choices
            .bytes(255)
            .repeat(1 + usize::from(choices.byte() % 9)),
        _ => Vec::new(),
    };
    let length = name.len().min(100);
    block[..length].copy_from_slice(&name[..length]);
    let mode = i64::from(choices.byte()) << 4 | 0o644;
    number(&mut block[100..108], mode);
    let odd = choices.byte();
    let (owner, time) = match odd % 16 {
        0 => (choices.number(), choices.number()),
        1 => (choices.number(), 1),
        _ => (i64::from(odd % 3), 1_000_000_000),
    };
    number(&mut block[108..116], owner);
    number(&mut block[116..124], 0);
    let size = match odd {
        255 => choices.number(),
        _ => content.len() as i64,
    };
    number(&mut block[124..136], size);
    number(&mut block[136..148], time);
    block[156] = kind;
    if odd & 0x80 == 0 {
        block[257..265].copy_from_slice(b"ustar\x0000");
    } else {
        block[257..265].copy_from_slice(b"ustar  \0");
    }
    if kind == b'S' {
        for segment in 0..usize::from(odd % 5) {
            let at = 386 + 24 * (segment % 4);
            number(&mut block[at..at + 12], choices.number());
            number(&mut block[at + 12..at + 24], choices.number());
        }
        block[482] = u8::from(odd == 7);
        number(&mut block[483..495], choices.number());
    }
    checksum(&mut block);
    tar.extend_from_slice(&block);
    tar.extend_from_slice(&content);
    tar.resize(tar.len().next_multiple_of(BLOCK), 0);
}

/// Octal if it fits, base 256 otherwise.
fn number(field: &mut [u8], value: i64) {
    let digits = format!("{value:0width$o}", width = field.len() - 1);
    if value >= 0 && digits.len() < field.len() {
        field[..digits.len()].copy_from_slice(digits.as_bytes());
        return;
    }
    let bytes = value.to_be_bytes();
    let length = bytes.len().min(field.len());
    let fill = if value < 0 { 0xff } else { 0 };
    field.fill(fill);
    let at = field.len() - length;
    field[at..].copy_from_slice(&bytes[bytes.len() - length..]);
    field[0] |= 0x80;
}

fn checksum(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().copied().map(u32::from).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Makes the checksums of all headers right that a reader comes to, if it believes the sizes.
pub(super) fn fix_checksums(tar: &mut [u8]) {
    let mut at = 0;
    while let Some(block) = tar.get_mut(at..at + BLOCK) {
        if block.iter().any(|byte| *byte != 0) {
            checksum(block);
        }
        let octal = block[124..136].iter().filter(|byte| byte.is_ascii_digit());
        let size = octal.fold(0_usize, |size, digit| {
            size.wrapping_mul(8).wrapping_add(usize::from(digit - b'0'))
        });
        let content = match block[156] {
            b'1'..=b'6' => 0,
            _ => size.min(tar.len()).next_multiple_of(BLOCK),
        };
        at += BLOCK + content;
    }
}
