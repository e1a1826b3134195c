//! What every call brings in its metadata: who calls, until when, with which token.

use std::time::Duration;

use http::{HeaderMap, HeaderName};
use tokio::time::Instant;
use tonic::metadata::MetadataMap;

use crate::Failure;

/// Metadata key of the caller's name.
pub const CALLER: &str = "souk-caller";
/// Metadata key of a consistency token, for callers that cannot set the field of the request.
pub const TOKEN: HeaderName = HeaderName::from_static("souk-token");
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const MAX_CALLER_BYTES: usize = 128;
const ANONYMOUS: &str = "anonymous";

/// Who calls; stored with every event as its actor.
///
/// # Errors
/// INVALID_ARGUMENT when the name is longer than 128 bytes or holds anything but visible ASCII.
pub fn caller(metadata: &MetadataMap) -> Result<String, Failure> {
    let Some(value) = metadata.get(CALLER) else {
        return Ok(ANONYMOUS.to_owned());
    };
    match value.to_str() {
        Ok(name) if !name.is_empty() && name.len() <= MAX_CALLER_BYTES => Ok(name.to_owned()),
        _ => Err(Failure::invalid("INVALID_CALLER", format!("{CALLER}: want 1–{MAX_CALLER_BYTES} visible ASCII characters"))),
    }
}

/// The consistency token of the metadata, empty when there is none. Whoever asks joins it with the request's own.
///
/// # Errors
/// INVALID_ARGUMENT (INVALID_TOKEN) when it is no ASCII text.
pub fn token(headers: &HeaderMap) -> Result<&str, Failure> {
    headers.get(TOKEN).map_or(Ok(""), |value| {
        value.to_str().map_err(|_| Failure::invalid("INVALID_TOKEN", format!("{TOKEN}: not a token of this installation")))
    })
}

/// Until when the caller waits. Put into the extensions of every request by the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// A streaming call without a timeout: until the caller leaves.
    pub const NONE: Self = Self(None);

    pub fn at(instant: Instant) -> Self {
        Self(Some(instant))
    }

    pub fn after(timeout: Duration) -> Self {
        Self(Instant::now().checked_add(timeout))
    }

    /// The deadline of a request that came through our server; [`Self::NONE`] for any other.
    pub fn of<T>(request: &tonic::Request<T>) -> Self {
        Self::among(request.extensions())
    }

    /// The same, from the extensions of a request.
    pub fn among(extensions: &http::Extensions) -> Self {
        extensions.get().copied().unwrap_or(Self::NONE)
    }

    pub fn instant(self) -> Option<Instant> {
        self.0
    }

    /// Time left, zero when it has passed.
    pub fn remaining(self) -> Duration {
        self.0.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()))
    }

    /// Time left but for `margin`, and at most `limit`: for a part of the work after which an answer must still go out.
    pub fn budget(self, margin: Duration, limit: Duration) -> Duration {
        self.remaining().saturating_sub(margin).min(limit)
    }
}

/// The `grpc-timeout` of a request: 1–8 digits and a unit, as the gRPC protocol over HTTP/2 defines it.
///
/// # Errors
/// INVALID_ARGUMENT (INVALID_TIMEOUT) for any other text.
pub(crate) fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Failure> {
    let Some(value) = headers.get(TIMEOUT) else {
        return Ok(None);
    };
    let invalid = || Failure::invalid("INVALID_TIMEOUT", "grpc-timeout: want 1–8 digits and one of H M S m u n");
    let (unit, digits) = value.as_bytes().split_last().ok_or_else(invalid)?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return Err(invalid());
    }
    let number = digits.iter().fold(0, |number: u64, digit| number * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Ok(Some(Duration::from_secs(number * 3600))),
        b'M' => Ok(Some(Duration::from_secs(number * 60))),
        b'S' => Ok(Some(Duration::from_secs(number))),
        b'm' => Ok(Some(Duration::from_millis(number))),
        b'u' => Ok(Some(Duration::from_micros(number))),
        b'n' => Ok(Some(Duration::from_nanos(number))),
        _ => Err(invalid()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(value: &str) -> HeaderMap {
        [("grpc-timeout".parse().unwrap(), value.parse().unwrap())].into_iter().collect()
    }

    #[test]
    fn a_timeout_is_read_in_every_unit() {
        let cases = [
            ("1H", 3_600_000_000_000),
            ("2M", 120_000_000_000),
            ("99999999S", 99_999_999_000_000_000),
            ("5m", 5_000_000),
            ("7u", 7_000),
            ("9n", 9),
        ];
        for (text, nanos) in cases {
            assert_eq!(timeout(&headers(text)).unwrap(), Some(Duration::from_nanos(nanos)), "{text}");
        }
        assert_eq!(timeout(&HeaderMap::new()).unwrap(), None);
        for bad in ["", "S", "5", "5s", "-5S", "123456789S", "1.5S"] {
            assert_eq!(timeout(&headers(bad)).unwrap_err().reason, "INVALID_TIMEOUT", "{bad:?}");
        }
    }

    #[test]
    fn a_caller_has_a_short_visible_name_or_none() {
        let mut metadata = MetadataMap::new();
        assert_eq!(caller(&metadata).unwrap(), "anonymous");
        metadata.insert(CALLER, "checkout-web".parse().unwrap());
        assert_eq!(caller(&metadata).unwrap(), "checkout-web");
        for bad in ["", &"x".repeat(129)] {
            metadata.insert(CALLER, bad.parse().unwrap());
            assert_eq!(caller(&metadata).unwrap_err().reason, "INVALID_CALLER");
        }
    }

    #[test]
    fn a_budget_leaves_the_margin_and_keeps_the_limit() {
        let deadline = Deadline::after(Duration::from_secs(3600));
        assert_eq!(deadline.budget(Duration::from_millis(50), Duration::from_secs(5)), Duration::from_secs(5));
        assert_eq!(Deadline::after(Duration::from_millis(20)).budget(Duration::from_millis(50), Duration::from_secs(5)), Duration::ZERO);
        assert_eq!(Deadline::NONE.remaining(), Duration::MAX);
    }
}
