//! One layer on its way: from servers that may break to a reader that blocks.
//!
//! The requests run on the thread for registries and put pieces into a window of a fixed number
//! of bytes; the caller reads them out. When a body breaks off or falls silent, the rest is asked
//! for by range, from the same place or the next; a server that does not know ranges begins
//! again, and what came before is skipped. The reader never ends early: an end that is not the
//! layer's is an error. Whether the bytes are right is not known here.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use reqwest::header::CONTENT_RANGE;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use url::Url;

use super::Shared;
use super::endpoint::Endpoint;
use super::error::{Failure, RegistryError};
use super::retry::Backoff;
use super::transport::{Answer, Get, Trust, host_of};
use crate::digest::Digest;
use crate::error::{Error, Result, Rule, Step};
use crate::source::shown;

/// How many bytes may wait for the reader.
const WINDOW: usize = 1 << 20;
/// How many pieces may: tiny ones have a cost of their own.
const PIECES: usize = 64;
/// How far a download must come for its tries to be counted anew.
const PROGRESS: u64 = 1 << 20;

/// A place that a layer can be read from.
pub(super) enum Source {
    /// A registry, by the digest of the layer.
    Registry(Arc<Endpoint>, Digest),
    /// Any server; it is never told who asks, but by certificate.
    Url(Url, Trust),
}

/// A layer that is to be read.
pub(super) struct Download {
    shared: Arc<Shared>,
    sources: Vec<Source>,
    /// Which of them is read.
    at: usize,
    backoff: Backoff,
    /// How much has come.
    offset: u64,
    /// How much is to come, if that is known.
    size: Option<u64>,
    /// What a server sends again that has come already.
    skip: u64,
    /// What it belongs to, for errors.
    image: String,
}

/// Something for the reader.
enum Piece {
    Bytes(Bytes),
    End,
    Failed(Error),
}

/// How the body of one answer ended.
enum Ended {
    /// All has come.
    Whole,
    /// The reader has gone.
    Unread,
    /// The image is wrong.
    Wrong(Rule),
    /// There is more to come.
    Broken(Failure),
}

impl Source {
    /// Those URLs that are http or https; what else an image may name is not for it to say.
    pub(super) fn of_urls(shared: &Shared, urls: &[impl AsRef<str>]) -> Vec<Self> {
        let parsed = urls.iter().filter_map(|url| Url::parse(url.as_ref()).ok());
        parsed
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .filter(|url| url.username().is_empty() && url.password().is_none())
            .map(|url| {
                let trust = match &shared.policy.layer_certificates {
                    Some(path) => Trust::Directory {
                        path: path.clone(),
                        identity: true,
                    },
                    None => shared.transport.trust(&host_of(&url)),
                };
                Self::Url(url, trust)
            })
            .collect()
    }

    fn backoff(&self, shared: &Shared) -> Backoff {
        match self {
            Self::Registry(endpoint, _) if endpoint.is_mirror => Backoff::none(),
            _ => Backoff::new(&shared.policy),
        }
    }

    async fn get(&self, shared: &Shared, offset: u64) -> Result<Answer, Failure> {
        match self {
            Self::Registry(endpoint, digest) => {
                let path = format!("blobs/{digest}");
                endpoint.get(shared, &path, None, offset).await
            }
            Self::Url(url, trust) => {
                let get = Get {
                    url: url.clone(),
                    trust,
                    authorization: None,
                    accept: None,
                    offset,
                };
                let answer = shared.transport.get(&get).await?;
                match answer.status().as_u16() {
                    200 | 206 => Ok(answer),
                    _ => Err(answer.failure().await),
                }
            }
        }
    }

    fn shown(&self) -> String {
        match self {
            Self::Registry(endpoint, digest) => format!("{digest} at {}", endpoint.name()),
            Self::Url(url, _) => shown(url.as_str()),
        }
    }
}

