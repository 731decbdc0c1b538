//! `garden cp`: copy files between a container and this host, by docker's rules.
//!
//! The two streams of the API do the work; this finds out what is at both ends, decides where the
//! copy goes ([`place`]), and packs or unpacks on the host's side, on a thread for such work.

mod place;
mod transfer;
mod unpack;

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use garden::api::FilesOut;
use garden::client::Client;
use garden::model::Handle;
use garden_tar::pack;
use tokio::io::AsyncReadExt as _;

use crate::progress;
use crate::reach::Target;
use place::{End, Found, Place, Source, place};

/// Copy files between a container and this host
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  garden cp web:/etc/hosts .              a file, into this directory
  garden cp web:/var/log logs             a directory; as logs, or into it when it exists
  garden cp web:/var/log/. logs           only what is in it
  garden cp app web:/home/vcap -u vcap    the files will be vcap's
  garden cp web:/etc - | tar -t           a tar on standard output; `-` first reads one")]
pub(crate) struct CpArgs {
    /// What: NAME:PATH in a container, PATH here, or - for a tar on standard input
    #[arg(value_name = "SOURCE", value_parser = End::parse)]
    from: End,
    /// Where to: NAME:PATH in a container, PATH here, or - for a tar on standard output
    #[arg(value_name = "DEST", value_parser = End::parse)]
    to: End,
    /// Where SOURCE is a symbolic link, copy what it leads to
    #[arg(long, short = 'L')]
    follow_link: bool,
    /// Keep owners, groups and set-id bits
    #[arg(long, short, conflicts_with = "user")]
    archive: bool,
    /// Who reads or owns the files in the container [default: root]
    #[arg(long, short, value_name = "USER", default_value = "")]
    user: String,
    /// Show no progress
    #[arg(long, short)]
    quiet: bool,
}

/// Copies.
pub(crate) async fn run(target: &Target, args: &CpArgs) -> Result<u8> {
    let (client, name);
    match (&args.from, &args.to) {
        (End::Inside(..), End::Inside(..)) => {
            bail!(
                "one side must be of this host: copy in two steps, or pipe one `garden cp NAME:PATH -` into another"
            )
        }
        (End::Inside(handle, path), to) => {
            (client, name) = (target.server().await?, handle);
            let inside = Inside::new(&client, name, args);
            match to {
                End::Here(here) => inside.out(path, here).await,
                _ => inside.out_as_tar(path).await,
            }
        }
        (from, End::Inside(handle, path)) => {
            (client, name) = (target.server().await?, handle);
            let inside = Inside::new(&client, name, args);
            match from {
                End::Here(here) => inside.take(here, path).await,
                _ => inside.take_tar(path).await,
            }
        }
        _ => bail!("neither side is in a container: write NAME:PATH"),
    }
}

/// The side of the container.
struct Inside<'a> {
    client: &'a Client,
    handle: &'a Handle,
    args: &'a CpArgs,
}

impl<'a> Inside<'a> {
    fn new(client: &'a Client, handle: &'a Handle, args: &'a CpArgs) -> Self {
        Self {
            client,
            handle,
            args,
        }
    }

    fn files(&self, source: String, follow: bool) -> FilesOut {
        FilesOut {
            user: self.args.user.clone(),
            source,
            head: false,
            follow,
        }
    }

    /// What a path in the container is, and how large.
    async fn look(&self, path: &str, follow: bool) -> Result<(Found, u64)> {
        let files = FilesOut {
            head: true,
            ..self.files(path.to_owned(), follow)
        };
        let described = self.client.files_out(self.handle, &files).await;
        let mut tar = match described {
            Ok(tar) => tar,
            Err(error) => {
                let text = error.to_string();
                // The kernel's own words, which the container's supervisor passes on.
                return match () {
                    () if text.contains("No such file or directory") => Ok((Found::Missing, 0)),
                    () if text.contains("Not a directory") => Ok((Found::Other, 0)),
                    () => Err(error.into()),
                };
            }
        };
        let mut bytes = Vec::new();
        tar.read_to_end(&mut bytes).await?;
        let mut bytes = &bytes[..];
        let mut entries = garden_tar::Entries::new(&mut bytes);
        let entry = entries.next()?.context("the server described nothing")?;
        Ok(match entry.kind {
            garden_tar::Kind::Directory => (Found::Directory, 0),
            _ => (Found::Other, entry.size),
        })
    }

    /// What is at a destination: links are followed.
    async fn look_for_directory(&self, path: &str) -> Result<Found> {
        let slashed = format!("{}/", path.trim_end_matches('/'));
        let (found, _) = self.look(&slashed, false).await?;
        Ok(found)
    }

