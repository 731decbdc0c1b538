//! From the bytes of a blob to the bytes of a tar, counted and hashed on both sides.
//!
//! Used by the importer for every archive. The format is found by its first bytes (RFC 1952,
//! RFC 8878), whatever a name or a media type says. Compressed streams may have several members;
//! anything behind the last one is an error.
//!
//! A thread of its own reads, hashes and decompresses, a few chunks ahead of whoever unpacks: so
//! one big layer uses two processors, and a slow disk does not hold up a network. The thread owns
//! all that it needs and is never waited for. When an import is given up, a socket that says
//! nothing delays nobody.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::error::Rule;

/// Bytes that are handed over at once: small enough for the cache of a processor.
const CHUNK: usize = 128 << 10;
/// Chunks that may wait for whoever unpacks.
const AHEAD: usize = 4;
/// Bytes that are asked for at once.
const INPUT: usize = 128 << 10;
/// Bytes of a tar that may come from whatever few bytes.
const UNSUSPECTED: u64 = 1 << 30;
/// The largest window of zstd, as a power of two: 32 MiB, four times what every decoder must have
/// (RFC 8878, 3.1.1.1.2) and as much as the tools that make images use. Each layer that is unpacked
/// may need that much memory.
const WINDOW: u32 = 25;
/// How often a waiting reader looks whether it should still wait.
const LOOK: Duration = Duration::from_millis(100);

/// What went through a reader, when it was read to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) length: u64,
    pub(crate) digest: Digest,
}

/// Why a stream ended early.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The bytes could not be had: a disk or a network failed.
    Source(io::Error),
    /// The bytes are not what they should be.
    Rule(Rule),
}

/// What a stream may have, shared by all that read.
#[derive(Debug, Clone)]
pub(crate) struct Allowed {
    /// The most packed bytes.
    pub(crate) packed: u64,
    /// The most bytes of the tar.
    pub(crate) tar: u64,
    /// The most bytes of the tar for each packed one, once there are [`UNSUSPECTED`] of them.
    pub(crate) ratio: u64,
    /// What is left for the tars of all layers, and what it was at first.
    pub(crate) budget: Option<(Arc<AtomicU64>, u64)>,
}

/// What others see of a stream while it is read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Watch {
    /// Packed bytes that were read.
    pub(crate) read: Arc<AtomicU64>,
    /// Whether all were read.
    pub(crate) ended: Arc<AtomicBool>,
    /// Told to end: everything that is read for the same import.
    pub(crate) stop: Arc<AtomicBool>,
}

impl Watch {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// The packed bytes, as they come.
struct Source {
    inner: Box<dyn Read + Send>,
    /// `None` when they are the tar, whose digest is made anyway.
    hasher: Option<Sha256>,
    length: u64,
    most: u64,
    watch: Watch,
    /// Why it ended: decoders pass errors on in forms of their own.
    broken: Option<Broken>,
}

impl Source {
    fn end(&mut self, broken: Broken) -> io::Error {
        self.broken = Some(broken);
        io::Error::other("the source of the stream is broken")
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = loop {
            if self.watch.stopped() {
                let error = io::Error::from(io::ErrorKind::ConnectionAborted);
                return Err(self.end(Broken::Source(error)));
            }
            match self.inner.read(buffer) {
                Ok(length) => break length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.end(Broken::Source(error))),
            }
        };
        self.length += length as u64;
        if self.length > self.most {
            let rule = Rule::Size {
                expected: self.most,
                actual: self.length,
            };
            return Err(self.end(Broken::Rule(rule)));
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..length]);
        }
        self.watch.read.store(self.length, Ordering::Relaxed);
        Ok(length)
    }
}

enum Decoder {
    Plain(BufReader<Source>),
    Gzip(Box<MultiGzDecoder<BufReader<Source>>>),
    Zstd(zstd::Decoder<'static, BufReader<Source>>),
}

impl Decoder {
    fn new(mut input: BufReader<Source>) -> Result<Self, Broken> {
        let head = match input.fill_buf() {
            Ok(head) => head,
            Err(error) => return Err(broken(input.get_mut(), error)),
        };
        Ok(match head {
            [0x1f, 0x8b, ..] => Self::Gzip(Box::new(MultiGzDecoder::new(input))),
            // A frame, or a skippable frame, of zstd.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
                let wrong = |error| Broken::Rule(Rule::Stream(error));
                let mut decoder = zstd::Decoder::with_buffer(input).map_err(wrong)?;
                decoder.window_log_max(WINDOW).map_err(wrong)?;
                Self::Zstd(decoder)
            }
            _ => {
                input.get_mut().hasher = None;
                Self::Plain(input)
            }
        })
    }

