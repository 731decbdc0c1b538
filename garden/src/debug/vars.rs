//! A look under the names that Guardian's operators read: its expvar, and the metrics that it emits.
//!
//! `numGoRoutines` is the number of tasks of the runtime, which is what a Go program's goroutines are
//! read for: something that grows without end. Durations are medians, in nanoseconds; Guardian emits
//! each as it happens.

use serde_json::{Value, json};

use super::look::Look;

/// Writes a look down.
pub(super) fn write(look: &Look) -> Value {
    let nanos = |route: &str| {
        let meter = look.requests.get(route);
        let seconds = meter
            .and_then(|meter| meter.took.quantile(0.5))
            .unwrap_or(0.0);
        // Durations of requests are far from where a float loses nanoseconds.
        (seconds * 1e9).round()
    };
    json!({
        "numCPUS": look.process.cpus,
        "numGoRoutines": look.process.tasks,
        "loopDevices": 0,
        "backingStores": 0,
        "depotDirs": look.containers.len(),
        "DepotDirs": look.containers.len(),
        "UnkillableContainers": look.teardown.stuck,
        "ContainerCreationDuration": nanos("create"),
        "StreamInDuration": nanos("stream-in"),
        "memstats": {
            "Sys": look.process.resident_bytes,
            "Alloc": look.process.resident_bytes,
        },
    })
}
