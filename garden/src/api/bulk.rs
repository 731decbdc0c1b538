//! Information and metrics of many containers in one answer.
//!
//! All are asked at the same time; one that fails has its error beside it and fails no other.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use tokio::task::JoinSet;
use tracing::Instrument;

use super::backend::{Backend, Filters};
use super::error::{ApiError, Envelope};
use super::handlers::{Shared, parse_handle};
use super::wire::{WireBulkInfo, WireBulkMetrics};
use crate::error::Error;
use crate::model::Handle;

pub(super) async fn info<B: Backend>(
    shared: &Shared<B>,
    parameters: &Filters,
) -> BTreeMap<String, WireBulkInfo> {
    let ask = |backend: Arc<B>, handle: Handle| async move { backend.info(&handle).await };
    let all = each(shared, parameters, ask).await;
    let entry = |outcome| match outcome {
        Ok(info) => WireBulkInfo {
            info: super::wire::WireInfo::from(info),
            error: None,
        },
        Err(error) => WireBulkInfo {
            error: Some(error),
            ..WireBulkInfo::default()
        },
    };
    all.into_iter()
        .map(|(handle, o)| (handle, entry(o)))
        .collect()
}

pub(super) async fn metrics<B: Backend>(
    shared: &Shared<B>,
    parameters: &Filters,
) -> BTreeMap<String, WireBulkMetrics> {
    let ask = |backend: Arc<B>, handle: Handle| async move { backend.metrics(&handle).await };
    let all = each(shared, parameters, ask).await;
    let entry = |outcome| match outcome {
        Ok(metrics) => WireBulkMetrics {
            metrics: super::wire::WireMetrics::from(metrics),
            error: None,
        },
        Err(error) => WireBulkMetrics {
            error: Some(error),
            ..WireBulkMetrics::default()
        },
    };
    all.into_iter()
        .map(|(handle, o)| (handle, entry(o)))
        .collect()
}

/// What became of each handle of the query, which separates them by commas.
async fn each<B, T, F>(
    shared: &Shared<B>,
    parameters: &Filters,
    ask: impl Fn(Arc<B>, Handle) -> F,
) -> BTreeMap<String, Result<T, Envelope>>
where
    B: Backend,
    T: Send + 'static,
    F: Future<Output = Result<T, Error>> + Send + 'static,
{
    let handles = parameters.get("handles").map_or("", String::as_str);
    let handles = handles.split(',').filter(|handle| !handle.is_empty());
    // What stays in it is what a panic left unanswered.
    let mut answers: BTreeMap<_, _> = handles
        .map(|handle| (handle.to_owned(), Err(ApiError::Bug.envelope())))
        .collect();
    let mut asked = JoinSet::new();
    for (text, answer) in &mut answers {
        match parse_handle(text) {
            Ok(handle) => {
                let (text, question) = (text.clone(), ask(Arc::clone(&shared.backend), handle));
                asked.spawn(async move { (text, question.await) }.in_current_span());
            }
            Err(error) => *answer = Err(error.envelope()),
        }
    }
    while let Some(answer) = asked.join_next().await {
        if let Ok((handle, outcome)) = answer {
            let outcome = outcome.map_err(|error| ApiError::Domain(error).envelope());
            answers.insert(handle, outcome);
        }
    }
    answers
}
