use souk_event_sourcing::{Epoch, LogId, LogPosition, Position, UnixMillis};

/// A log that went back: a database was restored, or a standby that lagged was promoted (law 13).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    pub log: LogId,
    /// Epoch under which it went on.
    pub epoch: Epoch,
    /// Last position of the part that stayed.
    pub fork: Position,
    /// The furthest that anybody knew of the lost part.
    pub lost: Lost,
    pub found: UnixMillis,
    /// Who told of it.
    pub found_by: String,
    /// How many of the lost events were still to be had, and are kept.
    pub kept: u64,
}

/// A place in a history that is no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    pub epoch: Epoch,
    pub position: Position,
}

impl From<LogPosition> for Lost {
    fn from(place: LogPosition) -> Self {
        Self { epoch: place.epoch, position: place.position }
    }
}

impl Restored {
    /// How many events are lost.
    pub const fn events(&self) -> u64 {
        self.lost.position.0.saturating_sub(self.fork.0)
    }
}