    fn source(&mut self) -> &mut Source {
        match self {
            Self::Plain(input) => input.get_mut(),
            Self::Gzip(decoder) => decoder.get_mut().get_mut(),
            Self::Zstd(decoder) => decoder.get_mut().get_mut(),
        }
    }

    fn into_input(self) -> BufReader<Source> {
        match self {
            Self::Plain(input) => input,
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Zstd(decoder) => decoder.finish(),
        }
    }

    /// Fills a buffer as far as the stream goes.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, Broken> {
        let mut filled = 0;
        while filled < buffer.len() {
            let read = match self {
                Self::Plain(input) => input.read(&mut buffer[filled..]),
                Self::Gzip(input) => input.read(&mut buffer[filled..]),
                Self::Zstd(input) => input.read(&mut buffer[filled..]),
            };
            match read {
                Ok(0) => break,
                Ok(length) => filled += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(broken(self.source(), error)),
            }
        }
        Ok(filled)
    }

    /// The counts of the packed bytes. Anything behind their end is an error.
    fn finish(self) -> Result<Packed, Broken> {
        let mut input = self.into_input();
        let behind = match io::copy(&mut input, &mut io::sink()) {
            Ok(behind) => behind,
            Err(error) => return Err(broken(input.get_mut(), error)),
        };
        if behind > 0 {
            let text = format!("{behind} bytes lie behind the end of the compressed stream");
            let error = io::Error::new(io::ErrorKind::InvalidData, text);
            return Err(Broken::Rule(Rule::Stream(error)));
        }
        let source = input.into_inner();
        Ok(Packed {
            length: source.length,
            digest: source.hasher.map(Digest::from_hasher),
        })
    }
}

/// What is behind an error of a decoder.
fn broken(source: &mut Source, error: io::Error) -> Broken {
    let broken = source.broken.take();
    broken.unwrap_or(Broken::Rule(Rule::Stream(error)))
}

/// The packed bytes as a whole; without a digest when they are the tar.
struct Packed {
    length: u64,
    digest: Option<Digest>,
}

enum Message {
    Chunk(Vec<u8>, usize),
    End(Result<Packed, Broken>),
}

/// A blob that is read as a tar, on a thread of its own.
pub(crate) struct Archive<'a> {
    chunks: Receiver<Message>,
    used: Sender<Vec<u8>>,
    /// The chunk at hand: its bytes, how far it was read, and how far it goes.
    chunk: (Vec<u8>, usize, usize),
    hasher: Sha256,
    length: u64,
    end: Option<Result<Packed, Broken>>,
    watch: Watch,
    tick: &'a dyn Fn(),
}

impl<'a> Archive<'a> {
    /// Starts to read. `tick` is called for each chunk, and now and then while there is none.
    pub(crate) fn start(
        blob: Box<dyn Read + Send>,
        allowed: Allowed,
        watch: Watch,
        tick: &'a dyn Fn(),
    ) -> io::Result<Self> {
        let (full, chunks) = sync_channel(AHEAD);
        let (used, empty) = channel();
        let source = Source {
            inner: blob,
            hasher: Some(Sha256::new()),
            length: 0,
            most: allowed.packed,
            watch: watch.clone(),
            broken: None,
        };
        let reader = Reader {
            full,
            empty,
            allowed,
        };
        std::thread::Builder::new()
            .name("garden-fetch".to_owned())
            .spawn(move || reader.run(source))?;
        Ok(Self {
            chunks,
            used,
            chunk: (Vec::new(), 0, 0),
            hasher: Sha256::new(),
            length: 0,
            end: None,
            watch,
            tick,
        })
    }

