use std::{error::Error as _, time::Duration};

use rand::Rng;
use tonic::{Code, Status, TimeoutExpired};
use tonic_types::StatusExt;

const FIRST_DELAY: Duration = Duration::from_millis(20);
const LONGEST_DELAY: Duration = Duration::from_secs(2);

/// Whether the same request may be sent again: always under the same request id, so that a command takes effect once.
pub(crate) fn is_retryable(status: &Status, aborted_too: bool) -> bool {
    if is_timeout(status) {
        return false;
    }
    match status.code() {
        Code::Unavailable | Code::ResourceExhausted => true,
        // Without an etag the caller does not mind which version the command meets.
        Code::Aborted => aborted_too,
        // The connection broke, or gave the call back unsent: the service itself never answers so.
        Code::Cancelled | Code::Unknown | Code::Internal => status.source().is_some(),
        _ => false,
    }
}

/// Nobody answered, or somebody who could not: another replica may.
pub(crate) fn is_unreached(status: &Status) -> bool {
    status.code() == Code::Unavailable || status.source().is_some()
}

/// Our own clock ended the call.
pub(crate) fn is_timeout(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<TimeoutExpired>() {
            return true;
        }
        source = error.source();
    }
    status.code() == Code::DeadlineExceeded
}

/// How long to wait after attempt number `attempt` (1, 2, …): doubling with jitter, and never less than the service
/// asked for.
pub(crate) fn delay(status: &Status, attempt: u32) -> Duration {
    let doubled = FIRST_DELAY.saturating_mul(1 << (attempt - 1).min(10)).min(LONGEST_DELAY);
    let backoff = doubled.mul_f64(rand::rng().random_range(0.5..=1.0));
    let asked = status.get_details_retry_info().and_then(|info| info.retry_delay);
    // Callers that were all told the same time must not come back all at once.
    asked.map_or(backoff, |asked| asked + backoff.min(asked.mul_f64(0.25)))
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn passing_trouble_is_retried_and_refusals_are_not() {
        let retried = |code| is_retryable(&Status::new(code, ""), false);
        assert!(retried(Code::Unavailable) && retried(Code::ResourceExhausted));
        for code in [Code::InvalidArgument, Code::NotFound, Code::AlreadyExists, Code::FailedPrecondition, Code::Aborted, Code::Internal] {
            assert!(!retried(code), "{code:?}");
        }
        assert!(!retried(Code::DeadlineExceeded) && !retried(Code::Unknown) && !retried(Code::Cancelled));
        assert!(is_retryable(&Status::aborted(""), true));
    }

    #[test]
    fn a_broken_connection_is_retried_and_our_own_timeout_is_not() {
        let broken = Status::from_error(Box::new(std::io::Error::other("reset by peer")));
        assert!(is_retryable(&broken, false), "{broken:?}");
        let late = Status::from_error(Box::new(TimeoutExpired(())));
        assert!(!is_retryable(&late, false) && is_timeout(&late), "{late:?}");
    }

    #[test]
    fn delays_grow_to_a_limit_and_respect_the_hint() {
        let plain = Status::unavailable("");
        assert!(delay(&plain, 1) <= FIRST_DELAY);
        for attempt in 1..100 {
            assert!(delay(&plain, attempt) <= LONGEST_DELAY && delay(&plain, attempt) >= FIRST_DELAY / 2);
        }
        assert!(delay(&plain, 20) >= LONGEST_DELAY / 2);
        let asked = Duration::from_millis(300);
        let hinted = Status::with_error_details(Code::Unavailable, "", ErrorDetails::with_retry_info(Some(asked)));
        for attempt in 1..10 {
            assert!((asked..=asked.mul_f64(1.25)).contains(&delay(&hinted, attempt)));
        }
    }
}
