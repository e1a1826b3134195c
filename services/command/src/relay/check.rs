use metrics::counter;
use souk_bus_publisher::{LogPublisher, PublishError, StreamState};
use souk_event_sourcing::{Epoch, LogHash, LogId, Position};
use souk_event_store::{EventLog, StoreError};
use tracing::{info, warn};

use super::{OwnedLog, Relays};

/// Why a relay cannot go on for now.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The log has another owner: this relay must not touch its stream.
    #[error("the log has another owner")]
    NotOwner,
}

/// How far the stream is a copy of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Copied {
    pub last: Position,
    /// Running hash at `last`.
    pub hash: LogHash,
}

/// Looks at the stream of a log and makes it anew unless it is a copy of the log's end: whole, ours, not ahead, and
/// with the log's own event at its last position. By the hash chain that event stands for all before it.
pub(super) async fn check<S: OwnedLog, P: LogPublisher, F>(relays: &Relays<S, P, F>, log: LogId, epoch: Epoch) -> Result<Copied, Trouble> {
    let (store, publisher) = (&*relays.store, &*relays.publisher);
    let head = store.head(log).await?.position;
    let flaw = match publisher.state(log).await? {
        None => "missing",
        Some(state) => match compare(store, publisher, log, head, state).await? {
            Ok(copied) => return Ok(copied),
            Err(flaw) => flaw,
        },
    };
    if !store.still_owner(log, epoch).await? {
        return Err(Trouble::NotOwner);
    }
    let first = Position(head.0.saturating_sub(relays.tuning.refill) + 1);
    if flaw != "missing" {
        warn!(%log, flaw, %first, "the stream is no copy of the log: it is made anew");
        counter!("souk_relay_rebuilds_total", "flaw" => flaw).increment(1);
        publisher.delete(log).await?;
    }
    publisher.create(log, first).await?;
    info!(%log, %first, "the stream is made");
    let last = Position(first.0 - 1);
    Ok(Copied { last, hash: hash_at(store, log, last).await? })
}

/// Compares stream and log; a flaw is named.
async fn compare<S: EventLog, P: LogPublisher>(
    store: &S,
    publisher: &P,
    log: LogId,
    head: Position,
    state: StreamState,
) -> Result<Result<Copied, &'static str>, Trouble> {
    if !state.ours {
        return Ok(Err("foreign"));
    }
    if !state.whole {
        return Ok(Err("holes"));
    }
    if state.last > head {
        return Ok(Err("ahead"));
    }
    let hash = hash_at(store, log, state.last).await?;
    if state.first > state.last {
        return Ok(Ok(Copied { last: state.last, hash }));
    }
    let event = publisher.event(log, state.last).await?;
    let same = event.is_some_and(|event| event.log == log && event.position == state.last && event.hash == hash);
    Ok(if same { Ok(Copied { last: state.last, hash }) } else { Err("different") })
}

/// Running hash of the log at a position.
async fn hash_at(store: &impl EventLog, log: LogId, position: Position) -> Result<LogHash, StoreError> {
    if position.0 == 0 {
        return Ok(LogHash::EMPTY);
    }
    let event = store.read(log, position, 1).await?.pop();
    event.map(|event| event.hash).ok_or_else(|| StoreError::Corrupt(format!("log {log} has no event at {position}")))
}

/// Whether the stream still is what the relay left behind; cheaper than [`check`], nothing is asked of the database.
pub(super) async fn unchanged<P: LogPublisher>(publisher: &P, log: LogId, copied: Copied) -> Result<bool, PublishError> {
    let Some(state) = publisher.state(log).await? else { return Ok(false) };
    if !state.ours || !state.whole || state.last != copied.last {
        return Ok(false);
    }
    if state.first > state.last {
        return Ok(true);
    }
    Ok(publisher.event(log, state.last).await?.is_some_and(|event| event.hash == copied.hash))
}