    /// Waits for the next chunk; `false` at the end.
    fn next(&mut self) -> io::Result<bool> {
        if self.end.is_some() {
            return self.ended();
        }
        let message = loop {
            match self.chunks.recv_timeout(LOOK) {
                Ok(message) => break message,
                Err(RecvTimeoutError::Timeout) if self.watch.stopped() => {
                    let error = io::Error::from(io::ErrorKind::ConnectionAborted);
                    break Message::End(Err(Broken::Source(error)));
                }
                Err(RecvTimeoutError::Timeout) => (self.tick)(),
                Err(RecvTimeoutError::Disconnected) => {
                    let error = io::Error::other("the thread that reads it ended");
                    break Message::End(Err(Broken::Source(error)));
                }
            }
        };
        match message {
            Message::Chunk(bytes, length) => {
                self.hasher.update(&bytes[..length]);
                self.length += length as u64;
                let spent = std::mem::replace(&mut self.chunk, (bytes, 0, length)).0;
                if !spent.is_empty() {
                    // Fails when all was read: then nobody needs it.
                    let _ = self.used.send(spent);
                }
                (self.tick)();
                Ok(true)
            }
            Message::End(end) => {
                self.end = Some(end);
                self.ended()
            }
        }
    }

    fn ended(&self) -> io::Result<bool> {
        match &self.end {
            // What it was is told by `finish`; this ends whatever is being done.
            Some(Err(_)) => Err(io::ErrorKind::BrokenPipe.into()),
            _ => Ok(false),
        }
    }

    /// Reads what is left, and tells the counts of the tar and of the blob.
    pub(crate) fn finish(mut self) -> Result<(Counts, Counts), Broken> {
        while let Ok(true) = self.next() {}
        let packed = match self.end {
            Some(end) => end?,
            None => return Err(Broken::Source(io::ErrorKind::UnexpectedEof.into())),
        };
        let tar = Counts {
            length: self.length,
            digest: Digest::from_hasher(self.hasher),
        };
        let blob = Counts {
            length: packed.length,
            digest: packed.digest.unwrap_or(tar.digest),
        };
        Ok((tar, blob))
    }

    /// Why the stream itself ended early, if it did: whoever reads it knows only that.
    pub(crate) fn broken(&mut self) -> Option<Broken> {
        match self.end.take() {
            Some(Err(broken)) => Some(broken),
            other => {
                self.end = other;
                None
            }
        }
    }
}

impl Read for Archive<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.chunk.1 == self.chunk.2 && !self.next()? {
            return Ok(0);
        }
        let (bytes, at, length) = &mut self.chunk;
        let some = buffer.len().min(*length - *at);
        buffer[..some].copy_from_slice(&bytes[*at..*at + some]);
        *at += some;
        Ok(some)
    }
}

/// The thread that reads.
struct Reader {
    full: SyncSender<Message>,
    empty: Receiver<Vec<u8>>,
    allowed: Allowed,
}

impl Reader {
    fn run(self, source: Source) {
        let watch = source.watch.clone();
        let end = self.read(source);
        watch.ended.store(true, Ordering::Relaxed);
        // Fails when nobody wants to know any more.
        let _ = self.full.send(Message::End(end));
    }

    fn read(&self, source: Source) -> Result<Packed, Broken> {
        let mut decoder = Decoder::new(BufReader::with_capacity(INPUT, source))?;
        let mut length = 0;
        loop {
            let buffer = self.empty.try_recv();
            let mut buffer = buffer.unwrap_or_else(|_| vec![0; CHUNK]);
            let filled = decoder.fill(&mut buffer)?;
            if filled == 0 {
                return decoder.finish();
            }
            length += filled as u64;
            self.allowed.check(length, filled as u64)?;
            self.allowed.check_ratio(length, decoder.source().length)?;
            if self.full.send(Message::Chunk(buffer, filled)).is_err() {
                return Err(Broken::Source(io::ErrorKind::BrokenPipe.into()));
            }
        }
    }
}

impl Allowed {
    /// A bomb shows by what it becomes, long before it has become all of it.
    fn check_ratio(&self, length: u64, packed: u64) -> Result<(), Broken> {
        match length > UNSUSPECTED && length / self.ratio.max(1) > packed {
            true => Err(Broken::Rule(Rule::Ratio(self.ratio))),
            false => Ok(()),
        }
    }

    fn check(&self, length: u64, more: u64) -> Result<(), Broken> {
        if length > self.tar {
            return Err(Broken::Rule(Rule::Bytes(self.tar)));
        }
        if let Some((left, most)) = &self.budget {
            let enough = |left: u64| left.checked_sub(more);
            let quota = Rule::Quota {
                most: *most,
                packed: None,
            };
            left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enough)
                .map_err(|_| Broken::Rule(quota))?;
        }
        Ok(())
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

    fn allowed(tar: u64) -> Allowed {
        Allowed {
            packed: u64::MAX,
            tar,
            ratio: 500,
            budget: None,
        }
    }

