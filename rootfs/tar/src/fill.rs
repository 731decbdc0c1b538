//! What unpackers do alike with a file that they have made: its content, and its time.
//!
//! Called by the shim's streams into containers and by `garden cp`. Neither opens nor names anything:
//! where a file is made, and whether it may be, is its caller's business.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;

use rustix::fs::{Timespec, Timestamps, UTIME_NOW};

use crate::{Entries, Entry};

/// Why a file did not get its content.
#[derive(Debug, thiserror::Error)]
#[error("{doing}")]
pub struct FillError {
    /// The step that failed.
    pub doing: &'static str,
    /// Why.
    pub source: io::Error,
}

impl Entries<'_> {
    /// Writes the content of the current entry into a file that is new and empty. Holes stay holes.
    /// As much as `buffer` holds is moved at once.
    ///
    /// # Errors
    /// When the archive ends too early, or the file cannot be written.
    pub fn fill(&mut self, entry: &Entry, to: &File, buffer: &mut [u8]) -> Result<(), FillError> {
        let failed = |doing| move |source| FillError { doing, source };
        let whole = [(0, entry.size)];
        let segments = entry.segments();
        let mut stored = self.stored();
        for (offset, length) in segments.unwrap_or(&whole) {
            let mut done = 0;
            while done < *length {
                let most = usize::try_from(length - done).unwrap_or(usize::MAX);
                let most = most.min(buffer.len());
                let read = match stored.read(&mut buffer[..most]) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                    read => read,
                };
                let read = read.map_err(failed("cannot read its content"))?;
                to.write_all_at(&buffer[..read], offset + done)
                    .map_err(failed("cannot write the file"))?;
                done += read as u64;
            }
        }
        if segments.is_some() {
            to.set_len(entry.size)
                .map_err(failed("cannot set its length"))?;
        }
        Ok(())
    }
}

/// The times of a file that was modified then (seconds since the epoch, nanoseconds) and is read now.
pub fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        },
        last_modification: Timespec {
            tv_sec: seconds,
            tv_nsec: nanos.into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;
    use crate::{BLOCK, Head, Type};

    fn archive(segments: Option<&[(u64, u64)]>, size: u64, content: &[u8]) -> Vec<u8> {
        let head = Head {
            kind: Type::File,
            name: b"file",
            link: b"",
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 0,
            size,
            segments,
            xattrs: &[],
        };
        let mut archive = Vec::new();
        head.write(&mut archive);
        archive.extend_from_slice(content);
        archive.resize(archive.len().next_multiple_of(BLOCK), 0);
        archive
    }

    fn filled(mut archive: &[u8]) -> (Result<(), FillError>, Vec<u8>) {
        let file = File::from(memfd_create("filled", MemfdFlags::CLOEXEC).unwrap());
        let mut entries = Entries::new(&mut archive);
        let entry = entries.next().unwrap().unwrap();
        let done = entries.fill(&entry, &file, &mut [0; 3]);
        let mut content = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut content, 0).unwrap();
        (done, content)
    }

    #[test]
    fn content_and_holes_go_where_they_belong() {
        let (done, content) = filled(&archive(None, 8, b"plain it"));
        done.unwrap();
        assert_eq!(content, b"plain it");
        let segments = [(2, 4), (10, 1)];
        let (done, content) = filled(&archive(Some(&segments), 12, b"abcde"));
        done.unwrap();
        assert_eq!(content, b"\0\0abcd\0\0\0\0e\0");
    }

    #[test]
    fn an_archive_that_ends_early_is_told() {
        let mut cut = archive(None, 700, &[b'x'; 700]);
        cut.truncate(BLOCK + 100);
        let (done, _) = filled(&cut);
        let error = done.unwrap_err();
        assert_eq!(error.to_string(), "cannot read its content");
        assert_eq!(error.source.kind(), io::ErrorKind::UnexpectedEof);
    }
}
