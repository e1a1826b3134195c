use std::{collections::HashMap, time::Duration};

use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, State, StorageType};
use souk_bus::Subjects;
use souk_event_sourcing::{LogId, Position, UnixMillis};
use uuid::Uuid;

const INSTALLATION: &str = "souk-installation";
/// First position that was there when the limits were last set.
const BEGIN: &str = "souk-begin";
/// A stream that could not take one more message of this size is full. Servers take none larger (DESIGN section 10).
const LARGEST_MESSAGE: u64 = 2 << 20;

/// Bounds of each log's stream. What is older is read from the event log.
#[derive(Debug, Clone)]
pub struct StreamLimits {
    pub max_age: Duration,
    pub max_bytes: u64,
    pub replicas: usize,
}

/// What a log's stream should be.
#[derive(Debug, Clone)]
pub(crate) struct StreamSettings {
    pub subjects: Subjects,
    pub limits: StreamLimits,
    pub installation: Uuid,
}

impl StreamSettings {
    /// Of a stream that is to be made, its first event at `first`.
    pub fn config(&self, log: LogId, first: Position) -> Config {
        let name = self.subjects.stream(log);
        let made = Config { name, first_sequence: Some(first.0), storage: StorageType::File, ..Config::default() };
        self.applied(log, made, first)
    }

    /// `found` with all that can be changed as it should be.
    pub fn applied(&self, log: LogId, found: Config, begin: Position) -> Config {
        let mut metadata: HashMap<_, _> = found.metadata;
        metadata.insert(INSTALLATION.to_owned(), self.installation.to_string());
        metadata.insert(BEGIN.to_owned(), begin.to_string());
        Config {
            subjects: vec![self.subjects.log(log)],
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::Old,
            max_age: self.limits.max_age,
            max_bytes: self.limits.max_bytes as i64,
            max_messages: -1,
            max_messages_per_subject: -1,
            max_message_size: -1,
            num_replicas: self.limits.replicas,
            // For all but the owner, who deletes the stream as a whole.
            deny_delete: true,
            deny_purge: true,
            allow_rollup: false,
            no_ack: false,
            republish: None,
            subject_transform: None,
            // Sequences are positions and publishes are conditional: there is nothing to deduplicate.
            duplicate_window: Duration::from_secs(1).min(self.limits.max_age),
            metadata,
            ..found
        }
    }

    /// Whether a stream is set up as it should be; fields that servers fill in on their own are not looked at.
    pub fn met_by(&self, log: LogId, found: &Config) -> bool {
        let wanted = self.applied(log, found.clone(), Position(1));
        let limits = found.max_age == wanted.max_age && found.max_bytes == wanted.max_bytes && found.num_replicas == wanted.num_replicas;
        let bounded =
            [found.max_messages, found.max_messages_per_subject, i64::from(found.max_message_size)].iter().any(|limit| *limit > 0);
        let altered = found.republish.is_some() || found.subject_transform.is_some() || found.mirror.is_some() || found.sources.is_some();
        limits
            && !bounded
            && !altered
            && found.subjects == wanted.subjects
            && (found.retention, found.discard, found.storage) == (wanted.retention, wanted.discard, StorageType::File)
            && (found.deny_delete, found.deny_purge) == (true, true)
            && (found.sealed, found.allow_rollup, found.no_ack) == (false, false, false)
            && found.metadata.get(INSTALLATION) == wanted.metadata.get(INSTALLATION)
    }

    /// First position a stream was made for, or had left when its limits were last changed.
    pub fn begin(found: &Config) -> Position {
        let settled: u64 = found.metadata.get(BEGIN).and_then(|begin| begin.parse().ok()).unwrap_or_default();
        Position(settled.max(found.first_sequence.unwrap_or_default()).max(1))
    }

    /// Since when events must still be there; `None` when the stream has no room for all of them. A quarter of the age
    /// is left to clocks that differ.
    pub fn keeps_after(found: &Config, state: &State, now: UnixMillis) -> Option<UnixMillis> {
        let full = found.max_bytes > 0 && state.bytes + LARGEST_MESSAGE > found.max_bytes as u64;
        let age = (found.max_age.as_millis() as i64).saturating_mul(3) / 4;
        (!full).then(|| if age == 0 { UnixMillis(i64::MIN) } else { now.plus_ms(-age) })
    }
}
