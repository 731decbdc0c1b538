//! `clean`: removes layers that no root filesystem uses.
//!
//! The threshold is GrootFS's: what all layers hold and what all limits promise, against a number.
//! Without one everything unused goes. What came of it, and why not more, is in the log.

use std::time::Duration;

use garden_rootfs::{CollectPolicy, Outcome, Store};

use super::args::Parsed;
use super::{Context, Failure, expect_args, print};

/// How often what is in use for the moment is looked at again, and how long to wait in between.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(20);

/// Cleans.
pub(super) fn run(context: &Context, flags: &Parsed) -> Result<(), Failure> {
    expect_args::<0>(flags, "clean")?;
    if !context.place.exists() {
        let text = format!("no store found at {}", context.place.path().display());
        return Err(Failure::harmless(text));
    }
    let store = context.place.open(&context.config)?;
    let text = clean(&store, context.config.clean.threshold_bytes)?;
    // Layers are out of the way; their files go with the rest of the trash.
    super::maintain::leave_to_another(context, std::process::Stdio::null());
    print(&format!("{text}\n")).map_err(|error| Failure::new(error.to_string()))
}

/// Moves what is unused to the trash, and says what came of it in GrootFS's words.
pub(super) fn clean(store: &Store, threshold: i64) -> Result<&'static str, Failure> {
    let policy = CollectPolicy {
        threshold_bytes: u64::try_from(threshold).ok().filter(|bytes| *bytes > 0),
        ..CollectPolicy::unused()
    };
    let mut report = store.collect(&policy)?;
    // What another process just looks at counts as used; it has looked in a moment.
    for _ in 0..TRIES {
        if report.kept.young == 0 {
            break;
        }
        std::thread::sleep(PAUSE);
        let outcome = report.outcome;
        report = store.collect(&policy)?;
        if outcome == Outcome::Collected {
            report.outcome = outcome;
        }
    }
    tracing::info!(report = %report, "cleaned");
    for problem in &report.problems {
        tracing::error!(
            object = problem.object,
            text = problem.text,
            "cannot be collected"
        );
    }
    Ok(match report.outcome {
        Outcome::NotNeeded | Outcome::TrashIsEnough => "threshold not reached: skipping clean",
        _ => "clean completed",
    })
}
