//! From the bytes of a blob to the bytes of a tar, counted and hashed on both sides.
//!
//! Used by the importer for every archive. The format is found by its first bytes (RFC 1952,
//! RFC 8878), whatever a name or a media type says. Compressed streams may have several members;
//! anything behind the last one is an error.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::error::Rule;

/// A reader that knows what went through it.
pub(crate) struct Counted<R> {
    inner: R,
    hasher: Option<Sha256>,
    length: u64,
    /// The most bytes that may go through.
    most: u64,
}

/// What went through a reader, when it was read to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) length: u64,
    pub(crate) digest: Digest,
}

impl<R: Read> Counted<R> {
    pub(crate) fn new(inner: R, most: u64, hash: bool) -> Self {
        Self {
            inner,
            hasher: hash.then(Sha256::new),
            length: 0,
            most,
        }
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.length += length as u64;
        if self.length > self.most {
            return Err(io::Error::other(Rule::Bytes(self.most)));
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..length]);
        }
        Ok(length)
    }
}

enum Decoder<R: Read> {
    Plain(BufReader<R>),
    Gzip(Box<MultiGzDecoder<BufReader<R>>>),
    Zstd(zstd::Decoder<'static, BufReader<R>>),
}

/// A blob that is read as a tar.
pub(crate) struct Archive<R: Read> {
    decoder: Counted<Decoder<Counted<R>>>,
}

impl<R: Read> Archive<R> {
    /// Looks at the first bytes of a blob. `most` bounds the bytes after decompression;
    /// `hash_blob` asks for the digest of the blob itself, too.
    pub(crate) fn new(blob: R, most: u64, hash_blob: bool) -> io::Result<Self> {
        let mut input =
            BufReader::with_capacity(256 * 1024, Counted::new(blob, u64::MAX, hash_blob));
        let decoder = match input.fill_buf()? {
            [0x1f, 0x8b, ..] => Decoder::Gzip(Box::new(MultiGzDecoder::new(input))),
            // A frame, or a skippable frame, of zstd.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
                Decoder::Zstd(zstd::Decoder::with_buffer(input)?)
            }
            _ => Decoder::Plain(input),
        };
        Ok(Self {
            decoder: Counted::new(decoder, most, true),
        })
    }

    /// Reads what is left, and tells the counts of the tar and, if asked for, of the blob.
    pub(crate) fn finish(mut self) -> io::Result<(Counts, Option<Counts>)> {
        io::copy(&mut self.decoder, &mut io::sink())?;
        let (length, hasher) = (self.decoder.length, self.decoder.hasher);
        let mut blob = match self.decoder.inner {
            Decoder::Plain(input) => input,
            Decoder::Gzip(decoder) => decoder.into_inner(),
            Decoder::Zstd(decoder) => decoder.finish(),
        };
        let behind = io::copy(&mut blob, &mut io::sink())?;
        if behind > 0 {
            let text = format!("{behind} bytes lie behind the end of the compressed stream");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let blob = blob.into_inner();
        let counts = |length, hasher| Counts {
            length,
            digest: Digest::from_hasher(hasher),
        };
        let tar = counts(length, hasher.unwrap_or_default());
        Ok((tar, blob.hasher.map(|hasher| counts(blob.length, hasher))))
    }
}

impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.decoder.read(buffer)
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(input) => input.read(buffer),
            Self::Gzip(input) => input.read(buffer),
            Self::Zstd(input) => input.read(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn read(blob: &[u8]) -> io::Result<(Vec<u8>, Counts, Counts)> {
        let mut archive = Archive::new(blob, 1 << 20, true)?;
        let mut head = vec![0; 2];
        archive.read_exact(&mut head)?;
        let (tar, blob) = archive.finish()?;
        Ok((head, tar, blob.unwrap()))
    }

    #[test]
    fn every_form_gives_the_same_bytes() {
        let plain = b"hello, stream".repeat(1000);
        let two = [gzip(&plain[..500]), gzip(&plain[500..])].concat();
        let packed = zstd::encode_all(&plain[..], 1).unwrap();
        let frames = [packed.clone(), zstd::encode_all(&b""[..], 1).unwrap()].concat();
        for blob in [plain.clone(), gzip(&plain), two, packed, frames] {
            let (head, tar, counts) = read(&blob).unwrap();
            assert_eq!(head, b"he");
            assert_eq!(tar.digest, Digest::of(&plain));
            assert_eq!(tar.length, plain.len() as u64);
            assert_eq!(counts.digest, Digest::of(&blob));
            assert_eq!(counts.length, blob.len() as u64);
        }
    }

    #[test]
    fn damage_is_noticed() {
        let plain = b"hello, stream".repeat(1000);
        let packed = gzip(&plain);
        read(&packed[..packed.len() - 5]).unwrap_err();
        read(&[&packed[..], b"garbage"].concat()).unwrap_err();
        let packed = zstd::encode_all(&plain[..], 1).unwrap();
        read(&packed[..packed.len() - 5]).unwrap_err();
        read(&[&packed[..], b"garbage"].concat()).unwrap_err();
    }

    #[test]
    fn a_bomb_is_bounded() {
        let packed = gzip(&vec![0; 2 << 20]);
        let error = read(&packed).unwrap_err();
        assert!(matches!(error.downcast::<Rule>(), Ok(Rule::Bytes(_))));
    }
}