impl Download {
    /// `sources` must not be empty.
    pub(super) fn new(
        shared: &Arc<Shared>,
        sources: Vec<Source>,
        size: Option<u64>,
        image: &str,
    ) -> Self {
        Self {
            shared: Arc::clone(shared),
            backoff: (sources.first()).map_or_else(Backoff::none, |first| first.backoff(shared)),
            sources,
            at: 0,
            offset: 0,
            size,
            skip: 0,
            image: image.to_owned(),
        }
    }

    /// Begins to ask for it. Nobody waits: whoever reads is told what came of it.
    pub(super) fn start(mut self) -> Result<Body> {
        let shared = Arc::clone(&self.shared);
        let window = Arc::new(Semaphore::new(WINDOW));
        let (pieces, received) = mpsc::channel(PIECES);
        let pipe = Pipe {
            window: Arc::clone(&window),
            pieces,
        };
        let task = shared.runtime.spawn(async move {
            match self.connect().await {
                Ok(answer) => self.pump(answer, pipe).await,
                // A reader that has gone does not want to know.
                Err(error) => drop(pipe.pieces.send(Piece::Failed(error.into())).await),
            }
        })?;
        Ok(Body {
            received,
            window,
            piece: Bytes::new(),
            taken: 0,
            ended: false,
            task,
        })
    }

    async fn pump(mut self, mut answer: Answer, pipe: Pipe) {
        let mut mark = self.offset;
        let end = loop {
            let failure = match self.drain(&mut answer, &pipe).await {
                Ended::Whole => break Piece::End,
                Ended::Unread => return,
                Ended::Wrong(rule) => {
                    let place = self.sources[self.at].shown();
                    break Piece::Failed(Error::image(&self.image, Some(&place), rule));
                }
                Ended::Broken(failure) => failure,
            };
            if self.offset - mark >= PROGRESS {
                self.backoff = self.sources[self.at].backoff(&self.shared);
            }
            mark = self.offset;
            let resumed = match self.after(failure).await {
                Ok(()) => self.connect().await,
                Err(error) => Err(error),
            };
            match resumed {
                Ok(next) => answer = next,
                Err(error) => break Piece::Failed(error.into()),
            }
        };
        // A reader that has gone does not want to know.
        let _ = pipe.pieces.send(end).await;
    }

    /// Finds a place that sends from where we are.
    async fn connect(&mut self) -> Result<Answer, RegistryError> {
        loop {
            let source = &self.sources[self.at];
            let failure = match source.get(&self.shared, self.offset).await {
                Ok(answer) => match self.fit(&answer) {
                    Ok(()) => return Ok(answer),
                    Err(failure) => failure,
                },
                Err(failure) => failure,
            };
            self.after(failure).await?;
        }
    }

    /// Waits for another try at the same place, or goes on to the next one.
    async fn after(&mut self, failure: Failure) -> Result<(), RegistryError> {
        let Err(error) = self.backoff.wait(failure).await else {
            return Ok(());
        };
        let Some(next) = self.sources.get(self.at + 1) else {
            return Err(error);
        };
        let place = self.sources[self.at].shown();
        tracing::debug!(place, %error, at = self.offset, next = next.shown(), "the next place");
        self.backoff = next.backoff(&self.shared);
        self.at += 1;
        Ok(())
    }

    /// Checks that an answer goes on where we are.
    fn fit(&mut self, answer: &Answer) -> Result<(), Failure> {
        let wrong = |what: String| Err(Failure::protocol(answer.shown(), what));
        if answer.status() == 206 {
            let range = answer.header(CONTENT_RANGE).and_then(content_range);
            let Some((first, total)) = range else {
                return wrong("a part without its range".to_owned());
            };
            if first != self.offset {
                let asked = self.offset;
                return wrong(format!(
                    "byte {first} was sent where byte {asked} was asked for"
                ));
            }
            self.skip = 0;
            self.size = self.size.or(total);
            return Ok(());
        }
        self.skip = self.offset;
        self.size = self.size.or(answer.length());
        Ok(())
    }

