//! Our own routes for limits and use: what Garden's API has no words for.
//!
//! `GET /garden/v1/containers/:handle/limits` tells all limits with the kernel's own files of them,
//! `PUT` changes some; `GET …/metrics` tells what is used with the parts that could not be
//! measured. The bodies are the types of the model.

use super::backend::Backend;
use super::handlers::{Answer, Shared, json, parse_handle};
use crate::error::Error;
use crate::model::LimitsChange;

pub(super) async fn limits<B: Backend>(shared: &Shared<B>, handle: &str) -> Answer {
    let handle = parse_handle(handle)?;
    json(&shared.backend.limits_in_force(&handle).await?)
}

pub(super) async fn change<B: Backend>(
    shared: &Shared<B>,
    handle: &str,
    change: LimitsChange,
) -> Answer {
    let handle = parse_handle(handle)?;
    if change.is_empty() {
        return Err(Error::Invalid("no limit to change was named".to_owned()).into());
    }
    shared.backend.change_limits(&handle, change).await?;
    json(&shared.backend.limits_in_force(&handle).await?)
}

pub(super) async fn metrics<B: Backend>(shared: &Shared<B>, handle: &str) -> Answer {
    let handle = parse_handle(handle)?;
    json(&shared.backend.metrics(&handle).await?)
}
