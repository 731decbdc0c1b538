//! Waiting for a condition, with a deadline and a name for what did not come.
//!
//! Used wherever the harness or a test waits for something that no file descriptor announces.
//! No test may sleep for a time instead.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long a single step may take before the test is given up: far above what any step needs on
/// a loaded machine, so that it never decides a test that works.
pub const DEADLINE: Duration = Duration::from_secs(150);

/// Between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(5);

/// Waits until `condition` holds.
///
/// # Errors
/// When it fails, or does not hold within `deadline`; the text then names `what`.
pub fn wait_until(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let end = Instant::now() + deadline;
    while !condition()? {
        if Instant::now() >= end {
            bail!("waited {} s in vain until {what}", deadline.as_secs());
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_never_holds_is_named() {
        let error = wait_until("pigs fly", Duration::ZERO, || Ok(false)).unwrap_err();
        assert!(error.to_string().contains("until pigs fly"));
    }
}
