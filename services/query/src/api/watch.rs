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
use futures::{Stream, StreamExt, TryStreamExt, stream};
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
    let watch = Watch { core, order_id, log, horizons, answer, history, shown };
    let replies = stream::try_unfold(watch, |mut watch| async move { Ok(watch.reply().await?.map(|reply| (reply, watch))) });
    Ok(Box::pin(cut_off_slow(replies.map_err(|failure: Failure| failure.into()), PATIENCE)))
}

/// Ends a stream whose reader takes the next reply only after `patience`, or which failed.
fn cut_off_slow<T>(replies: impl Stream<Item = Result<T, Status>>, patience: Duration) -> impl Stream<Item = Result<T, Status>> {
    let state = (Box::pin(replies), None::<Instant>, false);
    stream::unfold(state, move |(mut replies, given, over)| async move {
        if over {
            return None;
        }
        if given.is_some_and(|given| given.elapsed() > patience) {
            let slow = Failure::unavailable("SLOW_READER", "replies were not taken in time; resume with the last token", RESUME_AFTER);
            return Some((Err(slow.into()), (replies, None, true)));
        }
        let reply = replies.next().await?;
        let over = reply.is_err();
        Some((reply, (replies, Some(Instant::now()), over)))
    })
}

fn key(log: LogId, order_id: &str) -> RowRef<'_> {
    RowRef { view: View::Order, log, key: order_id }
}

impl Watch {
    /// The next reply; `None` when the order has ended and the caller has its last state.
    async fn reply(&mut self) -> Result<Option<WatchOrderResponse>, Failure> {
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
        let as_made = horizon.history == self.history && horizon.making == self.answer.entry.provenance.making;
        let known = horizon.proven(now) && as_made && self.answer.contained >= horizon.least(changed);
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

#[cfg(test)]
mod tests {
    use souk_runtime::ERROR_DOMAIN;
    use tonic_types::StatusExt;

    use super::*;

    #[tokio::test]
    async fn a_slow_reader_is_cut_off_and_may_resume() {
        const PATIENCE: Duration = Duration::from_millis(20);
        let mut replies = Box::pin(cut_off_slow(stream::repeat_with(|| Ok(7)), PATIENCE));
        assert_eq!(replies.next().await.unwrap().unwrap(), 7);
        assert_eq!(replies.next().await.unwrap().unwrap(), 7);
        tokio::time::sleep(PATIENCE * 2).await;
        let status = replies.next().await.unwrap().unwrap_err();
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!((status.code(), info.reason.as_str(), info.domain.as_str()), (tonic::Code::Unavailable, "SLOW_READER", ERROR_DOMAIN));
        assert!(details.retry_info().is_some());
        assert!(replies.next().await.is_none());
    }

    #[tokio::test]
    async fn waiting_for_the_next_state_makes_no_reader_slow() {
        const PATIENCE: Duration = Duration::from_millis(20);
        let slow_order = stream::repeat(()).then(|()| tokio::time::sleep(PATIENCE * 2)).map(Ok);
        let mut replies = Box::pin(cut_off_slow(slow_order, PATIENCE));
        for _ in 0..3 {
            assert!(replies.next().await.unwrap().is_ok());
        }
    }

    #[tokio::test]
    async fn a_failure_ends_the_stream() {
        let mut replies = Box::pin(cut_off_slow(stream::repeat_with(|| Err::<(), _>(Status::internal("broken"))), PATIENCE));
        assert!(replies.next().await.unwrap().is_err());
        assert!(replies.next().await.is_none());
    }
}
