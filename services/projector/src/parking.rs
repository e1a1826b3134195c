use std::{slice, sync::Arc};

use prost::Message;
use souk_bus::{from_wire, to_wire};
use souk_event_sourcing::{LogId, Position, RecordedEvent, StreamId, UnixMillis};
use souk_proto::log::v1::Event;
use souk_read_store::{Batch, Checkpoint, ParkedEvent, ReadStoreError, ViewStore};
use souk_views::Folder;
use tokio::sync::{mpsc, oneshot};

use crate::{
    batch::step,
    changes,
    sequence::Tail,
    shard::{Held, Shard, now},
};

/// Parked events held in memory at a time.
const PAGE: usize = 64;

/// What an operator wants of a parked entity; the shard that writes its log does it between two batches.
#[derive(Debug)]
pub(crate) struct Errand {
    pub log: LogId,
    pub stream: StreamId,
    pub wish: Wish,
    pub answer: oneshot::Sender<Result<Done, Refused>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Apply its events, all or none.
    Replay,
    /// Tell what a replay would come to.
    Try,
    /// Give its events up.
    Drop,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Done {
    /// Events applied or given up, or those before the one that failed.
    pub events: u64,
    /// Why one could not be applied.
    pub failure: Option<String>,
}

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("log {0} is not held by this projector")]
    NotHeld(LogId),
    #[error("nothing of {0} is set aside")]
    NotParked(StreamId),
    #[error(transparent)]
    Store(#[from] ReadStoreError),
}

/// Where the shard of one database takes errands, and where their subjects lie.
#[derive(Clone)]
pub(crate) struct Errands {
    pub store: Arc<dyn ViewStore>,
    pub logs: Vec<LogId>,
    pub door: mpsc::Sender<Errand>,
}

impl Errands {
    /// # Errors
    /// [`Refused::NotHeld`] also when the shard has ended.
    pub(crate) async fn run(&self, log: LogId, stream: StreamId, wish: Wish) -> Result<Done, Refused> {
        let (answer, done) = oneshot::channel();
        self.door.send(Errand { log, stream, wish, answer }).await.map_err(|_| Refused::NotHeld(log))?;
        done.await.map_err(|_| Refused::NotHeld(log))?
    }
}

/// `event` as it is set aside.
pub(crate) fn parked(event: &RecordedEvent, reason: String, since: UnixMillis) -> ParkedEvent {
    let envelope = to_wire(event).encode_to_vec().into();
    ParkedEvent { log: event.log, position: event.position, stream: event.stream.clone(), envelope, reason, since }
}

/// The event that was set aside.
///
/// # Errors
/// One line when the envelope cannot be read.
pub(crate) fn unpark(parked: &ParkedEvent) -> Result<RecordedEvent, String> {
    let event = Event::decode(parked.envelope.clone()).map_err(|error| error.to_string())?;
    from_wire(event).map_err(|error| error.to_string())
}

impl Shard {
    /// Does what was asked and answers. The database's trouble is the asker's, and the loop goes on.
    pub(crate) async fn run_errand(&mut self, errand: Errand) -> Result<(), ReadStoreError> {
        let Errand { log, stream, wish, answer } = errand;
        let done = self.attend(log, &stream, wish).await;
        match &done {
            Ok(Done { events, failure }) => tracing::info!(%log, %stream, ?wish, events, failure, "parked entity attended to"),
            Err(error) => tracing::warn!(%log, %stream, ?wish, %error, "parked entity not attended to"),
        }
        // Whoever asked may have gone.
        let _ = answer.send(done);
        Ok(())
    }

    async fn attend(&mut self, log: LogId, stream: &StreamId, wish: Wish) -> Result<Done, Refused> {
        let progress = self.logs.get(&log).filter(|_| !self.unsynced.contains(&log));
        let held = progress.filter(|progress| matches!(progress.held, Held::Us(_))).and_then(|progress| progress.checkpoint);
        let checkpoint = held.ok_or(Refused::NotHeld(log))?;
        let mut folder = Folder::new(1);
        let done = self.fold_parked(&mut folder, log, stream, wish).await?;
        if wish == Wish::Try {
            return Ok(done);
        }
        let failure = match done.failure {
            Some(failure) => failure,
            None => match self.write_released(&checkpoint, stream, &mut folder).await {
                Ok(()) => return Ok(done),
                Err(Refused::Store(error)) if error.refuses_data() => error.to_string(),
                Err(error) => return Err(error),
            },
        };
        if !self.store.blame(log, checkpoint.fence, stream, &failure).await? {
            return Err(Refused::NotHeld(log));
        }
        Ok(Done { failure: Some(failure), ..done })
    }

    /// Folds what is set aside of an entity onto its row, page by page, or passes over it.
    async fn fold_parked(&self, folder: &mut Folder, log: LogId, stream: &StreamId, wish: Wish) -> Result<Done, Refused> {
        let (mut events, mut after) = (0, Position(0));
        loop {
            let page = self.store.parked_events(log, stream, after, PAGE).await?;
            let Some(last) = page.last() else { break };
            after = last.position;
            for parked in &page {
                let event = match unpark(parked) {
                    Ok(event) => event,
                    Err(failure) => return Ok(Done { events, failure: Some(failure) }),
                };
                if events == 0 {
                    folder.prepare(&*self.store, slice::from_ref(&event)).await?;
                    folder.release(log, stream);
                }
                match wish {
                    Wish::Drop => folder.skip(&event),
                    Wish::Replay | Wish::Try => {
                        if let Err(poison) = folder.apply(&event) {
                            return Ok(Done { events, failure: Some(poison.to_string()) });
                        }
                    }
                }
                events += 1;
            }
        }
        if events == 0 { Err(Refused::NotParked(stream.clone())) } else { Ok(Done { events, failure: None }) }
    }

    /// Writes the rows and lets the entity go, in one transaction that holds exactly if no event was projected meanwhile.
    async fn write_released(&mut self, checkpoint: &Checkpoint, stream: &StreamId, folder: &mut Folder) -> Result<(), Refused> {
        let log = checkpoint.log;
        let batch = Batch {
            advances: vec![step(checkpoint, Tail::from(checkpoint))],
            rows: folder.finish(),
            parked: Vec::new(),
            released: vec![(log, stream.clone())],
            revision: checkpoint.revision,
            now: now(),
        };
        // What is in memory of the log has the marks.
        self.folder.forget(log);
        let written = match self.store.write(&batch).await {
            Ok(written) => written,
            Err(error) => {
                if error.retryable() {
                    self.unsynced.insert(log);
                }
                return Err(error.into());
            }
        };
        let Some(moved) = written.moved.first() else {
            self.lost(log);
            return Err(Refused::NotHeld(log));
        };
        let mut message = self.message(moved, moved.position);
        message.rows = changes::changed_rows(&batch.rows, batch.now).remove(&log).unwrap_or_default();
        self.ports.changes.publish(message);
        if let Some(progress) = self.logs.get_mut(&log) {
            progress.checkpoint = Some(*moved);
            // It may have stood still because too much was set aside.
            if progress.halted.is_some() {
                self.unsynced.insert(log);
            }
        }
        self.note(log);
        Ok(())
    }
}
