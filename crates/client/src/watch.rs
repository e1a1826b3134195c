use std::time::Duration;

use futures::{Stream, stream};
use souk_proto::orders::v1::{
    GetOrderRequest, Order, OrderState, WatchOrderRequest, WatchOrderResponse, query_service_client::QueryServiceClient,
};
use tokio::time::{Instant, sleep, timeout};
use tonic::{Status, Streaming};

use crate::{
    Error, Session,
    retry::{delay, is_retryable},
    rpc::Door,
};

/// The service sends a heartbeat every 10 s: after three of them missed the connection is dead.
const SILENCE: Duration = Duration::from_secs(30);
/// How long a broken watch is taken up again without a single message before the caller is told.
const PATIENCE: Duration = Duration::from_secs(60);

/// A watch under way.
struct Watch {
    session: Session,
    order_id: String,
    /// Token of the last reply: where to go on.
    token: String,
    stream: Option<Streaming<WatchOrderResponse>>,
    failures: u32,
    heard: Instant,
}

enum Step {
    Order(Box<Order>),
    Heartbeat,
    End,
}

impl Session {
    /// The order as it is now and after every change, until it ends; changes in quick succession may come as one. A
    /// broken connection is taken up again after the last state seen, for up to a minute.
    ///
    /// The first state comes from a query with the session's token, so that it contains the session's own commands.
    pub fn watch_order(&self, order_id: impl Into<String>) -> impl Stream<Item = Result<Order, Error>> + Send + 'static {
        let begin = State::Begin(self.clone(), order_id.into());
        stream::try_unfold(begin, State::next)
    }
}

enum State {
    Begin(Session, String),
    Watching(Box<Watch>),
    Over,
}

impl State {
    async fn next(self) -> Result<Option<(Order, State)>, Error> {
        let mut watch = match self {
            State::Over => return Ok(None),
            State::Begin(session, order_id) => return Watch::begin(session, order_id).await.map(Some),
            State::Watching(watch) => watch,
        };
        match watch.next_order().await? {
            Some(order) => {
                let next = if has_ended(&order) { State::Over } else { State::Watching(watch) };
                Ok(Some((order, next)))
            }
            None => Ok(None),
        }
    }
}

impl Watch {
    async fn begin(session: Session, order_id: String) -> Result<(Order, State), Error> {
        let reply = session.query(GetOrderRequest { order_id: order_id.clone(), token: String::new() }).await?;
        let order = reply.order.unwrap_or_default();
        let token = reply.as_of.map(|as_of| as_of.token).unwrap_or_default();
        if has_ended(&order) {
            return Ok((order, State::Over));
        }
        let watch = Self { session, order_id, token, stream: None, failures: 0, heard: Instant::now() };
        Ok((order, State::Watching(Box::new(watch))))
    }

    async fn next_order(&mut self) -> Result<Option<Order>, Error> {
        loop {
            match self.step().await {
                Ok(step) => {
                    (self.failures, self.heard) = (0, Instant::now());
                    match step {
                        Step::Order(order) => return Ok(Some(*order)),
                        Step::Heartbeat => {}
                        Step::End => return Ok(None),
                    }
                }
                Err(status) => {
                    self.stream = None;
                    self.failures += 1;
                    if !is_retryable(&status, true) || self.heard.elapsed() > PATIENCE {
                        return Err(Error::new(status, self.failures, ""));
                    }
                    sleep(delay(&status, self.failures)).await;
                }
            }
        }
    }

    async fn step(&mut self) -> Result<Step, Status> {
        if self.stream.is_none() {
            self.stream = Some(self.open().await?);
        }
        let Some(stream) = &mut self.stream else { return Ok(Step::End) };
        let silent = |_| Status::unavailable("no heartbeat from the service");
        let Some(message) = timeout(SILENCE, stream.message()).await.map_err(silent)?? else { return Ok(Step::End) };
        if let Some(as_of) = message.as_of {
            self.session.merge_token(&as_of.token);
            self.token = as_of.token;
        }
        Ok(message.order.map_or(Step::Heartbeat, |order| Step::Order(Box::new(order))))
    }

    async fn open(&self) -> Result<Streaming<WatchOrderResponse>, Status> {
        let channel = self.session.souk().channel(Door::Query).ok_or_else(|| Status::internal("there is always a query endpoint"))?;
        let request = WatchOrderRequest { order_id: self.order_id.clone(), token: self.token.clone() };
        Ok(QueryServiceClient::new(channel).watch_order(self.session.request(request)).await?.into_inner())
    }
}

/// Nothing more will happen to the order but a payment that comes too late.
fn has_ended(order: &Order) -> bool {
    matches!(order.state(), OrderState::Delivered | OrderState::Rejected | OrderState::Cancelled)
}
