//! The files of the queue: one small JSON file per job, in one directory.
//!
//! Everything goes through the directory's fd, and a job's file is only ever replaced whole, by
//! rename. Nothing is synced: the directory lies on a tmpfs, and nothing in it outlives a boot
//! anyway. A file that cannot be understood is set aside, never deleted and never in the way.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, Mode, OFlags};

use super::job::{Job, JobId, VERSION};

/// More than any job needs; what is larger is not ours.
const LONGEST_FILE: u64 = 1 << 20;
const SUFFIX: &str = ".json";
const TEMPORARY: &str = ".tmp";
const ASIDE: &str = ".corrupt";

/// Why the directory of the queue cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It is neither there nor can it be made.
    #[error("cannot make the teardown directory {}; check its parent and permissions", .path.display())]
    Make {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It cannot be opened as a directory.
    #[error("cannot open the teardown directory {}; it must be a directory of the server's own", .path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its entries cannot be listed.
    #[error("cannot list the teardown directory {}", .path.display())]
    List {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What is wrong with one file.
#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error("it cannot be read")]
    Read(#[from] io::Error),
    #[error("it is not a regular file of at most {LONGEST_FILE} bytes")]
    NotAFile,
    #[error("it is not a job")]
    Parse(#[from] serde_json::Error),
    #[error("it has version {0}, this server understands {VERSION}")]
    Version(u32),
    #[error("it holds another job than its name says")]
    Name,
}

/// Only the version, to tell a newer file from a broken one.
#[derive(serde::Deserialize)]
struct Versioned {
    version: u32,
}

/// The open directory.
pub(super) struct Store {
    directory: OwnedFd,
    path: PathBuf,
}

impl Store {
    /// Opens the directory, making it (mode 0700) when it is missing.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let at = || path.to_owned();
        match fs::mkdir(path, Mode::RWXU) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => {
                return Err(StoreError::Make {
                    path: at(),
                    source: errno.into(),
                });
            }
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match fs::open(path, flags, Mode::empty()) {
            Ok(directory) => Ok(Self {
                directory,
                path: at(),
            }),
            Err(errno) => Err(StoreError::Open {
                path: at(),
                source: errno.into(),
            }),
        }
    }

    /// Writes or replaces the file of a job. Not to be called twice at a time for one job.
    pub(super) fn write(&self, job: &Job) -> io::Result<()> {
        let bytes = serde_json::to_vec(job)?;
        let temporary = format!(".{}{TEMPORARY}", job.id);
        self.write_then_rename(&temporary, &file_name(job.id), &bytes)
            .inspect_err(|_| {
                // Half a file that nobody refers to; a start would sweep it as well.
                let _ = fs::unlinkat(&self.directory, temporary.as_str(), AtFlags::empty());
            })
    }

    fn write_then_rename(&self, temporary: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let mut file = std::fs::File::from(fs::openat(&self.directory, temporary, flags, mode)?);
        file.write_all(bytes)?;
        fs::renameat(&self.directory, temporary, &self.directory, name)?;
        Ok(())
    }

    /// Removes the file of a job; one that is not there is as good.
    pub(super) fn remove(&self, id: JobId) -> io::Result<()> {
        match fs::unlinkat(&self.directory, file_name(id).as_str(), AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Reads all jobs, oldest first. Broken files are set aside, with a warning each.
    pub(super) fn load(&self) -> Result<Vec<Job>, StoreError> {
        let names = self.names().map_err(|source| StoreError::List {
            path: self.path.clone(),
            source,
        })?;
        let mut jobs = Vec::new();
        for name in names {
            if name.starts_with('.') && name.ends_with(TEMPORARY) {
                // Whoever wrote it was not told that it succeeded, or an older whole file remains.
                let _ = fs::unlinkat(&self.directory, name.as_str(), AtFlags::empty());
            } else if let Some(stem) = name.strip_suffix(SUFFIX) {
                match self.read(&name, stem) {
                    Ok(job) => jobs.push(job),
                    Err(error) => self.set_aside(&name, &error),
                }
            }
        }
        jobs.sort_by_key(|job| job.id);
        Ok(jobs)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::Dir::read_from(&self.directory)? {
            // Our own names are ASCII; any other is none of our files.
            if let Ok(name) = entry?.file_name().to_str() {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn read(&self, name: &str, stem: &str) -> Result<Job, FileError> {
        // Non-blocking: opening a fifo of that name must not hold up the start.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file =
            fs::openat(&self.directory, name, flags, Mode::empty()).map_err(io::Error::from)?;
        let file = std::fs::File::from(file);
        let about = file.metadata()?;
        if !about.is_file() || about.len() > LONGEST_FILE {
            return Err(FileError::NotAFile);
        }
        let mut bytes = Vec::new();
        file.take(LONGEST_FILE).read_to_end(&mut bytes)?;
        let Versioned { version } = serde_json::from_slice(&bytes)?;
        if version != VERSION {
            return Err(FileError::Version(version));
        }
        let job: Job = serde_json::from_slice(&bytes)?;
        if JobId::parse(stem) != Some(job.id) {
            return Err(FileError::Name);
        }
        Ok(job)
    }

    fn set_aside(&self, name: &str, error: &FileError) {
        let file = self.path.join(name);
        let cause = std::error::Error::source(error).map(ToString::to_string);
        if let FileError::Version(_) = error {
            // A newer server will understand it after the next upgrade.
            tracing::warn!(file = %file.display(), %error, "teardown job left alone");
            return;
        }
        let aside = format!("{name}{ASIDE}");
        let moved = fs::renameat(&self.directory, name, &self.directory, aside.as_str());
        tracing::warn!(
            file = %file.display(), %error, cause, moved = moved.is_ok(),
            "teardown job cannot be read and is set aside; look into it and delete it"
        );
    }
}

fn file_name(id: JobId) -> String {
    format!("{id}{SUFFIX}")
}

#[cfg(test)]
mod tests {
    use super::super::job::{Kind, Resources, Target};
    use super::*;

    fn job() -> Job {
        Job::new(Target {
            kind: Kind::Pea,
            container: "c".into(),
            process: Some("p".into()),
            instance: "i".into(),
            resources: Resources::default(),
        })
    }

    fn files(path: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(path).expect("list");
        let name = |entry: io::Result<std::fs::DirEntry>| entry.expect("entry").file_name();
        let mut names: Vec<_> = entries
            .map(|entry| name(entry).into_string().expect("utf-8"))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_written_is_read_back_oldest_first() {
        let place = tempfile::tempdir().expect("tempdir");
        let store = Store::open(&place.path().join("queue")).expect("open");
        let jobs = [job(), job(), job()];
        for job in jobs.iter().rev() {
            store.write(job).expect("write");
        }
        assert_eq!(store.load().expect("load"), jobs);
        store.remove(jobs[0].id).expect("remove");
        store.remove(jobs[0].id).expect("gone is as good");
        assert_eq!(store.load().expect("load"), jobs[1..]);
    }

    #[test]
    fn a_broken_file_is_set_aside_and_blocks_no_other() {
        let place = tempfile::tempdir().expect("tempdir");
        let store = Store::open(place.path()).expect("open");
        let good = job();
        store.write(&good).expect("write");
        let write = |name: String, text: &str| {
            std::fs::write(place.path().join(&name), text).expect("write");
            name
        };
        let torn = write(file_name(JobId::generate()), "{\"version\":1,");
        let empty = write(file_name(JobId::generate()), "");
        let alien = write(
            "notes.json".into(),
            &serde_json::to_string(&good).expect("json"),
        );
        let newer = write(file_name(JobId::generate()), "{\"version\":2,\"x\":1}");
        write(".half.tmp".into(), "{");
        std::os::unix::fs::symlink("/etc/passwd", place.path().join("link.json")).expect("link");
        std::fs::create_dir(place.path().join("directory.json")).expect("mkdir");

        assert_eq!(store.load().expect("load"), std::slice::from_ref(&good));
        let mut expected = vec![
            format!("{torn}.corrupt"),
            format!("{empty}.corrupt"),
            format!("{alien}.corrupt"),
            newer,
            "link.json.corrupt".into(),
            "directory.json.corrupt".into(),
            file_name(good.id),
        ];
        expected.sort();
        assert_eq!(files(place.path()), expected);
        assert_eq!(store.load().expect("again"), [good]);
    }

    #[test]
    fn a_write_that_fails_leaves_no_half_file() {
        let place = tempfile::tempdir().expect("tempdir");
        let store = Store::open(place.path()).expect("open");
        let job = job();
        std::fs::create_dir(place.path().join(file_name(job.id))).expect("in the way");
        assert!(store.write(&job).is_err());
        assert_eq!(files(place.path()), [file_name(job.id)]);
    }

    #[test]
    fn a_path_that_is_no_directory_is_refused() {
        let place = tempfile::tempdir().expect("tempdir");
        let file = place.path().join("file");
        std::fs::write(&file, "").expect("write");
        assert!(matches!(Store::open(&file), Err(StoreError::Open { .. })));
        let deep = place.path().join("a/b");
        assert!(matches!(Store::open(&deep), Err(StoreError::Make { .. })));
    }
}