    /// Hands on what an answer brings.
    async fn drain(&mut self, answer: &mut Answer, pipe: &Pipe) -> Ended {
        if let (Some(expected), Some(actual), 200) =
            (self.size, answer.length(), answer.status().as_u16())
            && expected != actual
        {
            return Ended::Wrong(Rule::Size { expected, actual });
        }
        loop {
            let mut chunk = match answer.chunk(self.offset).await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(failure) => return Ended::Broken(failure),
            };
            let known = self.skip.min(chunk.len() as u64);
            self.skip -= known;
            chunk.advance(known as usize);
            let offset = self.offset + chunk.len() as u64;
            if let Some(expected) = self.size.filter(|size| offset > *size) {
                let actual = offset;
                return Ended::Wrong(Rule::Size { expected, actual });
            }
            self.offset = offset;
            if !chunk.is_empty() && pipe.send(chunk).await.is_err() {
                return Ended::Unread;
            }
        }
        match self.size {
            // What was skipped must have been all of it.
            None if self.skip == 0 => Ended::Whole,
            Some(size) if self.offset == size => Ended::Whole,
            _ => Ended::Broken(Failure::passing(RegistryError::Broken {
                url: answer.shown(),
                at: self.offset,
                source: "the server ended it".into(),
            })),
        }
    }
}

/// Opens a file that a user named by URL.
pub(super) fn open_file(url: &Url) -> Result<Box<dyn Read + Send>> {
    let path = url.to_file_path().map_err(|()| RegistryError::Protocol {
        url: shown(url.as_str()),
        what: "it is no path on this host".to_owned(),
    })?;
    match File::open(&path) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => Err(Error::ImageNotFound {
            image: path.display().to_string(),
            source,
        }),
        file => Ok(Box::new(file.step(|| format!("open {}", path.display()))?)),
    }
}

/// Reads `bytes FIRST-LAST/TOTAL`.
fn content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let range = value.strip_prefix("bytes ")?;
    let (range, total) = range.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    Some((first.trim().parse().ok()?, total.trim().parse().ok()))
}

/// The writing end of the window.
struct Pipe {
    window: Arc<Semaphore>,
    pieces: mpsc::Sender<Piece>,
}

impl Pipe {
    /// Waits until there is room; an error when nobody reads any more.
    async fn send(&self, chunk: Bytes) -> Result<(), ()> {
        let room = self.window.acquire_many(room_for(chunk.len())).await;
        room.map_err(|_| ())?.forget();
        self.pieces.send(Piece::Bytes(chunk)).await.map_err(|_| ())
    }
}

/// The room that a piece takes: at most the whole window, or it would never fit.
fn room_for(length: usize) -> u32 {
    u32::try_from(length.min(WINDOW)).unwrap_or(u32::MAX)
}

/// The bytes of a layer as they come; blocks until they do, so not for asynchronous code.
pub(super) struct Body {
    received: mpsc::Receiver<Piece>,
    window: Arc<Semaphore>,
    piece: Bytes,
    /// How much room the piece took.
    taken: u32,
    ended: bool,
    task: JoinHandle<()>,
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.ended && !buffer.is_empty() {
            self.window.add_permits(self.taken as usize);
            self.taken = 0;
            match self.received.blocking_recv() {
                Some(Piece::Bytes(bytes)) => {
                    self.taken = room_for(bytes.len());
                    self.piece = bytes;
                }
                Some(Piece::End) => self.ended = true,
                // In the crate's own words, for whoever reads.
                Some(Piece::Failed(error)) => return Err(io::Error::other(error)),
                None => {
                    let text = io::Error::other("the download ended without a result");
                    let error = Error::from(RegistryError::Thread(text));
                    return Err(io::Error::other(error));
                }
            }
        }
        let length = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

impl Drop for Body {
    /// What nobody reads is not fetched.
    fn drop(&mut self) {
        self.task.abort();
    }
}
