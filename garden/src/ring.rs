//! The last lines that were written to something, in at most two files of a directory.
//!
//! A file is full with half of the allowed bytes; then the next one is begun and the one before the
//! last removed. A reader that has a file open reads it to its end whatever becomes of it. Used for
//! the output of processes (`logs`) and for timelines; must never be called on a thread of the
//! runtime.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags};

/// The writing end of a log.
#[derive(Debug)]
pub(crate) struct Writer {
    directory: Arc<OwnedFd>,
    instance: String,
    half: u64,
    number: u64,
    /// Absent while it is closed.
    file: Option<File>,
    length: u64,
}

/// A place in a log, to read on from.
#[derive(Debug)]
pub(crate) struct Reader {
    directory: Arc<OwnedFd>,
    instance: String,
    open: Option<(u64, File)>,
}

/// The name of a log's file with this number.
fn name(instance: &str, number: u64) -> String {
    format!("{instance}.{number}")
}

/// The numbers of the files of a log that are there, in order.
fn numbers(directory: &OwnedFd, instance: &str) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let number = entry.file_name().to_str().ok().and_then(|name| {
            let (of, number) = name.rsplit_once('.')?;
            (of == instance).then(|| number.parse::<u64>().ok())?
        });
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

impl Writer {
    /// Goes on with a log, or begins it.
    pub(crate) fn open(directory: Arc<OwnedFd>, instance: &str, most: u64) -> io::Result<Self> {
        let number = numbers(&directory, instance)?.last().copied().unwrap_or(0);
        let file = append_to(&directory, &name(instance, number))?;
        let length = file.metadata()?.len();
        Ok(Self {
            directory,
            instance: instance.to_owned(),
            half: most / 2,
            number,
            file: Some(file),
            length,
        })
    }

    /// Writes whole lines.
    pub(crate) fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.length > 0 && self.length + lines.len() as u64 > self.half {
            let next = append_to(&self.directory, &name(&self.instance, self.number + 1))?;
            if let Some(before) = self.number.checked_sub(1) {
                remove(&self.directory, &name(&self.instance, before));
            }
            (self.file, self.number, self.length) = (Some(next), self.number + 1, 0);
        }
        let mut file = match self.file.take() {
            Some(file) => file,
            None => append_to(&self.directory, &name(&self.instance, self.number))?,
        };
        file.write_all(lines)?;
        self.file = Some(file);
        self.length += lines.len() as u64;
        Ok(())
    }

    /// Holds no file any more until the next write.
    pub(crate) fn close(&mut self) {
        self.file = None;
    }
}

fn append_to(directory: &OwnedFd, name: &str) -> io::Result<File> {
    let flags =
        OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::openat(directory, name, flags, Mode::RUSR | Mode::WUSR)?;
    Ok(file.into())
}

fn remove(directory: &OwnedFd, name: &str) {
    let _ = rustix::fs::unlinkat(directory, name, AtFlags::empty());
}

/// Removes all files of a log.
pub(crate) fn remove_all(directory: &OwnedFd, instance: &str) {
    for number in numbers(directory, instance).unwrap_or_default() {
        remove(directory, &name(instance, number));
    }
}

impl Reader {
    /// From the oldest line on.
    pub(crate) fn new(directory: Arc<OwnedFd>, instance: &str) -> Self {
        Self {
            directory,
            instance: instance.to_owned(),
            open: None,
        }
    }

    /// Some of the bytes that were written and not read, at most about `most`; empty when there are
    /// none now. Lines may be cut.
    pub(crate) fn read(&mut self, most: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        loop {
            if let Some((_, file)) = &mut self.open {
                let left = most.saturating_sub(bytes.len()) as u64;
                file.take(left).read_to_end(&mut bytes)?;
                if bytes.len() >= most {
                    return Ok(bytes);
                }
            }
            // The next file is there only when this one is complete, but this one may have been
            // completed between the read above and the look: so it is read once more.
            let read = self.open.as_ref().map(|(number, _)| *number);
            let next = numbers(&self.directory, &self.instance)?
                .into_iter()
                .find(|number| read.is_none_or(|read| *number > read));
            let Some(next) = next else { return Ok(bytes) };
            if let Some((_, file)) = &mut self.open {
                file.read_to_end(&mut bytes)?;
            }
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            match rustix::fs::openat(
                &*self.directory,
                name(&self.instance, next),
                flags,
                Mode::empty(),
            ) {
                Ok(file) => self.open = Some((next, file.into())),
                // Its turn was over before it was opened: there is a newer one.
                Err(rustix::io::Errno::NOENT) if read.is_none_or(|read| next > read) => {
                    if numbers(&self.directory, &self.instance)?.is_empty() {
                        return Ok(bytes);
                    }
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(path: &std::path::Path) -> Arc<OwnedFd> {
        Arc::new(File::open(path).unwrap().into())
    }

    #[test]
    fn the_newest_lines_stay_and_the_space_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let fd = directory(dir.path());
        let mut writer = Writer::open(Arc::clone(&fd), "i", 100).unwrap();
        for number in 0..100 {
            writer.write(format!("{number:09}\n").as_bytes()).unwrap();
        }
        let mut reader = Reader::new(Arc::clone(&fd), "i");
        let text = String::from_utf8(reader.read(1 << 20).unwrap()).unwrap();
        assert!(text.len() <= 100 && text.len() >= 50, "{}", text.len());
        assert!(text.ends_with("000000099\n"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        remove_all(&fd, "i");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_reader_goes_on_over_files_and_a_writer_where_another_was() {
        let dir = tempfile::tempdir().unwrap();
        let fd = directory(dir.path());
        let mut reader = Reader::new(Arc::clone(&fd), "i");
        assert!(reader.read(100).unwrap().is_empty());
        let mut all = Vec::new();
        for number in 0..20 {
            // Each time anew, as by a server that was started again.
            let mut writer = Writer::open(Arc::clone(&fd), "i", 40).unwrap();
            writer
                .write(format!("line {number:04}\n").as_bytes())
                .unwrap();
            all.extend(reader.read(7).unwrap());
            all.extend(reader.read(100).unwrap());
        }
        let text = String::from_utf8(all).unwrap();
        let expected: String = (0..20)
            .map(|number| format!("line {number:04}\n"))
            .collect();
        assert_eq!(text, expected);
    }
}
