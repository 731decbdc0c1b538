//! Logs and timelines, from a client's side.

use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::Client;
use super::transport::{broken, path, query};
use crate::api::LogList;
use crate::error::Error;
use crate::logs::{LogInfo, LogLine};
use crate::model::{Handle, ProcessId};
use crate::timeline::Timeline;

/// A longer line is none of a log's.
const LONGEST_LINE: usize = 1 << 20;

fn of(handle: &Handle, rest: &[&str]) -> String {
    let mut segments = vec!["garden", "v1", "containers", handle.as_str()];
    segments.extend(rest);
    path(&segments)
}

impl Client {
    /// Of which processes of a container output is kept, the oldest first.
    pub async fn logs(&self, handle: &Handle) -> Result<Vec<LogInfo>, Error> {
        Ok(self
            .ask::<LogList>(self.get(of(handle, &["logs"])))
            .await?
            .logs)
    }

    /// The output that is kept of a process; with `follow`, also what is still to come.
    pub async fn log(
        &self,
        handle: &Handle,
        process: &ProcessId,
        follow: bool,
    ) -> Result<LogLines, Error> {
        let target = of(handle, &["logs", process.as_str()]);
        let parameters = query(follow.then_some(("follow", "true")));
        let response = self.send(self.get(format!("{target}{parameters}"))).await?;
        Ok(LogLines {
            body: response.into_body(),
            read: Vec::new(),
        })
    }

    /// What happened to a container and how long it took, also of one that is gone.
    pub async fn timeline(&self, handle: &Handle) -> Result<Timeline, Error> {
        self.ask(self.get(of(handle, &["timeline"]))).await
    }
}

/// A log as it arrives.
#[derive(Debug)]
pub struct LogLines {
    body: Incoming,
    read: Vec<u8>,
}

impl LogLines {
    /// The next pieces of output, at least one; none at the end.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn next(&mut self) -> Result<Vec<LogLine>, Error> {
        loop {
            if let Some(end) = self.read.iter().rposition(|byte| *byte == b'\n') {
                let whole: Vec<u8> = self.read.drain(..=end).collect();
                let lines = whole.split(|byte| *byte == b'\n');
                let lines: Vec<LogLine> = lines
                    .filter_map(|line| serde_json::from_slice(line).ok())
                    .collect();
                if !lines.is_empty() {
                    return Ok(lines);
                }
            }
            if self.read.len() > LONGEST_LINE {
                let why = "a line without an end";
                return Err(broken("cannot understand the answer of", why));
            }
            let Some(frame) = self.body.frame().await else {
                return Ok(Vec::new());
            };
            let frame = frame.map_err(|source| broken("a cut answer from", source))?;
            if let Ok(data) = frame.into_data() {
                self.read.extend_from_slice(&data);
            }
        }
    }
}
