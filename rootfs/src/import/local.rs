//! Images that lie on this machine as a tar or a directory.
//!
//! A tar is known by its inode, size and times: only another content is read again. A directory is
//! known by a description of all in it.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags};

use super::options::{Progress, Stage};
use super::pipeline::{Job, Pipeline, Unpacked, clone, publish, stage};
use super::{Import, compose};
use crate::digest::Digest;
use crate::error::{Error, Result, Rule, Step};
use crate::fixup::Fixups;
use crate::image::{Image, ImageConfig};
use crate::unpack::copy;
use crate::unpack::tree::Tree;

impl Import<'_> {
    pub(super) fn path(&self, path: &Path) -> Result<Image> {
        let (fd, kind) = self.open_path(path)?;
        match kind {
            FileType::RegularFile => self.tar(File::from(fd)),
            FileType::Directory => self.directory(&fd),
            _ => {
                let rule = Rule::Layout("it is neither a file nor a directory".to_owned());
                Err(Error::image(self.image, None, rule))
            }
        }
    }

    pub(super) fn open_path(&self, path: &Path) -> Result<(OwnedFd, FileType)> {
        let image = self.image;
        // Not blocking: it could be a pipe.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| {
            let source = std::io::Error::from(errno);
            match source.kind() {
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => {
                    Error::ImageNotFound {
                        image: image.to_owned(),
                        source,
                    }
                }
                _ => Error::host(format!("open the image {image:?}"), source),
            }
        })?;
        let stat = rustix::fs::fstat(&fd).step(|| format!("look at the image {image:?}"))?;
        Ok((fd, FileType::from_raw_mode(stat.st_mode)))
    }

    fn tar(&self, file: File) -> Result<Image> {
        let job = Job::file(Arc::new(file), self.image.to_owned())?;
        self.tell(Progress::Layers { total: 1 });
        if let Some(known) = self.store.known_image(job.name, self.image) {
            self.tell_all(&[job], Stage::Cached);
            self.tell(Progress::Done);
            return Ok(known);
        }
        let id = job.name;
        self.tell_all(std::slice::from_ref(&job), Stage::Waiting);
        // Looks again, alone, and writes the record.
        let stack = Pipeline::new(self.store, self.image, self.options).run(&[job])?;
        self.tell(Progress::Done);
        let image = compose(id, self.image, &stack.records, ImageConfig::default());
        self.store.keep_held(&image, stack.held);
        Ok(image)
    }

    fn directory(&self, directory: &OwnedFd) -> Result<Image> {
        let inner = &self.store.inner;
        let mut limits = inner.limits;
        let print = copy::fingerprint(directory, &limits, self.image)?;
        let id = Digest::of(format!("directory {print}").as_bytes());
        let _flight = self.flight(id)?;
        self.tell(Progress::Layers { total: 1 });
        let tell = |stage| {
            self.tell(Progress::Layer {
                index: 0,
                digest: id,
                stage,
                bytes: 0,
                of: 0,
            });
        };
        if let Some(known) = self.store.known_image(id, self.image) {
            tell(Stage::Cached);
            self.tell(Progress::Done);
            return Ok(known);
        }
        tell(Stage::Unpacking);
        limits.bytes = limits
            .bytes
            .min(self.options.most_bytes.unwrap_or(u64::MAX));
        let (staged, tree) = stage(self.store)?;
        let target = Tree::new(staged.as_fd(), clone(&tree)?, &limits);
        let mut target = target.map_err(|fault| fault.of(self.image, None))?;
        copy::copy(directory, &mut target, &limits, self.image)?;
        let made = target
            .finish()
            .map_err(|fault| fault.of(self.image, None))?;
        let unchanged = copy::fingerprint(directory, &limits, self.image)? == print;
        // What was copied while it changed is the content of no fingerprint.
        let diff_id = match unchanged {
            true => id,
            false => Digest::of(uuid::Uuid::now_v7().as_bytes()),
        };
        let unpacked = Unpacked::new(staged, tree, made, diff_id);
        let used = publish(self.store, unpacked, &Fixups::default(), self.image)?;
        let image = compose(id, self.image, &[used.record], ImageConfig::default());
        match unchanged {
            true => self.store.remember(&image)?,
            false => self.store.keep_held(&image, vec![used.hold]),
        }
        tell(Stage::Done);
        self.tell(Progress::Done);
        Ok(image)
    }
}