    fn read_with(blob: &[u8], allowed: Allowed) -> Result<(Vec<u8>, Counts, Counts), Broken> {
        let blob = Box::new(io::Cursor::new(blob.to_vec()));
        let mut archive = Archive::start(blob, allowed, Watch::default(), &|| {}).unwrap();
        let mut head = vec![0; 2];
        if archive.read_exact(&mut head).is_err() {
            return Err(archive.broken().unwrap());
        }
        let (tar, blob) = archive.finish()?;
        Ok((head, tar, blob))
    }

    fn read(blob: &[u8]) -> Result<(Vec<u8>, Counts, Counts), Broken> {
        read_with(blob, allowed(1 << 20))
    }

    #[test]
    fn every_form_gives_the_same_bytes() {
        // More than all chunks together.
        let plain = b"hello, stream".repeat(70_000);
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
        let damaged = |blob: &[u8]| {
            let error = read(blob).unwrap_err();
            assert!(matches!(error, Broken::Rule(Rule::Stream(_))), "{error:?}");
        };
        let packed = gzip(&plain);
        damaged(&packed[..packed.len() - 5]);
        damaged(&[&packed[..], b"garbage"].concat());
        let packed = zstd::encode_all(&plain[..], 1).unwrap();
        damaged(&packed[..packed.len() - 5]);
        damaged(&[&packed[..], b"garbage"].concat());
    }

    #[test]
    fn a_bomb_is_bounded() {
        let packed = gzip(&vec![0; 2 << 20]);
        let error = read(&packed).unwrap_err();
        assert!(matches!(error, Broken::Rule(Rule::Bytes(_))), "{error:?}");
        // So is what all layers have together, and a blob that is longer than it should be.
        let budget = Some((Arc::new(AtomicU64::new(100)), 100));
        let mut little = allowed(u64::MAX);
        little.budget = budget;
        let error = read_with(&packed, little).unwrap_err();
        assert!(
            matches!(error, Broken::Rule(Rule::Quota { most: 100, .. })),
            "{error:?}"
        );
        let mut short = allowed(u64::MAX);
        short.packed = packed.len() as u64 - 1;
        let error = read_with(&packed, short).unwrap_err();
        assert!(
            matches!(error, Broken::Rule(Rule::Size { .. })),
            "{error:?}"
        );
    }

    #[test]
    fn a_ratio_is_suspect_only_in_bulk() {
        let allowed = allowed(u64::MAX);
        allowed.check_ratio(UNSUSPECTED, 1).unwrap();
        allowed
            .check_ratio(2 * UNSUSPECTED, UNSUSPECTED / 200)
            .unwrap();
        let error = allowed.check_ratio(2 * UNSUSPECTED, UNSUSPECTED / 300);
        assert!(matches!(error, Err(Broken::Rule(Rule::Ratio(500)))));
    }

    #[test]
    fn a_frame_that_needs_too_much_memory_is_refused() {
        let plain = b"hello, stream".repeat(1000);
        for (window, fits) in [(WINDOW, true), (WINDOW + 1, false)] {
            let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
            encoder.window_log(window).unwrap();
            encoder.write_all(&plain).unwrap();
            let packed = encoder.finish().unwrap();
            assert_eq!(read(&packed).is_ok(), fits, "{window}");
        }
    }

    /// Gives some bytes, and then fails or waits for ever.
    struct Stuck(bool);

    impl Read for Stuck {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0 {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            self.0 = true;
            buffer[0] = b'x';
            Ok(1)
        }
    }

    #[test]
    fn a_source_that_fails_is_told_from_bytes_that_are_wrong() {
        let blob = Box::new(Stuck(false));
        let mut archive = Archive::start(blob, allowed(9), Watch::default(), &|| {}).unwrap();
        let mut text = String::new();
        archive.read_to_string(&mut text).unwrap_err();
        let Some(Broken::Source(error)) = archive.broken() else {
            panic!("no source error");
        };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn nobody_waits_for_a_source_that_says_nothing() {
        let (tell, told) = channel::<()>();
        struct Silent(Receiver<()>);
        impl Read for Silent {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                let _ = self.0.recv();
                Ok(0)
            }
        }
        let watch = Watch::default();
        let mut archive =
            Archive::start(Box::new(Silent(told)), allowed(9), watch.clone(), &|| {}).unwrap();
        watch.stop.store(true, Ordering::Relaxed);
        archive.read(&mut [0]).unwrap_err();
        drop(tell);
    }
}
