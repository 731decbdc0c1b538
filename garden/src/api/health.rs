//! The routes of health checks, below `/garden/v1/containers/:handle/health`.
//!
//! `GET` tells everything, `PUT` replaces all checks by `{"checks":[…]}`, `DELETE` removes all, and
//! `DELETE …/health/:name` one. What a check looks like is in `docs/health.md`.

use http::Request;
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};

use super::backend::Backend;
use super::error::ApiError;
use super::handlers::{Answer, done, json, parse_handle, read};
use super::routes::Route;
use crate::checks::CheckSpec;

/// Body of a `PUT`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Checks {
    /// All checks of the container.
    pub checks: Vec<CheckSpec>,
}

pub(super) async fn answer<B: Backend>(
    backend: &B,
    route: Route,
    request: Request<Incoming>,
) -> Answer {
    match route {
        Route::Health(handle) => json(&backend.health(&parse_handle(&handle)?).await?),
        Route::SetHealth(handle) => {
            let handle = parse_handle(&handle)?;
            let body: Checks = read(request).await?;
            backend.set_checks(&handle, body.checks).await?;
            done()
        }
        Route::RemoveHealth(handle) => {
            let handle = parse_handle(&handle)?;
            backend.set_checks(&handle, Vec::new()).await?;
            done()
        }
        Route::RemoveCheck(handle, name) => {
            backend.remove_check(&parse_handle(&handle)?, &name).await?;
            done()
        }
        other => Err(ApiError::NoRoute(other.name().to_owned())),
    }
}
