//! One entity, watched: its state now and after every change, conflated.
//!
//! The state is read when the caller's side asks for the next reply, never queued: a slow reader skips states and costs no
//! memory; one that stops reading is cut off after its patience. Subscribed to the log first and read then, so that no
//! change falls between.

use std::{
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{Stream, TryStreamExt, stream};
use prost::Message;
use souk_event_sourcing::Token;
use souk_proto::common::v1::AsOf;
use souk_runtime::{Deadline, Failure, ReplyPatience};
use tokio::{sync::watch::Receiver, time::timeout_at};
use tonic::{Request, Response, Status};

use super::entity::{freshness, stored};
use crate::{
    cache::{Answer, Horizon, Log, ReadError, RowRef, Standing, View, mark_of},
    check::Check,
    core::Core,
};

/// The replies of a watch.
pub(crate) type Watching<R> = Pin<Box<dyn Stream<Item = Result<R, Status>> + Send>>;

/// Between looks at the store while the feed is silent.
const SILENT_PAUSE: Duration = Duration::from_secs(1);
/// Longest a look may wait for the store.
const LOOK_LIMIT: Duration = Duration::from_secs(5);

/// A view whose entities can be watched.
pub(super) trait Watched: Send + 'static {
    const VIEW: View;
    type Row: Message + Default;
    type Reply: Send + 'static;

    /// Without a row it is a heartbeat.
    fn reply(row: Option<Self::Row>, as_of: AsOf) -> Self::Reply;

    /// Whether nothing follows this state.
    fn has_ended(row: &Self::Row) -> bool;
}

struct Watch<W> {
    core: Arc<Core>,
    id: String,
    log: Arc<Log>,
    horizons: Receiver<Horizon>,
    /// The last answer read.
    answer: Answer,
    /// History of the log in which it was read.
    history: u64,
    /// The row the caller has.
    shown: Option<Bytes>,
    watched: PhantomData<fn() -> W>,
}

enum Next {
    State,
    Heartbeat,
}

/// Begins to watch; the stream's first reply is the state, unless the token says that the caller has it.
///
/// # Errors
/// As the query for one entity of the view.
pub(super) async fn begin<W: Watched, T>(
    core: &Arc<Core>,
    id: &str,
    token: &str,
    request: &Request<T>,
) -> Result<Response<Watching<W::Reply>>, Failure> {
    let until = core.patience(Deadline::of(request));
    let mut check = Check::default();
    let log = check.field(W::VIEW.id_field(), W::VIEW.log(&core.routing, id));
    let token = check.token(&core.token_key, token, request.metadata().as_ref());
    check.finish()?;
    let key = RowRef { view: W::VIEW, log: log.expect("checked"), key: id };
    let log = core.reader.log(key.log).map_err(|_| W::VIEW.not_found(id))?.clone();
    let mut horizons = log.watch();
    let history = horizons.borrow_and_update().history;
    let answer = core.reader.read(key, &token, until).await?;
    let Some(row) = &answer.entry.row else { return Err(W::VIEW.not_found(id)) };
    let seen = mark_of(&token, key.log).is_some_and(|token| row.position <= token.position);
    let shown = seen.then(|| row.body());
    let patience = ReplyPatience(core.settings.query.watch_patience);
    let watch = Watch::<W> { core: core.clone(), id: id.to_owned(), log, horizons, answer, history, shown, watched: PhantomData };
    let replies = stream::try_unfold(watch, |mut watch| async move { Ok(watch.reply().await?.map(|reply| (reply, watch))) });
    let mut response = Response::new(Box::pin(replies.map_err(|failure: Failure| failure.into())) as Watching<W::Reply>);
    response.extensions_mut().insert(patience);
    Ok(response)
}

impl<W: Watched> Watch<W> {
    fn key(&self) -> RowRef<'_> {
        RowRef { view: W::VIEW, log: self.log.id, key: &self.id }
    }

    /// The next reply; `None` when the entity has ended and the caller has its last state.
    async fn reply(&mut self) -> Result<Option<W::Reply>, Failure> {
        if !self.has_news() && self.ended()? {
            return Ok(None);
        }
        let row = match self.next().await? {
            Next::State => {
                self.shown = self.body();
                self.shown.clone().map(stored::<W::Row>).transpose()?
            }
            Next::Heartbeat => None,
        };
        Ok(Some(W::reply(row, self.core.as_of(freshness(self.log.id, &self.answer)))))
    }

    /// Waits for a state the caller does not have, or for the time of a heartbeat.
    async fn next(&mut self) -> Result<Next, Failure> {
        let heartbeat = Instant::now() + self.core.settings.query.watch_heartbeat;
        while !self.has_news() {
            let now = Instant::now();
            if now >= heartbeat {
                return Ok(Next::Heartbeat);
            }
            let horizon = *self.horizons.borrow_and_update();
            if self.may_have_changed(&horizon, now) {
                self.look(now).await?;
                if self.has_news() {
                    break;
                }
            }
            let pause = horizon.proof_ends().filter(|ends| *ends > now).unwrap_or(now + SILENT_PAUSE);
            let _ = timeout_at(pause.min(heartbeat).into(), self.horizons.changed()).await;
        }
        Ok(Next::State)
    }

    /// Whether the entity may be another than in the last answer. If not, the answer holds up to the horizon.
    fn may_have_changed(&mut self, horizon: &Horizon, now: Instant) -> bool {
        let changed = self.log.changed.last(self.key().bucket_hash());
        let as_made = horizon.history == self.history && horizon.making == self.answer.entry.provenance.making;
        let known = horizon.proven(now) && as_made && self.answer.contained >= horizon.least(changed);
        if known {
            self.answer.contained = self.answer.contained.max(horizon.feed);
            self.answer.heard = self.answer.heard.max(horizon.time);
        }
        !known
    }

    /// Reads the entity anew. A snapshot older than the last answer is dropped: the caller never goes back, unless the log has,
    /// which ends the watch.
    async fn look(&mut self, now: Instant) -> Result<(), Failure> {
        let history = self.log.horizon().history;
        let answer = match self.core.reader.read(self.key(), &Token::default(), now + LOOK_LIMIT).await {
            // Looked for again at the next news of the log, or when the pause is over.
            Err(ReadError::Crashed(_) | ReadError::TooLong(_) | ReadError::Rebuilding { .. }) => return Ok(()),
            answer => answer?,
        };
        match self.log.standing(self.answer.contained, answer.contained) {
            Standing::Reached => (self.answer, self.history) = (answer, history),
            Standing::Lost => return Err(ReadError::Restored { log: self.log.id, token: self.answer.contained }.into()),
            Standing::Ahead => {}
        }
        Ok(())
    }

    fn has_news(&self) -> bool {
        self.body() != self.shown
    }

    fn body(&self) -> Option<Bytes> {
        self.answer.entry.row.as_ref().map(|row| row.body())
    }

    /// Whether nothing follows the state the caller has.
    fn ended(&self) -> Result<bool, Failure> {
        let Some(body) = &self.shown else { return Ok(false) };
        Ok(W::has_ended(&stored(body.clone())?))
    }
}
