use std::time::Duration;

use souk_event_sourcing::{RequestId, UnixMillis};

const DAY_MS: i64 = 86_400_000;

/// The UTC day a ledger row is filed under, counted from 1970-01-01.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bucket(pub i32);

/// How long request ids are remembered, and which of them are refused for their time.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    pub days: u16,
}

/// How far ahead of our clock the time of a version 7 id may lie.
const MAX_AHEAD_MS: i64 = DAY_MS;

/// A version 7 request id whose time lies outside what the ledger can vouch for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UntimelyRequestId {
    #[error("its time is older than request ids are remembered")]
    TooOld,
    #[error("its time lies more than a day ahead of the clock")]
    TooNew,
}

impl Bucket {
    pub fn of(time: UnixMillis) -> Self {
        Self(time.0.div_euclid(DAY_MS) as i32)
    }
}

impl Retention {
    /// In days, of which a part counts as one; at least one, at most 365.
    pub fn of(time: Duration) -> Self {
        Self { days: time.as_secs().div_ceil(86_400).clamp(1, 365) as u16 }
    }

    /// Refuses ids that might have been forgotten already, or would be remembered for too short a time.
    pub fn admit(self, id: RequestId, now: UnixMillis) -> Result<(), UntimelyRequestId> {
        match id.time() {
            Some(time) if time < now.plus_ms(-i64::from(self.days) * DAY_MS) => Err(UntimelyRequestId::TooOld),
            Some(time) if time > now.plus_ms(MAX_AHEAD_MS) => Err(UntimelyRequestId::TooNew),
            _ => Ok(()),
        }
    }

    /// Whether a reply that was recorded at `recorded` must still be remembered, if replies have never been kept for a shorter time.
    pub fn holds(self, id: RequestId, recorded: UnixMillis, now: UnixMillis) -> bool {
        id.time().unwrap_or(recorded) >= now.plus_ms(-i64::from(self.days) * DAY_MS)
    }

    /// Where a command recorded at `now` is filed.
    pub fn bucket(self, id: RequestId, now: UnixMillis) -> Bucket {
        Bucket::of(id.time().unwrap_or(now))
    }

    /// Where an earlier reply to `id` may stand: one bucket for a version 7 id; for others all kept ones, and the one of the day that
    /// has begun already where another clock is ahead of ours.
    pub fn candidates(self, id: RequestId, now: UnixMillis) -> impl Iterator<Item = Bucket> {
        let (first, last) = match id.time() {
            Some(time) => (Bucket::of(time), Bucket::of(time)),
            None => (self.oldest(now), Bucket(Bucket::of(now).0 + 1)),
        };
        (first.0..=last.0).map(Bucket)
    }

    /// The oldest bucket that may still be asked for; those before it can be dropped.
    pub fn oldest(self, now: UnixMillis) -> Bucket {
        Bucket(Bucket::of(now).0 - i32::from(self.days) - 1)
    }

    /// Buckets that must exist at `now`, some ahead.
    pub fn wanted(self, now: UnixMillis) -> impl Iterator<Item = Bucket> {
        (self.oldest(now).0..=Bucket::of(now).0 + 3).map(Bucket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEEK: Retention = Retention { days: 7 };

    fn made_at(ms: i64) -> RequestId {
        RequestId(uuid::Builder::from_unix_timestamp_millis(ms as u64, &[3; 10]).into_uuid())
    }

    #[test]
    fn an_admitted_id_is_looked_for_where_it_was_filed() {
        let made = 20_000 * DAY_MS;
        for filed_after in [-MAX_AHEAD_MS, 0, DAY_MS, 7 * DAY_MS] {
            for again_after in [0, DAY_MS, 3 * DAY_MS] {
                let (filed, again) = (UnixMillis(made + filed_after), UnixMillis(made + filed_after + again_after));
                let id = made_at(made);
                if WEEK.admit(id, filed).is_ok() && WEEK.admit(id, again).is_ok() {
                    assert!(WEEK.candidates(id, again).any(|bucket| bucket == WEEK.bucket(id, filed)));
                    assert!(WEEK.wanted(again).any(|bucket| bucket == WEEK.bucket(id, filed)));
                }
            }
        }
        let random = RequestId(uuid::Uuid::from_u128(0xf47ac10b_58cc_4372_a567_0e02b2c3d479));
        // The second: filed by a clock that is past midnight, looked for by one that is not.
        for again_after in [7 * DAY_MS - 1, -1] {
            let (filed, again) = (UnixMillis(made), UnixMillis(made + again_after));
            assert!(WEEK.candidates(random, again).any(|bucket| bucket == WEEK.bucket(random, filed)));
            assert!(WEEK.wanted(again).any(|bucket| bucket == WEEK.bucket(random, filed)));
        }
    }

    #[test]
    fn what_must_be_remembered_is_filed_where_nothing_is_dropped() {
        let recorded = UnixMillis(20_000 * DAY_MS + 5);
        let random = RequestId(uuid::Uuid::from_u128(0xf47ac10b_58cc_4372_a567_0e02b2c3d479));
        for id in [random, made_at(recorded.0 - DAY_MS), made_at(recorded.0), made_at(recorded.0 + MAX_AHEAD_MS)] {
            for later in (0..12 * DAY_MS).step_by(DAY_MS as usize / 7) {
                let now = recorded.plus_ms(later);
                assert!(!WEEK.holds(id, recorded, now) || WEEK.bucket(id, recorded) >= WEEK.oldest(now));
            }
            let kept_until = id.time().unwrap_or(recorded).plus_ms(7 * DAY_MS);
            assert!(WEEK.holds(id, recorded, kept_until) && !WEEK.holds(id, recorded, kept_until.plus_ms(1)));
            assert!(WEEK.admit(id, kept_until).is_ok(), "whoever may ask finds it");
        }
    }

    #[test]
    fn an_id_that_may_have_been_forgotten_is_refused() {
        let now = UnixMillis(20_000 * DAY_MS);
        assert_eq!(WEEK.admit(made_at(now.0 - 7 * DAY_MS - 1), now), Err(UntimelyRequestId::TooOld));
        assert_eq!(WEEK.admit(made_at(now.0 + DAY_MS + 1), now), Err(UntimelyRequestId::TooNew));
        assert_eq!(WEEK.admit(made_at(now.0 - 7 * DAY_MS), now), Ok(()));
    }
}