    /// The source, and whether it is a directory and how large.
    async fn source(&self, path: &str) -> Result<(Source, bool, u64, FilesOut)> {
        let source = Source::new(path);
        let follow = self.args.follow_link || source.directory;
        let (found, size) = self.look(&source.path, follow).await?;
        if found == Found::Missing {
            bail!("{}:{path} does not exist", self.handle);
        }
        let is_directory = found == Found::Directory;
        if source.directory && !is_directory {
            bail!("{}:{path} is no directory", self.handle);
        }
        let wanted = if source.content {
            format!("{}/", source.path.trim_end_matches('/'))
        } else {
            source.path.clone()
        };
        let files = self.files(wanted, follow);
        Ok((source, is_directory, size, files))
    }

    async fn out(&self, path: &str, here: &str) -> Result<u8> {
        let (source, is_directory, size, files) = self.source(path).await?;
        let real = Path::new(here).canonicalize();
        let found = match &real {
            Ok(path) if path.is_dir() => Found::Directory,
            Ok(path) if !path.is_file() => bail!("{here} is neither a file nor a directory"),
            Ok(_) => Found::Other,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Found::Missing,
            Err(error) => bail!("cannot use {here}: {error}"),
        };
        // A file that a link leads to is replaced where it is.
        let here = match &real {
            Ok(real) if found == Found::Other && !here.ends_with('/') => real.to_string_lossy(),
            _ => here.into(),
        };
        let to = place(&source, is_directory, &here, found)?;
        let root = (!source.content).then(|| source.name.clone());
        let how = unpack::How {
            root,
            name: to.name,
            owners: self.args.archive,
        };
        let directory = std::fs::File::open(&to.directory)
            .with_context(|| format!("cannot use the directory {}", to.directory))?;
        let bar = transfer::Bar::new(progress::is_watched(self.args.quiet), size);
        let tar = self.client.files_out(self.handle, &files).await?;
        let left_out = transfer::out(tar, directory.into(), how, &bar).await?;
        bar.done(&format!("{}:{path} to {here}", self.handle));
        if let Some(first) = left_out.first() {
            bail!(
                "all but {} devices or unknown objects were copied, the first being {first:?}",
                left_out.len()
            );
        }
        Ok(0)
    }

    async fn out_as_tar(&self, path: &str) -> Result<u8> {
        let (_, _, _, files) = self.source(path).await?;
        let mut tar = self.client.files_out(self.handle, &files).await?;
        transfer::to_stdout(&mut tar)
            .await
            .with_context(|| format!("the copy of {path} was cut short: see the server's log"))?;
        Ok(0)
    }

    async fn take(&self, here: &str, path: &str) -> Result<u8> {
        let source = Source::new(here);
        let follow = self.args.follow_link || source.directory;
        let stat = if follow {
            std::fs::metadata(&source.path)
        } else {
            std::fs::symlink_metadata(&source.path)
        };
        let stat = stat.with_context(|| format!("cannot copy {here}"))?;
        if source.directory && !stat.is_dir() {
            bail!("{here} is no directory");
        }
        let found = self.look_for_directory(path).await?;
        let to = place(&source, stat.is_dir(), path, found)?;
        self.check_directory(&to, found).await?;
        let wanted = if source.content {
            format!("{}/", source.path.trim_end_matches('/'))
        } else {
            source.path.clone()
        };
        let packed = pack::Source::open(&wanted, follow)?;
        let packed = match &to.name {
            Some(name) => packed.named(name.as_bytes()),
            None => packed,
        };
        let size = if stat.is_file() { stat.len() } else { 0 };
        let bar = transfer::Bar::new(progress::is_watched(self.args.quiet), size);
        let (tar, failure) = transfer::packed(packed, bar.clone())?;
        let sent = self.send(&to.directory, tar).await;
        // What went wrong here is the reason for what went wrong there.
        match failure.take() {
            Some(failure) => Err(failure).with_context(|| format!("cannot copy {here}"))?,
            None => sent?,
        }
        bar.done(&format!("{here} to {}:{path}", self.handle));
        Ok(0)
    }

    /// The stream in would make a directory that is missing; a copy does not.
    async fn check_directory(&self, to: &Place, found: Found) -> Result<()> {
        if found == Found::Directory {
            return Ok(());
        }
        match self.look_for_directory(&to.directory).await? {
            Found::Directory => Ok(()),
            _ => bail!(
                "{}:{} is no directory: make it first",
                self.handle,
                to.directory
            ),
        }
    }

    async fn take_tar(&self, path: &str) -> Result<u8> {
        if self.look_for_directory(path).await? != Found::Directory {
            bail!("{}:{path} is no directory: a tar needs one", self.handle);
        }
        self.send(path, tokio::io::stdin()).await?;
        Ok(0)
    }

    async fn send(
        &self,
        directory: &str,
        tar: impl tokio::io::AsyncRead + Send + 'static,
    ) -> Result<()> {
        let (client, user) = (self.client, &self.args.user);
        if self.args.archive {
            client.stream_in_owned(self.handle, directory, tar).await?;
        } else {
            client.stream_in(self.handle, user, directory, tar).await?;
        }
        Ok(())
    }
}
