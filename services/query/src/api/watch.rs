//! One order, watched: its state now and after every change, conflated.
//!
//! The state is read when the caller's side asks for the next reply, never queued: a slow reader skips states and costs no
//! memory. Subscribed to the log first and read then, so that no change falls between.

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{Stream, stream};
use souk_event_sourcing::{LogId, Token};
use souk_proto::orders::v1::{Order, OrderState, WatchOrderRequest, WatchOrderResponse};
use souk_runtime::{Deadline, Failure};
use tokio::{sync::watch::Receiver, time::timeout_at};
use tonic::{Request, Status};

use super::entity::{freshness, stored};
use crate::{
    cache::{Answer, Horizon, Log, ReadError, RowRef, View, mark_of},
    check::Check,
    core::Core,
};

pub(crate) type Watching = Pin<Box<dyn Stream<Item = Result<WatchOrderResponse, Status>> + Send>>;

/// A reader that leaves a reply untaken for this long is cut off and may resume.
const PATIENCE: Duration = Duration::from_secs(30);
const RESUME_AFTER: Duration = Duration::from_millis(200);
/// Between looks at the store while the feed is silent.
const SILENT_PAUSE: Duration = Duration::from_secs(1);
/// Longest a look may wait for the store.
const LOOK_LIMIT: Duration = Duration::from_secs(5);

struct Watch {
    core: Arc<Core>,
    order_id: String,
    log: Arc<Log>,
    horizons: Receiver<Horizon>,
    /// The last answer read.
    answer: Answer,
    /// History of the log in which it was read.
    history: u64,
    /// The row the caller has.
    shown: Option<Bytes>,
    over: bool,
    asked: Instant,
}

enum Next {
    State,
    Heartbeat,
}

/// Begins to watch; the stream's first reply is the state, unless the token says that the caller has it.
///
/// # Errors
/// As GetOrder.
pub(super) async fn begin(core: Arc<Core>, request: Request<WatchOrderRequest>) -> Result<Watching, Failure> {
    let until = core.patience(Deadline::of(&request));
    let (metadata, _, WatchOrderRequest { order_id, token }) = request.into_parts();
    let mut check = Check::default();
    let log = check.field("order_id", core.routing.order(&order_id));
    let token = check.token(&core.token_key, &token, &metadata);
    check.finish()?;
    let id = log.expect("checked");
    let log = core.reader.log(id).map_err(|_| View::Order.not_found(&order_id))?.clone();
    let mut horizons = log.watch();
    let history = horizons.borrow_and_update().history;
    let answer = core.reader.read(key(id, &order_id), &token, until).await?;
    let Some(row) = &answer.entry.row else { return Err(View::Order.not_found(&order_id)) };
    let seen = mark_of(&token, id).is_some_and(|token| row.position <= token.position);
    let shown = seen.then(|| row.body.clone());
    let watch = Watch { core, order_id, log, horizons, answer, history, shown, over: false, asked: Instant::now() };
    Ok(Box::pin(stream::unfold(watch, |mut watch| async move { watch.reply().await.map(|reply| (reply, watch)) })))
}

fn key(log: LogId, order_id: &str) -> RowRef<'_> {
    RowRef { view: View::Order, log, key: order_id }
}

impl Watch {
    /// The next reply; `None` when the order has ended and the caller has its last state.
    async fn reply(&mut self) -> Option<Result<WatchOrderResponse, Status>> {
        if self.over {
            return None;
        }
        if self.asked.elapsed() > PATIENCE {
            self.over = true;
            return Some(Err(Failure::unavailable("SLOW_READER", "replies were not taken; resume with the last token", RESUME_AFTER).into()));
        }
        let reply = self.next_reply().await;
        self.asked = Instant::now();
        self.over = !matches!(reply, Ok(Some(_)));
        reply.map_err(Status::from).transpose()
    }

    async fn next_reply(&mut self) -> Result<Option<WatchOrderResponse>, Failure> {
        if !self.has_news() && self.ended()? {
            return Ok(None);
        }
        let order = match self.next().await? {
            Next::State => {
                self.shown = self.body();
                self.shown.as_ref().map(stored::<Order>).transpose()?
            }
            Next::Heartbeat => None,
        };
        Ok(Some(WatchOrderResponse { order, as_of: Some(self.core.as_of(freshness(self.log.id, &self.answer))) }))
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

    /// Whether the order may be another than in the last answer. If not, the answer holds up to the horizon.
    fn may_have_changed(&mut self, horizon: &Horizon, now: Instant) -> bool {
        let changed = self.log.changed.last(key(self.log.id, &self.order_id).bucket_hash());
        let known = horizon.proven(now) && horizon.history == self.history && self.answer.contained >= horizon.least(changed);
        if known {
            self.answer.contained = self.answer.contained.max(horizon.feed);
            self.answer.heard = self.answer.heard.max(horizon.time);
        }
        !known
    }

    /// Reads the order anew. A snapshot older than the last answer is dropped: the caller never goes back.
    async fn look(&mut self, now: Instant) -> Result<(), Failure> {
        let history = self.log.horizon().history;
        let answer = match self.core.reader.read(key(self.log.id, &self.order_id), &Token::default(), now + LOOK_LIMIT).await {
            Err(ReadError::Crashed(_)) => return Ok(()),
            answer => answer?,
        };
        if history != self.history || answer.contained >= self.answer.contained {
            (self.answer, self.history) = (answer, history);
        }
        Ok(())
    }

    fn has_news(&self) -> bool {
        self.body() != self.shown
    }

    fn body(&self) -> Option<Bytes> {
        self.answer.entry.row.as_ref().map(|row| row.body.clone())
    }

    /// Whether nothing follows the state the caller has.
    fn ended(&self) -> Result<bool, Failure> {
        let Some(body) = &self.shown else { return Ok(false) };
        let order: Order = stored(body)?;
        Ok(matches!(order.state(), OrderState::Delivered | OrderState::Rejected | OrderState::Cancelled))
    }
}
