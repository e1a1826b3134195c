use std::time::{Duration, Instant};

use crate::{LogId, rendezvous};

/// What a replica has to do about the logs that it shares with others. Every one of them works it out by itself; what they
/// believe decides who waits for whom, a fence beside each checkpoint alone who writes (law 6).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Share {
    /// To be claimed.
    pub wanted: Vec<LogId>,
    /// To be given up.
    pub foreign: Vec<LogId>,
}

/// Whether a replica holds a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holding {
    Yes,
    No,
    /// It does not, and is stored as the holder: a crash took back that it gave the log up.
    Named,
}

impl Share {
    /// What follows for `me` from who lives and what it holds.
    pub fn of(me: &str, live: &[&str], logs: impl IntoIterator<Item = (LogId, Holding)>) -> Self {
        let mut share = Self::default();
        for (log, holding) in logs {
            let ours = rendezvous(log, live.iter().copied()) == Some(me);
            match holding {
                Holding::No | Holding::Named if ours => share.wanted.push(log),
                Holding::Yes | Holding::Named if !ours => share.foreign.push(log),
                Holding::Yes | Holding::No | Holding::Named => {}
            }
        }
        share
    }
}

/// How long others may be silent before what they hold is claimed. After an outage of the database everybody seems dead who
/// did not come back first; so a replica that was away counts nobody as dead before it has been back for a lease.
#[derive(Debug)]
pub struct Patience {
    lease_ttl: Duration,
    present: Option<Presence>,
}

/// From the first answer of the database to the last, without a silence between them.
#[derive(Debug, Clone, Copy)]
struct Presence {
    since: Instant,
    last: Instant,
}

/// Longer than any replica is away: only what nobody holds is claimed, whoever seems dead.
const NEVER: Duration = Duration::from_secs(24 * 60 * 60);

impl Patience {
    pub const fn new(lease_ttl: Duration) -> Self {
        Self { lease_ttl, present: None }
    }

    /// The database answered; how long others may have been silent.
    pub fn answered(&mut self, now: Instant) -> Duration {
        let unbroken = self.present.filter(|present| now.duration_since(present.last) < self.lease_ttl);
        let since = unbroken.map_or(now, |present| present.since);
        self.present = Some(Presence { since, last: now });
        if now.duration_since(since) >= self.lease_ttl { self.lease_ttl } else { NEVER }
    }

    /// The database did not answer.
    pub const fn unanswered(&mut self) {
        self.present = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Partition, Region};

    #[test]
    fn what_falls_to_whom_is_claimed_and_given_up() {
        let logs: Vec<_> = (0..16).map(|partition| LogId { region: Region(1), partition: Partition(partition) }).collect();
        let live = ["one", "two"];
        let (ours, theirs): (Vec<_>, Vec<_>) = logs.iter().copied().partition(|log| rendezvous(*log, live) == Some("one"));
        assert!(!ours.is_empty() && !theirs.is_empty());
        let share = |holding: Holding| Share::of("one", &live, logs.iter().map(|log| (*log, holding)));
        assert_eq!(share(Holding::No), Share { wanted: ours.clone(), foreign: vec![] });
        assert_eq!(share(Holding::Yes), Share { wanted: vec![], foreign: theirs.clone() });
        assert_eq!(share(Holding::Named), Share { wanted: ours, foreign: theirs });
        assert_eq!(Share::of("one", &["two"], [(logs[0], Holding::Yes)]), Share { wanted: vec![], foreign: vec![logs[0]] });
    }

    #[test]
    fn nobody_is_dead_to_who_was_away_itself() {
        let (start, lease_ttl) = (Instant::now(), Duration::from_secs(6));
        let mut patience = Patience::new(lease_ttl);
        let mut at = |seconds| patience.answered(start + Duration::from_secs(seconds));
        assert_eq!([at(0), at(3), at(5)], [NEVER; 3]);
        assert_eq!([at(6), at(9)], [lease_ttl; 2]);
        // Paused for as long as others may be silent, and as if it had just come.
        assert_eq!([at(15), at(18), at(20)], [NEVER; 3]);
        assert_eq!(at(21), lease_ttl);
        patience.unanswered();
        assert_eq!(patience.answered(start + Duration::from_secs(22)), NEVER);
    }
}
