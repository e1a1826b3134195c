use std::fmt;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::RecordedEvent;

/// A region by its number; its name is a label of the configuration and may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Region(pub u16);

/// A partition of a region's log: the unit of order, ownership and placement. Counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Partition(pub u16);

/// Place of an event in its log: 1, 2, 3 … without holes. 0 is "before the first".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Position(pub u64);

/// Term of ownership of a log, `max(previous + 1, Unix milliseconds)`, hence never used twice. 0 is "never owned".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

/// A log: the events of one partition written in one region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LogId {
    pub region: Region,
    pub partition: Partition,
}

/// A position together with the epoch it was written under: enough to notice that a log went back (law 13).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LogPosition {
    pub log: LogId,
    pub epoch: Epoch,
    pub position: Position,
}

impl Position {
    /// The position after this one.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Epoch {
    /// The epoch of the next owner, taking over from this one at `now_ms` (Unix milliseconds).
    pub fn next(self, now_ms: u64) -> Self {
        Self((self.0 + 1).max(now_ms))
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.region, self.partition)
    }
}

/// Routing hash of an entity: the low half of XXH3-64 (seed 0) of its routing key. Stored in order ids, so it is
/// pinned for ever by a golden test.
pub fn routing_hash(routing_key: &str) -> u32 {
    xxh3_64(routing_key.as_bytes()) as u32
}

/// The partition of a routing hash among `count` partitions.
///
/// # Panics
/// When `count` is 0.
pub fn partition_of(routing_hash: u32, count: u16) -> Partition {
    Partition((routing_hash % u32::from(count)) as u16)
}

/// Running hash of a log: XXH3-128 over the hash before and every field of the event. Equal hashes at one position
/// mean equal prefixes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct LogHash(pub [u8; 16]);

impl LogHash {
    /// Hash of the empty log.
    pub const EMPTY: Self = Self([0; 16]);

    /// From stored bytes; `None` unless there are 16.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The hash after `event`, whose own `hash` field is not looked at. Each variable field is preceded by its
    /// length, so that no two events feed the same bytes.
    pub fn after(self, event: &RecordedEvent) -> Self {
        let mut hasher = Xxh3::new();
        hasher.update(&self.0);
        hasher.update(&event.log.region.0.to_le_bytes());
        hasher.update(&event.log.partition.0.to_le_bytes());
        for number in [event.position.0, event.epoch.0, event.version.0, event.hlc.0, event.home_epoch.0] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.update(&event.schema_version.to_le_bytes());
        hasher.update(event.event_id.0.as_bytes());
        for id in [event.request_id.map(|id| id.0), event.causation_id.map(|id| id.0), event.correlation_id, event.key_id] {
            hasher.update(&[u8::from(id.is_some())]);
            hasher.update(id.unwrap_or_default().as_bytes());
        }
        let texts =
            [event.stream.as_str().as_bytes(), event.kind.as_bytes(), &event.payload, event.actor.as_bytes(), event.traceparent.as_bytes()];
        for bytes in texts {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        }
        Self(hasher.digest128().to_be_bytes())
    }
}

impl fmt::Debug for LogHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routing_is_pinned() {
        assert_eq!(routing_hash("c-1"), xxh3_64(b"c-1") as u32);
        let golden: Vec<_> =
            ["c-1", "c-2", "p-1", ""].iter().map(|key| (routing_hash(key), partition_of(routing_hash(key), 64).0)).collect();
        assert_eq!(golden, include!("../golden/routing.txt"));
    }

    #[test]
    fn an_epoch_never_repeats_and_follows_the_clock() {
        assert_eq!(Epoch(5).next(3), Epoch(6));
        assert_eq!(Epoch(5).next(1_000), Epoch(1_000));
    }
}
