//! The routes of our own, below `/garden/v1/`: what Garden's API has no words for.
//!
//! JSON with snake_case names, milliseconds in names that end in `_ms`, and the same errors as
//! everywhere. Members may be added; readers must ignore those that they do not know.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tracing::Instrument;

use super::backend::{Backend, Filters};
use super::error::ApiError;
use super::handlers::{Answer, Shared, json, parse_handle};
use super::routes::Route;
use crate::checks::health::HealthState;
use crate::error::Error;
use crate::model::{ContainerInfo, Handle, ProcessInfo};

use std::sync::Arc;

/// How long a wait for teardown may take when the request does not tell.
const WAIT: Duration = Duration::from_secs(60);

/// Reply to `GET /garden/v1/ps`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ps {
    /// All containers, by handle.
    pub containers: Vec<PsContainer>,
}

/// One container in a list for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PsContainer {
    /// Its name.
    pub handle: Handle,
    /// `active` or `stopped`.
    pub state: String,
    /// How long ago it was created, in milliseconds.
    pub age_ms: u64,
    /// The image it was made from.
    pub image: String,
    /// Unprivileged or not.
    pub privileged: bool,
    /// Its processes and peas that have not ended.
    pub processes: Vec<ProcessInfo>,
    /// What its health checks say, if it has any.
    #[serde(default)]
    pub health: Option<HealthState>,
}

/// Reply to `GET /garden/v1/containers/:handle/peas`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peas {
    /// The peas that have not ended.
    pub peas: Vec<ProcessInfo>,
}

pub(super) async fn answer<B: Backend>(
    shared: &Shared<B>,
    route: Route,
    parameters: &Filters,
) -> Answer {
    let backend = &shared.backend;
    match route {
        Route::Ps => json(&ps(backend).await?),
        Route::Peas(handle) => {
            let mut peas = backend.info(&parse_handle(&handle)?).await?.processes;
            peas.retain(|process| process.pea);
            json(&Peas { peas })
        }
        Route::Teardown => json(&backend.teardown().await?),
        Route::TeardownWait => {
            let patience = match parameters.get("timeout_ms") {
                None => WAIT,
                Some(text) => Duration::from_millis(text.parse().map_err(|_| {
                    Error::Invalid(format!("timeout_ms={text}: give whole milliseconds"))
                })?),
            };
            json(&backend.teardown_wait(patience).await?)
        }
        other => Err(ApiError::NoRoute(other.name().to_owned())),
    }
}

async fn ps<B: Backend>(backend: &Arc<B>) -> Result<Ps, Error> {
    let all = Filters::from([("garden.state".to_owned(), "all".to_owned())]);
    let mut asked = JoinSet::new();
    for handle in backend.list(&all).await? {
        let backend = Arc::clone(backend);
        asked.spawn(async move { backend.info(&handle).await }.in_current_span());
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now_ms = now.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
    // One that cannot be described is one that is just being made or destroyed.
    let described = asked.join_all().await.into_iter().flatten();
    let mut containers: Vec<_> = described
        .map(|info| PsContainer::of(info, now_ms))
        .collect();
    containers.sort_by(|a, b| a.handle.cmp(&b.handle));
    Ok(Ps { containers })
}

impl PsContainer {
    fn of(info: ContainerInfo, now_ms: u64) -> Self {
        Self {
            handle: info.handle,
            state: if info.stopped { "stopped" } else { "active" }.into(),
            age_ms: now_ms.saturating_sub(info.created_ms),
            image: info.image,
            privileged: info.privileged,
            processes: info.processes,
            health: info.health,
        }
    }
}
