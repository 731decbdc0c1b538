//! When to try again, and when to give up.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, SystemTime};

use super::error::{Failure, RegistryError};
use super::policy::RegistryPolicy;

/// The tries that are left for one thing.
#[derive(Debug)]
pub(super) struct Backoff {
    left: u32,
    wait: Duration,
    longest: Duration,
}

impl Backoff {
    pub(super) fn new(policy: &RegistryPolicy) -> Self {
        Self {
            left: policy.retries,
            wait: policy.first_wait,
            longest: policy.longest_wait,
        }
    }

    /// For what has a substitute: no second try.
    pub(super) fn none() -> Self {
        Self {
            left: 0,
            wait: Duration::ZERO,
            longest: Duration::ZERO,
        }
    }

    /// Waits until it is time for another try, or gives the error back when there is none.
    pub(super) async fn wait(&mut self, failure: Failure) -> Result<(), RegistryError> {
        let delay = self.next(failure)?;
        tokio::time::sleep(delay).await;
        Ok(())
    }

    fn next(&mut self, failure: Failure) -> Result<Duration, RegistryError> {
        let asked = match &failure.error {
            RegistryError::Busy { after, .. } => after.unwrap_or_default(),
            _ => Duration::ZERO,
        };
        if !failure.may_pass || self.left == 0 || asked > self.longest {
            return Err(failure.error);
        }
        self.left -= 1;
        let wait = self.wait.min(self.longest);
        self.wait = wait.saturating_mul(2);
        // Many who failed at the same moment should not come back at the same moment.
        let random = RandomState::new().build_hasher().finish() % 1024;
        let delay = wait / 2 + wait / 2 * u32::try_from(random).unwrap_or_default() / 1024;
        let delay = delay.max(asked);
        tracing::debug!(error = %failure.error, ?delay, "trying again");
        Ok(delay)
    }
}

/// Reads a `Retry-After` header: seconds, or a date (RFC 9110).
pub(super) fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy(seconds: Option<u64>) -> Failure {
        Failure::passing(RegistryError::Busy {
            host: "h".to_owned(),
            status: 429,
            after: seconds.map(Duration::from_secs),
        })
    }

    #[test]
    fn waits_grow_and_end() {
        let policy = RegistryPolicy {
            retries: 4,
            first_wait: Duration::from_secs(2),
            longest_wait: Duration::from_secs(8),
            ..RegistryPolicy::default()
        };
        let mut backoff = Backoff::new(&policy);
        for expected in [2, 4, 8, 8] {
            let delay = backoff.next(busy(None)).unwrap();
            let expected = Duration::from_secs(expected);
            assert!(delay >= expected / 2 && delay <= expected, "{delay:?}");
        }
        backoff.next(busy(None)).unwrap_err();
    }

    #[test]
    fn a_server_may_ask_for_longer_but_not_for_too_long() {
        let mut backoff = Backoff::new(&RegistryPolicy::default());
        let delay = backoff.next(busy(Some(7))).unwrap();
        assert_eq!(delay, Duration::from_secs(7));
        let error = backoff.next(busy(Some(61))).unwrap_err();
        assert!(error.to_string().contains("asks to wait 61 s"), "{error}");
        let lasting = Failure::protocol("u", "w");
        backoff.next(lasting).unwrap_err();
        Backoff::none().next(busy(None)).unwrap_err();
    }

    #[test]
    fn forms_of_retry_after() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_770);
        let read = |text| retry_after(text, now).map(|wait| wait.as_secs());
        assert_eq!(read("12"), Some(12));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), Some(7));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:07 GMT"), Some(0));
        assert_eq!(read("soon"), None);
        assert_eq!(read("-1"), None);
    }
}
