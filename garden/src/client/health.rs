//! Health checks and events, from a client's side.

use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::Client;
use super::transport::{Call, broken, path, query};
use crate::api::Checks;
use crate::checks::{CheckSpec, HealthStatus};
use crate::error::Error;
use crate::events::{Event, EventFilter};
use crate::model::Handle;

/// A longer line is no event.
const LONGEST_LINE: usize = 1 << 20;

fn health_of(handle: &Handle, rest: &[&str]) -> String {
    let mut segments = vec!["garden", "v1", "containers", handle.as_str(), "health"];
    segments.extend(rest);
    path(&segments)
}

impl Client {
    /// What the health checks of a container say.
    pub async fn health(&self, handle: &Handle) -> Result<HealthStatus, Error> {
        self.ask(self.get(health_of(handle, &[]))).await
    }

    /// Replaces all health checks of a container.
    pub async fn set_checks(&self, handle: &Handle, checks: Vec<CheckSpec>) -> Result<(), Error> {
        let call = Call::new(Method::PUT, health_of(handle, &[]));
        self.done(call.json(&Checks { checks })).await
    }

    /// Removes a health check; one that is not there is an error.
    pub async fn remove_check(&self, handle: &Handle, name: &str) -> Result<(), Error> {
        let target = health_of(handle, &[name]);
        self.done(Call::new(Method::DELETE, target)).await
    }

    /// What happens. When this returns, no event that comes after is missed.
    pub async fn events(&self, filter: &EventFilter) -> Result<EventLines, Error> {
        let kinds = filter.kinds.join(",");
        let since = filter.since_ms.map(|since| since.to_string());
        let mut parameters = Vec::new();
        parameters.extend(filter.handle.as_deref().map(|handle| ("handle", handle)));
        parameters.extend((!kinds.is_empty()).then_some(("kind", kinds.as_str())));
        parameters.extend(since.as_deref().map(|since| ("since_ms", since)));
        parameters.extend(filter.follow.then_some(("follow", "true")));
        let target = format!("/garden/v1/events{}", query(parameters));
        let Some(response) = self.send_own(self.get(target)).await? else {
            return Err(Error::Invalid(
                "this server does not tell events".to_owned(),
            ));
        };
        Ok(EventLines {
            body: response.into_body(),
            read: Vec::new(),
        })
    }
}

/// Events as they arrive.
#[derive(Debug)]
pub struct EventLines {
    body: Incoming,
    read: Vec<u8>,
}

impl EventLines {
    /// The next event; `None` at the end. One of a kind that this client does not know is left out.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                match serde_json::from_slice(&line) {
                    Ok(event) => return Ok(Some(event)),
                    Err(error) => {
                        tracing::debug!(%error, "an event that is not understood");
                        continue;
                    }
                }
            }
            if self.read.len() > LONGEST_LINE {
                let why = "a line without an end";
                return Err(broken("cannot understand the answer of", why));
            }
            let Some(frame) = self.body.frame().await else {
                return Ok(None);
            };
            let frame = frame.map_err(|source| broken("a cut answer from", source))?;
            if let Ok(data) = frame.into_data() {
                self.read.extend_from_slice(&data);
            }
        }
    }
}
